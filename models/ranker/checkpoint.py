"""A trained artifact on disk: a folder with ``model.safetensors`` and ``config.json``, never pickle.

The config carries the content hash of tensors and config; loading checks it. A folder is written beside its place and
renamed into it, so a half-written one is never seen.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.ranker.adapters import (
    Adapter,
    adapter_config,
    attach,
    backbone_config,
    backbone_tensors,
    content_hash,
    extract,
)
from models.ranker.config import DomainConfig, RankerConfig
from models.ranker.network import Ranker

TENSORS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1


class CorruptCheckpoint(ValueError):
    """A file of a checkpoint is missing, damaged or not what its hash says."""

    code = "corrupt_checkpoint"

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


def save(directory: Path | str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Publish tensors and config as the folder ``directory``; returns their content hash.

    Repeating it with the same content changes nothing. The config must survive JSON.

    Raises:
        FileExistsError: the folder already holds something else; a published artifact is never overwritten.
    """
    target = Path(directory)
    content = content_hash(tensors, _as_json(config))
    if target.exists() and any(target.iterdir()):
        if _published(target) == content:
            return content
        raise FileExistsError(f"{target} already holds another artifact")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(plain, draft / TENSORS)
        document = {"format": FORMAT, "content_hash": content, "config": _as_json(config)}
        (draft / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for path in (draft / TENSORS, draft / CONFIG, draft):
            _flush(path)
        draft.chmod(0o755)
        os.rename(draft, target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return content


def load(directory: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of a published folder, checked against their content hash.

    Raises:
        CorruptCheckpoint: names the file that is missing, unreadable or not what was published.
    """
    tensors, config, _ = _load(Path(directory))
    return tensors, config


def save_backbone(ranker: Ranker, directory: Path | str) -> str:
    """Publish the shared network with its source slots; returns the hash that adapters name."""
    return save(directory, backbone_tensors(ranker), backbone_config(ranker))


def load_backbone(directory: Path | str) -> Ranker:
    """The ranker of a published backbone, in evaluation mode; its source slots keep their numbers.

    Raises:
        CorruptCheckpoint: also where the tensors do not fit the config.
    """
    path = Path(directory)
    tensors, config = load(path)
    if config.get("kind") != "backbone":
        raise CorruptCheckpoint(path / CONFIG, f"describes {config.get('kind')!r}, not a backbone")
    try:
        ranker = Ranker(RankerConfig.from_dict(config["ranker"]))
        for source in config["source_domains"]:
            ranker.add_domain(DomainConfig(items=0, feature_codes=tuple(source["feature_codes"])))
        ranker.load_state_dict(tensors, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as fault:
        raise CorruptCheckpoint(path / CONFIG, f"config and tensors do not make a ranker: {fault}") from fault
    return ranker.eval()


def save_adapter(
    ranker: Ranker, slot: int, directory: Path | str, *, name: str, level: str, backbone: str | None = None
) -> str:
    """Publish what the domain in this slot owns, under its name and fallback level; returns its content hash."""
    adapter = extract(ranker, slot, name=name, level=level, backbone=backbone)
    return save(directory, adapter.tensors, adapter_config(adapter.config, adapter.backbone, name=name, level=level))


def load_adapter(directory: Path | str) -> Adapter:
    """A published adapter, to be attached to its backbone.

    Raises:
        CorruptCheckpoint: see `load`.
    """
    path = Path(directory)
    tensors, config, content = _load(path)
    if config.get("kind") != "adapter":
        raise CorruptCheckpoint(path / CONFIG, f"describes {config.get('kind')!r}, not an adapter")
    try:
        domain = DomainConfig(config["domain"]["items"], tuple(config["domain"]["feature_codes"]))
        named = {"name": config.get("name", ""), "level": config.get("level", "")}
        return Adapter(domain, tensors, config["backbone"], content, **named)
    except (KeyError, TypeError) as fault:
        raise CorruptCheckpoint(path / CONFIG, f"not an adapter's config: {fault}") from fault


def load_into(ranker: Ranker, directory: Path | str, *, backbone: str | None = None) -> int:
    """Load an adapter and attach it; returns its slot. Raises what `load_adapter` and `attach` raise."""
    return attach(ranker, load_adapter(directory), backbone=backbone)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    document = _document(path)
    weights = path / TENSORS
    if not weights.is_file():
        raise CorruptCheckpoint(weights, "is missing")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as fault:
        raise CorruptCheckpoint(weights, f"cannot be read: {fault}") from fault
    if content_hash(tensors, document["config"]) != document["content_hash"]:
        raise CorruptCheckpoint(weights, f"its content, with {CONFIG}, is not what was published (hash differs)")
    return tensors, document["config"], document["content_hash"]


def _document(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptCheckpoint(file, "is missing") from None
    except (OSError, ValueError) as fault:
        raise CorruptCheckpoint(file, f"cannot be read: {fault}") from fault
    if not isinstance(document, dict) or not {"format", "content_hash", "config"} <= document.keys():
        raise CorruptCheckpoint(file, "lacks format, content_hash or config")
    if document["format"] != FORMAT:
        raise CorruptCheckpoint(file, f"has format {document['format']}; this version reads {FORMAT}")
    return document


def _published(path: Path) -> str | None:
    try:
        return _load(path)[2]
    except CorruptCheckpoint:
        return None


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it will be read back: tuples become lists before it is hashed."""
    return json.loads(json.dumps(config))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
