"""Small stores of made-up numbers, for tests of everything that reads or writes stores."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdcache.cache.codecs.codec import Codec
from kdcache.cache.codecs.registry import fit_codec
from kdcache.cache.shuffle import permutation
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.spec import VIEWS, DatasetIdentity, StoreSpec, TargetSpec
from kdcache.cache.store.store import Store
from kdcache.cache.views.crops import CROPS, LABELS, REPLAY, encode_crop, pack_file
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import Crop, CropDigest, entry_row
from kdcache.cache.views.view import View

SHAPES = {"logits": (3, 4, 6), "features": (5, 4, 6)}


def make_spec(
    *,
    images: int = 7,
    unit_entries: int = 3,
    seed: int = 0,
    codec: str = "uniform",
    inputs: str = REPLAY,
) -> StoreSpec:
    return StoreSpec(
        dataset=DatasetIdentity(
            name="made-up",
            split="train",
            images=images,
            fingerprint="0" * 64,
            class_names=("road", "car", "sky"),
        ),
        teacher={"name": "made-up", "weights_sha256": "1" * 64},
        views=ViewPolicy(crop_height_px=32, crop_width_px=48, photometric=False),
        seed=seed,
        targets={name: TargetSpec(codec=codec, shape=shape) for name, shape in SHAPES.items()},
        unit_entries=unit_entries,
        inputs=inputs,
    )


def make_rows(spec: StoreSpec, pass_index: int) -> dict[str, np.ndarray]:
    """The rows of a whole pass, by array, drawn from the pass's number."""
    generator = np.random.default_rng(pass_index)
    n = spec.dataset.images
    images = permutation(f"pass {pass_index}", n)
    views = np.stack(
        [entry_row(int(image), pass_index, _view(generator), _digest(generator)) for image in images]
    )
    codecs = make_codecs(spec)
    targets = {
        name: torch.from_numpy(generator.normal(size=(n, *t.shape))) for name, t in spec.targets.items()
    }
    codes = {name: codecs[name].encode(t.float())[0].numpy() for name, t in targets.items()}
    rows = {VIEWS: views, **{name: codecs[name].pack(codes[name]) for name in codes}}
    return rows if spec.inputs == REPLAY else {**rows, **_crop_rows(spec, generator)}


def make_codecs(spec: StoreSpec) -> dict[str, Codec]:
    """The codecs of its targets. Those with a basis are fitted to noise; the others need no fitting."""
    noise = torch.Generator()
    return {
        name: fit_codec(
            t.codec,
            [
                torch.zeros(1, *t.shape)
                if t.codec in ("uniform", "fp16")
                else torch.randn(8, *t.shape, generator=noise.manual_seed(0))
            ],
        )
        for name, t in spec.targets.items()
    }


def _crop_rows(spec: StoreSpec, generator: np.random.Generator) -> dict[str, np.ndarray]:
    n, (height, width) = spec.dataset.images, spec.views.crop_size
    longest = spec.crop_packings[CROPS].shape[0]
    labels = generator.integers(0, len(spec.dataset.class_names), (n, height, width)).astype(np.uint8)
    images = generator.integers(0, 256, (n, height, width, 3)).astype(np.uint8)
    files = [
        encode_crop(spec.inputs, Crop(image, label, height, width))
        for image, label in zip(images, labels, strict=True)
    ]
    return {CROPS: np.stack([pack_file(file, longest) for file in files]), LABELS: labels}


def _view(generator: np.random.Generator) -> View:
    top, left = (int(v) for v in generator.integers(0, 50, 2))
    return View(
        scale_milli=1000, top=top, left=left, box_height=32, box_width=48, height=32, width=48, flip=0
    )


def _digest(generator: np.random.Generator) -> CropDigest:
    return CropDigest(generator.bytes(16), generator.bytes(16), generator.bytes(192))


def begin_store(url: str, spec: StoreSpec) -> Store:
    store = create_store(url, spec, tuple(f"image-{n}" for n in range(spec.dataset.images)))
    store.adopt_calibration(
        Calibration(
            spec_key=spec.key,
            codecs=make_codecs(spec),
            canaries=(),
            teacher_check={},
            input_bytes={},
            fidelity={},
        )
    )
    return store


def fill_pass(store: Store, pass_index: int, units: list[int] | None = None) -> None:
    rows = make_rows(store.spec, pass_index)
    store.create_pass(pass_index)
    for unit in range(store.spec.units_per_pass) if units is None else units:
        places = store.spec.unit_rows(unit)
        store.put_unit(
            pass_index,
            unit,
            {name: array[places.start : places.stop] for name, array in rows.items()},
            {"by": "test"},
        )
    store.finish_pass(pass_index)


@pytest.fixture
def spec() -> StoreSpec:
    return make_spec()


@pytest.fixture
def store(tmp_path, spec) -> Store:
    """A local store with two complete passes of seven entries in units of three."""
    store = begin_store(str(tmp_path / "store"), spec)
    store.raise_goal(2)
    fill_pass(store, 0)
    fill_pass(store, 1)
    return store


@pytest.fixture
def stores() -> dict[str, Callable[..., object]]:
    """The functions above, for tests that need another shape or an unfinished store."""
    return {"spec": make_spec, "rows": make_rows, "begin": begin_store, "fill": fill_pass}
