"""Small stores of made-up numbers, for the tests of everything that reads or writes one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdcache.cache.calibration import Calibration
from kdcache.cache.codecs import fit_codec
from kdcache.cache.replay import CropDigest, entry_row
from kdcache.cache.shuffle import permutation
from kdcache.cache.spec import VIEWS, DatasetIdentity, StoreSpec, TargetSpec
from kdcache.cache.store import Store, create_store
from kdcache.cache.views import View, ViewPolicy

SHAPES = {"logits": (3, 4, 6), "features": (5, 4, 6)}


def make_spec(*, images: int = 7, unit_entries: int = 3, seed: int = 0, codec: str = "uniform") -> StoreSpec:
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
    )


def make_rows(spec: StoreSpec, pass_index: int) -> dict[str, np.ndarray]:
    """The rows of a whole pass, by array, drawn from the pass's number."""
    generator = np.random.default_rng(pass_index)
    n = spec.dataset.images
    images = permutation(f"pass {pass_index}", n)
    views = np.stack(
        [entry_row(int(image), pass_index, _view(generator), _digest(generator)) for image in images]
    )
    codecs = {name: fit_codec(t.codec, [torch.zeros(1, *t.shape)]) for name, t in spec.targets.items()}
    targets = {
        name: torch.from_numpy(generator.normal(size=(n, *t.shape))) for name, t in spec.targets.items()
    }
    codes = {name: codecs[name].encode(t.float())[0].numpy() for name, t in targets.items()}
    return {VIEWS: views, **{name: codecs[name].pack(codes[name]) for name in codes}}


def _view(generator: np.random.Generator) -> View:
    top, left = (int(v) for v in generator.integers(0, 50, 2))
    return View(
        scale_milli=1000, top=top, left=left, box_height=32, box_width=48, height=32, width=48, flip=0
    )


def _digest(generator: np.random.Generator) -> CropDigest:
    return CropDigest(generator.bytes(16), generator.bytes(16), generator.bytes(192))


def begin_store(url: str, spec: StoreSpec) -> Store:
    store = create_store(url, spec, tuple(f"image-{n}" for n in range(spec.dataset.images)))
    codecs = {name: fit_codec(t.codec, [torch.zeros(1, *t.shape)]) for name, t in spec.targets.items()}
    store.adopt_calibration(
        Calibration(
            spec_key=spec.key, codecs=codecs, canaries=(), teacher_check={}, input_bytes={}, fidelity={}
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
    """The makers above, for tests that need another shape or an unfinished store."""
    return {"spec": make_spec, "rows": make_rows, "begin": begin_store, "fill": fill_pass}
