"""Teacher-output caching: images -> views -> teacher -> codec -> store -> reader.

The ground floor is here: `errors` (every error a user can meet), `progress` (how the library reports how far it is),
`shuffle` (named random words and permutations). The rooms, from the ground up: `storage`, `codecs`, `images`, `views`,
`networks`, `teachers`, `store`, `build`, `upkeep`.

This file is the front door, `from kdcache.cache import open_store`:

    open_store            the store at a URL: its request, passes, ledger
    list_stores           all stores of a home
    Store                 what open_store returns
    survey                how far a store is and what it takes, with few requests
    StoreReader           single entries of a store, and their codes
    open_dataset          a split of a dataset by name
    SegmentationDataset   what a dataset must offer
    ClassSet              names and colours of a dataset's classes
    FactoryTeacher        what the function of a teacher of your own may return
    ViewPolicy            all that determines how views are drawn
    view_policy           the policy of a dataset, with changes
    KDCacheError          the base of all errors below; it has a hint
    UsageError            a value that makes no sense
    IncompleteError       something that was asked for is missing
    StoreNotFoundError    nothing at that URL is a store
    StoreMismatchError    the store has other content than was asked for
    StoreDamagedError     a byte of the store is wrong
    NotFoundError         a dataset or weights are not where they were looked for
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.cache.errors import (
        IncompleteError,
        KDCacheError,
        NotFoundError,
        StoreDamagedError,
        StoreMismatchError,
        StoreNotFoundError,
        UsageError,
    )
    from kdcache.cache.images.classes import ClassSet
    from kdcache.cache.images.dataset import SegmentationDataset
    from kdcache.cache.images.datasets import open_dataset
    from kdcache.cache.store.opening import list_stores, open_store
    from kdcache.cache.store.reader import StoreReader
    from kdcache.cache.store.store import Store
    from kdcache.cache.store.survey import survey
    from kdcache.cache.teachers.factory import FactoryTeacher
    from kdcache.cache.views.policy import ViewPolicy, view_policy

__all__ = [
    "ClassSet",
    "FactoryTeacher",
    "IncompleteError",
    "KDCacheError",
    "NotFoundError",
    "SegmentationDataset",
    "Store",
    "StoreDamagedError",
    "StoreMismatchError",
    "StoreNotFoundError",
    "StoreReader",
    "UsageError",
    "ViewPolicy",
    "list_stores",
    "open_dataset",
    "open_store",
    "survey",
    "view_policy",
]

_MODULES = {
    "errors": "IncompleteError KDCacheError NotFoundError StoreDamagedError StoreMismatchError StoreNotFoundError UsageError",
    "images.classes": "ClassSet",
    "images.dataset": "SegmentationDataset",
    "images.datasets": "open_dataset",
    "store.opening": "list_stores open_store",
    "store.reader": "StoreReader",
    "store.store": "Store",
    "store.survey": "survey",
    "teachers.factory": "FactoryTeacher",
    "views.policy": "ViewPolicy view_policy",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # Imported when asked for: a command that needs the errors alone must not wait seconds for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
