"""Transient errors of remote storage are retried; others say what to do."""

import pytest

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cache.storage.objects import ByteRange
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.storage.retries import RetryPolicy

QUICK = RetryPolicy(first_s=0.05, later_s=0.05, shortest_pause_s=0.001, longest_pause_s=0.001)


def refusal(code):
    """The error in which s3fs wraps a refused put."""
    cause = Exception()
    cause.response = {"Error": {"Code": code}}
    error = OSError(22, "refused")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("refusals", "stands", "won"),
    [
        (["ConditionalRequestConflict", None], None, True),
        (["ConditionalRequestConflict", "PreconditionFailed"], b"theirs", False),
        (["PreconditionFailed"], b"mine", True),  # the reply to the first attempt was lost
        (["SlowDown", "InternalError", None], None, True),
    ],
)
def test_refused_puts_are_retried_or_compared(monkeypatch, tmp_path, refusals, stands, won):
    objects = open_objects(f"memory://{tmp_path.name}-refused")
    if stands:
        objects.put_new("x", stands)
    answers = iter(refusals)

    def pipe_file(path, data, mode):
        if code := next(answers):
            raise refusal(code)

    objects.creates_once, objects.retry_policy = True, QUICK
    monkeypatch.setattr(objects.fs, "pipe_file", pipe_file, raising=False)
    assert objects.put_new("x", b"mine") == won
    assert next(answers, "all taken") == "all taken"


def test_ranges_that_failed_are_asked_for_again_and_no_others(monkeypatch, tmp_path):
    objects = open_objects(f"memory://{tmp_path.name}-ranges")
    objects.put_new("a", b"0123")
    objects.put_new("b", b"4567")
    objects.retry_policy = QUICK
    asked = []
    cat_ranges = objects.fs.cat_ranges

    def failing_at_first(paths, starts, ends, on_error):
        asked.append(len(paths))
        found = cat_ranges(paths, starts, ends, on_error=on_error)
        return found if len(asked) > 2 else [*found[:-1], ConnectionResetError()]

    monkeypatch.setattr(objects.fs, "cat_ranges", failing_at_first, raising=False)
    assert objects.read_ranges([ByteRange("a", 0, 2), ByteRange("b", 1, 2)]) == [b"01", b"56"]
    assert asked == [2, 1, 1]


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ConnectionResetError("reset"), None),
        (PermissionError("The provided token has expired."), "AWS_SESSION_TOKEN"),
    ],
)
def test_errors_that_stay_end_with_what_to_do(monkeypatch, tmp_path, error, hint):
    objects = open_objects(f"memory://{tmp_path.name}-stays")
    objects.retry_policy = QUICK

    def fail(*_, **__):
        raise error

    for method in ("cat_file", "pipe_file", "ls"):
        monkeypatch.setattr(objects.fs, method, fail, raising=False)
    for ask in (lambda: objects.get("x"), lambda: objects.put_new("x", b""), lambda: objects.names("x")):
        with pytest.raises(
            KDCacheError, match=r"cannot (read|write) memory://.*x: (reset|The provided)"
        ) as caught:
            ask()
        assert hint in caught.value.hint if hint else caught.value.hint is None


def test_unknown_schemes_are_refused():
    with pytest.raises(UsageError, match="nosuch"):
        open_objects("nosuch://bucket/prefix")
