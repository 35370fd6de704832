"""One student, one method, one loop.

Read in this order: `sync_norm` (BatchNorm over processes), `run` (a run, opened), `loop` (the loop, and one step of it), `stream` (batches over all epochs),
`budget` (when to stop), `checkpoint` (the state on disk), `profile` (a trace), `outcome` (what a run leaves).
"""
