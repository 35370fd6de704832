"""Fidelity: fast sums against slow references, and changes that must not affect the result."""

import math

import pytest
import torch

from kdcache.cache.codecs.fidelity import DIVERGENCES, FeatureFidelity, LogitFidelity, headline, pixel_kl

N, C, H, W = 3, 5, 6, 7


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(N, C, H, W, generator=generator) * 3
    stored = exact + torch.randn(N, C, H, W, generator=generator) * 0.3
    weights = torch.ones(N, H, W)
    weights[1, 4:], weights[2, :, 5:] = 0.0, 0.0
    weights[1, 3] = 0.5
    return exact, stored, weights


def measured(maps) -> dict:
    fidelity = LogitFidelity()
    fidelity.add(*maps)
    return fidelity.result()


def slow_kl(exact, stored, weights, temperature) -> float:
    total = cells = 0.0
    for n in range(N):
        for y in range(H):
            for x in range(W):
                p, q = (
                    [math.exp(float(v) / temperature) for v in logits[n, :, y, x]]
                    for logits in (exact, stored)
                )
                p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
                divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                total += float(weights[n, y, x]) * temperature**2 * divergence
                cells += float(weights[n, y, x])
    return total / cells


def test_kl_equals_the_slow_reference(maps):
    found = measured(maps)
    assert found["kl"] == pytest.approx(slow_kl(*maps, 1.0), rel=1e-4)
    assert found["kl_t4"] == pytest.approx(slow_kl(*maps, 4.0), rel=1e-4)
    assert found["divergence"]["logit"] == pytest.approx(found["kl"], rel=1e-5)


def test_agreement_is_counted_cell_by_cell(maps):
    exact, stored, weights = maps
    found = measured(maps)
    kept = total = border_kept = border = 0.0
    by_class: dict[int, list[float]] = {}
    for n in range(N):
        classes = exact[n].argmax(dim=0)
        for y in range(H):
            for x in range(W):
                weight, mine = float(weights[n, y, x]), int(classes[y, x])
                same = weight * (mine == int(stored[n, :, y, x].argmax()))
                around = classes[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                kept, total = kept + same, total + weight
                if bool((around != mine).any()):
                    border_kept, border = border_kept + same, border + weight
                sums = by_class.setdefault(mine, [0.0, 0.0])
                sums[0], sums[1] = sums[0] + same, sums[1] + weight
    assert found["agreement"] == pytest.approx(kept / total)
    assert found["boundary_agreement"] == pytest.approx(border_kept / border)
    expected = [by_class[c][0] / by_class[c][1] if c in by_class else None for c in range(C)]
    assert found["class_agreement"] == pytest.approx(expected)


def test_a_class_that_no_cell_has_and_a_map_without_borders():
    flat = torch.zeros(1, 3, 4, 4)
    flat[:, 1] = 5.0
    fidelity = LogitFidelity()
    fidelity.add(flat, flat, torch.ones(1, 4, 4))
    found = fidelity.result()
    assert found["class_agreement"] == [None, 1.0, None]
    assert found["boundary_agreement"] is None


def test_nothing_is_lost_where_nothing_differs(maps):
    exact, _, weights = maps
    found = measured((exact, exact, weights))
    assert found["kl"] == pytest.approx(0, abs=1e-7)
    assert found["agreement"] == 1.0 and found["relative_error"] == 0.0
    assert all(value == pytest.approx(0, abs=1e-6) for value in found["divergence"].values())


def test_padding_takes_no_part(maps):
    exact, stored, weights = maps
    noisy = stored + 50 * torch.randn_like(stored) * (weights == 0)[:, None]
    for name, value in headline(measured((exact, noisy, weights))).items():
        assert value == pytest.approx(headline(measured(maps))[name], rel=1e-5)
    assert measured((exact, noisy, weights))["divergence"] == pytest.approx(
        measured(maps)["divergence"], rel=1e-4
    )


def test_entries_may_come_in_any_batches(maps):
    apart = LogitFidelity()
    for n in range(N):
        apart.add(*(tensor[n : n + 1] for tensor in maps))
    whole, found = measured(maps), apart.result()
    for name in ("kl", "kl_t4", "agreement", "boundary_agreement", "relative_error", "divergence"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)


def test_a_shift_of_all_classes_is_seen_by_methods_that_normalise_over_cells_alone(maps):
    """A constant added to a cell does not change a softmax over classes, but does change one over cells."""
    exact, _, weights = maps
    shifted = exact + torch.randn(N, 1, H, W, generator=torch.Generator().manual_seed(1))
    found = measured((exact, shifted, weights))
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["divergence"]["cwd"] > 1e-2
    assert found["divergence"]["dist"] == pytest.approx(0, abs=1e-6)


def test_cwd_is_the_kl_over_cells(maps):
    exact, stored, _ = maps
    flat = [torch.softmax(logits.double().flatten(2) / 4, dim=2) for logits in (exact, stored)]
    expected = 16 * (flat[0] * (flat[0] / flat[1]).log()).sum(dim=2).mean(dim=1)
    found = DIVERGENCES["cwd"](exact, stored, torch.ones(N, H, W))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_dist_is_one_less_pearsons_correlation(maps):
    exact, stored, _ = maps
    expected = []
    for n in range(N):
        p, q = (torch.softmax(logits[n], dim=0).flatten(1).double() for logits in (exact, stored))
        expected.append(
            1 - sum(float(torch.corrcoef(torch.stack([a, b]))[0, 1]) for a, b in zip(p, q, strict=True)) / C
        )
    found = DIVERGENCES["dist"](exact, stored, torch.ones(N, H, W))
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


def test_dkd_parts_the_teachers_class_from_the_others(maps):
    exact, stored, _ = maps
    expected = torch.zeros(N, dtype=torch.float64)
    for n in range(N):
        for y in range(H):
            for x in range(W):
                chosen = int(exact[n, :, y, x].argmax())
                p, q = (torch.softmax(logits[n, :, y, x].double() / 4, dim=0) for logits in (exact, stored))
                pairs = [torch.stack([r[chosen], 1 - r[chosen]]) for r in (p, q)]
                rest = [torch.cat([r[:chosen], r[chosen + 1 :]]) / (1 - r[chosen]) for r in (p, q)]
                target, nontarget = (float((a * (a / b).log()).sum()) for a, b in (pairs, rest))
                expected[n] += 16 * (target + 8 * nontarget) / (H * W)
    found = DIVERGENCES["dkd"](exact, stored, torch.ones(N, H, W))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_an_error_between_classes_that_are_ruled_out_is_seen_by_dkd_alone():
    exact = torch.zeros(1, C, H, W)
    exact[:, 0] = 20.0
    stored = exact.clone()
    stored[:, 1] += 2.0
    found = measured((exact, stored, torch.ones(1, H, W)))
    assert found["kl"] < 1e-6 and found["kl_t4"] < 0.1
    assert found["divergence"]["dkd"] > 1


def test_features_are_judged_by_the_teachers_classifier():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 8, 5, 5, generator=generator)
    stored = exact + 0.1 * torch.randn(2, 8, 5, 5, generator=generator)
    weight = torch.randn(3, 8, 1, 1, generator=generator)

    def classifier(features):
        return torch.nn.functional.conv2d(features, weight)

    fidelity = FeatureFidelity(classifier)
    fidelity.add(exact, stored, torch.ones(2, 5, 5))
    found = fidelity.result()
    assert found["kl"] == pytest.approx(
        float(pixel_kl(classifier(exact), classifier(stored)).mean()), rel=1e-5
    )
    variance = float((exact - exact.mean(dim=(0, 2, 3), keepdim=True)).square().sum())
    assert found["relative_error"] == pytest.approx(
        float((stored - exact).square().sum()) / variance, rel=1e-4
    )
    without = FeatureFidelity()
    without.add(exact, stored, torch.ones(2, 5, 5))
    assert without.result()["kl"] is None and without.result()["agreement"] is None
    assert set(headline(without.result())) == {"relative_error"}
