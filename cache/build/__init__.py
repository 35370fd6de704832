"""Building a store: views go through the teacher into committed units, by any number of processes.

Read in this order: `entries` (crops and targets of a batch), `calibrating` (codecs are fitted, once for a store),
`leases` and `assignment` (who builds which unit), `builder` (the pipeline of one process), `build` (the whole job),
`watch` (all builders together), `plan` (bytes and time before anything is built), `disk_space` (what is left, and
whether it fits).
"""
