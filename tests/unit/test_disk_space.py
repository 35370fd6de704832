"""The size of the rest of a build, from its calibration alone, and whether it fits the disk."""

from dataclasses import replace

import pytest

from kdcache.cache.build.disk_space import RemainingWork, calibrated_bytes, remaining_work, require_disk_space
from kdcache.cache.errors import StoreDamagedError, UsageError
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.store import CALIBRATION, Store

FIDELITY = {"logits": {"bytes_per_value": 0.5}, "features": {"bytes_per_value": 0.26}}
INPUT_BYTES = {"views": 316}
ENTRY_BYTES = 316 + 36 + 32  # views; 3 x 4 x 6 logits; 5 x 4 x 6 features, rounded up


@pytest.fixture
def calibrated(store, tmp_path) -> Store:
    """The small store, with the sizes of its codecs in its calibration."""
    (tmp_path / "store" / CALIBRATION).unlink()
    store.adopt_calibration(replace(store.calibration, input_bytes=INPUT_BYTES, fidelity=FIDELITY))
    return open_store(store.url)


def test_bytes_follow_from_the_calibration(calibrated):
    assert calibrated_bytes(calibrated) == {"views": 316, "logits": 36, "features": 32}
    remaining = remaining_work(calibrated, [(2, 0), (2, 2)], 1.5, processes=2)
    assert remaining.entries_left == 3 + 1
    assert remaining.bytes_left == 4 * ENTRY_BYTES
    assert remaining.seconds_left == 1.5 * 4 / 2
    assert remaining.free_bytes is not None and remaining.free_bytes > 0


@pytest.mark.parametrize("value", [None, "0.5", 0.0, float("inf")])
def test_a_calibration_that_does_not_say_is_damaged(store, value):
    fidelity = {**FIDELITY, "features": {"bytes_per_value": value}}
    store.__dict__["calibration"] = replace(store.calibration, input_bytes=INPUT_BYTES, fidelity=fidelity)
    with pytest.raises(StoreDamagedError, match="does not say how many bytes features take"):
        calibrated_bytes(store)


def test_stored_crops_are_counted(tmp_path, stores):
    store = stores["begin"](str(tmp_path / "new"), replace(stores["spec"](), inputs="jpeg:95"))
    sizes = {"views": 316, "crops": 9000, "labels": 400}
    store.__dict__["calibration"] = replace(store.calibration, input_bytes=sizes, fidelity=FIDELITY)
    assert sum(calibrated_bytes(store).values()) == ENTRY_BYTES + 9400
    store.__dict__["calibration"] = replace(store.calibration, input_bytes=INPUT_BYTES, fidelity=FIDELITY)
    with pytest.raises(StoreDamagedError, match="does not say how many bytes crops take"):
        calibrated_bytes(store)


@pytest.mark.parametrize(
    ("built", "seconds"), [({"seconds": 6.0}, 20.0), ({}, None), ({"seconds": "6"}, None)]
)
def test_without_a_pace_of_its_own_it_takes_that_of_the_last_unit(calibrated, stores, built, seconds):
    calibrated.create_pass(2)
    rows = {name: array[:3] for name, array in stores["rows"](calibrated.spec, 2).items()}
    calibrated.put_unit(2, 0, rows, built)
    assert (
        remaining_work(calibrated, [(3, 0), (3, 1), (3, 2), (4, 0)], None, processes=1).seconds_left
        == seconds
    )


def test_nothing_on_record_means_no_time(tmp_path, stores):
    store = stores["begin"](str(tmp_path / "new"), stores["spec"]())
    store.__dict__["calibration"] = replace(store.calibration, input_bytes=INPUT_BYTES, fidelity=FIDELITY)
    assert remaining_work(store, [(0, 0)], None, processes=1).seconds_left is None


def test_a_disk_that_is_too_small_is_refused_with_both_numbers():
    remaining = RemainingWork(entries_left=9, bytes_left=1_234_567, free_bytes=1_234_566, seconds_left=None)
    with pytest.raises(
        UsageError, match="1,234,567 bytes are left to write and 1,234,566 are free"
    ) as caught:
        require_disk_space(remaining, "s3://key:secret@bucket/store")
    assert "secret" not in str(caught.value)
    for words in ("--views", "--targets logits", "--home", "--force"):
        assert words in caught.value.hint
    require_disk_space(replace(remaining, free_bytes=1_234_567), "store")


def test_where_nobody_says_what_is_free_nothing_is_refused(tmp_path):
    assert open_objects(f"memory://{tmp_path.name}").free_bytes() is None
    require_disk_space(
        RemainingWork(entries_left=9, bytes_left=10**18, free_bytes=None, seconds_left=None), "s3://bucket"
    )
