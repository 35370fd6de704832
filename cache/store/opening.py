"""Opening stores: creating, finding and checking a store at a URL, and listing the stores of a home."""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.cache.codecs.shards import group_metadata
from kdcache.cache.errors import (
    KDCacheError,
    StoreDamagedError,
    StoreMismatchError,
    StoreNotFoundError,
    UsageError,
)
from kdcache.cache.storage.documents import (
    MAX_DOCUMENT_BYTES,
    parse_json,
    read_document,
    require_document,
    require_same_text,
)
from kdcache.cache.storage.objects import Objects, sha256
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.storage.urls import join_url, redact
from kdcache.cache.store.spec import StoreSpec, canonical_json
from kdcache.cache.store.store import IMAGES, SPEC, TOP, Store


def create_store(url: str, spec: StoreSpec, image_ids: tuple[str, ...]) -> Store:
    """Create the store of `spec` at `url`, or open it if it exists.

    Raises:
        UsageError: something else is at `url`.
        StoreMismatchError: the store at `url` has another spec; the message lists the differing fields.
        StoreDamagedError: it lists other images than its spec.
    """
    assert len(image_ids) == spec.dataset.images
    if find_store_of(spec, url) is None:
        objects = open_objects(url)
        # Builders may do this at the same time: all write the same bytes, and the one that is first wins.
        _put_images(objects, image_ids)
        objects.put_new("zarr.json", root_metadata(spec, image_ids))
        objects.put_new(SPEC, canonical_json(spec.to_dict()))  # last: a store exists only once its spec does
    store = find_store_of(spec, url)
    assert store is not None
    if store.image_ids != image_ids:
        raise StoreDamagedError(f"{redact(url)}/{IMAGES} lists other images than the store's spec")
    return store


def find_store_of(spec: StoreSpec, url: str) -> Store | None:
    """The store of `spec` at `url`; None if there is nothing yet. Raises as `create_store`; writes nothing."""
    try:
        store = open_store(url)
    except StoreNotFoundError:
        _require_free(url)
        return None
    if store.spec.key != spec.key:
        lines = "\n  ".join(store.spec.differences(spec))
        raise StoreMismatchError(
            f"{redact(url)} is another store. Differing fields (in the store, asked for):\n  {lines}",
            hint="leave out --store, and the store gets a name from its spec; or name another folder",
        )
    return store


def open_store(url: str) -> Store:
    """The store at `url`. Raises StoreNotFoundError if there is none, StoreDamagedError if it is unreadable."""
    objects = open_objects(url)
    spec = read_spec(objects)
    return Store(url, objects, spec, read_image_ids(objects, spec))


def read_spec(objects: Objects) -> StoreSpec:
    """The spec of a store. Raises StoreNotFoundError if there is none, StoreDamagedError if it is malformed."""
    try:
        return StoreSpec.from_bytes(read_document(objects, SPEC), f"{objects.url}/{SPEC}")
    except FileNotFoundError:
        raise StoreNotFoundError(
            f"no store at {objects.url}: {SPEC} is missing", hint="`kdcache ls` lists the stores of the home"
        ) from None


def read_image_ids(objects: Objects, spec: StoreSpec) -> tuple[str, ...]:
    """The ids of the store's images, in its order. Raises StoreDamagedError."""
    where = f"{objects.url}/{IMAGES}"
    data = require_document(objects, IMAGES)
    image_ids = parse_json(data, where, list)
    if len(image_ids) != spec.dataset.images:
        raise StoreDamagedError(f"{where} does not list the {spec.dataset.images} images of the spec")
    if not all(isinstance(image_id, str) for image_id in image_ids) or len(set(image_ids)) < len(image_ids):
        raise StoreDamagedError(f"{where} is not a list of distinct names")
    try:
        require_same_text(canonical_json(image_ids), data)
    except ValueError as error:
        raise StoreDamagedError(f"{where} is not a list of image ids: {error}") from None
    return tuple(image_ids)


def root_metadata(spec: StoreSpec, image_ids: tuple[str, ...]) -> bytes:
    """The zarr.json at the top. It names the key and the digest of the image ids, which nothing else records."""
    images = sha256(canonical_json(list(image_ids)))
    return group_metadata({"kdcache": {"key": spec.key, "images": images}})


def other_names(objects: Objects) -> list[str]:
    """Names of files and folders that do not belong to the store; hidden ones are ignored."""
    return [name for name in objects.names("") if name not in TOP and not name.startswith(".")]


def _require_free(url: str) -> None:
    if others := other_names(open_objects(url)):
        raise UsageError(
            f"{redact(url)} is neither a store nor empty: it contains {', '.join(others[:3])}"
            + (f" and {len(others) - 3} more" if len(others) > 3 else ""),
            hint="name an empty or a new folder: --home for the folder of all stores, --store for a single one",
        )


def _put_images(objects: Objects, image_ids: tuple[str, ...]) -> None:
    ids = canonical_json(list(image_ids))
    if len(ids) > MAX_DOCUMENT_BYTES:
        raise UsageError(
            f"the ids of the {len(image_ids)} images take {len(ids) >> 20} MiB, more than {MAX_DOCUMENT_BYTES >> 20}",
            hint="use shorter file names, or fewer images",
        )
    if objects.put_same(IMAGES, ids) != ids:
        raise StoreDamagedError(
            f"the store at {objects.url} was started for other images and never completed",
            hint="it contains nothing yet: delete it, or name another folder",
        )


@dataclass(frozen=True, slots=True)
class Home:
    """The stores directly under a home."""

    stores: tuple[Store, ...]
    unreadable: Mapping[str, KDCacheError]  # by URL: why opening a store failed


def list_stores(home: str) -> Home:
    """All stores directly under `home`. Folders without a store are skipped."""
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
