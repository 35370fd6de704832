"""S3 objects: conditional puts create an object once, one request deletes 1,000, and uploads may remain unfinished."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import fsspec

from kdcache.cache.storage.objects import Upload, reading
from kdcache.cache.storage.remote import RemoteObjects, seconds, was_refused

_MAX_PUT_BYTES = 5 * 2**30  # S3's limit for one put
_DELETED_AT_ONCE = 1000  # S3's limit for one request


class S3Objects(RemoteObjects):
    """Objects in a bucket of S3, or of a server with the same API.

    `creates_once` is assumed until a probe shows otherwise (opening.py).
    """

    # Never in parts: of four multipart uploads with `If-None-Match`, completed at once, SeaweedFS let up to four win.
    _put_options = MappingProxyType({"chunksize": _MAX_PUT_BYTES})

    def __init__(self, url: str) -> None:
        super().__init__(url, _client_options())
        self.fs.retries = 1  # retries.py alone retries
        self.creates_once = True
        self._bucket, key, _ = self.fs.split_path(self.prefix)
        self._under = f"{key}/" if key else ""  # the start of every key

    def replace(self, path: str, data: bytes) -> None:
        with self._changing("write", path):
            existing = self._ask(lambda: self._info(path)) or {}
            # Only if nobody changed it since: two repairs at once must not overwrite each other unseen.
            match = {"IfMatch": existing["ETag"]} if "ETag" in existing else {}
            try:
                self._ask(lambda: self.fs.pipe_file(self._full(path), data, **self._put_options, **match))
            except Exception as error:
                # After a lost reply the retry no longer matches: our first attempt has changed the object.
                if not (was_refused(error) and self._has_bytes(path, data)):
                    raise

    def remove_many(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _DELETED_AT_ONCE):
            keys = [{"Key": f"{self._under}{path}"} for path in paths[start : start + _DELETED_AT_ONCE]]
            with self._changing("remove objects of"):
                self._ask(partial(self._delete, keys))

    def _delete(self, keys: Sequence[Mapping[str, str]]) -> None:
        """Send one request. The response lists the keys that were not deleted, which s3fs itself ignores."""
        request = {"Objects": keys, "Quiet": True}
        response = self.fs.call_s3("delete_objects", Bucket=self._bucket, Delete=request)
        for refused in response.get("Errors", [])[:1]:  # one is enough for the message, or for a retry of all
            raise _RefusedKey(refused)

    def remove_all(self) -> None:
        self.remove_many([each.path for each in self.walk("")])

    def remove_leftovers(self) -> None:
        """Nothing to do: an object appears complete or not at all. For unfinished uploads see `uploads`."""

    def uploads(self) -> list[Upload]:
        with reading(self.url, ""):
            return [
                Upload(each["Key"][len(self._under) :], each["UploadId"], size, seconds(each["Initiated"]))
                for each in self._listed_uploads()
                if (size := self._arrived_bytes(each["Key"], each["UploadId"])) is not None
            ]

    def _listed_uploads(self) -> Iterator[Mapping[str, Any]]:
        marker: dict[str, str] = {}
        while True:
            page = self._call("list_multipart_uploads", Prefix=self._under, **marker)
            yield from page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _arrived_bytes(self, key: str, upload: str) -> int | None:
        """Bytes of an upload's parts (of the first 1,000 parts); None if the upload no longer exists."""
        try:
            parts = self._call("list_parts", Key=key, UploadId=upload).get("Parts", [])
        except FileNotFoundError:
            return None
        return sum(int(part["Size"]) for part in parts)

    def abort(self, upload: Upload) -> None:
        with suppress(FileNotFoundError), reading(self.url, upload.path):
            self._call("abort_multipart_upload", Key=f"{self._under}{upload.path}", UploadId=upload.id)

    def _call(self, method: str, **arguments: Any) -> Any:
        """S3's response to a request about the bucket that fsspec does not offer."""
        return self._ask(lambda: self.fs.call_s3(method, Bucket=self._bucket, **arguments))


class _RefusedKey(Exception):
    """A key that a request did not delete. `response` has the form of botocore's errors, for retries.py."""

    def __init__(self, refused: Mapping[str, str]) -> None:
        super().__init__(f"{refused['Key']}: {refused.get('Code')}")
        self.response = {"Error": {"Code": refused.get("Code", "")}}


def _client_options() -> dict[str, Any]:
    """Options of s3fs: it keeps no listings, and it does not retry."""
    # From FSSPEC_S3_CONFIG_KWARGS; keep the user's
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    retries = {"total_max_attempts": 1, "mode": "standard"}
    # A kept listing would hide what other builders have committed since.
    return {"use_listings_cache": False, "config_kwargs": {**own, "retries": retries}}
