"""One student, one method, one loop.

Read in this order: `run` (a run, opened), `loop` (the loop, and one step of it), `stream` (batches over all epochs),
`budget` (when to stop), `forecast` (when that will be), `checkpoint` (the state on disk), `profile` (a trace),
`outcome` (what a run leaves).
"""
