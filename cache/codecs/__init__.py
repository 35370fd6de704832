"""How a teacher's output becomes stored arrays: a quantiser and a lossless compressor, with a declared error.

Read in this order: `request` (what you can ask for, as text), `packing` (how rows are stored), `precision`
(float32 without TF32), `codec` (the interface), `scalar`, `basis` and `transform`, `range_coder` (the codecs), `shards`
(the Zarr arrays that contain their codes), `fidelity` (what a codec loses), `choose` (the smallest codec that keeps its
loss within a bound), `registry` (codecs by name), `rate_distortion` (size against error for all of them).
"""
