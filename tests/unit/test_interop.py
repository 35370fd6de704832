"""The README's code for other libraries, run unchanged, reads the same values as kdcache's reader."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdcache.cache.store.reader import StoreReader
from kdcache.cache.views.replay import ENTRY_COLUMNS

BLOCKS = {
    "zarr": "by zarr-python over fsspec",
    "tensorstore": "by tensorstore:",
    "xarray": "and by xarray",
}


def run_block(root: Path, library: str, store: str) -> dict[str, object]:
    """The variables after a block has run, with `root` set to the store."""
    found = re.search(
        re.escape(BLOCKS[library]) + r".*?```python\n(.*?)```",
        (root / "cache/README.md").read_text(),
        re.DOTALL,
    )
    assert found and len(found[1].strip().splitlines()) <= 5
    names: dict[str, object] = {"root": store}
    exec(found[1], names)  # noqa: S102 - the guide itself
    return names


@pytest.mark.parametrize("library", BLOCKS)
def test_other_libraries_read_the_same_codes(root: Path, library: str, store) -> None:
    pytest.importorskip(library)
    names = run_block(root, library, store.url)
    own = StoreReader(store.url, ["logits"]).entry(0, 3).codes["logits"]
    np.testing.assert_array_equal(names["codes"], own)
    if library == "xarray":
        assert names["dataset"]["logits"].dims == ("entry", "logits_channel", "logits_y", "logits_x")  # type: ignore[index]
        assert names["dataset"]["views"].dims == ("entry", "views_column")  # type: ignore[index]
    if library == "zarr":
        assert names["columns"] == list(ENTRY_COLUMNS)


def test_zarr_reads_the_same_codes_from_s3(root: Path, bucket: str, stores: dict[str, Callable]) -> None:
    store = stores["begin"](f"{bucket}/store", stores["spec"]())
    stores["fill"](store, 0)
    own = StoreReader(store.url, ["logits"]).entry(0, 3).codes["logits"]
    np.testing.assert_array_equal(run_block(root, "zarr", store.url)["codes"], own)
