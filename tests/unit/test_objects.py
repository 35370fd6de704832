"""Objects are created once and whole, whoever writes them."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cache.objects import (
    MAX_OPEN_FILES,
    TEMP_FOLDER,
    ByteRange,
    LocalObjects,
    open_objects,
    open_probe,
    redact,
)
from kdcache.cache.retries import Patience

QUICK = Patience(first_s=0.05, later_s=0.05, shortest_pause_s=0.001, longest_pause_s=0.001)


@pytest.fixture(params=["local", "memory"])
def objects(request, tmp_path):
    return open_objects(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_an_object_is_created_once(objects):
    assert objects.put_new("a/b/c", b"first")
    assert not objects.put_new("a/b/c", b"second")
    assert objects.get("a/b/c") == b"first"
    assert objects.put_same("a/b/c", b"third") == b"first"


def test_reading(objects):
    objects.put_new("a/b", b"0123456789")
    assert objects.read_range("a/b", 3, 4) == b"3456"
    assert objects.size("a/b") == 10
    for read in (objects.get, objects.size, lambda path: objects.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("a/none")


def test_ranges_come_in_the_order_asked(objects):
    objects.put_new("a/b", b"0123456789")
    objects.put_new("c", b"abc")
    asked = [ByteRange("a/b", 8, 5), ByteRange("c", 0, 1), ByteRange("a/b", 0, 2), ByteRange("c", 2, 1)]
    assert objects.read_ranges(asked) == [b"89", b"a", b"01", b"c"]
    assert objects.read_ranges([]) == []
    with pytest.raises(FileNotFoundError, match="a/none"):
        objects.read_ranges([ByteRange("c", 0, 1), ByteRange("a/none", 0, 1)])


def open_files(folder: Path) -> list[str]:
    """Files under the folder that this process holds open, once a descriptor."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.realpath(link).startswith(str(folder))]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_files_stay_open_within_a_bound_and_copies_open_their_own(tmp_path):
    objects = LocalObjects(tmp_path)
    for n in range(MAX_OPEN_FILES + 10):
        objects.put_new(f"f{n}", bytes([n]) * 10)
    for n in (*range(MAX_OPEN_FILES + 10), 0):
        assert objects.read_range(f"f{n}", 3, 2) == bytes([n]) * 2
    assert len(open_files(tmp_path)) == MAX_OPEN_FILES
    copy = pickle.loads(pickle.dumps(objects))
    assert copy.read_range("f0", 0, 1) == b"\0" and len(open_files(tmp_path)) == MAX_OPEN_FILES + 1
    del objects, copy
    assert open_files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_fork_opens_its_own_files(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    script = (
        "import os, sys; from pathlib import Path; from kdcache.cache.objects import LocalObjects;"
        "objects = LocalObjects(Path(sys.argv[1])); objects.read_range('f', 0, 1); child = os.fork();"
        "links = lambda: [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')];"
        "data = [objects.read_range('f', n, 1) for n in range(10)];"
        "count = sum(link.endswith('/f') for link in links());"
        "good = b''.join(data) == b'0123456789' and count == (1 if child else 2);"
        "os._exit(0 if good and (not child or os.waitpid(child, 0)[1] == 0) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0


def test_names(objects):
    for path in ("a/2", "a/1", "a/b/c", "d"):
        objects.put_new(path, b"x")
    assert objects.names("a") == ["1", "2", "b"]
    assert objects.names("none") == []


def _race(root: str, number: int, results: "multiprocessing.Queue[tuple[int, bool]]") -> None:
    results.put((number, LocalObjects(Path(root)).put_new("raced", bytes([number]) * 100_000)))


def test_of_many_writers_one_wins(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path), n, results)) for n in range(4)]
    for process in processes:
        process.start()
    outcomes = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    winners = [number for number, won in outcomes.items() if won]
    assert len(winners) == 1
    assert LocalObjects(tmp_path).get("raced") == bytes(winners) * 100_000
    assert LocalObjects(tmp_path).names(TEMP_FOLDER) == []


def test_leftovers_of_dead_processes_go(tmp_path):
    objects = LocalObjects(tmp_path)
    objects.put_new("x", b"x")
    host = os.uname().nodename
    dead = int(
        subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, check=True).stdout
    )
    kept = [f"{host}-{os.getpid()}-0", f"elsewhere-{dead}-0", "notes.txt", f"{host}-x-1", "-"]
    for name in (*kept, f"{host}-{dead}-3"):
        (tmp_path / TEMP_FOLDER / name).write_bytes(b"half")
    objects.remove_leftovers()
    assert objects.names(TEMP_FOLDER) == sorted(kept)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KDCacheError, match=r"cannot write .*file/store/x"):
        open_objects(str(tmp_path / "file" / "store")).put_new("x", b"x")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    objects = LocalObjects(tmp_path)
    objects.put_new("a/before", b"x")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(KDCacheError, match=r"cannot write .*a/x: No space left on device") as caught:
            objects.put_new("a/x", b"x" * 1000)
    assert "free some space" in caught.value.hint
    assert (objects.names("a"), objects.names(TEMP_FOLDER)) == (["before"], [])
    assert objects.put_new("a/x", b"x" * 1000)  # once there is room


def test_free_bytes_are_those_of_the_disk_that_will_hold_it(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return SimpleNamespace(free=40)

    monkeypatch.setattr("shutil.disk_usage", usage)
    (tmp_path / "file").write_bytes(b"")
    for place in ("", "home/store", "file/store"):
        assert LocalObjects(tmp_path / place).free_bytes() == 40
    assert asked == [tmp_path] * 3


def test_a_prefix_is_removed_with_all_that_it_holds(objects):
    with open_probe(objects.url) as probe:
        probe.put_new("a/b", b"x")
        probe.put_new("c", b"x")
        assert probe.get("a/b") == b"x"
        assert len(objects.names("")) == 1
    assert objects.names("") == probe.names("") == []
    probe.remove_all()  # it is gone already


def test_what_cannot_be_read_is_one_clear_error(objects, monkeypatch):
    def fail(*_, **__):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("os.open", fail)
    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    for read in (lambda: objects.get("a/b"), lambda: objects.read_range("a/b", 0, 1)):
        with pytest.raises(KDCacheError, match=r"cannot read .*a/b: Permission denied"):
            read()


def test_a_file_where_a_folder_is_asked_for_holds_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    objects = open_objects(str(tmp_path))
    assert objects.names("file") == []
    with pytest.raises(FileNotFoundError):
        objects.get("file/kd/spec.json")


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
        (["PreconditionFailed"], b"mine", True),  # the reply to the first try was lost
        (["SlowDown", "InternalError", "NoSuchUpload", None], None, True),
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

    objects.creates_once, objects.patience = True, QUICK
    monkeypatch.setattr(objects.fs, "pipe_file", pipe_file, raising=False)
    assert objects.put_new("x", b"mine") == won
    assert next(answers, "all taken") == "all taken"


def test_ranges_that_failed_are_asked_for_again_and_no_others(monkeypatch, tmp_path):
    objects = open_objects(f"memory://{tmp_path.name}-ranges")
    objects.put_new("a", b"0123")
    objects.put_new("b", b"4567")
    objects.patience = QUICK
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
    objects.patience = QUICK

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


def test_what_is_replaced_or_removed_is_gone(objects):
    objects.put_new("a/lease", b"0")
    objects.overwrite("a/lease", b"1")
    assert objects.get("a/lease") == b"1"
    objects.replace("a/lease", b"2")
    assert objects.get("a/lease") == b"2"
    for _ in range(2):
        objects.remove("a/lease")
    assert "lease" not in objects.names("a")


def test_unknown_schemes_are_refused():
    with pytest.raises(UsageError, match="nosuch"):
        open_objects("nosuch://bucket/prefix")


def test_user_information_is_cut_out():
    assert redact("s3://key:secret@bucket/team") == "s3://bucket/team"
    assert redact("/plain/path@home") == "/plain/path@home"


@pytest.mark.parametrize(
    "url", ["s3://KEY:pa55word@bucket/x", "s3://KEY:pa55/word@bucket/x", "https://user:pa55word@host/x"]
)
def test_credentials_in_a_url_are_refused_and_never_shown(url, kdcache):
    assert "pa55" not in redact(url) and "word" not in redact(url)
    for arguments in (
        ["info", url],
        ["ls", "--home", url],
        ["verify", url],
        ["view", url],
        ["fidelity", url],
    ):
        code, out, err = kdcache(*arguments)
        assert code == 2 and "credentials" in err
        assert not any(part in out + err for part in ("pa55", "word", "KEY:"))
    assert redact("https://host:8080/a@b") == "https://host:8080/a@b"
