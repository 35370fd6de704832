"""Checkpoint files of the public code bases, recognised by their keys and turned into one network.

A layout (layouts.py) is a table of key prefixes, plus the traits that no key shows. Depths, widths, the stem and the
number of classes are derived from the shapes. So the variants of one code base (CIRKD's heads of 2022 and of 2025,
torchvision's optional auxiliary head) need no layouts of their own. A file is refused unless every key fits, with the
right shape.

Nothing is unpickled: files are read by safetensors, or by torch.load(weights_only=True).
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdcache.cache.errors import KDCacheError, NotFoundError, WeightsError
from kdcache.cache.networks.layouts import LAYOUTS, Layout
from kdcache.cache.networks.network import NetworkConfig, SegmentationNetwork, build_network
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.cache.networks.resnet import BLOCKS, STEMS, DilatedResNet

METADATA_KEY = "kdcache"
INPLACE_ABN_EPS = 1e-5
LISTED_KEYS = 6  # of each kind in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The network in a file: configuration, input normalisation, and weights under this project's keys.

    meta contains what else the file says; "dataset" and "class_names", if it has them.
    """

    path: str
    layout: str
    config: NetworkConfig
    normalisation: Normalisation
    state_dict: dict[str, Tensor] = field(repr=False)
    sha256: str
    meta: dict[str, Any]

    def network(self) -> SegmentationNetwork:
        """The network with these weights, in evaluation mode on the CPU."""
        # On the meta device and with assign=True: no memory and no random numbers for weights that are replaced anyway.
        with torch.device("meta"):
            network = build_network(self.config)
        network.load_state_dict(self.state_dict, assign=True)
        return network.eval()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any known layout, or one written by `save_network`.

    Raises:
        NotFoundError: the file does not exist.
        WeightsError: reading it would need unpickling, its layout is unknown, or it does not fit its layout.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"weights file {path} does not exist", hint="check the path given to --weights")
    state_dict, meta = _read(path)
    if METADATA_KEY in meta:
        layout, config, normalisation, meta = _read_own(path, meta[METADATA_KEY])
    else:
        state_dict = _without_prefix(state_dict, "module.")
        known = _recognise(path, state_dict)
        layout, normalisation = known.name, known.normalisation
        state_dict = _rename(path, known, state_dict)
        config = _derive_config(path, known, state_dict, meta)
        if known.inplace_abn:
            _convert_inplace_abn(path, state_dict)
        meta = _foreign_meta(meta)
    with torch.device("meta"):
        expected = build_network(config).state_dict()
    _fill_counters(state_dict, expected)
    _check_fit(path, f"{layout} {config.name}", state_dict, expected)
    return Checkpoint(
        path=str(path),
        layout=layout,
        config=config,
        normalisation=normalisation,
        state_dict=state_dict,
        sha256=file_sha256(path),
        meta=meta,
    )


def save_network(
    path: str | Path,
    network: SegmentationNetwork,
    *,
    normalisation: Normalisation,
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Write weights and configuration to a safetensors file, completely or not at all. Returns its sha256 (hex).

    meta: JSON values to keep beside the weights, usually "dataset" and "class_names".
    """
    document = {
        "format": 1,
        "network": network.config.to_dict(),
        "normalisation": normalisation.to_dict(),
        "meta": dict(meta or {}),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state_dict = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(state_dict, temporary, metadata={METADATA_KEY: json.dumps(document)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # before the rename: after a power failure a renamed file could be empty
        digest = file_sha256(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def load_backbone(backbone: DilatedResNet, path: str | Path) -> None:
    """Load the weights of a classification ResNet (torchvision's names, without `fc`) into a backbone.

    Raises:
        NotFoundError: the file does not exist.
        WeightsError: a key is missing, unexpected or of another shape, such as a 7x7 stem for a deep one.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(
            f"backbone weights {path} do not exist", hint="--backbone-weights imagenet, none or a file"
        )
    state_dict = _without_prefix(_without_prefix(_read(path)[0], "module."), "backbone.")
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    expected = backbone.state_dict()
    _fill_counters(state_dict, expected)
    _check_fit(path, "this backbone", state_dict, expected)
    backbone.load_state_dict(state_dict)


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file, and its metadata. Raises WeightsError."""
    with open(path, "rb") as file:
        head = file.read(16)
    # Safetensors begins with eight bytes of length and then JSON; the suffix may be wrong.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        try:
            with safe_open(path, framework="pt") as opened:
                names = list(opened.keys())
                return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata() or {})
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is not a complete safetensors file: {error}", hint="download or copy it again"
            ) from None
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.sub(r"\s+", " ", str(error))
        found = re.search(r"Unsupported (?:global|class|operand)[^.]*?GLOBAL (\S+)", reason)
        what = f" ({found.group(1)})" if found else ""
        raise WeightsError(
            f"{path} contains Python objects{what}; kdcache reads only tensors and plain values",
            hint="if you trust the file, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is not a complete PyTorch file: {_first_line(error)}",
            hint="download or copy it again",
        ) from None
    return _find_state_dict(path, document)


def _find_state_dict(path: Path, document: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    meta: dict[str, Any] = {}
    if isinstance(document, dict):
        for key in ("state_dict", "model"):
            if isinstance(document.get(key), dict):
                found = document.get("meta")
                meta = dict(found) if isinstance(found, dict) else {}
                document = document[key]
                break
    if isinstance(document, dict) and document and all(isinstance(v, Tensor) for v in document.values()):
        # Only safetensors files of our own have this key; in a foreign file it would choose the configuration.
        meta.pop(METADATA_KEY, None)
        return {str(key): value for key, value in document.items()}, meta
    raise WeightsError(
        f"{path} contains no state dict: expected tensors by name, at the top or under 'state_dict' or 'model'"
    )


def _read_own(path: Path, text: str) -> tuple[str, NetworkConfig, Normalisation, dict[str, Any]]:
    try:
        document = json.loads(text)
        if document["format"] != 1:
            raise WeightsError(f"{path} has format {document['format']}; this kdcache reads format 1")
        config = NetworkConfig.from_dict(document["network"])
        normalisation = Normalisation.from_dict(document["normalisation"])
        return "kdcache", config, normalisation, dict(document["meta"])
    except WeightsError:
        raise
    except (KDCacheError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} has a damaged configuration: {_first_line(error)}") from None


def _without_prefix(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    # DataParallel and DistributedDataParallel add "module." to the start of every key.
    if all(key.startswith(prefix) for key in state_dict):
        return {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return state_dict


def _recognise(path: Path, state_dict: Mapping[str, Tensor]) -> Layout:
    for layout in LAYOUTS:
        if layout.marker in state_dict:
            return layout
    names = ", ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
    hint = "use a network of your own through a factory: --teacher package.module:function"
    if "fc.weight" in state_dict:
        hint = "it looks like an ImageNet classifier, which has no segmentation head; " + hint
    raise WeightsError(
        f"{path} has an unknown layout (known: {names}, kdcache): it begins with {_listing(list(state_dict))}",
        hint=hint,
    )


def _rename(path: Path, layout: Layout, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed, unexpected = {}, []
    for key, value in state_dict.items():
        for prefix in _dotted_prefixes(key):
            if prefix in layout.prefixes:
                renamed[layout.prefixes[prefix] + key.removeprefix(prefix)] = value
                break
        else:
            unexpected.append(key)
    if unexpected:
        raise WeightsError(
            f"{path} looks like {layout.name} {layout.architecture}, but has {len(unexpected)} unexpected "
            f"keys: {_listing(unexpected)}"
        )
    return renamed


def _dotted_prefixes(key: str) -> Iterator[str]:
    """Prefixes of a key, the longest first; the last one is empty."""
    while key:
        key = key.rpartition(".")[0]
        yield key


def _derive_config(
    path: Path, layout: Layout, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> NetworkConfig:
    def width(key: str, axis: int = 0) -> int:
        tensor = state_dict.get(key)
        if tensor is None or tensor.ndim != 4:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise WeightsError(f"{path} looks like {layout.name} {layout.architecture}, but {key} {found}")
        return tensor.shape[axis]

    traits = dict(layout.traits)
    if layout.name == "mmseg" and "align_corners=True" in str(meta.get("config", "")):
        traits["align_corners"] = True  # mmsegmentation's 769x769 configurations
    stem = tuple(
        state_dict[key].shape[0] for n in (1, 2, 3) if (key := f"backbone.conv{n}.weight") in state_dict
    )
    traits["stem"] = _one_of(path, "stem widths", stem, STEMS)
    aux = "aux.block.conv.weight" in state_dict
    return NetworkConfig(
        architecture=layout.architecture,
        backbone=_derive_backbone(path, state_dict),
        classes=width("classifier.weight"),
        branch_channels=0 if layout.architecture == "fcn" else width("head.branches.0.conv.weight"),
        head_channels=width("head.bottleneck.conv.weight"),
        aux_channels=width("aux.block.conv.weight") if aux else 0,
        **{**traits, "aux_bias": "aux.block.conv.bias" in state_dict},
    )


def _derive_backbone(path: Path, state_dict: Mapping[str, Tensor]) -> str:
    depths = tuple(
        len({key.split(".")[2] for key in state_dict if key.startswith(f"backbone.layer{stage}.")})
        for stage in range(1, 5)
    )
    bottleneck = "backbone.layer1.0.conv3.weight" in state_dict
    shapes = {name: (*depths, block.expansion == 4) for name, (block, depths) in BLOCKS.items()}
    return _one_of(path, "blocks a stage", (*depths, bottleneck), shapes)


def _one_of(path: Path, what: str, value: tuple[Any, ...], known: Mapping[str, tuple[Any, ...]]) -> str:
    for name, candidate in known.items():
        if candidate == value:
            return name
    raise WeightsError(f"{path} has {what} {value}; known: {', '.join(known)}")


def _convert_inplace_abn(path: Path, state_dict: dict[str, Tensor]) -> None:
    # InPlaceABN of 2018 scales by |weight| + eps (libs/src/bn.cu of SKD) and does not count batches.
    if any(key.endswith(".num_batches_tracked") for key in state_dict):
        raise WeightsError(
            f"{path} has SKD's keys, but it counts batches, which SKD's InPlaceABN does not. It was trained with other "
            "normalisation layers, and its keys do not show their activation",
            hint="use the network through a factory: --teacher package.module:function",
        )
    for key in [key.removesuffix("running_mean") for key in state_dict if key.endswith(".running_mean")]:
        if (weight := f"{key}weight") in state_dict:
            state_dict[weight] = state_dict[weight].abs() + INPLACE_ABN_EPS


def _foreign_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    names = meta.get("CLASSES", ())
    with contextlib.suppress(AttributeError):  # mmsegmentation 1.x has them one level deeper
        names = names or meta.get("dataset_meta", {}).get("classes", ())
    return {"class_names": [str(name) for name in names]} if isinstance(names, list | tuple) and names else {}


def _fill_counters(state_dict: dict[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    # Only BatchNorms without momentum use them; files from before PyTorch 0.4.1 have none.
    if not any(key.endswith(".num_batches_tracked") for key in state_dict):
        counters = [key for key in expected if key.endswith(".num_batches_tracked")]
        state_dict.update((key, torch.zeros((), dtype=torch.int64)) for key in counters)


def _check_fit(path: Path, what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrongly shaped": shapes}
    problems = [f"{len(keys)} {kind}: {_listing(keys)}" for kind, keys in kinds.items() if keys]
    if problems:
        raise WeightsError(f"{path} does not fit {what}; {'; '.join(problems)}")


def _listing(keys: list[str]) -> str:
    shown = ", ".join(keys[:LISTED_KEYS])
    return shown if len(keys) <= LISTED_KEYS else f"{shown} and {len(keys) - LISTED_KEYS} more"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
