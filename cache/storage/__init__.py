"""Named bytes anywhere: a local folder, S3, or any file system that fsspec knows.

Read in this order: `objects` (what every storage offers: get, create-only put, list), `local`, `remote` and `s3` (the
three implementations), `urls` and `opening` (from a URL to its objects, and whether a bucket creates an object once),
`patience` (which errors are transient, and how long to retry), `writers` (names of processes), `documents` (JSON that a
stranger may have written), `shard_cache` (remote objects kept on this host), `speed` (how fast a storage is).
"""
