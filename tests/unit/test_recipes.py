"""Training recipes: valid runs, a source for every value, the README's table, and their use on the command line."""

from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.networks.network import NETWORKS
from kdcache.cache.views.policy import POLICIES, view_policy
from kdcache.cli.distill import command, make_config
from kdcache.cli.output import Console
from kdcache.distill.config import TrainConfig
from kdcache.distill.recipes import OURS, RECIPES, recipe_fields

DATASETS = {
    "paper-cityscapes": "cityscapes",
    "paper-ade20k": "ade20k",
    "camvid": "camvid",
    "streets": "streets:64x64:6",
    "teacher-cityscapes": "cityscapes",
    "teacher-ade20k": "ade20k",
    "teacher-streets": "streets:64x64:6",
}
COLUMNS = {
    "student": "student",
    "starts from": "backbone_weights",
    "batch": "batch_size",
    "steps": "steps",
    "lr": "lr",
    "momentum": "momentum",
    "weight decay": "weight_decay",
    "schedule": "schedule",
    "min lr": "min_lr",
}


def parse(*arguments: str) -> TrainConfig:
    given = command.make_context("distill", list(arguments), obj=Console()).params
    return make_config(Console(), given.pop("home"), given.pop("resume"), given)


def lines_of_table() -> list[str]:
    lines = ["| recipe | " + " | ".join(COLUMNS) + " |"]
    for name, figures in RECIPES.items():
        cells = [f"`{name}`"]
        for field in COLUMNS.values():
            figure = figures.get(field)
            text = (
                ""
                if figure is None
                else f"{figure.value:g}"
                if isinstance(figure.value, float)
                else figure.value
            )
            cells.append(f"{text}{'*' if figure and figure.source.startswith(OURS) else ''}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_run_that_can_be_repeated(name: str) -> None:
    begun = parse("--method", "none", "--dataset", DATASETS[name], "--fresh-views", "--recipe", name)
    for field, figure in RECIPES[name].items():
        assert getattr(begun, field) == figure.value, field
        assert figure.source
    assert begun.student in NETWORKS
    assert parse(*begun.command().split()[2:]) == begun
    changed = parse(*begun.command().split()[2:], "--lr", "0.01", "--budget", "1h")
    assert (changed.lr, changed.steps, changed.budget_seconds) == (0.01, None, 3600)
    assert parse(*changed.command().split()[2:]) == changed


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_views_for_the_store_too(name: str) -> None:
    assert name in POLICIES
    sizes = {
        "cityscapes": (512, 1024),
        "ade20k": (512, 512),
        "camvid": (360, 480),
        "streets:64x64:6": (64, 64),
    }
    policy = view_policy(DATASETS[name], name)
    assert policy.crop_size == sizes[DATASETS[name]] and policy.photometric


def test_with_a_store_the_views_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        url = "stores/x"

    monkeypatch.setattr("kdcache.cli.home.find_store", lambda home, store: Found)
    config = parse("--method", "logit", "--store", "stores/x", "--recipe", "paper-cityscapes")
    assert (config.recipe, config.schedule, config.steps) == (None, "cosine", 80_000)


def test_what_is_given_stands() -> None:
    given: dict[str, Any] = {"lr": 0.5, "epochs": 3}
    fields = recipe_fields("streets", given)
    assert "lr" not in fields and "steps" not in fields and fields["batch_size"] == 4
    assert recipe_fields("mmseg", given) == {}


def test_the_guide_has_the_table(root: Path) -> None:
    text = (root / "distill/README.md").read_text()
    assert [line for line in lines_of_table() if line not in text] == []
