"""Codecs keep their stated error for every entry, on any values, and can be rebuilt from their description."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.codecs.codec import unzigzag, zigzag
from kdcache.cache.codecs.fidelity import DIVERGENCES
from kdcache.cache.codecs.registry import CODECS, codec_from_dict, fit_codec
from kdcache.cache.codecs.request import CHECKS, JUDGED_METHODS, canonical_request
from kdcache.cache.codecs.transform import BLOCK, dct_matrix
from kdcache.cache.errors import StoreDamagedError, UsageError

REQUESTS = [
    *("fp16", "uniform", "uniform:0.125", "uniform:4", "delta", "delta:0.5"),
    *("pca:1", "pca:3", "pca:2:0.25", "dct", "dct:0.3", "dct:0.3:2"),
    *("dct-range", "dct-range:0.3"),
]
SIZES = [(45, 60), (60, 60), (90, 90), (97, 97), (1, 13), (13, 1), (1, 1), (8, 16)]


@st.composite
def targets(draw, channels=None):
    """(N, C, h, w) float32 with channels of very different offsets and scales, one-pixel-high maps among them."""
    shape = (
        draw(st.integers(1, 3)),
        channels or draw(st.integers(1, 5)),
        draw(st.integers(1, 18)),
        draw(st.integers(1, 18)),
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 0.3, 4.0, 50.0]))
    offsets = generator.normal(size=(1, shape[1], 1, 1)) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    return torch.from_numpy((generator.normal(size=shape) * scale + offsets).astype(np.float32))


def fit(request, sample):
    """The codec, with fewer components if the sample has fewer channels."""
    name, _, argument = request.partition(":")
    channels = sample[0].shape[1]
    if name == "pca":
        components, _, step = argument.partition(":")
        request = ":".join(["pca", str(min(int(components), channels)), *([step] if step else [])])
    if request == "dct:0.3:2":
        request = f"dct:0.3:{min(2, channels)}"
    return fit_codec(request, sample)


def round_trip(codec, target):
    """A target after all steps into a store and back."""
    codes, faults = codec.encode(target)
    assert not faults.any()
    packing = codec.packing(tuple(target.shape[1:]))
    rows = codec.pack(codes.numpy())
    assert (rows.shape[1:], str(rows.dtype)) == (packing.shape, packing.dtype)
    assert len(packing.axes) == len(packing.shape)
    unpacked = np.stack([codec.unpack(row) for row in rows])
    assert np.array_equal(unpacked, codes.numpy())
    return codec.decode(torch.from_numpy(unpacked))


@pytest.mark.parametrize("request_", REQUESTS)
@settings(max_examples=60, deadline=None)
@given(target=targets())
def test_error_stays_within_the_bound(request_, target):
    codec = fit(request_, [target])
    error = (round_trip(codec, target).double() - target.double()).abs()
    assert (error <= codec.error_bound(target).double()).all()


@pytest.mark.parametrize("request_", REQUESTS)
@settings(max_examples=30, deadline=None)
@given(target=targets(channels=4), other=targets(channels=4))
def test_the_bound_holds_for_values_that_it_was_not_fitted_to(request_, target, other):
    other = other[:, :, : target.shape[2], : target.shape[3]]
    other = torch.nn.functional.pad(
        other, (0, target.shape[3] - other.shape[3], 0, target.shape[2] - other.shape[2])
    )
    codec = fit(request_, [target])
    codes, faults = codec.encode(other)
    error = (codec.decode(codes).double() - other.double()).abs()
    assert (error <= codec.error_bound(other).double())[faults == 0].all()


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("size", SIZES)
def test_maps_of_any_size(request_, size):
    target = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    codec = fit(request_, [target])
    decoded = round_trip(codec, target)
    assert decoded.shape == target.shape
    assert ((decoded - target).abs() <= codec.error_bound(target)).all()


@settings(max_examples=60, deadline=None)
@given(target=targets())
def test_uniform_equals_the_slow_reference(target):
    codec = fit_codec("uniform", [target])
    decoded = codec.decode(codec.encode(target)[0])
    flat_target, flat_decoded = target.flatten().tolist(), decoded.flatten().tolist()
    # Nearest multiple of the step, ties to even; offsets only move the codes.
    assert flat_decoded == [round(value / codec.step) * codec.step for value in flat_target]


@settings(max_examples=60, deadline=None)
@given(target=targets())
def test_delta_decodes_to_what_uniform_does(target):
    uniform, delta = fit_codec("uniform:0.125", [target]), fit_codec("delta:0.125", [target])
    assert torch.equal(delta.decode(delta.encode(target)[0]), uniform.decode(uniform.encode(target)[0]))


def test_delta_wraps_around_and_back():
    steps = torch.tensor([[[[-16000.0, 16000.0], [16000.0, -16000.0]]]])
    codec = fit_codec("delta:1", [torch.zeros(1, 1, 2, 2)])
    codes, faults = codec.encode(steps)
    assert not faults.any()
    assert torch.equal(codec.decode(codes), steps)


def test_zigzag_puts_small_numbers_of_either_sign_first():
    numbers = torch.tensor([0, -1, 1, -2, 2, -32768, 32767], dtype=torch.int16)
    assert zigzag(numbers)[:5].tolist() == [0, 1, 2, 3, 4]
    everything = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    assert torch.equal(unzigzag(zigzag(everything)), everything)


def test_the_dct_is_orthonormal_and_a_cosine_is_one_coefficient():
    matrix = dct_matrix(torch.device("cpu"))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(BLOCK))
    wave = torch.tensor([math.cos((2 * i + 1) * 3 * math.pi / 16) for i in range(8)])
    assert (matrix @ wave).abs().argsort(descending=True)[0] == 3
    torch.testing.assert_close((matrix @ wave)[[0, 1, 2, 4, 5, 6, 7]], torch.zeros(7), atol=1e-6, rtol=0)


def slow_dct_codes(codec, target):
    """The transform by its definition, cell by cell."""
    mean, vectors = (
        np.frombuffer(codec.basis.mean, "<f4").astype(np.float64),
        np.frombuffer(codec.basis.vectors, "<f4")
        .reshape(codec.basis.channels, codec.basis.components)
        .astype(np.float64),
    )
    values = target.double().numpy()
    height, width = values.shape[1:]
    down, across = -(-height // 8), -(-width // 8)
    codes = np.zeros((codec.basis.components * 64, down * across))
    for plane, place in enumerate(np.frombuffer(codec.order, "<u4").tolist()):
        component, row, column = place // 64, place // 8 % 8, place % 8
        for block in range(down * across):
            total = 0.0
            for y in range(8):
                for x in range(8):
                    cell = values[
                        :, min(block // across * 8 + y, height - 1), min(block % across * 8 + x, width - 1)
                    ]
                    scale = (math.sqrt(1 / 8) if row == 0 else 0.5) * (
                        math.sqrt(1 / 8) if column == 0 else 0.5
                    )
                    wave = math.cos((2 * y + 1) * row * math.pi / 16) * math.cos(
                        (2 * x + 1) * column * math.pi / 16
                    )
                    total += scale * wave * float(vectors[:, component] @ (cell - mean))
            codes[plane, block] = total / codec.step
    return codes


def test_dct_codes_equal_the_slow_reference():
    target = torch.randn(1, 2, 9, 11, generator=torch.Generator().manual_seed(3)) * 4
    codec = fit_codec("dct:0.25", [target])
    codes = unzigzag(codec.encode(target)[0])[0].numpy()
    exact = slow_dct_codes(codec, target[0])
    assert np.abs(codes - exact).max() <= 0.5 + 1e-3


def test_dct_planes_stand_by_falling_activity():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.randn(4, 3, 4, 4, generator=generator), size=(32, 32), mode="bilinear"
    )
    codec = fit_codec("dct:0.05", [smooth])
    codes = unzigzag(codec.encode(smooth)[0]).float()
    activity = codes.square().mean(dim=(0, 2))
    assert (activity.diff() <= 1).all()  # up to rounding
    assert activity[0] > 100 * activity[-1]


def test_dct_leaves_out_components_in_which_nothing_would_remain():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 1, 16, 16, generator=generator).repeat(1, 6, 1, 1)
    target += torch.randn(2, 6, 16, 16, generator=generator) * 1e-3
    assert fit_codec("dct:0.1", [target]).basis.components == 1
    assert fit_codec("dct:0.1:4", [target]).basis.components == 4


def test_the_range_coder_gives_back_codes_that_its_tables_never_saw():
    generator = torch.Generator().manual_seed(0)
    codec = fit_codec("dct-range:0.5", [torch.randn(2, 3, 16, 16, generator=generator)])
    for scale in (0.0, 1.0, 20.0):
        target = torch.randn(2, 3, 16, 16, generator=generator) * scale
        assert ((round_trip(codec, target) - target).abs() <= codec.error_bound(target)).all()


def test_the_range_coder_comes_near_the_entropy_of_its_classes():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.randn(40, 3, 12, 12, generator=generator), size=(96, 96), mode="bilinear"
    )
    plain, coded = fit_codec("dct:0.2", [smooth[:20]]), fit_codec("dct-range:0.2", [smooth[:20]])
    rows = coded.pack(coded.encode(smooth[20:])[0].numpy())
    words = rows[:, :4].copy().view("<u4").sum() * 4
    codes = unzigzag(plain.encode(smooth[20:])[0]).numpy()
    bits = 0.0
    for plane in codes.transpose(1, 0, 2).reshape(codes.shape[1], -1):
        shares = np.unique(plane, return_counts=True)[1] / plane.size
        bits -= plane.size * float((shares * np.log2(shares)).sum())
    assert words <= 1.1 * bits / 8


def test_a_row_that_the_range_coder_cannot_decode_is_refused():
    target = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    codec = fit_codec("dct-range:0.3", [target])
    row = codec.pack(codec.encode(target)[0].numpy())[0]
    row[3] = 127
    with pytest.raises(ValueError, match="words in a row"):
        codec.unpack(row)


def test_a_missing_range_coder_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UsageError, match="constriction"):
        canonical_request("dct-range")


@pytest.mark.parametrize("request_", ["dct:1", "dct-range:1"])
def test_codes_use_all_of_their_range(request_):
    codec = fit_codec(request_, [torch.randn(1, 1, 8, 8)])
    flat = torch.full((1, 1, 8, 8), 32767 / 8)  # all in the first coefficient
    mean = codec.basis.synthesise(torch.zeros(1, 1, 8, 8))
    for target in (flat, -flat):
        decoded = round_trip(codec, target + mean)
        torch.testing.assert_close(decoded, target + mean, atol=0.2, rtol=0)
    assert codec.encode(flat * 1.001 + mean)[1].tolist() == [2]


def test_a_basis_of_too_few_crops_keeps_its_bound_elsewhere():
    """A crop of one colour has no components; the part that they leave out counts in the bound."""
    codec = fit_codec("dct:0.5", [torch.full((1, 4, 8, 8), 2.0)])
    target = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 5
    codes, faults = codec.encode(target)
    assert not faults.any()
    assert ((codec.decode(codes) - target).abs() <= codec.error_bound(target)).all()


@pytest.mark.parametrize("request_", REQUESTS)
def test_description_round_trip(request_):
    sample = torch.randn(2, 3, 4, 5) * 3 + 1
    codec = fit_codec(request_, [sample])
    assert codec_from_dict(codec.to_dict()) == codec
    assert codec.summary()["name"] == codec.name
    assert len(str(codec.summary())) < 300


def test_equal_samples_give_equal_codecs():
    sample = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for request in REQUESTS:
        assert fit_codec(request, [sample]) == fit_codec(request, [sample.clone()])


def test_uniform_step_follows_the_sample():
    sample = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
    step = fit_codec("uniform", [sample]).step
    assert math.frexp(step)[0] == 0.5  # a power of two
    assert 32 <= 5 / step <= 64 * 1.05


@settings(max_examples=30, deadline=None)
@given(target=targets(), batches=st.integers(1, 3))
def test_uniform_is_fitted_to_all_batches_alike(target, batches):
    """For any split of the sample, the channels' means get code 128 and the step follows the deviation from them."""
    codec = fit_codec("uniform", target.tensor_split(min(batches, len(target))))
    means = target.double().mean(dim=(0, 2, 3))
    assert all(
        abs((o + 128) * codec.step - float(m)) <= 0.501 * codec.step
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
    target = torch.randn(3, 3, 4, 4)
    codec = fit_codec(request_, [target])
    target[1, 0, 2, 3] = value
    assert codec.encode(target)[1].tolist() == [0, fault, 0]


def test_encoding_leaves_its_input_alone():
    target = torch.randn(2, 3, 4, 4)
    before = target.clone()
    for request in REQUESTS:
        fit_codec(request, [target]).encode(target)
        assert torch.equal(target, before)


@pytest.mark.parametrize(
    "request_",
    [
        *(
            "fp17",
            "fp16:2",
            "uniform:0",
            "uniform:-1",
            "uniform:0.3",
            "uniform:x",
            "uniform:inf",
            "delta:0.3",
        ),
        *(
            "pca",
            "pca:0",
            "pca:x",
            "pca:4:0.3",
            "dct:0",
            "dct:x",
            "dct:0.3:0",
            "dct:0.3:x",
            "dct:inf",
            "dct:nan",
        ),
        *("auto:0", "auto:2", "auto:x", "auto:nan", "auto:1e-3:vgg"),
    ],
)
def test_bad_requests_are_refused(request_):
    with pytest.raises(UsageError):
        canonical_request(request_)


@pytest.mark.parametrize("request_", ["pca:4", "dct:0.3:4"])
def test_more_components_than_channels_are_refused(request_):
    with pytest.raises(UsageError, match="3 channels"):
        canonical_request(request_, channels=3)
    assert canonical_request(request_, channels=4) == request_


@pytest.mark.parametrize(
    ("wrong", "meant"), [("unifrom:0.5", "uniform"), ("dct-rang", "dct-range"), ("autos", "auto")]
)
def test_an_unknown_codec_names_the_closest(wrong, meant):
    with pytest.raises(UsageError, match="unknown codec") as caught:
        canonical_request(wrong)
    assert caught.value.hint.startswith(f"did you mean {meant}? one of: auto, fp16, ")


def test_what_is_asked_as_text_is_what_the_classes_are():
    assert list(CHECKS) == list(CODECS)
    assert tuple(DIVERGENCES) == JUDGED_METHODS


def test_requests_have_one_form():
    assert canonical_request("uniform:.5") == canonical_request("uniform:0.50") == "uniform:0.5"
    assert canonical_request("pca:08:.5") == "pca:8:0.5"
    assert canonical_request("dct:.30:008") == "dct:0.3:8"
    assert canonical_request("auto") == canonical_request("auto:1e-3") == "auto:0.001"
    assert canonical_request("auto:1e-4:dist,cwd,dist") == "auto:0.0001:cwd,dist"
    assert set(CODECS) == {"fp16", "uniform", "delta", "pca", "dct", "dct-range"}


def damaged(request_, **changes):
    fields = fit_codec(request_, [torch.randn(1, 3, 9, 9)]).to_dict()
    return {**fields, **changes}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "zip"},
        {"name": "uniform"},
        {"name": "uniform", "step": float("nan"), "offsets": [0]},
        damaged("dct:0.3", step=-1.0),
        damaged("dct:0.3", size=[0, 4]),
        damaged("dct:0.3", order="AAAA"),
        damaged("dct:0.3", basis={"channels": 3, "components": 2**40, "mean": "", "vectors": ""}),
        damaged("dct:0.3", basis={"channels": 3, "components": 1, "mean": "AAAA", "vectors": "AAAA"}),
        damaged("dct:0.3", basis={"channels": 1, "components": 1, "mean": "AADAfw==", "vectors": "AACAPw=="}),
        damaged("dct-range:0.3", starts=[0, 10**6]),
        damaged("dct-range:0.3", limits=[3, 2, 1]),
        damaged("dct-range:0.3", tables="AAAA"),
        damaged("pca:2", offsets=[1, 2, 3]),
        damaged("pca:2", basis=7),
    ],
)
def test_bad_descriptions_are_damage(fields):
    with pytest.raises(StoreDamagedError):
        codec_from_dict(fields)
