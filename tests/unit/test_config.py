"""A training run's configuration refuses wrong values and combinations, and names the option to change."""

import dataclasses
import json

import pytest

from kdcache.cache.errors import UsageError
from kdcache.distill.config import FREE_ON_RESUME, TrainConfig
from kdcache.distill.schedule import SCHEDULES

CACHED = {"out": "run", "store": "stores/a", "steps": 10}
FRESH = {
    "out": "run",
    "method": "none",
    "source": "none",
    "dataset": "streets",
    "fresh_views": True,
    "steps": 10,
}


def test_it_survives_json():
    config = TrainConfig(**CACHED, crop_height_px=None, lr=0.02)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_field_has_a_default_but_the_folder():
    required = [f.name for f in dataclasses.fields(TrainConfig) if f.default is dataclasses.MISSING]
    assert required == ["out"]


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (CACHED, {"steps": None}, "--budget, --steps and --epochs"),
        (CACHED, {"epochs": 3}, "--steps 10, --epochs 3"),
        (CACHED, {"budget_seconds": 90.0}, "--steps 10, --budget 90s"),
        (CACHED, {"steps": 0}, "--steps must be above 0, got 0"),
        (CACHED, {"steps": None, "budget_seconds": float("inf")}, "--budget must be"),
        (CACHED, {"source": "none"}, "--method logit with --source none"),
        (CACHED, {"source": "elsewhere"}, "--source: unknown value 'elsewhere'"),
        (CACHED, {"store": ""}, "--source cache needs a store"),
        (CACHED, {"fresh_views": True}, "--fresh-views with --source cache"),
        (CACHED, {"source": "online"}, "--source online needs a teacher"),
        (CACHED, {"method": "none"}, "--method none with --source cache"),
        (
            CACHED,
            {"crop_height_px": 64, "crop_width_px": 64},
            "--crop: the store stores/a already determines the views",
        ),
        (CACHED, {"recipe": "skd"}, "--recipe: the store stores/a already determines the views"),
        (CACHED, {"lr": float("nan")}, "--lr must be above 0"),
        (CACHED, {"lr": 0.001, "min_lr": 0.01}, "--min-lr must be at most"),
        (CACHED, {"momentum": 1.0}, "--momentum"),
        (CACHED, {"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        (CACHED, {"workers": -1}, "--workers"),
        (CACHED, {"save_every_s": -1.0}, "--save-every"),
        (CACHED, {"kd_ignore": "padding"}, "--kd-ignore"),
        (CACHED, {"out": ""}, "--out is empty"),
        (CACHED, {"temperature": 0.0}, "--temperature must be above 0"),
        (CACHED, {"kd_weight": -1.0}, "--kd-weight must be above 0"),
        (CACHED, {"logit_weight": -1.0}, "--logit-weight must be 0 or more"),
        (CACHED, {"kd_terms": "pair"}, "--kd-terms: 'pair' is not TERM=WEIGHT with a weight of 0 or more"),
        (CACHED, {"kd_terms": "pair=1,logit=nan"}, "--kd-terms: 'logit=nan'"),
        (FRESH, {"fresh_views": False}, "the run has nothing to train on"),
        (FRESH, {"dataset": ""}, "--fresh-views needs a dataset or a store"),
        (FRESH, {"crop_height_px": 9, "crop_width_px": 0}, "--crop must be at least 1, got 0"),
        (FRESH, {"crop_width_px": 9}, "--crop needs a height and a width"),
    ],
)
def test_what_makes_no_sense_is_refused_by_option_and_value(base, change, said):
    TrainConfig(**base)
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{**base, **change})
    assert said in str(caught.value)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(UsageError, match="learning_rate"):
        TrainConfig.from_dict({**CACHED, "learning_rate": 0.1})
    with pytest.raises(UsageError, match="out"):
        TrainConfig.from_dict({"store": "stores/a", "steps": 10})


def test_differences_name_what_changes_the_result_only():
    before, after = TrainConfig(**CACHED), TrainConfig(**{**CACHED, "out": "moved", "workers": 3, "lr": 0.02})
    assert before.differences(after) == ["--lr: 0.01, 0.02"]
    assert {f.name for f in dataclasses.fields(TrainConfig)} >= FREE_ON_RESUME


def test_schedules_are_those_that_there_are():
    for name in SCHEDULES:
        assert TrainConfig(**CACHED, schedule=name).schedule == name
    with pytest.raises(UsageError) as caught:
        TrainConfig(**CACHED, schedule="linear")
    assert caught.value.hint == "one of: poly, cosine"
