"""The one training loop: the shared model, a domain's adapter and every baseline run through ``train``.

A run is a function of its config, its data and the model's first weights. All chance inside a step comes from a seed
made of the run's seed and the step's number, so a run that was killed continues from its last checkpoint to the very
bits that it would have reached unbroken.

    result = train(model, data, config=TrainConfig(epochs=3, patience=1), validation=held_out, checkpoint_dir=folder)
    scored = predict(model, test.batches(0), task="ctr")
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models import metrics, resume
from models.batch import Batch
from models.distributed import Alone
from models.lists import list_losses, mean_reciprocal_rank
from models.optimisers import Nested, Optimisers
from models.prefetch import prefetched

Task = Literal["ctr", "rating"]
Loss = Literal["pointwise", "listwise"]
MetricName = Literal["auc", "gauc", "logloss", "mae", "rmse", "mrr"]

ALONE = Alone()
SPARSE_FROM_ROWS = 1024  # below, a dense gradient is cheaper than sorting ids
_HIGHER_IS_BETTER = ("auc", "gauc", "mrr")
_FREE_TO_DIFFER = ("checkpoint_every_steps", "progress_every_steps", "prefetch", "device")
_LARGEST_COUNTER = 4096


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
        loss: ``pointwise`` judges each row, ``listwise`` where the right row stands in its list (`models.lists`).
        metric: what validation chooses by; None is AUC for clicks (logloss if a label is absent), RMSE for ratings, MRR
            for lists.
        patience: epochs without improvement after which to stop; 0 trains all epochs. The best weights are kept.
        consider_start: the weights given count as a candidate too, so that training never returns worse ones.
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
    consider_start: bool = False
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
            raise ValueError(f"lists are judged by mrr and single rows are not, so {self.metric} cannot choose here")


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
class Moment:
    """A step as the weigher sees it: ``step`` counts from 0 over the run, ``epoch`` from 0."""

    step: int
    epoch: int


class SampleWeigher(Protocol):
    """Something that weighs rows while the model trains, and may train networks of its own beside it (CCTL)."""

    def begin(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        """Called once, on the training device, before any state is loaded."""

    def weigh(self, batch: Batch, moment: Moment) -> Tensor | None:
        """Factors (B,) of the rows' losses, before the batch is trained on; None for ones."""

    def after_step(self, batch: Batch, moment: Moment) -> None:
        """The model has taken its step on ``batch``."""

    def state_dict(self) -> Nested: ...
    def load_state_dict(self, state: Nested) -> None: ...


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a number; the last checkpoint still holds finite weights."""


class CheckpointMismatch(ValueError):
    """The checkpoint folder belongs to another run: other config, data size, trained parameters or frozen weights."""


def row_losses(output: Tensor, label: Tensor, task: Task) -> Tensor:
    """Loss of each row, (B,): cross-entropy of logits for clicks, squared error for ratings (DACDR eq. 8)."""
    if task == "rating":
        return (output.float() - label).square()
    return F.binary_cross_entropy_with_logits(output.float(), label, reduction="none")


def task_loss(
    output: Tensor, batch: Batch, task: Task, factor: Tensor | None = None, loss: Loss = "pointwise"
) -> Tensor:
    """Weighted mean of losses; ``factor`` (B,) scales rows but not the denominator, or small ones would cancel.

    A list weighs as its right row does.
    """
    weight = batch.weight if factor is None else batch.weight * factor
    if loss == "listwise":
        right = batch.label > 0
        losses = list_losses(output, batch.label)
        return (weight[right] * losses).sum() / batch.weight[right].sum().clamp(min=1e-12)
    return (weight * row_losses(output, batch.label, task)).sum() / batch.weight.sum().clamp(min=1e-12)


def objective(
    model: nn.Module, batch: Batch, config: TrainConfig, factor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The task's loss, and what is minimised: that and the model's auxiliary loss with its weight (LCN eq. 14)."""
    auxiliary = None
    with autocast(batch.label.device, config.bf16):
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


def train(
    model: nn.Module,
    data: BatchSource,
    *,
    config: TrainConfig,
    validation: BatchSource | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    sample_weigher: SampleWeigher | None = None,
    peers: Alone = ALONE,
) -> TrainResult:
    """Train ``model`` in place, from ``checkpoint_dir`` on if it holds a run; a finished run returns at once.

    Args:
        validation: where given, the model ends with the weights of its best epoch on it.
        on_progress: called now and then; what it raises ends the run, which can be continued later.
        parameters: train only these; the default is all that require gradients.
        peers: other processes that train the same model; ``data`` and ``validation`` then give this one's part of every
            batch, and the model ends whole in the first of them only.

    Raises:
        TrainingDiverged: the loss became infinite or not a number.
        CheckpointMismatch: ``checkpoint_dir`` holds another run.
        ValueError: there is nothing to train, or nothing to train on, or other processes cannot join in.
    """
    if len(data) < 1:
        raise ValueError("nothing to train on: the data source has no batches")
    device = torch.device(config.device) if config.device else next(model.parameters()).device
    model.to(device)
    if sample_weigher is not None and peers.world > 1:
        raise ValueError("rows are weighed by networks that train in one process only")
    if config.loss == "listwise" and peers.world > 1:
        raise ValueError("processes share batches by rows, which would cut lists: train with loss=pointwise or alone")
    from_rows = None if config.embedding_optimiser == "dense" else SPARSE_FROM_ROWS
    with peers.sharing(model, from_rows=from_rows), sparse_tables(model, config), _own_chance(device):
        run = _Run(
            model, data, config, validation, checkpoint_dir, on_progress, parameters, sample_weigher, device, peers
        )
        return run.to_the_end()


def predict(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    task: Task = "ctr",
    device: str | None = None,
    bf16: bool = False,
    raw: bool = False,
) -> dict[str, NDArray[Any]]:
    """Scores of all rows in order, with their label, user, item and domain.

    Scores are what ``model.probability`` says where the model has it, else the sigmoid of logits or the ratings. With
    ``raw`` they are the model's own output: a sigmoid makes very good candidates equal.
    """
    where = torch.device(device) if device else next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in ("score", "label", "user", "item", "domain")}
    with evaluating(model), torch.inference_mode():
        for batch in data:
            here = batch.to(where)
            with autocast(where, bf16):
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


@dataclass
class _Standing:
    """Everything of a run that changes, but for tensors of the model and the optimisers."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    metric: str | None = None
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        data: BatchSource,
        config: TrainConfig,
        validation: BatchSource | None,
        checkpoint_dir: Path | None,
        on_progress: Callable[[Progress], None] | None,
        parameters: Iterable[nn.Parameter] | None,
        weigher: SampleWeigher | None,
        device: torch.device,
        peers: Alone,
    ) -> None:
        self.peers = peers
        self.model, self.data, self.config, self.validation = model, data, config, validation
        self.on_progress, self.weigher, self.device = on_progress, weigher, device
        self.optimisers = Optimisers(
            model,
            learning_rate=config.learning_rate,
            embedding_learning_rate=config.embedding_learning_rate,
            weight_decay=config.weight_decay,
            embedding_rule="lazy_adam" if config.embedding_optimiser == "dense" else config.embedding_optimiser,
            parameters=parameters,
        )
        self.standing = _Standing()
        self.best_weights: dict[str, Tensor] | None = None
        self.loss_of_epoch = torch.zeros((), dtype=torch.float64, device=device)
        if weigher is not None:
            weigher.begin(model, self.optimisers, config)
        self.folder = checkpoint_dir
        if self.folder is not None:
            self.identity = self._identity()
            self._continue_from(peers.load(self.folder))
        self.begun, self.seconds_before, self.rows_here = time.perf_counter(), self.standing.seconds, 0.0

    def to_the_end(self) -> TrainResult:
        now = self.standing
        if not now.finished and now.step == 0 and self.config.consider_start and self.validation is not None:
            self._judge(self._measure(), epoch=0)
        while not now.finished:
            self._train_mode()
            batches = self.data.batches(now.epoch, start=now.step_in_epoch)
            if self.device.type == "cuda":
                batches = (batch.pinned() for batch in batches)
            for batch in self.peers.following(self.model, prefetched(batches, self.config.prefetch)):
                loss = self._step(batch.to(self.device, non_blocking=True))
                now.step, now.step_in_epoch = now.step + 1, now.step_in_epoch + 1
                if self._due(self.config.checkpoint_every_steps):
                    self._check(loss)
                    self._save()
                if self._due(self.config.progress_every_steps):
                    self._report(loss)
            self._end_epoch()
        if self.best_weights is not None:
            self._load_weights(self.best_weights)
        return TrainResult(now.best_epoch, now.step, now.history, now.seconds, now.best, now.metric)

    def _step(self, batch: Batch) -> Tensor:
        now = self.standing
        moment = Moment(now.step, now.epoch)
        torch.manual_seed(_mixed(self.config.seed, now.step, self.peers.rank))
        factor = None if self.weigher is None else self.weigher.weigh(batch, moment)
        loss, total = descend(self.model, batch, self.optimisers, self.config, factor, self.peers)
        if self.weigher is not None:
            self.weigher.after_step(batch, moment)
        rows = self.peers.rows_of(batch)
        self.loss_of_epoch += loss.double() * rows
        now.rows += rows
        self.rows_here += rows
        return total

    def _end_epoch(self) -> None:
        now = self.standing
        if now.step_in_epoch == 0:
            raise ValueError(f"the data source promised {len(self.data)} steps and gave none in epoch {now.epoch}")
        mean_loss = float(self.loss_of_epoch) / max(now.rows, 1)
        self._check(mean_loss)
        now.seconds = self._seconds()
        row: dict[str, Any] = {"epoch": now.epoch + 1, "step": now.step, "loss": mean_loss, "seconds": now.seconds}
        if self.validation is not None:
            value = self._measure()
            row |= {"metric": now.metric, "value": value}
            self._judge(value, epoch=now.epoch + 1)
        else:
            now.best_epoch = now.epoch + 1
        now.history.append(row)
        now.epoch, now.step_in_epoch, now.rows = now.epoch + 1, 0, 0.0
        self.loss_of_epoch.zero_()
        waited = now.epoch - now.best_epoch
        now.finished = now.epoch >= self.config.epochs or (0 < self.config.patience <= waited)
        self._save()
        self._report(mean_loss)

    def _measure(self) -> float:
        assert self.validation is not None
        now, task = self.standing, self.config.task
        batches = self.peers.following(self.model, self.validation.batches(0))
        listwise = self.config.loss == "listwise"
        rows = self.peers.gathered(predict(self.model, batches, task=task, bf16=self.config.bf16, raw=listwise))
        if listwise:
            now.metric = "mrr"
            return mean_reciprocal_rank(rows["label"], rows["score"])
        if now.metric is None:
            both = 0 < rows["label"].mean() < 1
            now.metric = self.config.metric or ("rmse" if task == "rating" else "auc" if both else "logloss")
        args = [rows["label"], rows["score"]] + ([rows["user"]] if now.metric == "gauc" else [])
        return float(getattr(metrics, now.metric)(*args))

    def _judge(self, value: float, epoch: int) -> None:
        now = self.standing
        sign = 1 if now.metric in _HIGHER_IS_BETTER else -1
        if now.best is None or sign * value > sign * now.best:
            now.best, now.best_epoch = value, epoch
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _train_mode(self) -> None:
        """Training mode, but for what is frozen whole: its dropout and running statistics are frozen too."""
        self.model.train()
        trained = {id(p) for p in self.optimisers.named.values()}
        for module in self.model.modules():
            own = [id(p) for p in module.parameters()]
            if own and not trained.intersection(own):
                module.eval()

    # Saving and continuing

    def _changing(self) -> dict[str, Tensor]:
        """The tensors that a step may change: trained parameters, and buffers but for large tables of codes."""
        buffers = {
            n: b for n, b in self.model.named_buffers() if b.is_floating_point() or b.numel() <= _LARGEST_COUNTER
        }
        return {**self.optimisers.named, **buffers}

    def _identity(self) -> Nested:
        """What must be the same for a checkpoint to be of this run."""
        changing = {id(t) for t in self._changing().values()}
        fixed = [t for t in [*self.model.parameters(), *self.model.buffers()] if id(t) not in changing]
        settings = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in _FREE_TO_DIFFER}
        return {
            "config": settings,
            "steps per epoch": len(self.data),
            "trained parameters": {name: list(p.shape) for name, p in self.optimisers.named.items()},
            "frozen weights": resume.fingerprint(fixed),
            "sample weigher": type(self.weigher).__name__,
        }

    def _save(self) -> None:
        if self.folder is None:
            return
        self.standing.seconds = self._seconds()
        self.standing.loss_sum = float(self.loss_of_epoch)
        done = self.standing.finished
        weights = self.best_weights if done and self.best_weights is not None else self._changing()
        state: Nested = {"identity": self.identity, "standing": asdict(self.standing), "weights": dict(weights)}
        if not done:
            state["optimisers"] = self.optimisers.state_dict()
            state["best_weights"] = self.best_weights
        state["weigher"] = None if self.weigher is None else self.weigher.state_dict()
        self.peers.save(self.folder, self.standing.step, state)

    def _continue_from(self, state: Nested | None) -> None:
        if state is None:
            return
        for part, value in self.identity.items():
            if state["identity"].get(part) != value:
                raise CheckpointMismatch(f"{self.folder} holds another run: its {part} differ")
        self.standing = _Standing(**state["standing"])
        self._load_weights(state["weights"])
        if not self.standing.finished:
            self.optimisers.load_state_dict(_on(self.device, state["optimisers"]))
            self.best_weights = _on(self.device, state["best_weights"])
            self.loss_of_epoch.fill_(self.standing.loss_sum)
        if self.weigher is not None:
            self.weigher.load_state_dict(_on(self.device, state["weigher"]))

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(weights[name])

    # Progress

    def _due(self, every: int) -> bool:
        return every > 0 and self.standing.step % every == 0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.begun

    def _check(self, loss: Tensor | float) -> None:
        if not math.isfinite(float(loss)):
            raise TrainingDiverged(f"the loss is {float(loss)} at step {self.standing.step}: lower the learning rate")

    def _report(self, loss: Tensor | float) -> None:
        self._check(loss)
        if self.on_progress is None:
            return
        now = self.standing
        done = min(1.0, (now.epoch + now.step_in_epoch / len(self.data)) / self.config.epochs)
        rate = self.rows_here / max(time.perf_counter() - self.begun, 1e-9)
        self.on_progress(Progress(1.0 if now.finished else done, now.step, now.epoch, float(loss), rate))


def _score(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    probability = getattr(model, "probability", None)
    if probability is not None:
        return probability(batch)
    output = model(batch).float()
    return torch.sigmoid(output) if task == "ctr" else output


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
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


def _own_chance(device: torch.device) -> AbstractContextManager[Any]:
    """The caller's random state is as before when the run ends."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _mixed(seed: int, step: int, rank: int = 0) -> int:
    """One 63-bit seed from a few numbers, well apart for neighbours."""
    entropy = [seed % 2**63, step, rank] if rank else [seed % 2**63, step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(device, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on(device, item) for item in value]
    return value
