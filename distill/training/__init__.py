"""One student, one method, one loop.

Read in this order: `sync_norm` (BatchNorm over processes), `run` (builds everything that a run needs), `loop` (the loop, and one step of it), `stream` (batches
over all epochs), `budget` (when to stop), `forecast` (when that will be), `stopping` (SIGTERM), `checkpoint` (the state on disk), `results` (the files
that a run writes), `profile` (a trace).
"""
