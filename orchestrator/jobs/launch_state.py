"""What a launch rests on once it is open: recipe, comparison policy, rows and their split, the shared model; its cost.

The first step fixes it and all others read it, so that data or versions that arrive meanwhile cannot mix two launches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from domains.errors import InvalidData
from domains.events.splits import Split
from domains.registry.registry import Domain, Version
from models.ranker import checkpoint
from models.ranker.network import Ranker
from orchestrator.data.batches import BatchBuilder, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.evaluation.gate import STRONGEST, STRONGEST_PLAIN, row_of
from orchestrator.evaluation.report import ComparisonPolicy, Epoch
from orchestrator.evaluation.rows import FREE
from orchestrator.jobs.runner import RunContext
from orchestrator.jobs.versions import attach_live, zero_shot_slot
from orchestrator.settings import Settings
from orchestrator.training.baselines import TRAINED
from orchestrator.training.recipe import Recipe
from orchestrator.values import Value

WARM_ROWS = 20_000
"""Later rows of users in training, at most; they are shown beside the cold users and decide nothing."""
FINE_TUNING = "fine-tuning"
OPENED, CERTIFICATE, FINE_TUNED = "opened", "certificate", "fine-tuned"
"""Names of the results that the steps of a launch leave for each other."""
ALWAYS, POLICY, GATE, LAUNCH = "always", "policy", "gate", "launch"
"""Who may require a baseline: every launch, whoever runs this installation, the domain's gate, whoever launches."""


class Opened(Value):
    """What the first step fixes: ids of the shared model, of the domain's data and of its live version, and choices."""

    backbone: str
    data: str
    live: str | None
    recipe: Recipe
    policy: ComparisonPolicy


class FineTuned(Value):
    """How fine-tuning went."""

    seconds: float
    steps: int
    history: list[Epoch]


class Spent(Value):
    """What a piece of work took: seconds on the clock, and seconds of processors over all threads of the process."""

    seconds: float
    processor_seconds: float


def comparison_policy(settings: Settings, recipe: Recipe, domain: Domain) -> ComparisonPolicy:
    """The union of all that is asked: a gate or a launch can add to the policy, and neither can take from it."""
    named = () if domain.spec.gate.baseline in (STRONGEST, STRONGEST_PLAIN) else (domain.spec.gate.baseline,)
    asked = {ALWAYS: FREE, POLICY: settings.required_baselines, GATE: named, LAUNCH: recipe.baselines}
    found: dict[str, list[str]] = {}
    for who, baselines in asked.items():
        for baseline in baselines:
            name = row_of(baseline, domain.spec.task)
            if who not in found.setdefault(name, []):
                found[name].append(who)
    more = recipe.seeds > settings.required_seeds
    return ComparisonPolicy(
        baselines=found,
        seeds=recipe.seeds if more else settings.required_seeds,
        seeds_by=LAUNCH if more else POLICY,
    )


@dataclass(frozen=True)
class FreshSlot:
    """A shared model in memory, ready for one domain.

    ``rows`` are all rows of the domain as they were when the launch was opened, ``slot`` is the domain's place in the
    ranker, ``others`` are the slots of other target domains by name.
    """

    ranker: Ranker
    encoder: FeatureEncoder
    batch_builder: BatchBuilder
    rows: Examples
    slot: int
    others: dict[str, int]


@dataclass(frozen=True)
class LaunchState:
    """A launch in the folder of its run."""

    context: RunContext
    opened: Opened
    workspace: Workspace
    backbone: Version

    @classmethod
    def of(cls, context: RunContext) -> Self:
        """The launch that the first step opened."""
        opened = context.result_of(OPENED, Opened)
        workspace = Workspace(context.settings, tuple(context.registry.domains()))
        return cls(context, opened, workspace, context.registry.version(opened.backbone))

    @property
    def name(self) -> str:
        return name_of(self.context)

    @property
    def domain(self) -> Domain:
        return self.workspace.domain(self.name)

    @property
    def recipe(self) -> Recipe:
        return self.opened.recipe

    @property
    def policy(self) -> ComparisonPolicy:
        return self.opened.policy

    @property
    def trained_baselines(self) -> list[str]:
        """The required baselines that have to be trained."""
        return [name for name in TRAINED if name in self.policy.baselines]

    @property
    def timed(self) -> bool:
        """Whether the domain's rows have times."""
        return self.domain.spec.interactions.time is not None

    @property
    def seeds(self) -> range:
        """The first is the version's own; the others show how much is chance."""
        return range(self.recipe.seed, self.recipe.seed + self.policy.seeds)

    def fresh_slot(self, *, beside_live: bool = True) -> FreshSlot:
        """The shared model as it was published, with a slot for the domain that nothing has trained yet.

        Args:
            beside_live: attach the live adapters of the other target domains; the slot may start from one of them.

        Raises:
            InvalidData: more data has arrived since the launch was opened.
        """
        ranker, encoder = load_backbone(self.context, self.backbone)
        rows = self.workspace.examples(encoder, self.name)
        if self.workspace.data(self.name).version != self.opened.data:
            raise InvalidData(f"data of {self.name!r} changed while this launch ran; start a new one", domain=self.name)
        others = attach_live(self.context, ranker, self.backbone.id, leave_out=self.name) if beside_live else {}
        slot = zero_shot_slot(ranker, self.workspace, encoder, self.name, others)
        names = [self.name, *(source.domain for source in encoder.sources), *others]
        return FreshSlot(ranker, encoder, self.workspace.batch_builder(encoder, names), rows, slot, others)

    @cached_property
    def split(self) -> LaunchSplit:
        """The domain's rows in parts, as the first step drew them."""
        return LaunchSplit.load(self.context.folder)

    @contextmanager
    def costs(self, what: str) -> Iterator[None]:
        """Record what a piece of work took."""
        clock, processor = time.monotonic(), time.process_time()
        yield
        spent = Spent(seconds=time.monotonic() - clock, processor_seconds=time.process_time() - processor)
        self.context.write(f"cost-{what}", spent)

    def spent(self) -> dict[str, Spent]:
        """What every finished piece of work took; a piece that was killed and begun again counts once."""
        stems = [path.stem for path in sorted(self.context.folder.glob("cost-*.json"))]
        return {stem.removeprefix("cost-"): self.context.result_of(stem, Spent) for stem in stems}

    def save_scores(self, row: str, seed: int, scores: np.ndarray) -> None:
        """Publish a row's predictions of the evaluation rows under a seed."""
        path = self._scores_path(row, seed)
        building = path.with_suffix(".building.npy")
        np.save(building, scores)
        building.rename(path)

    def scores(self, row: str, seed: int) -> np.ndarray | None:
        """Predictions that were saved; None before."""
        path = self._scores_path(row, seed)
        return np.load(path) if path.is_file() else None

    def _scores_path(self, row: str, seed: int) -> Path:
        return self.context.folder / f"scores-{row}-{seed}.npy"


@dataclass(frozen=True, kw_only=True)
class LaunchSplit(Split):
    """A domain's split, and the rows after its cut of users in training: ``warm`` (W,) positions."""

    warm: np.ndarray

    @classmethod
    def of(cls, rows: Examples, split: Split) -> Self:
        return cls(**vars(split), warm=_later_rows_of_warm_users(rows, split))

    @property
    def evaluation(self) -> np.ndarray:
        """Positions of the rows to score: those of the cold users, then the warm ones."""
        return np.r_[self.test, self.warm]

    def save(self, folder: Path) -> None:
        """Write the positions into a run's folder."""
        np.savez(folder / "split.npz", **{name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The split that ``save`` wrote."""
        with np.load(folder / "split.npz") as held:
            arrays: dict[str, Any] = dict(held)
        return cls(**{**arrays, "cut_us": int(arrays["cut_us"]) if "cut_us" in arrays else None})


def name_of(context: RunContext) -> str:
    """The domain that a launch is of."""
    assert context.domain is not None, "a launch names its domain"
    return context.domain


def load_backbone(context: RunContext, version: Version) -> tuple[Ranker, FeatureEncoder]:
    """A published shared model with its encoder."""
    folder = Artifacts(context.settings.artifacts_dir).path(version.artifact)
    return checkpoint.load_backbone(folder), FeatureEncoder.load(folder)


def _later_rows_of_warm_users(rows: Examples, split: Split) -> np.ndarray:
    """Rows after the cut of users in training, a sample where there are many; none without times."""
    if split.cut_us is None:
        return np.zeros(0, np.int64)
    later = np.flatnonzero(np.isin(rows.user, np.unique(rows.user[split.train])) & (rows.time_us >= split.cut_us))
    return np.sort(np.random.default_rng(0).permutation(later)[:WARM_ROWS])
