"""No tensor of a step is made on the wrong device: what holds on a GPU, checked where there is none.

A stand-in for a GPU: tensors that say they are elsewhere (on torch's ``meta`` device), hold their values all the same,
and refuse to be mixed with tensors of the CPU, as CUDA's do. Numbers (tensors without a dimension) and index lists may
come from anywhere there, and so may they here.
"""

# A stand-in for a device has to reach into torch.
# ruff: noqa: SLF001

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from models.batch import Batch, Events
from models.layers import shared_history
from models.layers.contrast import ContrastConfig
from models.ranker import adapters
from models.ranker.network import Ranker
from models.ranker.precompute import frozen_cache
from models.training import loop, step
from models.training.devices import device_for
from models.training.optimisers import LazyAdam, Optimisers, RowwiseAdagrad

MakeBatch = Callable[..., Batch]
MakeRanker = Callable[..., Ranker]
THERE = torch.device("meta")
aten = torch.ops.aten
MAY_CROSS = {aten._to_copy, aten.copy_}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Elsewhere(Tensor):
    """A tensor on the stand-in device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looked_at = (args[0], *args[2:]) if func.overloadpacket in INDEXING else args
        for part in tree_iter((looked_at, kwargs or {})):
            if isinstance(part, Tensor) and not isinstance(part, Elsewhere) and part.dim():
                assert func.overloadpacket in MAY_CROSS, f"{func} got a tensor of the CPU among those of the device"
        return _run(func, args, dict(kwargs or {}))


class Device(TorchDispatchMode):
    """While it lasts, tensors can be made on the stand-in device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        mixed = any(isinstance(part, Elsewhere) for part in tree_iter((args, kwargs)))
        made_there = kwargs.get("device") is not None and torch.device(kwargs["device"]) == THERE
        return _run(func, args, kwargs) if made_there and not mixed else func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The call on the values, and its answers on the device where they belong."""
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    seen: dict[int, Elsewhere] = {}

    def values(part: Any) -> Any:
        if isinstance(part, Elsewhere):
            seen[id(part.held)] = part
            return part.held
        return part

    answers = func(*tree_map(values, args), **tree_map(values, kwargs))
    stays = torch.device(asked) == THERE if asked is not None else bool(seen)

    def placed(part: Any) -> Any:
        if id(part) in seen:
            return seen[id(part)]
        return Elsewhere(part) if stays and isinstance(part, Tensor) else part

    return tree_map(placed, answers)


def there(batch: Any) -> Any:
    """A batch on the device."""
    parts = {f.name: getattr(batch, f.name) for f in fields(batch)}
    moved = {
        name: there(part) if isinstance(part, Events) else Elsewhere(part) if isinstance(part, Tensor) else part
        for name, part in parts.items()
    }
    return replace(batch, **moved)


def move(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-in. Torch's autocast does not know it, and ``torch.tensor`` makes its values out of a mode's sight."""

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = of_data(data, **kwargs)
        return Elsewhere(made) if device == THERE else made

    of_data = torch.tensor
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(shared_history, "_working_type", lambda weight: weight.dtype)
    monkeypatch.setattr(step, "autocast", lambda device, bf16: nullcontext())
    with Device():
        yield


def test_the_stand_in_refuses_what_a_gpu_refuses(device: None) -> None:
    here, elsewhere = torch.ones(3), Elsewhere(torch.ones(3))
    assert (elsewhere + torch.zeros(3, device=elsewhere.device)).tolist() == [1, 1, 1]
    assert (elsewhere * torch.tensor(2.0)).tolist() == [2, 2, 2]
    with pytest.raises(AssertionError, match="among those of the device"):
        elsewhere + here


@pytest.mark.parametrize("architecture", ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_step_of_any_domain_stays_on_the_device(
    architecture: str, wide: bool, make_ranker: MakeRanker, make_batch: MakeBatch, device: None
) -> None:
    """Forward with its answers, all losses, their gradients and their clipping, of mixed domains."""
    ranker = make_ranker(architecture=architecture, wide=wide, contrast=ContrastConfig(), user_dropout=0.0)
    batch, config = make_batch(rows=24, users=4), loop.TrainConfig(embedding_optimiser="dense")
    expected, probability = ranker(batch).tolist(), ranker.probability(batch).tolist()
    torch.manual_seed(0)  # the contrast draws its negatives
    loss = loop.objective(ranker, batch, config)[1].item()
    move(ranker)
    batch = there(batch)
    assert ranker(batch).tolist() == pytest.approx(expected)
    assert ranker.probability(batch).tolist() == pytest.approx(probability)
    torch.manual_seed(0)
    total = loop.objective(ranker, batch, config)[1]
    assert total.item() == pytest.approx(loss)
    total.backward()
    Optimisers(ranker, learning_rate=1e-3).clip(1.0)  # the dense update after it is torch's own


@pytest.mark.parametrize("architecture", ["dacdr", "dacdr+lcn"])
def test_fine_tuning_with_the_frozen_cache_stays_on_the_device(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch, device: None
) -> None:
    ranker = make_ranker(architecture=architecture)
    adapters.freeze_all_but(ranker, 2)
    rows = replace(make_batch(rows=24, users=4, length=40, domain=2, full=True), key=torch.arange(24))
    expected = ranker(rows).tolist()
    move(ranker)
    rows = there(rows)
    with ranker.using(frozen_cache(ranker, [rows], 24, limit=1 << 20)):
        assert ranker.cache is not None
        assert ranker(rows).tolist() == pytest.approx(expected)
        ranker(rows).sum().backward()


@pytest.mark.parametrize("rule", [LazyAdam, RowwiseAdagrad])
def test_touched_rows_are_updated_on_the_device(rule: type, device: None) -> None:
    weight, gradient = torch.randn(50, 4), torch.randn(50, 4)
    here, elsewhere = nn.Parameter(weight.clone()), nn.Parameter(Elsewhere(weight.clone()))
    here.grad, elsewhere.grad = gradient, Elsewhere(gradient)
    for parameter in (here, elsewhere):
        rule([parameter], lr=0.1, weight_decay=0.1).step()
    assert elsewhere.tolist() == here.tolist()


def test_a_setting_says_where_tensors_live(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, where in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert device_for("auto") == where
        assert device_for("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU"):
        device_for("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_trains_to_what_a_cpu_does(bf16: bool, make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """Pinned batches, the whole loop, scores back on the CPU; bfloat16 within a hundredth."""

    class Source:
        def __len__(self) -> int:
            return 4

        def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            return iter(batches[start:])

    batches = [make_batch(rows=24, users=4) for _ in range(4)]
    batches = [replace(b, label=b.label.float(), weight=b.weight.float(), offset=b.offset.float()) for b in batches]
    found = []
    for device in ("cpu", "cuda"):
        ranker = make_ranker(architecture="dacdr+lcn", user_dropout=0.0).float()
        loop.train(ranker, Source(), config=loop.TrainConfig(epochs=2, device=device, bf16=bf16))
        found.append(loop.predict(ranker, batches)["score"])
    assert found[1] == pytest.approx(found[0], abs=0.01 if bf16 else 1e-4)
