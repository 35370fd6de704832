"""Objects are created once and complete, also with several writers."""

import pytest

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.objects import ByteRange
from kdcache.cache.storage.opening import open_objects, open_probe


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


def test_names(objects):
    for path in ("a/2", "a/1", "a/b/c", "d"):
        objects.put_new(path, b"x")
    assert objects.names("a") == ["1", "2", "b"]
    assert objects.names("none") == []


def test_a_prefix_is_removed_with_all_that_it_holds(objects):
    with open_probe(objects.url) as probe:
        probe.put_new("a/b", b"x")
        probe.put_new("c", b"x")
        assert probe.get("a/b") == b"x"
        assert len(objects.names("")) == 1
    assert objects.names("") == probe.names("") == []
    probe.remove_all()  # it was removed already


def test_what_cannot_be_read_is_one_clear_error(objects, monkeypatch):
    def fail(*_, **__):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("os.open", fail)
    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.cat_file", fail)
    for read in (lambda: objects.get("a/b"), lambda: objects.read_range("a/b", 0, 1)):
        with pytest.raises(KDCacheError, match=r"cannot read .*a/b: Permission denied"):
            read()


def test_what_is_replaced_or_removed_is_gone(objects):
    objects.put_new("a/lease", b"0")
    objects.overwrite("a/lease", b"1")
    assert objects.get("a/lease") == b"1"
    objects.replace("a/lease", b"2")
    assert objects.get("a/lease") == b"2"
    for _ in range(2):
        objects.remove("a/lease")
    assert "lease" not in objects.names("a")


def test_many_are_removed_at_once_and_no_others(objects):
    paths = ["a/1", "a/2", "a/b/3", "c"]
    for path in (*paths, "a/kept"):
        objects.put_new(path, path.encode())
    assert [(each.path, each.size) for each in objects.walk("a/b")] == [("a/b/3", 5)]
    for _ in range(2):
        objects.remove_many(paths)
    assert [each.path for each in objects.walk("") if not each.path.startswith("kd/")] == ["a/kept"]
