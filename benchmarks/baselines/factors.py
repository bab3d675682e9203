"""Matrix factors of a source and a target domain, and the stages that every bridge between them is trained in.

    u^s, u^t  a user's vector in the source and in the target      v^s, v^t  an item's
    shared users: those with training rows in both domains; no other user may shape a mapping

A user whom a domain has never seen has the zero vector there, never a random one, so what is answered for them is the
offset and the item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from models.batch import Batch, Events
from models.layers.embeddings import INITIAL_SCALE, RowTable
from models.training.loop import BatchSource, SampleWeigher, TrainConfig, TrainResult, train

Stage = Literal["factors", "map", "done"]


@dataclass(frozen=True)
class BridgeConfig:
    """Sizes of a bridge; each counts the row 0 of the unknown.

    users, source_items, target_items: rows of the tables
    width: D of the factors
    target_slot: rows of this domain slot are the target's; all others are the source's
    biases: a user's vector carries their bias as one more entry (mapped with the rest), and items have biases
    source_mean, target_mean: what is answered for nobody and nothing, in the head's unit
    positive_above: events with a larger value are what the user liked
    history: latest liked source events that a bridge reads
    """

    users: int
    source_items: int
    target_items: int
    width: int = 10
    target_slot: int = 1
    biases: bool = True
    source_mean: float = 0.0
    target_mean: float = 0.0
    positive_above: float = 3.0
    history: int = 20
    task: Literal["ctr", "rating"] = "rating"

    @property
    def user_width(self) -> int:
        """Entries of a user's vector, their bias included."""
        return self.width + self.biases


class Factors(nn.Module):
    """User and item factors of one domain.

    Shapes: user: (B,) -> (B, user_width); score: vectors (B, user_width) and items (B,) -> (B,)
    """

    seen: Tensor

    def __init__(self, users: int, items: int, config: BridgeConfig, *, mean: float, item_scale: float = 0.0) -> None:
        super().__init__()
        self.biases = config.biases
        self.users = RowTable(users, config.user_width, scale=INITIAL_SCALE)
        # From zero, so that an item without training rows adds nothing; the users' start breaks the symmetry.
        self.items = RowTable(items, config.width, scale=item_scale)
        self.item_bias = RowTable(items, 1, scale=0.0) if config.biases else None
        self.mean = nn.Parameter(torch.tensor(float(mean)))
        self.register_buffer("seen", torch.zeros(users, dtype=torch.bool))

    def user(self, user: Tensor) -> Tensor:
        return self.users(user) * self.seen[user][:, None]

    def score(self, vector: Tensor, item: Tensor) -> Tensor:
        factors = self.items(item)
        score = (vector[:, : factors.shape[1]] * factors).sum(-1) + self.mean
        if self.item_bias is not None:
            score = score + vector[:, -1] + self.item_bias(item)[:, 0]
        return score


@dataclass(frozen=True)
class TrainingSet:
    """What a stage of training is given: training rows of both domains, rows to choose epochs by, and how to train.

    ``held`` may have ``source`` and ``target`` rows for the factors, and ``cold`` (target rows of users held out of
    ``target``) for the mapping.
    """

    source: BatchSource
    target: BatchSource
    held: Mapping[str, BatchSource]
    config: TrainConfig
    folder: Path | None = None

    def train(
        self,
        stage: str,
        model: nn.Module,
        data: BatchSource,
        parameters: Iterable[nn.Parameter] | None,
        *,
        chosen_by: str | None = None,
        own_loss: bool = False,
        weigher: SampleWeigher | None = None,
    ) -> TrainResult:
        """One stage by the one loop.

        Args:
            chosen_by: which of ``held`` chooses the epoch; the last epoch stays where it is absent.
            own_loss: the whole loss is the model's ``auxiliary_loss``.
        """
        return train(
            model,
            data,
            config=replace(self.config, auxiliary_weight=1.0) if own_loss else self.config,
            validation=None if chosen_by is None else self.held.get(chosen_by),
            checkpoint_dir=self.folder and self.folder / stage,
            parameters=parameters,
            sample_weigher=weigher,
        )


class Bridge(nn.Module):
    """A model that scores cold users of the target by what the source knows of them.

    Subclasses give `mapped` (what a cold user's target vector is) and `train_mapping`. Warm users keep the target's own
    vector; only users without target training rows are mapped.
    """

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self.config = config
        self.source = Factors(config.users, config.source_items, config, mean=config.source_mean)
        self.target = Factors(config.users, config.target_items, config, mean=config.target_mean)
        self.stage: Stage = "done"

    def forward(self, batch: Batch) -> Tensor:
        """Logits for clicks, ratings otherwise, (B,); ``batch.offset`` is added."""
        score = batch.offset.clone()
        in_target = batch.domain == self.config.target_slot
        for rows, of in ((~in_target, self.score_source), (in_target, self.score_target)):
            index = rows.nonzero()[:, 0]
            if len(index):
                score = score.index_add(0, index, of(batch.rows(index)))
        return score

    def score_source(self, batch: Batch) -> Tensor:
        return self.source.score(self.source.user(batch.user), batch.item)

    def score_target(self, batch: Batch) -> Tensor:
        if self.stage == "factors":
            return self.target.score(self.target.user(batch.user), batch.item)
        return self.target.score(self.user_vectors(batch), batch.item)

    def user_vectors(self, batch: Batch) -> Tensor:
        """Target vectors of the rows' users, (B, user_width): mapped for cold users, and for all while mapping."""
        mapped = self.mapped(batch)
        if self.stage == "map":
            return mapped
        warm = self.target.seen[batch.user]
        return torch.where(warm[:, None], self.target.user(batch.user), mapped)

    def mapped(self, batch: Batch) -> Tensor:
        """What the source says of the rows' users, as target vectors (B, user_width)."""
        raise NotImplementedError

    def shared_users(self) -> Tensor:
        """Indices of users with training rows in both domains, rising."""
        return (self.source.seen & self.target.seen).nonzero()[:, 0]

    def fit(
        self,
        source: BatchSource,
        target: BatchSource,
        *,
        config: TrainConfig,
        map_config: TrainConfig | None = None,
        validation: Mapping[Literal["source", "target", "cold"], BatchSource] | None = None,
        checkpoint_dir: Path | None = None,
    ) -> dict[str, TrainResult]:
        """Train every stage in turn on training rows; test users' target rows must not be among them.

        Args:
            config: of the stages that learn factors. map_config: of the mapping stage, the same if absent.
            validation: rows to choose epochs by: ``source`` and ``target`` for the factors, ``cold`` (target rows of
                users held out of ``target``) for the mapping.
        """
        if config.task != self.config.task:
            raise ValueError(f"the bridge answers {self.config.task}, the training is for {config.task}")
        self.remember_users(source, target)
        given = TrainingSet(
            source, target, {str(of): rows for of, rows in (validation or {}).items()}, config, checkpoint_dir
        )
        try:
            self.stage = "factors"
            results = self.train_factors(given)
            self.stage = "map"
            for factors in (self.source, self.target):
                factors.requires_grad_(requires_grad=False)
            mapping = self.train_mapping(replace(given, config=map_config or config))
        finally:
            self.stage = "done"
            for factors in (self.source, self.target):
                factors.requires_grad_(requires_grad=True)
        return results if mapping is None else {**results, "map": mapping}

    def train_factors(self, given: TrainingSet) -> dict[str, TrainResult]:
        """One domain after the other, each with its own factors."""
        parts = (("source", given.source, self.source), ("target", given.target, self.target))
        return {
            name: given.train(name, self, data, factors.parameters(), chosen_by=name) for name, data, factors in parts
        }

    def train_mapping(self, given: TrainingSet) -> TrainResult | None:
        """Learn the bridge from shared users, the factors being frozen; None where the loop does not learn it."""
        raise NotImplementedError

    @torch.no_grad()
    def remember_users(self, source: BatchSource, target: BatchSource) -> None:
        for data, factors in ((source, self.source), (target, self.target)):
            factors.seen.zero_()
            for batch in data.batches(0):
                factors.seen[batch.user[batch.weight > 0].to(factors.seen.device)] = True
            factors.seen[0] = False  # the unknown user is nobody


def latest_liked(events: Events, above: float, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` latest visible events whose value is above ``above``: items (B, K), and which are real (B, K)."""
    liked = events.mask() & (events.value[events.row] > above)
    position = torch.arange(liked.shape[1], device=liked.device)
    found = torch.where(liked, position, -1).topk(min(count, liked.shape[1]), dim=1).values
    items = events.item[events.row].gather(1, found.clamp(min=0))
    return items, found >= 0


class OnlySharedUsers:
    """The same batches in which only rows of shared users weigh: what a mapping may learn from."""

    def __init__(self, data: BatchSource, shared: Tensor, users: int) -> None:
        self._data = data
        self._is_shared = torch.zeros(users, dtype=torch.bool)
        self._is_shared[shared.cpu()] = True

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._data.batches(epoch, start):
            yield replace(batch, weight=batch.weight * self._is_shared.to(batch.user.device)[batch.user])


class Interleaved:
    """Batches of several sources in one seeded order, each source walked through once an epoch."""

    def __init__(self, *parts: BatchSource, seed: int = 0) -> None:
        self._parts, self._seed = parts, seed

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        turns = torch.repeat_interleave(torch.tensor([len(part) for part in self._parts]))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        turns = turns[torch.randperm(len(turns), generator=generator)]
        done = torch.bincount(turns[:start], minlength=len(self._parts)).tolist()
        walks = [part.batches(epoch, skipped) for part, skipped in zip(self._parts, done, strict=True)]
        for turn in turns[start:].tolist():
            yield next(walks[turn])
