"""How a teacher's output becomes stored arrays: a quantiser and a lossless compressor, with a declared error.

Read in this order: `request` (what may be asked, as text), `packing` (how rows are stored), `codec` (the interface), `scalar`, `basis` and `transform`, `range_coder` (the codecs), `shards` (the
Zarr arrays that hold their codes), `fidelity` (what a codec lost), `choose` (the smallest codec that keeps a promise),
`registry` (codecs by name), `rate_distortion` (size against error for all of them).
"""
