"""The state of an unfinished run in one file that is whole or absent, however the process ends.

Nothing is pickled. The file is written beside its name, forced to disk and renamed over it, so a reader
finds the state before or the state after, and after kill -9 too.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class UnreadableState(ValueError):
    """A file of run state is damaged or is something else."""


def save(path: Path, state: Any) -> None:
    """Replace ``path`` by ``state`` at once.

    Raises:
        TypeError: the state holds something that is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    header = {"state": json.dumps(_packed(state, tensors))}
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f"{path.name}.building")
    save_file(tensors, building, metadata=header)
    _force_to_disk(building)
    os.replace(building, path)
    _force_to_disk(path.parent)


def load(path: Path) -> Any | None:
    """The state saved at ``path``, on the CPU; None where there is none.

    Raises:
        UnreadableState: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it has no iterator
            return _unpacked(json.loads(file.metadata()["state"]), tensors)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UnreadableState(f"{path} is not a readable training state: {error}") from error


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A quick sum over bytes that tells two sets of weights apart; no proof against intent."""
    total = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            total = zlib.crc32(flat.view(torch.uint8).numpy().data, total)
    return total


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # copies may not share memory in the file
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of run state must be strings, got {sorted(map(repr, value))}")
        return {"dict": {key: _packed(item, tensors) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_packed(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise TypeError(f"run state cannot hold a {type(value).__name__}")


def _unpacked(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in held.items()}
    if kind == "list":
        return [_unpacked(item, tensors) for item in held]
    return held


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
