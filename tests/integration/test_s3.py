"""Every request to S3 is retried after transient errors, and deleting many objects reports those that remain."""

import pytest
from faultproxy import FaultProxy

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.objects import Upload
from kdcache.cache.storage.retries import RetryPolicy
from kdcache.cache.storage.s3 import S3Objects

QUICK = RetryPolicy(first_s=60.0, later_s=60.0, shortest_pause_s=0.001, longest_pause_s=0.01)
ROUNDS = 8
FAULTS = ("500", "503", "reset", "lost")


@pytest.fixture
def objects(bucket: str, faulty: FaultProxy) -> S3Objects:
    """Objects behind the proxy, with short pauses."""
    objects = S3Objects(bucket)
    objects.retry_policy = QUICK
    return objects


def begin_uploads(objects: S3Objects, *paths: str) -> None:
    """Unfinished multipart uploads with one part of 1000 bytes each."""
    bucket, _, key = objects.prefix.partition("/")
    for path in paths:
        place = {"Bucket": bucket, "Key": f"{key}/{path}"}
        upload = objects.fs.call_s3("create_multipart_upload", **place)["UploadId"]
        objects.fs.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=b"x" * 1000)


def test_listings_and_heads_are_asked_again(objects: S3Objects, faulty: FaultProxy) -> None:
    for path in ("a/1", "a/b/2", "c"):
        objects.put_new(path, path.encode())
    faulty.faults, faulty.fault_share = FAULTS, 0.5
    for _ in range(ROUNDS):
        assert objects.names("a") == ["1", "b"]
        assert [each[:2] for each in objects.walk("")] == [("a/1", 3), ("a/b/2", 5), ("c", 1)]
        assert objects.size("c") == 1
        assert objects.names("none") == objects.walk("none") == []
        with pytest.raises(FileNotFoundError):
            objects.size("none")
    assert sum(faulty.injected.values()) > ROUNDS


def test_uploads_are_listed_and_aborted_through_faults(objects: S3Objects, faulty: FaultProxy) -> None:
    begin_uploads(objects, *map(str, range(ROUNDS)))
    faulty.faults, faulty.fault_share = FAULTS, 0.5
    for left in range(ROUNDS, 0, -1):
        uploads = sorted(objects.uploads())
        assert [(each.path, each.size) for each in uploads] == [
            (str(n), 1000) for n in range(ROUNDS - left, ROUNDS)
        ]
        objects.abort(uploads[0])
    assert objects.uploads() == []
    assert sum(faulty.injected.values()) > ROUNDS


def test_an_upload_that_is_gone_is_no_error_and_not_waited_for(objects: S3Objects) -> None:
    begin_uploads(objects, "a")
    (upload,) = objects.uploads()
    objects.retry_policy = RetryPolicy(first_s=0.0, later_s=0.0)
    for _ in range(2):
        objects.abort(upload)
    objects.abort(Upload("never", upload.id, 0, 0.0))


def test_a_thousand_are_removed_by_a_request(
    objects: S3Objects, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcache.cache.storage.s3._DELETED_AT_ONCE", 4)
    paths = [f"a/{n}" for n in range(10)]
    for path in (*paths, "kept"):
        objects.put_new(path, b"x")
    faulty.requests.clear()
    objects.remove_many(paths)
    assert faulty.requests == {"POST": 3}
    assert [each.path for each in objects.walk("")] == ["kept"]
    objects.remove_all()
    assert objects.walk("") == [] and "DELETE" not in faulty.requests


def test_removals_and_replacements_are_asked_again(objects: S3Objects, faulty: FaultProxy) -> None:
    faulty.faults, faulty.fault_share = FAULTS, 0.5
    for n in range(ROUNDS):
        for path in ("a", "b", "c"):
            objects.put_new(path, b"first")
        objects.replace("a", f"{n}".encode())
        assert objects.get("a") == f"{n}".encode()
        objects.remove("a")
        objects.remove_many(["b", "c"])
        assert objects.walk("") == []


def test_a_replacement_minds_what_changed_in_the_same_moment(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put_new("a", b"first")
    info = objects.fs.info

    def changed_meanwhile(path: str) -> object:
        found = info(path)
        objects.overwrite("a", b"another's")
        return found

    monkeypatch.setattr(objects.fs, "info", changed_meanwhile)
    with pytest.raises(KDCacheError, match="cannot write s3://"):
        objects.replace("a", b"mine")
    assert objects.get("a") == b"another's"


@pytest.mark.parametrize(("code", "asked"), [("AccessDenied", 1), ("InternalError", 2)])
def test_keys_that_a_server_refuses_within_its_answer(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch, code: str, asked: int
) -> None:
    objects.put_new("a", b"x")
    answers = [{"Errors": [{"Key": "a", "Code": code}]}, {}]
    calls: list[str] = []

    def answer(method: str, **_: object) -> object:
        calls.append(method)
        return answers.pop(0)

    monkeypatch.setattr(objects.fs, "call_s3", answer)
    if asked == 1:
        with pytest.raises(
            KDCacheError, match=r"cannot remove objects of s3://\S+: a: AccessDenied"
        ) as caught:
            objects.remove_many(["a"])
        assert caught.value.hint is not None and "AWS_PROFILE" in caught.value.hint
    else:
        objects.remove_many(["a"])
    assert calls == ["delete_objects"] * asked


def test_an_object_for_the_folder_itself_goes_too(
    objects: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 consoles create such objects. A listing shows them as the folder's name with a slash."""
    found = {
        f"{objects.prefix}/{path}": {"name": f"{objects.prefix}/{path}", "size": 0, "mtime": 0.0}
        for path in ("", "a")
    }
    removed: list[str] = []

    def note(method: str, *, Delete: dict[str, list[dict[str, str]]], **_: object) -> dict[str, object]:
        removed.extend(each["Key"] for each in Delete["Objects"])
        return {}

    monkeypatch.setattr(objects.fs, "find", lambda path, detail: found)
    monkeypatch.setattr(objects.fs, "call_s3", note)
    objects.remove_all()
    _, _, key = objects.prefix.partition("/")
    assert removed == [f"{key}/", f"{key}/a"]
