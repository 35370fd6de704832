"""The simple losses against slow references, pixel by pixel in plain Python, and invariants that training relies on.

test_methods.py tests what all methods have in common; test_golden_losses.py compares with the methods' published code.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.cache.errors import UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.networks.network import NetworkConfig, NetworkOutput
from kdcache.cache.views.maps import cell_weights, labelled_cell_weights
from kdcache.distill.losses.methods import build_method, find_method, method_needs
from kdcache.distill.losses.region import Region, Totals, share_totals
from kdcache.distill.losses.terms import LossConfig, Method, channel_mse, pixel_kl

PLAIN = ("none", "logit", "feature", "logit+feature")
CLASSES, WIDTH, TEACHER_WIDTH = 4, 3, 5
CROP, MAP = (16, 24), (2, 3)
TEACHER_CHANNELS = {"logits": CLASSES, "features": TEACHER_WIDTH}
STUDENT = NetworkConfig(
    architecture="pspnet",
    backbone="resnet18",
    classes=CLASSES,
    branch_channels=2,
    head_channels=WIDTH,
    aux_channels=2,
)


def make_output(
    n: int = 3, map_size: tuple[int, int] = MAP, dtype: torch.dtype = torch.float64
) -> NetworkOutput:
    maps = [torch.randn(n, channels, *map_size, dtype=dtype) for channels in (CLASSES, WIDTH, CLASSES, 2)]
    return NetworkOutput(*(m.requires_grad_() for m in maps))


def make_batch(n: int = 3) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Targets, labels with void and padding, valid sizes (one crop whole, the others padded)."""
    targets = {name: torch.randn(n, c, *MAP, dtype=torch.float64) for name, c in TEACHER_CHANNELS.items()}
    valid_size = torch.tensor([[16, 24], [11, 24], [5, 13]])[:n]
    labels = torch.randint(0, CLASSES, (n, *CROP), dtype=torch.uint8)
    labels[torch.rand(n, *CROP) < 0.2] = IGNORE
    for label, (height, width) in zip(labels, valid_size.tolist(), strict=True):
        label[height:] = IGNORE
        label[:, width:] = IGNORE
    return targets, labels, valid_size


def make_method(name: str, **config: object) -> Method:
    return build_method(name, LossConfig(**config), STUDENT, TEACHER_CHANNELS).double()  # type: ignore[arg-type]


def project(method: Method, features: Tensor) -> Tensor:
    """The student's features after the method's projection."""
    projected: Tensor = method.terms["feature"].projector(features)  # type: ignore[operator]
    return projected


def terms_of(
    method: Method, output: NetworkOutput, targets: dict[str, Tensor], labels: Tensor, valid_size: Tensor
) -> dict[str, Tensor]:
    totals = share_totals(method.count(labels, valid_size), 1)
    terms: dict[str, Tensor] = method(output, targets, labels, valid_size, totals)
    return terms


def softmax(values: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(v / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def slow_cell_mask(labels: Tensor, valid_size: Tensor, kd_ignore: str) -> Tensor:
    """The fraction of each 8 x 8 cell that counts, counted pixel by pixel."""
    n, (h, w) = len(labels), MAP
    fractions = torch.zeros(n, h, w, dtype=torch.float64)
    for i in range(n):
        for y in range(CROP[0]):
            for x in range(CROP[1]):
                inside = y < valid_size[i, 0] and x < valid_size[i, 1]
                if inside and (kd_ignore == "none" or labels[i, y, x] != IGNORE):
                    fractions[i, y // 8, x // 8] += 1 / 64
    return fractions


def slow_kl(student: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> float:
    total = 0.0
    for i, y, x in np.ndindex(*weights.shape):
        p = softmax(teacher[i, :, y, x].tolist(), temperature)
        q = softmax(student[i, :, y, x].tolist(), temperature)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += float(weights[i, y, x]) * temperature**2 * kl
    return total / float(weights.sum())


def slow_mse(student: Tensor, teacher: Tensor, weights: Tensor) -> float:
    total = 0.0
    for i, y, x in np.ndindex(*weights.shape):
        difference = student[i, :, y, x] - teacher[i, :, y, x]
        total += float(weights[i, y, x]) * float((difference**2).mean())
    return total / float(weights.sum())


def slow_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """From logits already at the crop's size."""
    total, count = 0.0, 0
    for i, y, x in np.ndindex(*labels.shape):
        label = int(labels[i, y, x])
        if label != IGNORE:
            total -= math.log(softmax(logits[i, :, y, x].tolist())[label])
            count += 1
    return total / count


class TestTerms:
    @pytest.mark.parametrize("kd_ignore", ["none", "void"])
    @pytest.mark.parametrize("temperature", [1.0, 3.0])
    def test_equal_the_slow_references(self, kd_ignore: str, temperature: float) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        method = make_method(
            "logit+feature",
            temperature=temperature,
            kd_ignore=kd_ignore,
            logit_weight=2.0,
            feature_weight=0.5,
        )
        weights = slow_cell_mask(labels, valid_size, kd_ignore)
        terms = terms_of(method, output, targets, labels, valid_size)
        assert set(terms) == {"ce", "aux", "logit", "feature"}
        expected = 2.0 * slow_kl(output.logits, targets["logits"], weights, temperature)
        assert terms["logit"].item() == pytest.approx(expected, rel=1e-6)
        weight = method.terms["feature"].projector.weight
        projected = torch.einsum("dc,nchw->ndhw", weight[:, :, 0, 0], output.features)
        expected = 0.5 * slow_mse(projected.detach(), targets["features"], weights)
        assert terms["feature"].item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_cross_entropy_of_both_heads(self, align_corners: bool) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        method = make_method("none", aux_weight=0.4)
        method.align_corners = align_corners
        terms = terms_of(method, output, targets, labels, valid_size)
        for name, logits, weight in (("ce", output.logits, 1.0), ("aux", output.aux, 0.4)):
            large = F.interpolate(logits, CROP, mode="bilinear", align_corners=align_corners)
            assert terms[name].item() == pytest.approx(weight * slow_cross_entropy(large.detach(), labels))
        assert set(terms) == {"ce", "aux"}

    def test_a_student_without_auxiliary_head_has_no_such_term(self) -> None:
        output, (targets, labels, valid_size) = make_output()._replace(aux=None), make_batch()
        assert set(terms_of(make_method("none"), output, targets, labels, valid_size)) == {"ce"}

    def test_zero_where_the_student_says_what_the_teacher_says(self) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        method = make_method("logit+feature", temperature=2.0)
        targets = {
            "logits": output.logits.detach() + 7.0,  # a constant over classes changes no probability
            "features": project(method, output.features).detach(),
        }
        terms = terms_of(method, output, targets, labels, valid_size)
        assert terms["logit"].item() == pytest.approx(0.0, abs=1e-12)
        assert terms["feature"].item() == 0.0
        gradient = torch.autograd.grad(terms["logit"] + terms["feature"], [output.logits, output.features])
        assert all(g.abs().max() < 1e-12 for g in gradient)

    def test_a_student_map_of_another_size_is_resampled_to_the_teachers(self) -> None:
        small, (targets, labels, valid_size) = make_output(map_size=(3, 4)), make_batch()
        method = make_method("logit+feature")
        large = NetworkOutput(
            *(F.interpolate(m, MAP, mode="bilinear", align_corners=False) for m in small if m is not None)
        )
        terms, expected = (terms_of(method, o, targets, labels, valid_size) for o in (small, large))
        for name in ("logit", "feature"):
            torch.testing.assert_close(terms[name], expected[name])


class TestGradients:
    def test_agree_with_finite_differences(self) -> None:
        targets, labels, valid_size = make_batch(2)
        method = make_method("logit+feature", temperature=2.0)
        totals = share_totals(method.count(labels, valid_size), 1)

        def loss(logits: Tensor, features: Tensor, aux: Tensor) -> Tensor:
            terms = method(
                NetworkOutput(logits, features, aux, features), targets, labels, valid_size, totals
            )
            return torch.stack(list(terms.values())).sum()

        output = make_output(2)
        assert torch.autograd.gradcheck(loss, (output.logits, output.features, output.aux))

    def test_padding_gets_exactly_none(self) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        terms = terms_of(make_method("logit+feature"), output, targets, labels, valid_size)
        for term, source in (("logit", output.logits), ("feature", output.features)):
            (gradient,) = torch.autograd.grad(terms[term], [source], retain_graph=True)
            padded = slow_cell_mask(labels, valid_size, "none") == 0
            assert padded.any()
            assert (gradient.abs().sum(dim=1)[padded] == 0).all()
            assert (gradient.abs().sum(dim=1)[~padded] > 0).all()

    def test_the_temperature_keeps_the_gradients_size(self) -> None:
        """d(T^2 KL)/dz = T (softmax(z_S/T) - softmax(z_T/T)), which tends to (z_S - z_T) / C for centred logits."""
        student, teacher = torch.randn(2, 1, CLASSES, 2, 2, dtype=torch.float64)
        student, teacher = (z - z.mean(dim=1, keepdim=True) for z in (student, teacher))
        student.requires_grad_()
        for temperature in (1.0, 4.0, 1e4):
            (gradient,) = torch.autograd.grad(pixel_kl(student, teacher, temperature).sum(), [student])
            gap = torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)
            torch.testing.assert_close(gradient, temperature * gap)
        torch.testing.assert_close(gradient, (student - teacher) / CLASSES, rtol=1e-3, atol=1e-3)

    def test_a_batch_without_labels_still_has_a_graph(self) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        terms = terms_of(make_method("none"), output, targets, torch.full_like(labels, IGNORE), valid_size)
        assert terms["ce"].item() == terms["aux"].item() == 0.0
        gradients = torch.autograd.grad(terms["ce"] + terms["aux"], [output.logits, output.aux])
        assert all((g == 0).all() for g in gradients)

    def test_no_valid_pixel_gives_zero_and_no_nan(self) -> None:
        output, (targets, labels, valid_size) = make_output(), make_batch()
        method = make_method("logit+feature", kd_ignore="void")
        terms = terms_of(method, output, targets, torch.full_like(labels, IGNORE), valid_size)
        assert [term.item() for term in terms.values()] == [0.0] * 4


@pytest.mark.parametrize("name", PLAIN)
def test_two_processes_average_to_the_whole_batch(name: str) -> None:
    output, (targets, labels, valid_size) = make_output(), make_batch()
    method = make_method(name)
    whole = terms_of(method, output, targets, labels, valid_size)
    parts = (slice(0, 1), slice(1, 3))  # uneven in images, labels and padding
    counts = torch.stack([method.count(labels[part], valid_size[part]) for part in parts]).sum(dim=0)
    shared = [
        method(
            NetworkOutput(*(m[part] for m in output if m is not None)),
            {key: t[part] for key, t in targets.items()},
            labels[part],
            valid_size[part],
            share_totals(counts, 2),
        )
        for part in parts
    ]
    for key, term in whole.items():
        torch.testing.assert_close((shared[0][key] + shared[1][key]) / 2, term)


def test_half_precision_inputs_are_computed_in_float32_under_autocast() -> None:
    output, (targets, labels, valid_size) = make_output(dtype=torch.float32), make_batch()
    method = make_method("logit+feature").float()
    half = NetworkOutput(*(m.bfloat16() for m in output if m is not None))
    rounded = NetworkOutput(*(m.float() for m in half if m is not None))
    targets = {name: t.float() for name, t in targets.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(method, half, targets, labels, valid_size)
    for name, term in terms_of(method, rounded, targets, labels, valid_size).items():
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name], term)


def test_float32_agrees_with_float64() -> None:
    output, (targets, labels, valid_size) = make_output(), make_batch()
    method = make_method("logit+feature")
    exact = terms_of(method, output, targets, labels, valid_size)
    single = NetworkOutput(*(m.float() for m in output if m is not None))
    approximate = terms_of(
        method.float(), single, {k: t.float() for k, t in targets.items()}, labels, valid_size
    )
    for name, term in exact.items():
        torch.testing.assert_close(approximate[name].double(), term, rtol=1e-5, atol=1e-6)


class TestCellWeights:
    @given(
        crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        data=st.data(),
    )
    @settings(max_examples=60, deadline=None)
    def test_are_areas(self, crop: tuple[int, int], cells: tuple[int, int], data: st.DataObject) -> None:
        cells = (min(cells[0], crop[0]), min(cells[1], crop[1]))
        valid_size = [data.draw(st.integers(1, crop[0])), data.draw(st.integers(1, crop[1]))]
        weights = cell_weights(torch.tensor([valid_size]), crop, cells)[0]
        labels = torch.full((1, *crop), IGNORE, dtype=torch.uint8)
        labels[0, : valid_size[0], : valid_size[1]] = 1
        torch.testing.assert_close(labelled_cell_weights(labels, cells)[0], weights)
        for y, x in np.ndindex(*cells):
            covered = [
                max(0.0, min((cell + 1) * size / n, limit) - cell * size / n) / (size / n)
                for cell, size, n, limit in zip((y, x), crop, cells, valid_size, strict=True)
            ]
            assert float(weights[y, x]) == pytest.approx(covered[0] * covered[1], abs=1e-5)
        cell_px = crop[0] * crop[1] / (cells[0] * cells[1])
        assert float(weights.sum()) * cell_px == pytest.approx(valid_size[0] * valid_size[1], rel=1e-4)

    def test_count_labelled_pixels_alone(self) -> None:
        _, labels, valid_size = make_batch()
        torch.testing.assert_close(
            labelled_cell_weights(labels, MAP).double(), slow_cell_mask(labels, valid_size, "void")
        )


def test_a_target_of_another_resolution_needs_no_other_count() -> None:
    method, (_, labels, valid_size) = make_method("none"), make_batch()
    region = Region(labels, valid_size, share_totals(method.count(labels, valid_size), 1).distilled, "none")
    for size in ((2, 3), (4, 6), (3, 5)):
        constant = torch.full((3, *size), 2.5, dtype=torch.float64)
        assert region.mean(constant).item() == pytest.approx(2.5, rel=1e-5)


def test_channel_mse_is_a_mean_over_channels() -> None:
    error = channel_mse(torch.ones(1, 8, 2, 2), torch.full((1, 8, 2, 2), 4.0))
    torch.testing.assert_close(error, torch.full((1, 2, 2), 9.0), rtol=2e-7, atol=0)


def test_totals_are_at_least_one_pixel() -> None:
    assert share_totals(torch.tensor([0.0, 12.0]), 4) == Totals(torch.tensor(0.25), torch.tensor(3.0))


class TestRecipes:
    def test_weights_can_be_changed_one_by_one_and_all_together(self) -> None:
        def weights(name: str, **config: object) -> dict[str, float]:
            return make_method(name, **config).weights

        assert weights("logit+feature") == {"logit": 1.0, "feature": 6.0}
        assert weights("logit+feature", logit_weight=2.0, kd_weight=0.5) == {"logit": 1.0, "feature": 3.0}
        assert weights("at", kd_terms="attention=5") == {"attention": 5.0, "logit": 1.0}
        assert weights("logit+feature", kd_terms="logit=0") == {"feature": 6.0}

    def test_a_term_of_weight_zero_is_neither_computed_nor_needed(self) -> None:
        config = LossConfig(feature_weight=0.0)
        assert method_needs("logit+feature", config) == ("logits",)
        method = build_method("logit+feature", config, STUDENT, {"logits": CLASSES})
        assert not [*method.parameters()]

    def test_the_temperature_is_that_of_every_term_that_has_one(self) -> None:
        assert make_method("logit").terms["logit"].temperature == 1.0
        method = build_method(
            "mgd", LossConfig(temperature=2.0), STUDENT, {"logits": CLASSES, "backbone": 16}
        )
        assert {name: term.temperature for name, term in method.terms.items()} == {
            "generated": None,
            "cwd": 2.0,
        }


class TestRefusals:
    def test_unknown_method(self) -> None:
        with pytest.raises(UsageError, match="unknown method 'guess'") as caught:
            find_method("guess")
        assert (caught.value.hint or "").startswith("one of: none, logit, feature, logit+feature, at, ")
        with pytest.raises(UsageError) as caught:
            find_method("Logits")
        assert (caught.value.hint or "").startswith("did you mean logit? one of: none, logit, ")

    @pytest.mark.parametrize("name", ["feature", "logit+feature"])
    def test_missing_target(self, name: str) -> None:
        with pytest.raises(UsageError, match="needs the target 'features'; available: logits"):
            build_method(name, LossConfig(), STUDENT, {"logits": CLASSES})

    def test_other_classes(self) -> None:
        with pytest.raises(UsageError, match="the student has 4 classes, but the teacher's logits have 19"):
            build_method("logit", LossConfig(), STUDENT, {"logits": 19})

    def test_a_student_without_the_head_that_a_term_compares(self) -> None:
        headless = dataclasses.replace(STUDENT, aux_channels=0)
        with pytest.raises(UsageError, match="'dist_aux' needs an auxiliary head") as caught:
            build_method("dist", LossConfig(), headless, {"logits": CLASSES, "aux": CLASSES})
        assert "--kd-terms dist_aux=0" in str(caught.value.hint)

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ({"kd_terms": "pair=1"}, "no term 'pair'; its terms are: logit"),
            ({"feature_weight": 1.0}, "no term 'feature'"),
            ({"kd_terms": "logit"}, "'logit' is not TERM=WEIGHT"),
            ({"kd_terms": "logit=-1"}, "'logit=-1' is not TERM=WEIGHT"),
        ],
    )
    def test_weights_of_terms_that_the_method_lacks(self, config: dict[str, object], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            make_method("logit", **config)

    def test_a_temperature_where_there_is_none(self) -> None:
        with pytest.raises(UsageError, match="--temperature"):
            make_method("feature", temperature=2.0)

    @pytest.mark.parametrize(
        "field",
        [
            {"temperature": 0.0},
            {"logit_weight": -1.0},
            {"kd_ignore": "all"},
            {"aux_weight": -0.1},
            {"kd_weight": 0.0},
        ],
    )
    def test_config(self, field: dict[str, object]) -> None:
        with pytest.raises(UsageError, match=next(iter(field))):
            LossConfig(**field)  # type: ignore[arg-type]


def test_the_channel_error_and_its_gradient_are_the_plain_formulas() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 7, 5, 4, dtype=torch.float64, requires_grad=True)
    teacher, weights = torch.randn(2, 7, 5, 4, dtype=torch.float64), torch.rand(2, 5, 4, dtype=torch.float64)
    found, wanted = channel_mse(student, teacher), (student - teacher).square().mean(dim=1)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
    gradients = [torch.autograd.grad((each * weights).sum(), student)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-16)
    same = channel_mse(student, student.detach())
    assert not same.any() and torch.isfinite(torch.autograd.grad(same.sum(), student)[0]).all()
