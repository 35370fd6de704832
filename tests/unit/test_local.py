"""Objects in a folder: one of many writers wins, objects are never incomplete, and few files stay open."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.local import MAX_OPEN_FILES, TEMP_FOLDER, LocalObjects
from kdcache.cache.storage.opening import open_objects


def open_files(folder: Path) -> list[str]:
    """Files under the folder that this process has open, once for each descriptor."""
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
        "import os, sys; from pathlib import Path; from kdcache.cache.storage.local import LocalObjects;"
        "objects = LocalObjects(Path(sys.argv[1])); objects.read_range('f', 0, 1); child = os.fork();"
        "links = lambda: [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')];"
        "data = [objects.read_range('f', n, 1) for n in range(10)];"
        "count = sum(link.endswith('/f') for link in links());"
        "good = b''.join(data) == b'0123456789' and count == (1 if child else 2);"
        "os._exit(0 if good and (not child or os.waitpid(child, 0)[1] == 0) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 0


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
    assert objects.put_new("a/x", b"x" * 1000)  # as soon as there is space


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


def test_a_file_where_a_folder_is_asked_for_holds_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    objects = open_objects(str(tmp_path))
    assert objects.names("file") == []
    with pytest.raises(FileNotFoundError):
        objects.get("file/kd/spec.json")
