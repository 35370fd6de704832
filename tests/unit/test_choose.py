"""The automatic codec keeps its promise on crops that it was not fitted to, and is the smallest codec that does."""

import pytest
import torch
import torch.nn.functional as F

from kdcache.cache.codecs.choose import CalibrationSample, Promise, choose_codec, measure, stored_bytes
from kdcache.cache.codecs.rate_distortion import rate_curve
from kdcache.cache.errors import TeacherError


def smooth_maps(n: int, channels: int, *, seed: int, scale: float = 4.0) -> list[torch.Tensor]:
    """Maps like a network's: smooth, correlated, a little rough."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=torch.Generator().manual_seed(9)) / channels**0.5
    rough = F.interpolate(torch.randn(n, channels, 5, 6, generator=generator), size=(33, 45), mode="bicubic")
    maps = torch.einsum("cd,ndhw->nchw", mixing, rough) * scale
    return list((maps + 0.05 * torch.randn(maps.shape, generator=generator)).split(1))


def make_sample(target: str = "logits", channels: int = 7, **changes) -> CalibrationSample:
    held_out = smooth_maps(3, channels, seed=2)
    parts = {
        "target": target,
        "fitted": smooth_maps(5, channels, seed=1),
        "held_out": held_out,
        "exact": held_out,
        "weights": [torch.ones(1, 33, 45)] * 3,
        **changes,
    }
    return CalibrationSample(**parts)


@pytest.mark.parametrize("max_kl", [1e-2, 1e-3, 1e-4])
def test_the_promise_is_kept(max_kl):
    sample = make_sample()
    codec = choose_codec(Promise(max_kl, ("logit",)), sample)
    found = measure(codec, sample)
    assert found["kl"] <= max_kl
    assert found["kl"] > max_kl / 10  # and it does not waste bytes


def test_nothing_smaller_keeps_it():
    sample, promise = make_sample(), Promise(1e-3, ("logit",))
    chosen = measure(choose_codec(promise, sample), sample)["bytes_per_value"]
    for point in rate_curve(sample):
        if point.codec.name != "dct-range" and point.fidelity["kl"] <= promise.max_kl:
            assert chosen <= 1.02 * point.fidelity["bytes_per_value"], point.request


def test_a_tighter_promise_takes_more():
    sample = make_sample()
    sizes = [
        stored_bytes(choose_codec(Promise(kl, ("logit",)), sample), sample.held_out)
        for kl in (1e-2, 1e-3, 1e-4)
    ]
    assert sizes == sorted(sizes)


def test_other_methods_have_a_say():
    sample = make_sample()
    for methods in (("cwd",), ("dist",), ("dkd",), ("cwd", "dist", "logit")):
        found = measure(choose_codec(Promise(1e-3, methods), sample), sample)
        assert all(found["divergence"][name] <= 1e-3 for name in methods)


def test_features_are_bound_by_their_error_and_by_the_classifier():
    weight = torch.randn(4, 7, 1, 1, generator=torch.Generator().manual_seed(0))
    free = make_sample("features")
    bound = make_sample("features", classifier=lambda features: F.conv2d(features, 5 * weight))
    promise = Promise(1e-4, ("logit",))
    without = measure(choose_codec(promise, free), free)
    within = measure(choose_codec(promise, bound), bound)
    assert without["relative_error"] <= 2e-3 and within["kl"] <= 1e-4
    assert within["bytes_per_value"] > without["bytes_per_value"]


def test_a_teacher_whose_own_precision_breaks_the_promise_is_told():
    held_out = smooth_maps(3, 7, seed=2)
    sample = make_sample(exact=[target + 0.5 * torch.randn_like(target) for target in held_out])
    with pytest.raises(TeacherError, match=r"no codec keeps auto:0\.001") as caught:
        choose_codec(Promise(1e-3, ("logit",)), sample)
    assert "--max-kl" in str(caught.value.hint)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_maps_of_a_few_cells(size):
    generator = torch.Generator().manual_seed(0)
    maps = list(torch.randn(6, 3, *size, generator=generator).split(1))
    sample = make_sample(
        fitted=maps[:3], held_out=maps[3:], exact=maps[3:], weights=[torch.ones(1, *size)] * 3
    )
    assert measure(choose_codec(Promise(1e-3, ("logit",)), sample), sample)["kl"] <= 1e-3


def test_padding_does_not_buy_bytes():
    """Errors in cells that do not count in a loss do not matter."""
    held_out = smooth_maps(3, 7, seed=2)
    noisy = [target.clone() for target in held_out]
    for target in noisy:
        target[..., 30:] += 40 * torch.randn_like(target[..., 30:])
    weights = torch.ones(1, 33, 45)
    weights[..., 24:] = 0  # from the block before: a block of the DCT spreads an error over all of its cells
    sample = make_sample(held_out=noisy, exact=noisy, weights=[weights] * 3)
    assert measure(choose_codec(Promise(1e-3, ("logit",)), sample), sample)["kl"] <= 1e-3
