"""Decoded images: those of the files, decoded once, never out of date, whoever dies or edits."""

import logging
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.cache.errors import KDCacheError
from kdcache.cache.images import decoded as decoded_module
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.images.decoded import (
    DecodedImages,
    decoded_bytes,
    keep_decoded,
    network_file_system,
    plan_decoded,
)
from kdcache.cache.storage.host_cache import HostCache


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ran in this process before sends the logs to the terminal alone."""
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)


SIZES = [(20, 30), (31, 17), (1, 1), (24, 24)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of the layout `folder` with two classes. one image unlabelled in val."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train").mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("one\ntwo\n")
    for n, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(
            tmp_path / f"data/images/train/{n}.png"
        )
        Image.fromarray(rng.integers(0, 2, size, np.uint8)).save(tmp_path / f"data/masks/train/{n}.png")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> HostCache:
    return HostCache(tmp_path / "cache", limit_bytes=10**6)


def decoded(folder: Path, cache: HostCache) -> DecodedImages:
    return DecodedImages(open_dataset("folder", str(folder), "train"), cache)


def require_equal(images: DecodedImages, folder: Path) -> None:
    plain = open_dataset("folder", str(folder), "train")
    for index in range(len(plain)):
        np.testing.assert_array_equal(images.image(index), plain.image(index))
        np.testing.assert_array_equal(images.label(index), plain.label(index))
        assert images.size(index) == plain.size(index)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr("kdcache.cache.images.folders.read_image", refuse)
    monkeypatch.setattr("kdcache.cache.images.folders.read_label", refuse)


def test_files_are_decoded_once_by_whoever_comes_first(folder, cache, monkeypatch):
    require_equal(decoded(folder, cache), folder)
    plain = open_dataset("folder", str(folder), "train")
    wanted = [(plain.image(n), plain.label(n)) for n in range(len(plain))]
    forbid_decoding(monkeypatch)
    for images in (decoded(folder, cache), pickle.loads(pickle.dumps(decoded(folder, cache)))):
        for n, (image, label) in enumerate(wanted):
            np.testing.assert_array_equal(images.image(n), image)
            np.testing.assert_array_equal(images.label(n), label)
            with pytest.raises(ValueError, match="read-only"):
                images.image(n)[0, 0, 0] = 1


def _read_all(folder: str, cache: HostCache) -> int:
    images = decoded(Path(folder), cache)
    return sum(int(images.image(n).sum()) + int(images.label(n).sum()) for n in range(len(images)))


def test_many_processes_and_threads_at_once(folder, cache):
    plain = open_dataset("folder", str(folder), "train")
    wanted = sum(int(plain.image(n).sum()) + int(plain.label(n).sum()) for n in range(len(plain)))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(_read_all, [str(folder)] * 16, [cache] * 16)) == {wanted}
    objects = [path for path in (cache.folder / "objects").rglob("*") if path.is_file()]
    assert len(objects) == len(SIZES) and not os.listdir(cache.folder / "partial")


@pytest.mark.slow
def test_many_processes_at_once(folder, cache):
    import multiprocessing

    plain = open_dataset("folder", str(folder), "train")
    wanted = sum(int(plain.image(n).sum()) + int(plain.label(n).sum()) for n in range(len(plain)))
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert set(pool.map(_read_all, [str(folder)] * 8, [cache] * 8)) == {wanted}


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_edited_file_is_noticed_whatever_it_keeps(folder, cache, kind):
    require_equal(decoded(folder, cache), folder)
    one, other = folder / kind / "train" / "0.png", folder / kind / "train" / "edited.png"
    before = one.stat()
    pixels = np.asarray(Image.open(one)).copy()
    pixels[0, 0] = 1 - pixels[0, 0] if kind == "masks" else 255 - pixels[0, 0]
    Image.fromarray(pixels).save(other)
    data = other.read_bytes()
    one.write_bytes(data)
    other.unlink()
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp --preserve` and some editors do
    require_equal(decoded(folder, cache), folder)


def test_exchanged_labels_are_noticed(folder, cache):
    for kind in ("images", "masks"):  # equal sizes
        for n in (0, 3):
            path = folder / kind / "train" / f"{n}.png"
            Image.fromarray(np.asarray(Image.open(path))[:20, :20].copy()).save(path)
    require_equal(decoded(folder, cache), folder)
    first, last = (folder / "masks" / "train" / f"{n}.png" for n in (0, 3))
    first.rename(folder / "kept")
    last.rename(first)
    (folder / "kept").rename(last)
    require_equal(decoded(folder, cache), folder)


@pytest.mark.parametrize("damage", ["zeros", "short", "empty", "bit", "header"])
def test_a_damaged_object_is_decoded_again(folder, cache, damage, caplog):
    require_equal(decoded(folder, cache), folder)
    for path in (cache.folder / "objects").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            if damage == "bit":
                data[-1] ^= 1
            if damage == "header":
                data[8] ^= 1
            changed = {"zeros": bytes(len(data)), "short": data[:-1], "empty": b""}.get(damage, bytes(data))
            path.write_bytes(changed)
    require_equal(decoded(folder, cache), folder)
    require_equal(decoded(folder, cache), folder)


def test_a_cache_that_is_too_small_costs_time_alone(folder, tmp_path, caplog):
    images = decoded(folder, HostCache(tmp_path / "small", limit_bytes=100))
    require_equal(images, folder)
    require_equal(images, folder)
    assert [r.message for r in caplog.records if "decoded from their files each time" in r.message]
    assert len(caplog.records) == 1


def test_a_read_only_dataset_and_missing_labels(folder, cache):
    shutil.rmtree(folder / "masks")
    os.chmod(folder / "images" / "train", 0o555)
    try:
        images = decoded(folder, cache)
        assert images.label(0) is None and images.image(0).shape == (20, 30, 3)
        assert decoded(folder, cache).label(0) is None
    finally:
        os.chmod(folder / "images" / "train", 0o755)


def test_pinned_images_outlast_what_is_used_later(folder, tmp_path):
    cache = HostCache(tmp_path / "cache", limit_bytes=20_000)
    images = decoded(folder, cache)
    with cache.pin(images.cache_keys()):
        require_equal(images, folder)
        held = sum(path.stat().st_size for path in (cache.folder / "objects").rglob("*") if path.is_file())
        for n in range(40):
            cache.add(f"{n:064x}", 1000, lambda descriptor: os.write(descriptor, bytes(1000)) and None)
        assert all(os.path.exists(cache.path(key)) for key in images.cache_keys())
        with pytest.raises(KDCacheError, match="has no space"):
            cache.add("f" * 64, 20_000 - held + 1, lambda descriptor: None)
    for n in range(40, 80):
        cache.add(f"{n:064x}", 1000, lambda descriptor: os.write(descriptor, bytes(1000)) and None)
    assert not any(os.path.exists(cache.path(key)) for key in images.cache_keys())


def test_the_pins_of_a_dead_process_count_for_nothing(folder, cache):
    images = decoded(folder, cache)
    require_equal(images, folder)
    (cache.folder / "pins").mkdir()
    (cache.folder / "pins" / "gone-1-0").write_text("".join(images.cache_keys()))
    small = HostCache(cache.folder, limit_bytes=3000)
    small.add("a" * 64, 2500, lambda descriptor: os.write(descriptor, bytes(2500)) and None)
    assert not any(os.path.exists(cache.path(key)) for key in images.cache_keys())
    assert not os.listdir(cache.folder / "pins")


def test_the_size_of_a_dataset_is_estimated_from_headers(folder, cache):
    images = open_dataset("folder", str(folder), "train")
    assert decoded_bytes(images) == sum(64 + 4 * h * w for h, w in SIZES)
    drawn = open_dataset("streets:64x128:200", None, "train")
    assert decoded_bytes(drawn) == 200 * (64 + 4 * 64 * 128)


def test_drawn_images_have_no_files_to_decode(cache):
    drawn = open_dataset("streets:64x128:8", None, "train")
    np.testing.assert_array_equal(DecodedImages(drawn, cache).image(3), drawn.image(3))
    assert keep_decoded(drawn, "auto", limit_bytes=10**9) is drawn and not cache.folder.exists()


def test_a_local_disk_is_no_network(tmp_path, monkeypatch):
    assert network_file_system(tmp_path) is None
    mounts = f"disk / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self: mounts)
    assert network_file_system(tmp_path / "deep" / "er") == "nfs4"
    assert network_file_system(tmp_path.parent) is None


@pytest.mark.parametrize(
    ("choice", "limit_bytes", "reserved_bytes", "said"),
    [
        ("auto", 10**6, 0, "decoded once for this host"),
        ("here", 10**6, 0, "decoded once for this host"),
        ("auto", 5000, 0, "do not fit --cache-limit"),
        ("auto", 10**6, 10**6, "do not fit --cache-limit"),
        ("off", 10**6, 0, ""),
    ],
)
def test_where_images_are_kept_is_decided_and_said(
    folder, tmp_path, monkeypatch, caplog, choice, limit_bytes, reserved_bytes, said
):
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    caplog.set_level("INFO", "kdcache")
    choice = str(tmp_path / choice) if choice == "here" else choice
    images = keep_decoded(
        open_dataset("folder", str(folder), "train"),
        choice,
        limit_bytes=limit_bytes,
        reserved_bytes=reserved_bytes,
    )
    assert isinstance(images, DecodedImages) == (said == "decoded once for this host")
    assert said in caplog.text and bool(caplog.text) == bool(said)
    if choice.startswith("/"):
        images.image(0)
        assert (tmp_path / "here" / "objects").is_dir() and not (tmp_path / "cache").exists()


def test_a_cache_on_a_network_is_not_used_unasked(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "kdcache")
    monkeypatch.setattr(decoded_module, "network_file_system", lambda path: "nfs4")
    plain = open_dataset("folder", str(folder), "train")
    assert keep_decoded(plain, "auto", limit_bytes=10**6) is plain
    assert "is on nfs4 (set --image-cache to a folder of a local disk)" in caplog.text
    assert isinstance(keep_decoded(plain, str(tmp_path / "x"), limit_bytes=10**6), DecodedImages)


def test_a_cache_that_takes_no_files_costs_time_alone(folder, tmp_path, caplog):
    """Such as one in a home that is read-only: a run must not need what it only profits from."""
    (tmp_path / "file").write_text("in the way")
    plain = open_dataset("folder", str(folder), "train")
    caplog.set_level("INFO", "kdcache")
    assert keep_decoded(plain, str(tmp_path / "file" / "cache"), limit_bytes=10**6) is plain
    assert "would need another --image-cache" in caplog.text
    images = decoded(folder, HostCache(tmp_path / "file" / "cache", limit_bytes=10**6))
    with images.pinned():
        require_equal(images, folder)
    assert "images are decoded from their files each time" in caplog.text


def test_a_plan_says_what_would_be_kept_and_keeps_nothing(folder, tmp_path):
    images = open_dataset("folder", str(folder), "train")
    plan = plan_decoded(images, str(tmp_path / "here"), limit_bytes=10**6)
    assert plan.is_kept and plan.decoded_bytes == decoded_bytes(images)
    assert (
        plan.text == f"decoded once for this host; {plan.decoded_bytes / 1e9:.3g} GB in {tmp_path / 'here'}"
    )
    small = plan_decoded(images, "auto", limit_bytes=100)
    assert not small.is_kept and "do not fit --cache-limit" in small.text
    assert plan_decoded(images, "off", limit_bytes=10**6) is None
    assert not (tmp_path / "here").exists()
