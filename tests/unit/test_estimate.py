"""The arithmetic of an estimate, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from kdcache.cache.build.plan import BuildPlan
from kdcache.cache.errors import UsageError
from kdcache.cache.storage.speed import StorageSpeed
from kdcache.distill.study.estimate import GB, Estimate, Prices
from kdcache.distill.study.trial import StudentTrial, check_student, choose_method


@pytest.fixture
def estimate(stores) -> Estimate:
    """1000 images in units of 64 (16 a pass), 4 views, one pass of which is built."""
    return Estimate(
        spec=stores["spec"](images=1000, unit_entries=64),
        plan=BuildPlan(
            entries=4000,
            units=64,
            units_committed=16,
            entries_left=3000,
            batches_left=375,
            unit_bytes=0,
            bytes_per_entry={"views": 300, "logits": 9_700, "features": 90_000},
            calibration_s=50.0,
            seconds_per_batch=4.0,
            codecs={},
        ),
        storage=StorageSpeed(write_bytes_per_s=1e6, read_bytes_per_s=50_000.0, object_bytes=1, piece_bytes=1),
        trial=StudentTrial(
            student="s", method="logit", needs=("logits",), batch_size=8, step_s=0.5, teacher_s=2.0
        ),
        run_steps=1000,
        runs=3,
        prices=Prices(gb_month=0.023, gets_1000=0.0004, gb_traffic=0.09),
        free_bytes=None,
    )


def test_bytes_and_time_of_what_is_left(estimate):
    assert estimate.plan.total_bytes == 400_000_000
    assert estimate.plan.bytes_left == 300_000_000
    assert estimate.plan.seconds_left == 50 + 375 * 4
    assert estimate.build_s == 1550  # the storage takes 300 s of it
    slow = replace(estimate, storage=replace(estimate.storage, write_bytes_per_s=1e5))
    assert slow.build_s == 3000


def test_the_store_has_paid_for_itself(estimate):
    assert estimate.paid_back_steps == 775  # 1550 s at 2 s a step
    assert estimate.saved_s == 3 * 1000 * 2 - 1550
    assert replace(estimate, runs=1, run_steps=700).saved_s == -150


def test_a_complete_store_costs_nothing_more(estimate):
    done = replace(estimate, plan=replace(estimate.plan, entries_left=0, batches_left=0, units_committed=64))
    assert (done.build_s, done.paid_back_steps, done.saved_s) == (0, 0, 6000)


def test_reading_at_the_speed_of_the_student(estimate):
    assert estimate.read_bytes_per_view == 10_000  # no features
    assert estimate.needed_bytes_per_s == 160_000  # 16 views a second
    assert estimate.readers == 4
    both = replace(estimate.trial, needs=("logits", "features"))
    assert replace(estimate, trial=both).needed_bytes_per_s == 1_600_000


def test_costs_on_s3(estimate):
    assert estimate.usd_month == pytest.approx(400_000_000 / 2**30 * 0.023)
    assert estimate.epoch_requests == 2 * 16
    assert estimate.epoch_bytes == 10_000_000
    assert estimate.usd_epoch == pytest.approx(0.032 * 0.0004 + 10_000_000 / 2**30 * 0.09)
    assert estimate.epochs == 24
    whole = replace(estimate.plan, bytes_per_entry={"views": GB // 4, "logits": 0}, entries=4)
    dear = Prices(gb_month=2.5, gets_1000=1.0, gb_traffic=0.0)
    assert replace(estimate, plan=whole, prices=dear).usd_month == 2.5
    assert replace(estimate, prices=dear).usd_epoch == 0.032


def test_room(estimate):
    assert estimate.fits
    assert replace(estimate, free_bytes=300_000_000).fits
    assert not replace(estimate, free_bytes=299_999_999).fits


@pytest.mark.parametrize(
    ("targets", "method"),
    [
        (("logits", "features"), "logit+feature"),
        (("logits",), "logit"),
        (("features", "aux"), "feature"),
    ],
)
def test_the_method_that_uses_most_of_the_targets(targets, method):
    assert choose_method(None, targets) == method
    assert choose_method(method, targets) == method


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        (None, ("aux",), "no method of `kdcache distill` learns from aux alone"),
        ("feature", ("logits",), "--method feature needs features; the store would contain logits"),
        ("none", ("logits",), "--method none needs no teacher"),
        ("magic", ("logits",), "unknown method 'magic'"),
    ],
)
def test_methods_that_cannot_be_tried(name, targets, message):
    with pytest.raises(UsageError, match=message):
        choose_method(name, targets)


def test_a_student_that_cannot_train_on_its_batch_is_refused():
    with pytest.raises(UsageError, match="--student-batch-size 1 leaves 1 crop") as caught:
        check_student("pspnet_resnet18", 19, 1)
    assert caught.value.hint == "--student-batch-size 2 or more"
    check_student("pspnet_resnet18", 19, 2)
    check_student("fcn_resnet50", 19, 1)
