"""A store: what it was asked for, what it contains, and how to read it.

Read in this order: `spec` (the request; its digest is the store's key), `calibration` (what the request left open),
`ledger` (commit records), `store` (paths, and committing a unit), `opening` (stores by URL, and all stores of a home),
`survey` (how complete a store is), `reader` (single entries), `stored_images` (a data set made of a store's own crops).
"""
