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
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import Batch
from models.intervals import surely_lower
from models.metrics import METRICS, row_losses
from models.training import run_state
from models.training.config import (
    BatchSource,
    CheckpointMismatch,
    Progress,
    SampleWeigher,
    TrainConfig,
    TrainingDiverged,
    TrainingStep,
    TrainResult,
)
from models.training.distributed import Alone
from models.training.listwise import mean_reciprocal_rank
from models.training.optimisers import Nested, Optimisers
from models.training.prefetch import prefetched
from models.training.step import (
    ALONE,
    SPARSE_FROM_ROWS,
    autocast,
    descend,
    evaluating,
    objective,
    output_losses,
    predict,
    sparse_tables,
    task_loss,
)

__all__ = [
    "ALONE",
    "SPARSE_FROM_ROWS",
    "BatchSource",
    "CheckpointMismatch",
    "Progress",
    "SampleWeigher",
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrainingStep",
    "autocast",
    "descend",
    "evaluating",
    "objective",
    "output_losses",
    "predict",
    "sparse_tables",
    "task_loss",
    "train",
]

_FREE_TO_DIFFER = ("checkpoint_every_steps", "progress_every_steps", "prefetch", "device")
_LARGEST_COUNTER = 4096


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
        raise ValueError("processes share batches by rows, which would cut queries: train with loss=pointwise or alone")
    from_rows = None if config.embedding_optimiser == "dense" else SPARSE_FROM_ROWS
    with peers.sharing(model, from_rows=from_rows), sparse_tables(model, config), _own_chance(device):
        run = _Run(
            model,
            data,
            config=config,
            validation=validation,
            folder=checkpoint_dir,
            on_progress=on_progress,
            parameters=parameters,
            weigher=sample_weigher,
            device=device,
            peers=peers,
        )
        return run.to_the_end()


@dataclass
class _State:
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
        *,
        config: TrainConfig,
        validation: BatchSource | None,
        folder: Path | None,
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
        self.now = _State()
        self.best_weights: dict[str, Tensor] | None = None
        self.held_out: tuple[np.ndarray, np.ndarray] | None = None
        self.start: tuple[np.ndarray, np.ndarray] | None = None
        self.loss_of_epoch = torch.zeros((), dtype=torch.float64, device=device)
        if weigher is not None:
            weigher.begin(model, self.optimisers, config)
        self.folder = folder
        if self.folder is not None:
            self.identity = self._identity()
            self._continue_from(peers.load(self.folder))
        self.begun, self.seconds_before, self.rows_here = time.perf_counter(), self.now.seconds, 0.0

    def to_the_end(self) -> TrainResult:
        now = self.now
        if not now.finished and now.step == 0 and self.config.consider_start and self.validation is not None:
            self._judge(self._measure(), epoch=0)
            self.start = self.held_out if self.config.consider_start == "surely" else None
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
        now = self.now
        step = TrainingStep(now.step, now.epoch)
        torch.manual_seed(_mixed(self.config.seed, now.step, self.peers.rank))
        factor = None if self.weigher is None else self.weigher.weigh(batch, step)
        loss, total = descend(self.model, batch, self.optimisers, self.config, factor=factor, peers=self.peers)
        if self.weigher is not None:
            self.weigher.after_step(batch, step)
        rows = self.peers.rows_of(batch)
        self.loss_of_epoch += loss.double() * rows
        now.rows += rows
        self.rows_here += rows
        return total

    def _end_epoch(self) -> None:
        now = self.now
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
        now, task = self.now, self.config.task
        batches = self.peers.following(self.model, self.validation.batches(0))
        listwise = self.config.loss == "listwise"
        rows = self.peers.gathered(predict(self.model, batches, task=task, bf16=self.config.bf16, raw=listwise))
        if listwise:
            now.metric = "mrr"
            return mean_reciprocal_rank(rows["label"], rows["score"])
        self.held_out = None
        if self.config.consider_start == "surely":
            self.held_out = row_losses(task, rows["label"], rows["score"]), rows["user"]
        if now.metric is None:
            both = 0 < rows["label"].mean() < 1
            now.metric = self.config.metric or ("rmse" if task == "rating" else "auc" if both else "logloss")
        return METRICS[now.metric](rows["label"], rows["score"], rows["user"])

    def _judge(self, value: float, epoch: int) -> None:
        now = self.now
        assert now.metric is not None
        sign = METRICS[now.metric].sign
        better = now.best is None or sign * value > sign * now.best
        if better and now.best_epoch == 0 and self.start is not None and self.held_out is not None:
            better = surely_lower(self.held_out[0], *self.start)
        if better:
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
            "frozen weights": run_state.fingerprint(fixed),
            "sample weigher": type(self.weigher).__name__,
        }

    def _save(self) -> None:
        if self.folder is None:
            return
        self.now.seconds = self._seconds()
        self.now.loss_sum = float(self.loss_of_epoch)
        done = self.now.finished
        weights = self.best_weights if done and self.best_weights is not None else self._changing()
        state: Nested = {"identity": self.identity, "run": asdict(self.now), "weights": dict(weights)}
        if not done:
            state["optimisers"] = self.optimisers.state_dict()
            state["best_weights"] = self.best_weights
            state["start"] = None if self.start is None else [torch.from_numpy(part) for part in self.start]
        state["weigher"] = None if self.weigher is None else self.weigher.state_dict()
        self.peers.save(self.folder, self.now.step, state)

    def _continue_from(self, state: Nested | None) -> None:
        if state is None:
            return
        for part, value in self.identity.items():
            if state["identity"].get(part) != value:
                raise CheckpointMismatch(f"{self.folder} holds another run: its {part} differ")
        self.now = _State(**state["run"])
        self._load_weights(state["weights"])
        if not self.now.finished:
            self.optimisers.load_state_dict(_on(self.device, state["optimisers"]))
            self.best_weights = _on(self.device, state["best_weights"])
            start = state.get("start")
            self.start = None if start is None else (start[0].numpy(), start[1].numpy())
            self.loss_of_epoch.fill_(self.now.loss_sum)
        if self.weigher is not None:
            self.weigher.load_state_dict(_on(self.device, state["weigher"]))

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(weights[name])

    # Progress

    def _due(self, every: int) -> bool:
        return every > 0 and self.now.step % every == 0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.begun

    def _check(self, loss: Tensor | float) -> None:
        if not math.isfinite(float(loss)):
            raise TrainingDiverged(f"the loss is {float(loss)} at step {self.now.step}: lower the learning rate")

    def _report(self, loss: Tensor | float) -> None:
        self._check(loss)
        if self.on_progress is None:
            return
        now = self.now
        done = min(1.0, (now.epoch + now.step_in_epoch / len(self.data)) / self.config.epochs)
        rate = self.rows_here / max(time.perf_counter() - self.begun, 1e-9)
        self.on_progress(Progress(1.0 if now.finished else done, now.step, now.epoch, float(loss), rate))


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
