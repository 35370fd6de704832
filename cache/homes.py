"""Homes: folders and prefixes under which stores lie side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.cache.errors import KDCacheError, StoreNotFoundError
from kdcache.cache.storage import open_objects
from kdcache.cache.store import Store
from kdcache.cache.storeopening import open_store
from kdcache.cache.urls import join_url, redact


@dataclass(frozen=True, slots=True)
class Home:
    """What stands directly under a home, by name."""

    stores: tuple[Store, ...]
    unreadable: Mapping[str, KDCacheError]  # by URL: why a store there cannot be opened


def list_stores(home: str) -> Home:
    """All stores directly under `home`; folders that hold none are passed over."""
    stores, unreadable = [], {}
    for name in open_objects(home).names(""):
        url = join_url(home, name)
        try:
            stores.append(open_store(url))
        except StoreNotFoundError:
            continue
        except KDCacheError as error:  # one bad store must not hide the others
            unreadable[redact(url)] = error
    return Home(tuple(stores), unreadable)
