"""Opening: a store begun at a URL, found there, or refused, by the two documents that say what it is."""

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
    """Begin the store of `spec` at `url`, or open the one that stands there.

    Raises:
        UsageError: something else stands at `url`.
        StoreMismatchError: the store at `url` has another spec; the message lists the fields that differ.
        StoreDamagedError: it lists other images than its spec is about.
    """
    assert len(image_ids) == spec.dataset.images
    if find_store_of(spec, url) is None:
        objects = open_objects(url)
        _put_images(objects, image_ids)
        objects.put_new("zarr.json", root_metadata(spec, image_ids))
        objects.put_new(SPEC, canonical_json(spec.to_dict()))  # last: a store exists once its spec does
    store = find_store_of(spec, url)
    assert store is not None
    if store.image_ids != image_ids:
        raise StoreDamagedError(f"{redact(url)}/{IMAGES} lists other images than the store's spec is about")
    return store


def find_store_of(spec: StoreSpec, url: str) -> Store | None:
    """The store of `spec` at `url`; None where nothing stands yet. Raises as `create_store` does; writes nothing."""
    try:
        store = open_store(url)
    except StoreNotFoundError:
        _require_free(url)
        return None
    if store.spec.key != spec.key:
        lines = "\n  ".join(store.spec.differences(spec))
        raise StoreMismatchError(
            f"{redact(url)} is another store; differing fields (store, asked):\n  {lines}",
            hint="leave out --store to have the store named by its spec, or name another folder",
        )
    return store


def open_store(url: str) -> Store:
    """The store at `url`. Raises StoreNotFoundError where there is none, StoreDamagedError where it cannot be read."""
    objects = open_objects(url)
    spec = read_spec(objects)
    return Store(url, objects, spec, read_image_ids(objects, spec))


def read_spec(objects: Objects) -> StoreSpec:
    """What a store was asked for. Raises StoreNotFoundError where there is none, StoreDamagedError."""
    try:
        return StoreSpec.from_bytes(read_document(objects, SPEC), f"{objects.url}/{SPEC}")
    except FileNotFoundError:
        raise StoreNotFoundError(
            f"no store at {objects.url} (looked for {SPEC})", hint="`kdcache ls` lists the stores of the home"
        ) from None


def read_image_ids(objects: Objects, spec: StoreSpec) -> tuple[str, ...]:
    """The store's images, in its order. Raises StoreDamagedError."""
    where = f"{objects.url}/{IMAGES}"
    data = require_document(objects, IMAGES)
    image_ids = parse_json(data, where, list)
    if len(image_ids) != spec.dataset.images:
        raise StoreDamagedError(f"{where} does not list the {spec.dataset.images} images of the spec")
    if not all(isinstance(image_id, str) for image_id in image_ids) or len(set(image_ids)) < len(image_ids):
        raise StoreDamagedError(f"{where} is no list of different names")
    try:
        require_same_text(canonical_json(image_ids), data)
    except ValueError as error:
        raise StoreDamagedError(f"{where} is no list of images: {error}") from None
    return tuple(image_ids)


def root_metadata(spec: StoreSpec, image_ids: tuple[str, ...]) -> bytes:
    """The zarr.json at the top: it names the spec and the images, whose documents nothing else vouches for."""
    images = sha256(canonical_json(list(image_ids)))
    return group_metadata({"kdcache": {"key": spec.key, "images": images}})


def other_names(objects: Objects) -> list[str]:
    """What stands beside a store's objects and is none of them; hidden files are nobody's."""
    return [name for name in objects.names("") if name not in TOP and not name.startswith(".")]


def _require_free(url: str) -> None:
    if others := other_names(open_objects(url)):
        raise UsageError(
            f"{redact(url)} is no store and not empty: it holds {', '.join(others[:3])}"
            + (f" and {len(others) - 3} more" if len(others) > 3 else ""),
            hint="name an empty or a new folder; --home is the folder of all stores, --store that of one",
        )


def _put_images(objects: Objects, image_ids: tuple[str, ...]) -> None:
    ids = canonical_json(list(image_ids))
    if len(ids) > MAX_DOCUMENT_BYTES:
        raise UsageError(
            f"the ids of the {len(image_ids)} images take {len(ids) >> 20} MiB, more than {MAX_DOCUMENT_BYTES >> 20}",
            hint="shorter file names, or a part of the images",
        )
    if objects.put_same(IMAGES, ids) != ids:
        raise StoreDamagedError(
            f"{objects.url} was begun for other images and never got further",
            hint="it holds nothing: delete it, or name another folder",
        )


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
