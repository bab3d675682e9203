"""One training step, and scoring: losses of rows, a step downhill, predictions, and the modes that both need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.batch import Batch
from models.training.config import Loss, Task, TrainConfig
from models.training.distributed import Alone
from models.training.listwise import listwise_losses
from models.training.optimisers import Optimisers

ALONE = Alone()
SPARSE_FROM_ROWS = 1024  # below, a dense gradient is cheaper than sorting ids


def output_losses(output: Tensor, label: Tensor, task: Task) -> Tensor:
    """Loss of each row from the network's output, (B,): cross-entropy of logits for clicks, squared error for ratings
    (DACDR eq. (8)). Of scores, ``models.metrics.row_losses`` says the same."""
    if task == "rating":
        return (output.float() - label).square()
    return F.binary_cross_entropy_with_logits(output.float(), label, reduction="none")


def task_loss(
    output: Tensor, batch: Batch, task: Task, factor: Tensor | None = None, loss: Loss = "pointwise"
) -> Tensor:
    """Weighted mean of losses; ``factor`` (B,) scales rows but not the denominator, or small ones would cancel.

    A query weighs as its relevant row does.
    """
    weight = batch.weight if factor is None else batch.weight * factor
    if loss == "listwise":
        relevant = batch.label > 0
        losses = listwise_losses(output, batch.label)
        return (weight[relevant] * losses).sum() / batch.weight[relevant].sum().clamp(min=1e-12)
    return (weight * output_losses(output, batch.label, task)).sum() / batch.weight.sum().clamp(min=1e-12)


def objective(
    model: nn.Module, batch: Batch, config: TrainConfig, factor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The task's loss, and what is minimised: that and the model's auxiliary loss with its weight (LCN eq. (14))."""
    auxiliary = None
    with autocast(batch.label.device, bf16=config.bf16):
        output = model(batch)
        extra: Callable[[Batch], Tensor | None] | None = getattr(model, "auxiliary_loss", None)
        if config.auxiliary_weight and extra is not None and len(batch):
            auxiliary = extra(batch)
    loss = task_loss(output, batch, config.task, factor, config.loss)
    return loss, loss if auxiliary is None else loss + config.auxiliary_weight * auxiliary.float()


def descend(
    model: nn.Module,
    batch: Batch,
    optimisers: Optimisers,
    config: TrainConfig,
    *,
    factor: Tensor | None = None,
    peers: Alone = ALONE,
) -> tuple[Tensor, ...]:
    """One step downhill; the two losses of `objective` as they were before it."""
    optimisers.zero_grad()
    loss, total = objective(model, batch, config, factor)
    peers.backward(total, optimisers)
    if config.clip:
        optimisers.clip(config.clip, peers.norm)
    optimisers.step()
    return peers.whole(loss.detach(), total.detach())


def predict(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    task: Task = "ctr",
    bf16: bool = False,
    raw: bool = False,
) -> dict[str, NDArray[Any]]:
    """Scores of all rows in order, with their label, user, item and domain.

    Scores are what ``model.probability`` says where the model has it, else the sigmoid of logits or the ratings. With
    ``raw`` they are the model's own output: a sigmoid makes very good candidates equal.
    """
    where = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in ("score", "label", "user", "item", "domain")}
    with evaluating(model), torch.inference_mode():
        for batch in data:
            here = batch.to(where)
            with autocast(where, bf16=bf16):
                score = model(here) if raw else _score(model, here, task)
            parts["score"].append(score.float().cpu())
            for name in ("label", "user", "item", "domain"):
                parts[name].append(getattr(batch, name).cpu())
    return {name: torch.cat(values).numpy() if values else np.zeros(0) for name, values in parts.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _score(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    probability = getattr(model, "probability", None)
    if probability is not None:
        return probability(batch)
    output = model(batch).float()
    return torch.sigmoid(output) if task == "ctr" else output


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[Any]:
    """Where the network runs in bfloat16, if it does."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


@contextmanager
def sparse_tables(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """While training, large tables give sparse gradients; those that are ``sparse`` by themselves stay so."""
    switched = []
    if config.embedding_optimiser != "dense":
        for module in model.modules():
            table = getattr(module, "weight", None)
            if getattr(module, "sparse", None) is False and table is not None and len(table) >= SPARSE_FROM_ROWS:
                module.sparse = True  # type: ignore[assignment]
                switched.append(module)
    try:
        yield
    finally:
        for module in switched:
            module.sparse = False  # type: ignore[assignment]
