"""Properties of every method: padding and void, the order of the batch, precision, several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.cache.errors import UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.networks.network import NetworkConfig, NetworkOutput
from kdcache.distill.losses.generative import MaskedGeneration
from kdcache.distill.losses.memory import CrossImageMemory
from kdcache.distill.losses.methods import METHODS, build_method
from kdcache.distill.losses.region import share_totals
from kdcache.distill.losses.terms import LABELS, LossConfig, Method, term_needs

DISTILLING = [name for name in METHODS if name != "none"]
CLASSES, MAP, CROP = 4, (6, 5), (48, 40)
STUDENT = NetworkConfig(
    architecture="pspnet",
    backbone="resnet18",
    classes=CLASSES,
    branch_channels=2,
    head_channels=6,
    aux_channels=2,
)
TEACHER = {"logits": CLASSES, "features": 8, "aux": CLASSES, "backbone": 16}
VALID = ((48, 40), (33, 40), (20, 13))

Example = tuple[NetworkOutput, dict[str, Tensor], Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch.setattr)


def shrink(setattr: Any) -> None:
    """Queues that are large enough for everything in these tests, and that are compared as a whole."""
    for name, slots in {"pixel_slots": 200, "pixel_contrast": 200, "region_slots": 9}.items():
        setattr(CrossImageMemory, name, slots)


def make_example(seed: int = 0, *, padded: bool = True) -> Example:
    """Three crops: one whole, two padded, with void among the labels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(3, channels, *MAP, dtype=torch.float64, generator=generator)

    student = NetworkOutput(*(draw(STUDENT.channels[name]) for name in NetworkOutput._fields))
    targets = {name: draw(width) for name, width in TEACHER.items()}
    cells = torch.randint(0, CLASSES + 1, (3, *MAP), generator=generator)
    cells[cells == CLASSES] = IGNORE
    labels = cells.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    valid_size = torch.tensor(VALID if padded else [CROP] * 3)
    for label, (height, width) in zip(labels, valid_size.tolist(), strict=True):
        label[height:] = IGNORE
        label[:, width:] = IGNORE
    return NetworkOutput(*(m.requires_grad_() for m in student if m is not None)), targets, labels, valid_size


def make_method(name: str, **config: Any) -> Method:
    torch.manual_seed(0)
    return build_method(name, LossConfig(**config), STUDENT, TEACHER).double()


def terms_of(method: Method, example: Example) -> dict[str, Tensor]:
    output, targets, labels, valid_size = example
    totals = share_totals(method.count(labels, valid_size), 1, seed=5)
    terms: dict[str, Tensor] = method(output, targets, labels, valid_size, totals)
    return {name: term for name, term in terms.items() if name not in ("ce", "aux")}


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def changed(example: Example, where: Tensor) -> Example:
    """The example with other maps at some cells, (N, h, w) bool."""
    output, targets, labels, valid_size = example
    other, other_targets, _, _ = make_example(seed=1)
    mix = lambda one, two: torch.where(where[:, None], two, one).detach()
    maps = (mix(*pair).requires_grad_() for pair in zip(output, other, strict=True))
    return NetworkOutput(*maps), {k: mix(t, other_targets[k]) for k, t in targets.items()}, labels, valid_size


def padding() -> Tensor:
    """Cells that are all padding, (N, h, w) bool."""
    rows, columns = (torch.arange(side) * 8 for side in MAP)
    return torch.stack([(rows >= h)[:, None] | (columns >= w)[None] for h, w in VALID])


@pytest.mark.parametrize("name", DISTILLING)
class TestWhatTakesPart:
    def test_padding_changes_nothing_and_gets_no_gradient(self, name: str) -> None:
        example = make_example()
        terms = terms_of(make_method(name), example)
        repainted = terms_of(make_method(name), changed(example, padding()))
        for key, term in terms.items():
            torch.testing.assert_close(repainted[key], term, rtol=1e-12, atol=1e-14)
        maps = [m for m in example[0] if m is not None]
        gradients = torch.autograd.grad(total(terms), maps, materialize_grads=True)
        reached = [g.abs().sum(dim=1) for g in gradients if g.any()]
        assert reached
        for gradient in reached:
            assert (gradient[padding()] == 0).all()

    def test_published_leaves_padding_in(self, name: str) -> None:
        example = make_example()
        terms = terms_of(make_method(name, kd_ignore="published"), example)
        repainted = terms_of(make_method(name, kd_ignore="published"), changed(example, padding()))
        differing = {key for key, term in terms.items() if not torch.isclose(repainted[key], term)}
        # In these methods' published code, cells without a label do not count either.
        assert terms.keys() - differing <= {"variation", "dkd_target", "dkd_nontarget"}

    def test_void_is_left_out_where_asked(self, name: str) -> None:
        example = make_example()
        void = (example[2][:, ::8, ::8] == IGNORE) & ~padding()
        assert void.any()
        terms = terms_of(make_method(name, kd_ignore="void"), example)
        repainted = terms_of(make_method(name, kd_ignore="void"), changed(example, void))
        for key, term in terms.items():
            torch.testing.assert_close(repainted[key], term, rtol=1e-12, atol=1e-14)

    def test_without_padding_nothing_is_masked(self, name: str) -> None:
        example = make_example(padded=False)
        terms = terms_of(make_method(name), example)
        published = terms_of(make_method(name, kd_ignore="published"), example)
        assert {key: float(term.detach()) for key, term in published.items()} == pytest.approx(
            {key: float(term.detach()) for key, term in terms.items()}, rel=1e-12
        )

    def test_nothing_at_all_gives_finite_losses_and_gradients(self, name: str) -> None:
        output, targets, labels, valid_size = make_example()
        example = (output, targets, torch.full_like(labels, IGNORE), valid_size)
        method = make_method(name, kd_ignore="void")
        terms = terms_of(method, example)
        assert all(torch.isfinite(term) for term in terms.values())
        losses = {key: term for key, term in terms.items() if key not in method.adversaries}
        if "dist" not in losses:  # 1 - correlation is 1 without any cell
            assert [float(term.detach()) for term in losses.values()] == [0.0] * len(losses)
        maps = [m for m in output if m is not None]
        gradients = torch.autograd.grad(total(terms), [*maps, *method.parameters()], materialize_grads=True)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.fixture
def alike_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random numbers for every image."""
    from kdcache.distill.losses.region import Region

    def uniform(region: Region, shape: tuple[int, ...]) -> Tensor:
        numbers = torch.rand(shape, generator=torch.Generator().manual_seed(3))
        return numbers.expand(len(region.labels), *shape)

    monkeypatch.setattr(Region, "uniform", uniform)


@pytest.mark.parametrize("name", METHODS)
def test_batch_order_does_not_matter(name: str, alike_draws: None) -> None:
    example, order = make_example(), torch.tensor([2, 0, 1])
    output, targets, labels, valid_size = example
    shuffled = (
        NetworkOutput(*(m[order] for m in output if m is not None)),
        {key: t[order] for key, t in targets.items()},
        labels[order],
        valid_size[order],
    )
    terms, found = terms_of(make_method(name), example), terms_of(make_method(name), shuffled)
    for key, term in terms.items():
        torch.testing.assert_close(found[key], term)


def test_the_guide_has_every_methods_terms_and_needs(root: Path) -> None:
    section = (root / "distill/README.md").read_text().partition("## Methods\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    listed = {name.strip("`"): (terms, needs) for name, terms, needs, _ in rows}
    assert listed == {
        name: (
            ", ".join(f"{term} {float(f'{weight:.3g}'):g}" for term, (_, weight) in terms.items()),
            ", ".join(sorted(needs, key=lambda need: need == LABELS)),
        )
        for name, terms in METHODS.items()
        for needs in [term_needs(terms, LossConfig())]
    }


IMITABLE = ("logit", "at", "cwd", "dkd", "dist", "dsd")


@pytest.mark.parametrize("name", IMITABLE)
def test_zero_where_the_student_says_what_the_teacher_says(name: str) -> None:
    _, targets, labels, valid_size = make_example()
    maps = {**targets, "backbone": torch.zeros(3, 512, *MAP, dtype=torch.float64)}
    output = NetworkOutput(**{key: maps[key].clone().requires_grad_() for key in NetworkOutput._fields})
    terms = terms_of(make_method(name), (output, targets, labels, valid_size))
    gradients = torch.autograd.grad(total(terms), list(output), materialize_grads=True)
    assert all(float(term.detach()) == pytest.approx(0, abs=1e-6) for term in terms.values())
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


def test_relations_are_zero_for_features_that_differ_by_a_rotation_and_a_factor() -> None:
    output, targets, labels, valid_size = make_example()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    features = 3 * torch.einsum("dc,nchw->ndhw", rotation, targets["features"])
    wide = NetworkConfig(**{**STUDENT.to_dict(), "head_channels": 8})
    method = build_method(
        "cirkd", LossConfig(kd_terms="memory_pixel=0,memory_region=0,logit=0"), wide, TEACHER
    ).double()
    example = (output._replace(features=features), targets, labels, valid_size)
    assert float(terms_of(method, example)["minibatch"]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_in_float32_under_autocast_and_agree_with_float64(name: str) -> None:
    output, targets, labels, valid_size = make_example()
    exact = terms_of(make_method(name), (output, targets, labels, valid_size))
    single = NetworkOutput(*(m.detach().float().requires_grad_() for m in output if m is not None))
    method = make_method(name).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(method, (single, {k: t.float() for k, t in targets.items()}, labels, valid_size))
    for key, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.double(), exact[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DISTILLING)
def test_half_precision_maps_give_every_parameter_a_gradient(name: str) -> None:
    output, targets, labels, valid_size = make_example()
    half = NetworkOutput(*(m.detach().bfloat16().requires_grad_() for m in output if m is not None))
    method = make_method(name).float()
    terms = terms_of(method, (half, {k: t.float() for k, t in targets.items()}, labels, valid_size))
    total(terms).backward()
    assert [key for key, parameter in method.named_parameters() if parameter.grad is None] == []


class TestRivals:
    def test_student_and_discriminator_learn_nothing_from_each_others_losses(self) -> None:
        example = make_example()
        method = make_method("ifvd")
        terms = terms_of(method, example)
        assert method.adversaries == {"discriminator"} and "discriminator" in terms
        parameters = [*method.parameters()]
        maps = [m for m in example[0] if m is not None]
        by_discriminator = torch.autograd.grad(
            terms.pop("discriminator"), [*maps, *parameters], materialize_grads=True
        )
        assert not any(gradient.any() for gradient in by_discriminator[: len(maps)])
        learnt = dict(zip(dict(method.named_parameters()), by_discriminator[len(maps) :], strict=True))
        assert all(gradient.any() for key, gradient in learnt.items() if ".halvings." in key)
        of_student = torch.autograd.grad(total(terms), parameters, materialize_grads=True)
        assert not any(gradient.any() for gradient in of_student)

    def test_the_discriminator_learns_to_distinguish_teacher_and_student(self) -> None:
        example = make_example(padded=False)
        method = make_method("skd", kd_terms="logit=0,pair=0")
        (optimiser,) = make_method("ifvd").make_adversary_optimisers()
        optimiser = type(optimiser)(method.parameters(), lr=5e-3)
        losses = []
        for _ in range(4):
            terms = terms_of(method, example)
            losses.append(float(terms["discriminator"].detach()))
            terms["discriminator"].backward()
            optimiser.step()
            optimiser.zero_grad()
        assert losses[-1] < losses[0] - 0.1

    def test_skd_and_ifvd_differ_in_the_discriminators_optimiser(self) -> None:
        skd, ifvd = (make_method(name).make_adversary_optimisers() for name in ("skd", "ifvd"))
        assert [type(optimiser) for optimiser in (*skd, *ifvd)] == [torch.optim.SGD, torch.optim.Adam]
        assert make_method("cirkd").make_adversary_optimisers() == []


class TestMemory:
    def test_a_queue_holds_cells_of_its_class_and_means_of_them(self) -> None:
        method = make_method("cirkd")
        example = make_example()
        terms_of(method, example)
        memory = method.terms["memory_pixel"]
        assert isinstance(memory, CrossImageMemory)
        _, targets, labels, _ = example
        cells = torch.nn.functional.normalize(targets["features"], dim=1)
        for kind in range(CLASSES):
            member = labels[:, ::8, ::8] == kind
            wanted = cells.movedim(1, -1)[member]
            count = int(memory.pixel_next[kind])
            assert count == sum(min(16, int(image.sum())) for image in member)
            distances = torch.cdist(memory.pixel_queue[kind, :count], wanted)
            assert distances.min(dim=1).values.max() < 1e-6
            images = [n for n in range(3) if member[n].any()]
            assert int(memory.region_next[kind]) == len(images)
            for slot, n in enumerate(images):
                mean = torch.nn.functional.normalize(cells.movedim(1, -1)[n][member[n]].mean(dim=0), dim=0)
                torch.testing.assert_close(memory.region_queue[kind, slot], mean)

    def test_the_published_queue_holds_cells_of_other_classes(self) -> None:
        method, example = make_method("cirkd-published"), make_example()
        terms_of(method, example)
        memory = method.terms["memory_pixel"]
        assert isinstance(memory, CrossImageMemory)
        cells = torch.nn.functional.normalize(example[1]["features"], dim=1).movedim(1, -1)
        own = cells[example[2][:, ::8, ::8] == 0]
        distances = torch.cdist(memory.pixel_queue[0, : int(memory.pixel_next[0])], own)
        assert (distances.min(dim=1).values > 1e-6).any()

    def test_a_full_queue_begins_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(CrossImageMemory, "pixel_slots", 16)
        method = make_method("cirkd")
        memory = method.terms["memory_pixel"]
        assert isinstance(memory, CrossImageMemory)
        before = memory.pixel_queue.clone()
        for seed in range(6):
            terms_of(method, make_example(seed))
        assert not (memory.pixel_queue == before).all(dim=2).any()
        assert (memory.pixel_next < 16).all() and (memory.region_next < 9).all()
        torch.testing.assert_close(memory.pixel_queue.norm(dim=2), torch.ones(CLASSES, 16).double())


def test_generation_sees_a_quarter_of_the_cells() -> None:
    method = make_method("mgd")
    example = make_example(padded=False)
    shown = []
    term = method.terms["generated"]
    assert isinstance(term, MaskedGeneration)
    term.generator.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    for _ in range(20):
        method(*example, share_totals(method.count(*example[2:]), 1, seed=len(shown)))
    share = torch.stack(shown).any(dim=2).double().mean()
    assert 0.2 < float(share) < 0.3


def test_af_dcd_needs_channels_that_can_be_cut() -> None:
    with pytest.raises(UsageError, match="16 groups"):
        build_method("af-dcd", LossConfig(), STUDENT, {**TEACHER, "backbone": 20})


PART = """
import sys, torch
from torch.distributed import destroy_process_group, init_process_group

sys.path.insert(0, sys.argv[1])
import test_methods

if __name__ == "__main__":
    torch.set_num_threads(1)
    init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.save(test_methods.learn_from(slice(rank * 2, rank * 2 + 2)), f"{sys.argv[2]}/{rank}.pt")
    destroy_process_group()
"""


def learn_from(part: slice) -> dict[str, Any]:
    """By method: losses of two steps on some of four crops, and gradients of the last by maps and parameters."""
    shrink(setattr)
    learnt = {}
    for name in METHODS:
        # A discriminator takes a second; ifvd's is tested for skd too.
        method = make_method(name, kd_terms="holistic=0" if name == "skd" else "")
        for seed in (0, 1) if "cirkd" in name else (0,):
            output, targets, labels, valid_size = four_crops(seed)
            mine = [m[part].detach().requires_grad_() for m in output if m is not None]
            counts = method.count(labels, valid_size)
            processes = 4 // (part.stop - part.start)
            terms = method(
                NetworkOutput(*mine),
                {key: t[part] for key, t in targets.items()},
                labels[part],
                valid_size[part],
                share_totals(counts, processes, seed=seed),
            )
        wanted = {f"map {n}": m for n, m in enumerate(mine)} | dict(method.named_parameters())
        gradients = torch.autograd.grad(total(terms), list(wanted.values()), materialize_grads=True)
        learnt[name] = {
            "losses": torch.stack(list(terms.values())).detach(),
            "gradients": dict(zip(wanted, gradients, strict=True)),
            "buffers": dict(method.named_buffers()),
        }
    return learnt


def four_crops(seed: int) -> Example:
    """The same for two examples, with unequal padding in the halves."""
    one, two = make_example(seed), make_example(seed + 10)
    pick = lambda a, b: torch.cat([a, b[:1]])
    maps = (pick(*pair) for pair in zip(one[0], two[0], strict=True))
    targets = {key: pick(one[1][key], two[1][key]) for key in one[1]}
    return NetworkOutput(*maps), targets, pick(one[2], two[2]), pick(one[3], two[3])


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(PART)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "part.py"), str(Path(__file__).parent), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    whole = learn_from(slice(0, 4))
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, learnt in whole.items():
        mine, theirs = (part[name] for part in parts)
        torch.testing.assert_close((mine["losses"] + theirs["losses"]) / 2, learnt["losses"], msg=name)
        for key, gradient in learnt["gradients"].items():
            pair = (mine["gradients"][key], theirs["gradients"][key])
            shared = torch.cat(pair) / 2 if key.startswith("map ") else sum(pair) / 2
            torch.testing.assert_close(shared, gradient, msg=f"{name}: {key}")
        for key, buffer in learnt["buffers"].items():
            torch.testing.assert_close(mine["buffers"][key], buffer, msg=f"{name}: {key}")
            torch.testing.assert_close(theirs["buffers"][key], buffer, msg=f"{name}: {key}")
