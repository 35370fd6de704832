"""Decoded images: raw pixels and train ids of a dataset in the host's cache, so that a file is decoded once a host.

Decoding a PNG of 1024x2048 takes 46 ms; copying the box of a view out of raw pixels 0.2 ms. Whoever needs an image first
decodes it and leaves it here; all views, epochs, processes and runs are then cut from there.

    8 B magic, height, width, 1 if labelled, CRC-32C of the rest; zeros up to 64 B; pixels (H, W, 3); train ids (H, W)

A key is the sha256 of all that determines the bytes: the image id and what its dataset says about the files behind it
(`SegmentationDataset.stamp`). An edited file has another key, so nothing here can be out of date.
"""

import hashlib
import json
import logging
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import KDCacheError
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.storage.host_cache import HostCache, default_folder, write_all

_MAGIC = b"KDIM0001"  # change it with anything that changes the bytes of a file
_HEADER = struct.Struct("<8sIIII")
_HEADER_BYTES = 64  # so that pixels start at a cache line
_OPEN_IMAGES = 16  # mapped at a time: a batch's, each used for its label and its pixels
_SAMPLED_SIZES = 64  # images whose size is read to estimate the size of a dataset

logger = logging.getLogger(__name__)

_Pair = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


class DecodedImages(SegmentationDataset):
    """A dataset whose images and labels come from the host's cache, and get there when they are first asked for.

    The arrays are read-only. If the cache has no space, images are decoded from their files each time, and a warning
    says so once.
    """

    def __init__(self, images: SegmentationDataset, cache: HostCache) -> None:
        self.name, self.split, self.classes = images.name, images.split, images.classes
        self.image_ids = images.image_ids
        self._images, self._cache = images, cache
        self._begin()

    def _begin(self) -> None:
        self._verified: set[str] = set()  # keys whose checksum this process has compared
        self._is_full = False
        # A cache for each instance: one for the method would keep every instance alive.
        self._pair = lru_cache(maxsize=_OPEN_IMAGES)(self._open)

    def __getstate__(self) -> dict[str, Any]:
        # Workers get a copy; a mapped file means nothing in another process.
        return {k: v for k, v in vars(self).items() if k not in ("_pair", "_verified", "_is_full")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def image(self, index: int) -> NDArray[np.uint8]:
        return self._pair(index)[0]

    def label(self, index: int) -> NDArray[np.uint8] | None:
        return self._pair(index)[1]

    def size(self, index: int) -> tuple[int, int]:
        return self._images.size(index)

    def fingerprint(self) -> str:
        return self._images.fingerprint()

    def stamp(self, index: int) -> str | None:
        return self._images.stamp(index)

    def cache_keys(self) -> list[str]:
        """The keys of all images."""
        return [key for index in range(len(self)) if (key := self._key(index)) is not None]

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """No process evicts these images until the block ends. Nothing is pinned in a cache that takes no files."""
        with ExitStack() as stack:
            with suppress(KDCacheError):  # the first image that is decoded warns of it
                stack.enter_context(self._cache.pin(self.cache_keys()))
            yield

    def _open(self, index: int) -> _Pair:
        key = self._key(index)
        if key is None:
            return self._images.image(index), self._images.label(index)
        return self._map(key) or self._decode(index, key)

    def _key(self, index: int) -> str | None:
        stamp = self._images.stamp(index)
        if stamp is None:
            return None
        what = [_MAGIC.decode(), self.image_ids[index], stamp]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _map(self, key: str) -> _Pair | None:
        """The image under a key, or None if it is not there or damaged; then it is deleted."""
        path = self._cache.path(key)
        try:
            with open(path, "rb") as file:
                # Mapped, not read: a view needs a fifth of the pixels. Files of the cache are never truncated, only
                # deleted as a whole, which leaves a mapping intact.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            os.utime(path)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        pair = self._parse(key, data)
        if pair is None:
            logger.warning("%s is damaged; the image is decoded again", path)
            self._cache.discard(key, len(data))
        return pair

    def _parse(self, key: str, data: mmap.mmap) -> _Pair | None:
        if len(data) < _HEADER_BYTES:
            return None
        magic, height, width, labelled, checksum = _HEADER.unpack_from(data)
        area = height * width
        if magic != _MAGIC or labelled > 1 or len(data) != _HEADER_BYTES + (3 + labelled) * area:
            return None
        body = np.frombuffer(data, np.uint8, offset=_HEADER_BYTES)
        if key not in self._verified:
            # Once a process, 1 ms: after a power failure a file that was never synced may contain zeros.
            if google_crc32c.value(body) != checksum:
                return None
            self._verified.add(key)
        label = body[3 * area :].reshape(height, width) if labelled else None
        return body[: 3 * area].reshape(height, width, 3), label

    def _decode(self, index: int, key: str) -> _Pair:
        """The image from its files, left in the cache under `key`."""
        image, label = self._images.image(index), self._images.label(index)
        if (
            self._is_full or self._key(index) != key
        ):  # a file was replaced while it was read: not under the old key
            return image, label
        body = image.tobytes() + (b"" if label is None else label.tobytes())
        header = _HEADER.pack(
            _MAGIC, *image.shape[:2], int(label is not None), google_crc32c.value(body)
        ).ljust(_HEADER_BYTES, b"\0")
        try:
            self._cache.add(
                key, len(header) + len(body), lambda descriptor: write_all(descriptor, header + body)
            )
            self._verified.add(key)
        except KDCacheError as error:
            logger.warning("%s; images are decoded from their files each time", error)
            self._is_full = True
        return image, label


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Whether the images of a dataset are going to be kept, decoded, in a cache."""

    cache: HostCache
    decoded_bytes: int  # of all images, about
    is_kept: bool
    text: str  # what is going to happen, and why


def plan_decoded(
    images: SegmentationDataset, choice: str, *, limit_bytes: int, reserved_bytes: int = 0
) -> CachePlan | None:
    """What `keep_decoded` does. None if nothing is to be kept: `choice` is "off", or the images have no files.

    Raises:
        DataError: an image is unreadable.
    """
    if choice == "off" or images.stamp(0) is None:
        return None
    cache = HostCache(default_folder() if choice == "auto" else Path(choice).expanduser(), limit_bytes)
    needed = decoded_bytes(images)
    if reason := _obstacle(cache, choice, needed + reserved_bytes):
        began = time.perf_counter()
        images.image(0), images.label(0)
        cost_ms = 1000 * (time.perf_counter() - began)
        text = f"decoded again for every view, about {cost_ms:.3g} ms each: {_gigabytes(needed)} of them decoded {reason}"
        return CachePlan(cache, needed, False, text)
    return CachePlan(
        cache, needed, True, f"decoded once for this host; {_gigabytes(needed)} in {cache.folder}"
    )


def keep_decoded(
    images: SegmentationDataset, choice: str, *, limit_bytes: int, reserved_bytes: int = 0
) -> SegmentationDataset:
    """The dataset, with its images decoded once for this host if `choice` allows it and they fit. Logs what was decided.

    Args:
        choice: "off", "auto" (in the host's cache, if that is not on a network file system), or a folder to use.
        limit_bytes: of the cache.
        reserved_bytes: of the limit, for what else the run needs there.

    Raises:
        DataError: an image is unreadable.
    """
    plan = plan_decoded(images, choice, limit_bytes=limit_bytes, reserved_bytes=reserved_bytes)
    if plan is None:
        return images
    logger.info("images: %s", plan.text)
    return DecodedImages(images, plan.cache) if plan.is_kept else images


def _obstacle(cache: HostCache, choice: str, needed: int) -> str | None:
    """What stops so many bytes from being kept, as the end of a sentence."""
    kind = network_file_system(cache.folder)
    if choice == "auto" and kind is not None:
        return f"would go over the network: {cache.folder} is on {kind} (set --image-cache to a folder of a local disk)"
    if needed > cache.usable_bytes:
        return f"do not fit --cache-limit, which leaves {_gigabytes(cache.usable_bytes)}"
    try:
        free = cache.disk_bytes()
    except OSError as error:
        return f"would need another --image-cache than {cache.folder}: {error.strerror}"
    if needed > free:
        return f"do not fit the disk of {cache.folder}, which has {_gigabytes(free)} for them"
    return None


def decoded_bytes(images: SegmentationDataset) -> int:
    """About how many bytes of a cache the dataset takes, from the sizes of a few images spread over it.

    Raises:
        DataError: an image is unreadable.
    """
    step = max(1, len(images) // _SAMPLED_SIZES)
    sampled = range(0, len(images), step)
    area = sum(height * width for height, width in map(images.size, sampled))
    return _HEADER_BYTES * len(images) + 4 * area * len(images) // len(sampled)


def network_file_system(folder: Path) -> str | None:
    """The type of the network file system that `folder` lies on, such as "nfs4"; None for a local disk, or if unknown.

    From there every box of a view would come over the network, uncompressed.
    """
    remote = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p", "afs"}
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
        resolved = folder.resolve()
    except OSError:
        return None
    found, longest = None, -1
    for line in mounts:
        _, point, kind = line.split()[:3]
        point = point.replace("\\040", " ")
        if resolved.is_relative_to(point) and len(point) > longest:
            found, longest = kind, len(point)
    is_remote = found is not None and (found in remote or found.startswith("fuse."))
    return found if is_remote else None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
