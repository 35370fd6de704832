"""Views: augmented crops as explicit integers, and their replay to the same bytes on every machine.

Read in this order: `policy` (what determines views; policies by name), `view` (one view as integers), `drawing` (from a
policy to a view), `pixels` (integer resize and colours), `replay` (from a view to its crop and the crop's digest), `device_replay` (the same for a batch, on its device),
`crops` (crops kept in a store), `maps` (the geometry of stride-8 maps).
"""
