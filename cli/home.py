"""Stores by name: which store a command means when you name none, or only a part of its URL."""

import logging
import shlex
from collections.abc import Sequence

from kdcache.cache.errors import StoreDamagedError, StoreNotFoundError, UsageError
from kdcache.cache.storage.urls import join_url, redact
from kdcache.cache.store.opening import list_stores, open_store
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.store import Store

logger = logging.getLogger("kdcache.home")


def find_store(home: str, store: str | None, *, dataset: str | None = None) -> Store:
    """The store at a URL or of a name under the home; without `store`, the one that `choose_store` chooses."""
    return choose_store(home, dataset=dataset) if store is None else open_store(find_url(home, store))


def find_url(home: str, store: str | None) -> str:
    """Where that store is. A store that is named need not exist, or may be damaged."""
    if store is None:
        return choose_store(home).url
    return store_url(home, store)


def store_url(home: str, store: str) -> str:
    """The URL that STORE on a command line means: itself, or that of a name under the home."""
    return store if "/" in store else join_url(home, store)


def choose_store(
    home: str, *, dataset: str | None = None, trainable: bool = False, targets: Sequence[str] = ()
) -> Store:
    """The home's newest store. Unreadable stores are skipped with a warning.

    Args:
        dataset: only stores of the dataset of that name, as `build --dataset` took it.
        trainable: only stores with a complete pass.
        targets: stores that contain these come before others.

    Raises:
        StoreNotFoundError: there is none.
        UsageError: stores of several datasets or teachers fit.
    """
    found = list_stores(home)
    for url, error in found.unreadable.items():
        logger.warning("skipping the unreadable store %s: %s", url, error)
    fitting = [store for store in found.stores if dataset in (None, store.spec.dataset.name)]
    of_dataset = f" of {dataset}" if dataset else ""
    if not fitting:
        raise StoreNotFoundError(
            f"no store{of_dataset} under {redact(home)}",
            hint=f"kdcache build --dataset {shlex.quote(dataset or 'NAME')}; or name another home with --home or KDCACHE_HOME",
        )
    stores = [store for store in fitting if store.complete_passes()] if trainable else fitting
    if not stores:
        raise StoreNotFoundError(
            f"no store{of_dataset} under {redact(home)} has a complete pass yet",
            hint="run its `kdcache build` again: it continues where it ended",
        )
    if len({_subject(store) for store in stores}) > 1:
        lines = "\n  ".join(describe(store) for store in stores)
        raise UsageError(
            f"stores of several datasets or teachers under {redact(home)}:\n  {lines}",
            hint="choose one: --dataset NAME or --store URL",
        )
    holding = [store for store in stores if _holds(store, targets)]
    return max(holding or stores, key=lambda store: (built_at(store), store.spec.key))


def describe(store: Store) -> str:
    """One line: where, of which dataset, by which teacher."""
    spec = store.spec
    return f"{redact(store.url)}: {spec.dataset.name} {spec.dataset.split}, {spec.teacher['name']}"


def distill_words(store: "Store", data_root: str | None = None) -> list[str]:
    """What `kdcache distill` needs to train from a store."""
    targets = store.spec.targets
    method = "logit" if "logits" in targets else "feature" if "features" in targets else "none"
    chosen = ["--method", method, "--store", redact(store.url)]
    return [*chosen, "--data-root", data_root] if data_root else chosen


def built_at(store: Store) -> str:
    """When the first unit of the newest pass was committed, ISO 8601; empty if none was, or its record is damaged."""
    for pass_index in reversed(store.begun_passes()):
        units = store.committed_units(pass_index)
        try:
            if units:
                return str(store.commit_of(pass_index, min(units)).built.get("time", ""))
        except StoreDamagedError:
            return ""
    return ""


def _holds(store: Store, targets: Sequence[str]) -> bool:
    """Whether a store was asked for these targets, and a copy of it has them."""
    if not set(targets) <= store.spec.targets.keys():
        return False
    return not store.partial_passes() or bool(store.complete_passes(targets))


def _subject(store: Store) -> bytes:
    """Dataset, split and teacher: stores that agree in these can stand in for each other."""
    dataset = store.spec.dataset
    return canonical_json([dataset.name, dataset.split, store.spec.teacher])
