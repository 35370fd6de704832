"""Building a store: views through the teacher into committed units, by any number of processes.

Read in this order: `entries` (crops and targets of a batch), `calibrating` (codecs fitted, once a store), `leases` and
`shares` (who builds which unit), `builder` (one process's pipeline), `build` (the whole job), `watch` (all builders
together), `plan` (bytes and time before anything is built), `disk_space` (whether it fits).
"""
