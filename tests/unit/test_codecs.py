"""Codecs keep their stated error for every entry, on any values, and come back from their own description."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.codecs import CODECS, canonical_request, codec_from_dict, fit_codec, stored_dtype
from kdcache.cache.errors import StoreDamagedError, UsageError

REQUESTS = ["fp16", "uniform", "uniform:0.125", "uniform:4"]


@st.composite
def targets(draw):
    """(N, C, h, w) float32 with channels of very different offsets and scales, one-pixel-high maps among them."""
    shape = draw(st.tuples(*(st.integers(1, n) for n in (3, 5, 7, 9))))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 0.3, 4.0, 50.0]))
    offsets = generator.normal(size=(1, shape[1], 1, 1)) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    return torch.from_numpy((generator.normal(size=shape) * scale + offsets).astype(np.float32))


@pytest.mark.parametrize("request_", REQUESTS)
@settings(max_examples=60, deadline=None)
@given(target=targets())
def test_error_stays_within_the_bound(request_, target):
    codec = fit_codec(request_, [target])
    codes, faults = codec.encode(target)
    assert not faults.any()
    assert str(codes.numpy().dtype) == codec.dtype == stored_dtype(request_)
    error = (codec.decode(codes).double() - target.double()).abs()
    assert (error <= codec.error_bound(target).double()).all()


@settings(max_examples=60, deadline=None)
@given(target=targets())
def test_uniform_equals_the_slow_reference(target):
    codec = fit_codec("uniform", [target])
    decoded = codec.decode(codec.encode(target)[0])
    flat_target, flat_decoded = target.flatten().tolist(), decoded.flatten().tolist()
    # Nearest multiple of the step, ties to even; offsets only move the codes.
    assert flat_decoded == [round(value / codec.step) * codec.step for value in flat_target]


@pytest.mark.parametrize("request_", REQUESTS)
def test_description_round_trip(request_):
    sample = torch.randn(2, 3, 4, 5) * 3 + 1
    codec = fit_codec(request_, [sample])
    assert codec_from_dict(codec.to_dict()) == codec


def test_uniform_step_follows_the_sample():
    sample = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
    step = fit_codec("uniform", [sample]).step
    assert math.frexp(step)[0] == 0.5  # a power of two
    assert 32 <= 5 / step <= 64 * 1.05


@settings(max_examples=30, deadline=None)
@given(target=targets(), batches=st.integers(1, 3))
def test_uniform_is_fitted_to_all_batches_alike(target, batches):
    """However the sample is cut, the offsets are the channels' means and the step follows the deviation from them."""
    codec = fit_codec("uniform", target.tensor_split(min(batches, len(target))))
    means = target.double().mean(dim=(0, 2, 3))
    assert all(
        abs(o * codec.step - float(m)) <= 0.501 * codec.step
        for o, m in zip(codec.offsets, means, strict=True)
    )
    deviation = max(
        float((target.double() - means[:, None, None]).square().mean().sqrt()),
        2.0**-10 * max(1.0, float(means.abs().max())),
    )
    assert 31.99 <= deviation / codec.step <= 64.01


def test_uniform_fits_a_constant_sample():
    codec = fit_codec("uniform", [torch.full((1, 2, 3, 3), 7.0)])
    assert (codec.decode(codec.encode(torch.full((1, 2, 3, 3), 7.0))[0]) == 7.0).all()


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(
    ("value", "fault"), [(float("nan"), 1), (float("inf"), 1), (-float("inf"), 1), (1e9, 2)]
)
def test_faults_are_told_by_row(request_, value, fault):
    target = torch.randn(3, 2, 4, 4)
    codec = fit_codec(request_, [target])
    target[1, 0, 2, 3] = value
    assert codec.encode(target)[1].tolist() == [0, fault, 0]


def test_encoding_leaves_its_input_alone():
    target = torch.randn(2, 2, 4, 4)
    before = target.clone()
    fit_codec("uniform", [target]).encode(target)
    assert torch.equal(target, before)


@pytest.mark.parametrize(
    "request_", ["fp17", "fp16:2", "uniform:0", "uniform:-1", "uniform:0.3", "uniform:x", "uniform:inf"]
)
def test_bad_requests_are_refused(request_):
    with pytest.raises(UsageError):
        canonical_request(request_)


def test_requests_have_one_form():
    assert canonical_request("uniform:.5") == canonical_request("uniform:0.50") == "uniform:0.5"
    assert set(CODECS) == {"fp16", "uniform"}


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": "zip"}, {"name": "uniform"}, {"name": "uniform", "step": float("nan"), "offsets": [0]}],
)
def test_bad_descriptions_are_damage(fields):
    with pytest.raises(StoreDamagedError):
        codec_from_dict(fields)
