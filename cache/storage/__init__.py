"""Named bytes anywhere: a local folder, S3, or any file system that fsspec knows.

Read in this order: `objects` (what every storage offers: get, create-only put, list), `local`, `remote` and `s3` (the
three implementations), `urls` and `opening` (from a URL to its objects; a probe of what a bucket guarantees), `retries`
(which errors are transient, and how long to retry), `writers` (names of processes), `documents` (JSON, read as
untrusted data), `host_cache` (what is kept on this host, within a
limit), `shard_cache` (remote objects in it), `speed` (how fast a storage is).
"""
