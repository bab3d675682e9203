"""What a training run is told and tells: its data, its config, its progress, what came of it, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from models.batch import Batch
from models.training.optimisers import Nested, Optimisers

Task = Literal["ctr", "rating"]
Loss = Literal["pointwise", "listwise"]
MetricName = Literal["auc", "gauc", "logloss", "mae", "rmse", "mrr"]


class BatchSource(Protocol):
    """Batches in an order that depends on the epoch alone, from any place in it."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 0), without the first ``start``."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        embedding_optimiser: rule of tables of at least ``SPARSE_FROM_ROWS`` rows; ``dense`` treats them like the rest.
        weight_decay: decoupled, per step; of a table only on touched rows.
        loss: ``pointwise`` judges each row, ``listwise`` the rank of the relevant row of each query (`listwise`).
        metric: what validation chooses by; None is AUC for clicks (logloss if a label is absent), RMSE for ratings, MRR
            for queries.
        patience: epochs without improvement after which to stop; 0 trains all epochs. The best weights are kept.
        consider_start: the weights given count as a candidate too, so that training never returns worse ones. With
            ``surely`` an epoch replaces them only if held-out rows lose less by more than a standard error over users
            (the one standard error rule of Breiman et al. 1984): for starts that were solved for, beside which the
            little that an epoch seems to gain is mostly luck.
        clip: longest gradient norm; 0 leaves gradients alone.
        auxiliary_weight: factor of ``model.auxiliary_loss``, where the model has one (LCN eq. 14).
        checkpoint_every_steps: 0 saves at the ends of epochs only.
        bf16: run the network in bfloat16 autocast; weights, losses and optimisers stay float32.
        prefetch: batches made ahead in a thread of its own; 0 makes them in line.
        device: where to train; None is where the model is.
    """

    epochs: int = 1
    learning_rate: float = 1e-3
    embedding_learning_rate: float | None = None
    weight_decay: float = 0.0
    embedding_optimiser: Literal["lazy_adam", "rowwise_adagrad", "dense"] = "lazy_adam"
    task: Task = "ctr"
    loss: Loss = "pointwise"
    metric: MetricName | None = None
    patience: int = 0
    consider_start: bool | Literal["surely"] = False
    clip: float = 10.0
    auxiliary_weight: float = 0.1
    seed: int = 0
    checkpoint_every_steps: int = 0
    progress_every_steps: int = 10
    prefetch: int = 0
    bf16: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0:
            raise ValueError(f"epochs {self.epochs} and learning rate {self.learning_rate} must be positive")
        if min(self.patience, self.clip, self.checkpoint_every_steps, self.prefetch) < 0:
            raise ValueError("patience, clip, checkpoint_every_steps and prefetch must not be negative")
        if (self.loss == "listwise" and self.metric not in (None, "mrr")) or (self.loss, self.metric) == (
            "pointwise",
            "mrr",
        ):
            raise ValueError(f"queries are judged by mrr and single rows are not, so {self.metric} cannot choose here")


@dataclass(frozen=True)
class Progress:
    """Where a run stands. ``fraction`` is of all epochs; ``loss`` is the last step's, ``rows_per_s`` this process's."""

    fraction: float
    step: int
    epoch: int
    loss: float
    rows_per_s: float


@dataclass(frozen=True)
class TrainResult:
    """What came of a run. ``best_epoch`` counts from 1; 0 is the weights given. ``history`` has a row per epoch."""

    best_epoch: int
    steps: int
    history: list[dict[str, Any]]
    seconds: float
    best: float | None = None
    metric: str | None = None


@dataclass(frozen=True)
class TrainingStep:
    """A step as the weigher sees it: ``number`` counts from 0 over the run, ``epoch`` from 0."""

    number: int
    epoch: int


class SampleWeigher(Protocol):
    """Something that weighs rows while the model trains, and may train networks of its own beside it (CCTL)."""

    def begin(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        """Called once, on the training device, before any state is loaded."""

    def weigh(self, batch: Batch, step: TrainingStep) -> Tensor | None:
        """Factors (B,) of the rows' losses, before the batch is trained on; None for ones."""

    def after_step(self, batch: Batch, step: TrainingStep) -> None:
        """The model has taken its step on ``batch``."""

    def state_dict(self) -> Nested: ...
    def load_state_dict(self, state: Nested) -> None: ...


class TrainingDiverged(ValueError):
    """The loss is no longer a number; the last checkpoint still holds finite weights."""


class CheckpointMismatch(ValueError):
    """The checkpoint folder belongs to another run: other config, data size, trained parameters or frozen weights."""
