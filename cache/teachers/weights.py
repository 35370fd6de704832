"""A teacher's weights: a file, a URL, or `auto`, which is the public checkpoint for a network and a dataset.

Downloads are kept under $KDCACHE_CACHE (default: ~/.cache/kdcache/weights). Publishers of PyTorch weights end file
names with the first eight hex digits of the sha256. If a name has such digits, they are checked at the download and at
every later use.
"""

import hashlib
import http.client
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, url2pathname, urlopen

from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.progress import Progress, silent

TIMEOUT_S = 30
CHUNK_BYTES = 1 << 20

OPENMMLAB = "https://download.openmmlab.com/mmsegmentation/v0.5/pspnet"
PYTORCH = "https://download.pytorch.org/models"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicWeights:
    """A published checkpoint. miou is the publisher's figure in percent, on the val split at a single scale."""

    url: str
    miou: float


# (network, dataset) -> weights. Figures of mmsegmentation: configs/pspnet/metafile.yaml of 1.2.2. torchvision's weights
# were trained on the part of COCO with VOC's classes and measured on COCO val 2017.
PUBLIC_WEIGHTS: dict[tuple[str, str], PublicWeights] = {
    ("pspnet_resnet101", "cityscapes"): PublicWeights(
        url=f"{OPENMMLAB}/pspnet_r101-d8_512x1024_80k_cityscapes/"
        "pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth",
        miou=79.76,
    ),
    ("pspnet_resnet101", "ade20k"): PublicWeights(
        url=f"{OPENMMLAB}/pspnet_r101-d8_512x512_160k_ade20k/"
        "pspnet_r101-d8_512x512_160k_ade20k_20200615_100650-967c316f.pth",
        miou=44.39,
    ),
    ("pspnet_resnet101", "voc2012"): PublicWeights(
        url=f"{OPENMMLAB}/pspnet_r101-d8_512x512_40k_voc12aug/"
        "pspnet_r101-d8_512x512_40k_voc12aug_20200613_161222-bc933b18.pth",
        miou=78.52,
    ),
    ("deeplabv3_resnet50", "voc2012"): PublicWeights(
        url=f"{PYTORCH}/deeplabv3_resnet50_coco-cd0a2569.pth", miou=66.4
    ),
    ("deeplabv3_resnet101", "voc2012"): PublicWeights(
        url=f"{PYTORCH}/deeplabv3_resnet101_coco-586e9e4e.pth", miou=67.4
    ),
    ("fcn_resnet50", "voc2012"): PublicWeights(url=f"{PYTORCH}/fcn_resnet50_coco-1167a1af.pth", miou=60.5),
    ("fcn_resnet101", "voc2012"): PublicWeights(url=f"{PYTORCH}/fcn_resnet101_coco-7ecb50ca.pth", miou=63.7),
}


def public_miou(weights_sha256: str) -> float | None:
    """The publisher's mIoU in percent for the weights with this digest; None if they are not public weights."""
    digests = {digest_in_name(known.url): known.miou for known in PUBLIC_WEIGHTS.values()}
    return next(
        (miou for digest, miou in digests.items() if digest and weights_sha256.startswith(digest)), None
    )


def resolve_weights(
    weights: str | Path, *, network: str, dataset_name: str, progress: Progress = silent
) -> Path:
    """The local file for `--weights`: "auto", a path, or a URL, which is downloaded once.

    dataset_name may contain options, as in "streets:96x192:200".

    Raises:
        NotFoundError: no public checkpoint is known, the file does not exist, or the download fails.
        WeightsError: the download is incomplete, or does not match the digest in its name.
    """
    weights = str(weights)
    if weights == "auto":
        return fetch(_public(network, dataset_name).url, progress=progress)
    if "://" in weights:
        return fetch(weights, progress=progress)
    path = Path(weights).expanduser()
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise NotFoundError(f"--weights {path} {what}", hint="give a file, a URL, or auto for public weights")
    return path


def fetch(url: str, *, folder: Path | None = None, progress: Progress = silent) -> Path:
    """Download a file once and return its path: http(s) through urllib, any other scheme through fsspec.

    progress is called with bytes; the total is 0 if the server does not report the size.
    Raises as `resolve_weights`. An interrupted download leaves no file of that name.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return resolve_weights(url2pathname(parts.path), network="", dataset_name="")
    name = Path(unquote(parts.path)).name
    if not name:
        raise UsageError(f"--weights {_shown(url)} does not name a file")
    from kdcache.cache.networks.checkpoints import file_sha256  # torch, which `ls` must not import

    digest = digest_in_name(name)
    if digest is None:  # another URL may have another file of this name, so the name gets a digest of the URL
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    target = (folder or weights_folder()) / name
    if target.is_file() and (digest is None or file_sha256(target).startswith(digest)):
        return target
    _make_folder(target.parent)
    temporary = target.with_name(f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        found = _download(url, temporary, progress)
        if digest is not None and not found.startswith(digest):
            raise WeightsError(
                f"the download of {_shown(url)} has sha256 {found[:16]}..., but its name says {digest}",
                hint="a proxy may have answered instead; download it elsewhere and pass --weights FILE",
            )
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def weights_folder() -> Path:
    """$KDCACHE_CACHE, or ~/.cache/kdcache/weights if it is not set."""
    chosen = os.environ.get("KDCACHE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "kdcache" / "weights"


def digest_in_name(name: str) -> str | None:
    """The start of the sha256 at the end of a file name, as in "resnet18-f37072fd.pth"; None if there is none."""
    found = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)$", name)
    return found.group(1) if found else None


def _public(network: str, dataset_name: str) -> PublicWeights:
    dataset = dataset_name.partition(":")[0]
    if (network, dataset) in PUBLIC_WEIGHTS:
        return PUBLIC_WEIGHTS[network, dataset]
    others = [name for name, known in PUBLIC_WEIGHTS if known == dataset]
    # Fresh views, for without them the command would look for a store, which a teacher has to build first.
    words = ["--method", "none", "--dataset", dataset_name, "--fresh-views", "--student", network]
    hint = (
        f"train one with: {shlex.join(['kdcache', 'distill', *words])}; "
        f"then use --weights runs/none-{network}/student.safetensors. Any other file or URL works too"
    )
    if others:
        hint = f"use --teacher {others[0]}, which has public weights; or {hint}"
    raise NotFoundError(f"no public weights are known for {network} on dataset {dataset}", hint=hint)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot keep weights under {folder}: {error.strerror}",
            hint="set KDCACHE_CACHE to another folder",
        ) from None


def _download(url: str, target: Path, progress: Progress) -> str:
    """Download `url` to `target`. Returns the sha256 (hex) of the bytes. Raises NotFoundError, WeightsError."""
    digest = hashlib.sha256()
    done = 0
    try:
        with _open(url) as (source, total), open(target, "wb") as sink:
            while chunk := source.read(CHUNK_BYTES):
                sink.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, total, f"weights {Path(urlsplit(url).path).name}")
    except (URLError, http.client.HTTPException, OSError, ImportError, ValueError) as error:
        reason = f"HTTP {error.code} {error.reason}" if isinstance(error, HTTPError) else _reason(error)
        raise NotFoundError(
            f"cannot download weights from {_shown(url)}: {reason}",
            hint="download the file on a machine with a network and pass --weights FILE",
        ) from None
    if total and done != total:
        raise WeightsError(
            f"{_shown(url)} ended after {done} of {total} bytes", hint="run the same command again"
        )
    return digest.hexdigest()


@contextmanager
def _open(url: str) -> Iterator[tuple[IO[bytes], int]]:
    """A stream of the bytes at `url`, and their number (0 if unknown)."""
    if urlsplit(url).scheme in ("http", "https"):
        with urlopen(Request(url, headers={"User-Agent": "kdcache"}), timeout=TIMEOUT_S) as response:
            yield response, int(response.headers.get("Content-Length") or 0)
        return
    import fsspec  # not at the top: remote schemes have slow imports

    opened: Callable[[], IO[bytes]] = fsspec.open(url, "rb").open
    with opened() as stream:
        yield stream, int(getattr(stream, "size", 0) or 0)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0] if str(reason) else type(error).__name__


def _shown(url: str) -> str:
    """The URL without user, password and query, which may contain a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
