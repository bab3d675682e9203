"""Which tensors a domain owns, and the proof that nothing else moved.

One structural truth: a tensor is a domain's if it stands under that domain's `DomainOwned` module. Freezing, saving,
loading and the certificate all ask the structure, never a name.

The backbone is everything that no target domain owns: the shared network and the slots of source domains, whose items
live in its own table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.ranker.config import DomainConfig
    from models.ranker.network import Ranker


class AdapterMismatch(ValueError):
    """An adapter was made on another backbone, or is not what it says it is."""

    code = "adapter_mismatch"


def trained_parameter_count(ranker: Ranker) -> int:
    """Numbers that training can move as things stand."""
    return sum(parameter.numel() for parameter in ranker.parameters() if parameter.requires_grad)


def freeze_all_but(ranker: Ranker, slot: int) -> list[nn.Parameter]:
    """Freeze all that the domain in this slot does not own; returns what is left to train.

    Frozen modules also stay in evaluation mode, whatever `train()` is called later: a frozen dropout or norm must act
    as in serving.
    """
    adapter = ranker.owned(slot)
    ranker.requires_grad_(requires_grad=False)
    adapter.requires_grad_()
    # A gradient left over from before would move a frozen tensor at the next step.
    ranker.zero_grad(set_to_none=True)
    ranker.train()
    return list(adapter.parameters())


def unfreeze(ranker: Ranker) -> None:
    """Everything trains again."""
    ranker.requires_grad_()
    ranker.train()


def fingerprint(ranker: Ranker, excluding: int | None = None) -> dict[str, str]:
    """sha256 of every parameter and buffer by name, but those that the domain in slot ``excluding`` owns."""
    skip = set() if excluding is None else {id(tensor) for tensor in _tensors(ranker.owned(excluding))}
    everything = [*ranker.named_parameters(), *ranker.named_buffers()]
    return {name: tensor_hash(tensor) for name, tensor in everything if id(tensor) not in skip}


@dataclass(frozen=True)
class FreezeCertificate:
    """What was frozen, its hashes before and after, and whether all are equal."""

    before: Mapping[str, str]
    after: Mapping[str, str]
    changed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.changed

    @property
    def before_hash(self) -> str:
        """One hash over all names and hashes before."""
        return _hash_of_hashes(self.before)

    @property
    def after_hash(self) -> str:
        """One hash over all names and hashes after."""
        return _hash_of_hashes(self.after)


def certificate(before: Mapping[str, str], after: Mapping[str, str]) -> FreezeCertificate:
    """Compare two fingerprints. A tensor that came or went counts as changed."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return FreezeCertificate(dict(before), dict(after), tuple(changed))


@dataclass(frozen=True)
class Adapter:
    """One domain's weights outside any ranker.

    tensors: owned parameters and buffers by their name inside the adapter
    backbone: content hash of the backbone they were trained on
    name: of the domain, and ``level`` what made the weights: two domains, or two levels, never share an identity,
        however equal their weights are
    content: hash of the tensors, the config, ``backbone``, ``name`` and ``level``; the adapter's identity
    """

    config: DomainConfig
    tensors: Mapping[str, Tensor]
    backbone: str
    content: str
    name: str = ""
    level: str = ""


def backbone_tensors(ranker: Ranker) -> dict[str, Tensor]:
    """Parameters and buffers of the backbone by name."""
    targets = {
        id(tensor)
        for slot in range(len(ranker.domains))
        if not ranker.owned(slot).config.in_backbone
        for tensor in _tensors(ranker.owned(slot))
    }
    return {name: tensor for name, tensor in _named_tensors(ranker) if id(tensor) not in targets}


def backbone_config(ranker: Ranker) -> dict[str, Any]:
    """What rebuilds the backbone's structure, as JSON."""
    slots = [ranker.owned(slot).config for slot in range(len(ranker.domains))]
    sources = [{"feature_codes": list(config.feature_codes)} for config in slots if config.in_backbone]
    return {"kind": "backbone", "ranker": ranker.config.as_dict(), "source_domains": sources}


def backbone_hash(ranker: Ranker) -> str:
    """Content hash of the backbone as it stands; what `checkpoint.save_backbone` returns for it."""
    return content_hash(backbone_tensors(ranker), backbone_config(ranker))


def adapter_config(config: DomainConfig, backbone: str, *, name: str = "", level: str = "") -> dict[str, Any]:
    """An adapter's config as JSON; those made before name and level counted have neither."""
    codes = list(config.feature_codes)
    found = {"kind": "adapter", "domain": {"items": config.items, "feature_codes": codes}, "backbone": backbone}
    return found | ({"name": name} if name else {}) | ({"level": level} if level else {})


def extract(ranker: Ranker, slot: int, *, name: str = "", level: str = "", backbone: str | None = None) -> Adapter:
    """A copy of what the domain in this slot owns. ``backbone`` spares computing the hash where it is known."""
    owned = ranker.owned(slot)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in _named_tensors(owned)}
    backbone = backbone or backbone_hash(ranker)
    content = content_hash(tensors, adapter_config(owned.config, backbone, name=name, level=level))
    return Adapter(owned.config, tensors, backbone, content, name, level)


def attach(ranker: Ranker, adapter: Adapter, *, backbone: str | None = None) -> int:
    """Add an adapter's domain to the ranker; returns its slot.

    Raises:
        AdapterMismatch: it was trained on another backbone, its tensors are not those it was published with, or their
            names and shapes are not what this ranker needs.
    """
    mine = backbone or backbone_hash(ranker)
    if adapter.backbone != mine:
        raise AdapterMismatch(f"the adapter was trained on backbone {adapter.backbone[:12]}, this one is {mine[:12]}")
    config = adapter_config(adapter.config, adapter.backbone, name=adapter.name, level=adapter.level)
    if content_hash(adapter.tensors, config) != adapter.content:
        raise AdapterMismatch(f"the adapter's tensors are not those of its content hash {adapter.content[:12]}")
    if adapter.config.in_backbone:
        raise AdapterMismatch("the adapter of a source domain is part of the backbone and is not attached on its own")
    slot = ranker.add_domain(adapter.config)
    try:
        ranker.owned(slot).load_state_dict(dict(adapter.tensors), strict=True)
    except RuntimeError as mismatch:
        del ranker.domains[slot]
        raise AdapterMismatch(f"the adapter does not fit this ranker: {mismatch}") from None
    return slot


def tensor_hash(tensor: Tensor) -> str:
    """sha256 of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_hash(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """sha256 over names, tensors and config: the identity of a trained artifact."""
    hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
    return _hash_of_hashes({"tensors": _hash_of_hashes(hashes), "config": json.dumps(config, sort_keys=True)})


def _hash_of_hashes(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers; what only follows from the config (non-persistent buffers) is left out."""
    yield from module.state_dict(keep_vars=True).items()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
