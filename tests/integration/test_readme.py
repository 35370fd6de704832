"""The README and the guides, run as they are: every command that needs no download, and the blocks of Python."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guides import GUIDES, block_after, blocks, commands_of, lines_of, runs_here

from kdcache.cache.codecs.registry import codec_from_dict
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.teachers.teacher import load_teacher
from kdcache.cli.main import COMMANDS, run

NEED_A_NAME = {"pull", "rm"}  # of a store, which only its user knows
TOY = "The same commands on a toy scale"


def run_lines(block: str) -> list[str]:
    """Run the commands of a block here; their names."""
    names = []
    for line in lines_of(block):
        (arguments,) = commands_of(line)
        assert run(arguments) == 0, shlex.join(arguments)
        names.append(arguments[0])
    return names


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the README's toy example has run: a teacher, a store, a student."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KDCACHE_")]:
            patch.delenv(name)
        patch.chdir(folder)
        assert run_lines(block_after("README.md", TOY, "sh"))
    yield folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def store(here: Path) -> str:
    (store,) = (here / "stores").iterdir()
    return str(store)


@pytest.mark.slow
def test_the_toy_example_leaves_a_report(here: Path) -> None:
    assert (here / "runs" / "student" / "report.md").exists()
    assert list(here.glob("runs/**/report.md"))


@pytest.mark.slow
def test_every_command_that_can_run_here_runs(here: Path) -> None:
    toy = block_after("README.md", TOY, "sh")
    done = {next(commands_of(line))[0] for line in lines_of(toy)}
    for guide in GUIDES:
        for block in blocks(guide, "sh"):
            if block != toy and runs_here(block):
                done |= set(run_lines(block))
    assert done == set(COMMANDS) - NEED_A_NAME
    assert (here / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["README.md", "distill/README.md"])
def test_a_student_is_used_as_shown(guide: str, here: Path) -> None:
    names: dict[str, Any] = {"image": np.zeros((48, 64, 3), np.uint8)}
    exec(block_after(guide, "ython:", "python"), names)  # noqa: S102 - the guide itself
    assert names["classes"].shape == (48, 64)


@pytest.mark.slow
def test_a_store_is_read_as_shown(store: str) -> None:
    names: dict[str, Any] = {}
    exec(block_after("cache/README.md", "## In Python", "python"), names)  # noqa: S102 - the guide itself
    assert names["done"] == 1
    np.testing.assert_array_equal(names["codes"], StoreReader(store, ["logits"]).entry(0, 3).codes["logits"])


@pytest.mark.slow
def test_a_store_is_read_without_kdcache_as_shown(store: str) -> None:
    plain: dict[str, Any] = {"store": store}
    exec(block_after("cache/README.md", "## A store without kdcache", "python"), plain)  # noqa: S102 - the guide itself
    codes, codec = plain["logits"][3], codec_from_dict(plain["codec"])
    assert codec.name == "dct"
    decoded = codec.decode(torch.from_numpy(codes)[None])[0].numpy()
    np.testing.assert_allclose(plain["values"], decoded, atol=1e-4 * np.abs(decoded).max())


def test_the_teacher_of_your_own_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_teacher.py").write_text(
        block_after("cache/README.md", "## A teacher of your own", "python")
    )
    monkeypatch.syspath_prepend(tmp_path)
    teacher = load_teacher("my_teacher:make", weights=None, dataset_name="cityscapes", classes=19)
    outputs = teacher(torch.zeros((1, 64, 96, 3), dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert outputs["logits"].shape == (1, 19, 8, 12)


def test_a_loop_of_your_own_trains(shared_store: str) -> None:
    """At most 15 lines, which learn, from the targets that the store has."""
    block = block_after("distill/README.md", "## A training loop of your own", "python")
    assert len(block.splitlines()) <= 15
    losses: list[float] = []
    small = block.replace("stores/NAME", shared_store).replace(
        "batch_size=8, steps=1000", "batch_size=2, steps=18"
    )
    assert shared_store in small and "steps=18" in small
    torch.manual_seed(0)
    names: dict[str, Any] = {"losses": losses}
    exec(small + "    losses.append(float(sum(terms.values()).detach()))\n", names)  # noqa: S102 - the guide itself
    assert len(losses) == 18 and sum(losses[-6:]) < 0.9 * sum(losses[:6])  # six steps see every entry once

    batch, reader, order = names["batch"], names["data"].reader, names["data"].order
    for i, (pass_index, position) in enumerate(order.batch_entries(batch.step, 2)):
        codes = reader.entry(pass_index, position).codes
        for name, target in batch.targets.items():
            exact = reader.codecs[name].decode(torch.from_numpy(codes[name])[None])[0]
            assert torch.equal(target[i], exact)

    own = {"logits": torch.randn(2, 19, 4, 4), "features": torch.randn(2, 64, 4, 4)}
    names |= own
    exec(block_after("distill/README.md", "## A student of your own", "python"), names)  # noqa: S102 - the guide itself
    assert names["terms"].keys() == {"ce", "logit", "feature"}
    assert all(torch.isfinite(term) for term in names["terms"].values())
