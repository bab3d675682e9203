"""What a launch stands on once it is open: recipe, policy, rows with their split, the shared model; and what it cost.

Fixed by the first step and read by all others, so that data or versions which arrive meanwhile cannot mix two launches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
from orchestrator.evaluation.gate import STRONGEST, row_of
from orchestrator.jobs.runner import RunContext
from orchestrator.settings import Settings
from orchestrator.training.recipe import Recipe

WARM_ROWS = 20_000
"""Later rows of users whom training knows, at most; they are shown beside the cold users and decide nothing."""
TRAINED_BASELINES = ("single_domain", "shared_bottom", "full_fine_tune", "scratch")
FINE_TUNING = "fine-tuning"
POLICY, GATE, LAUNCH = "policy", "gate", "launch"
"""Who may require a baseline: whoever runs this installation, the domain's gate, whoever launches."""


@dataclass(frozen=True)
class ComparisonPolicy:
    """What a launch is compared with and how often it is repeated, and who says so.

    ``baselines`` names, for each row that the report must hold, who requires it.
    """

    baselines: dict[str, list[str]]
    seeds: int
    seeds_by: str

    @property
    def trained(self) -> list[str]:
        """The baselines among them that have to be trained."""
        return [baseline for baseline in TRAINED_BASELINES if baseline in self.baselines]

    def as_dict(self) -> dict[str, Any]:
        return {"baselines": self.baselines, "seeds": self.seeds, "seeds_by": self.seeds_by}


def demands(settings: Settings, recipe: Recipe, domain: Domain) -> ComparisonPolicy:
    """The sum of all that is asked: a gate or a launch can add to the policy, and neither can take from it."""
    named = () if domain.spec.gate.baseline == STRONGEST else (domain.spec.gate.baseline,)
    asked = {POLICY: settings.required_baselines, GATE: named, LAUNCH: recipe.baselines}
    found: dict[str, list[str]] = {}
    for who, baselines in asked.items():
        for baseline in baselines:
            name = row_of(baseline, domain.spec.task)
            if who not in found.setdefault(name, []):
                found[name].append(who)
    more = recipe.seeds > settings.required_seeds
    return ComparisonPolicy(found, recipe.seeds if more else settings.required_seeds, LAUNCH if more else POLICY)


@dataclass(frozen=True)
class LaunchState:
    """A launch in the folder of its run."""

    context: RunContext
    domain: Domain
    recipe: Recipe
    workspace: Workspace
    backbone: Version
    demands: ComparisonPolicy

    @classmethod
    def of(cls, context: RunContext) -> LaunchState:
        """The launch that the first step opened."""
        opened, registry = context.result_of("opened"), context.registry
        workspace = Workspace(context.settings, tuple(registry.domains()))
        domain = workspace.domain(name_of(context))
        recipe, asked = Recipe.model_validate(opened["recipe"]), ComparisonPolicy(**opened["demands"])
        return cls(context, domain, recipe, workspace, registry.version(opened["backbone"]), asked)

    @property
    def name(self) -> str:
        return self.domain.name

    @property
    def timed(self) -> bool:
        return self.domain.spec.interactions.time is not None

    @property
    def seeds(self) -> range:
        """The first is the version's own; the others show how much is chance."""
        return range(self.recipe.seed, self.recipe.seed + self.demands.seeds)

    def shared_model(self) -> tuple[Ranker, FeatureEncoder, BatchBuilder]:
        """The shared model as it was published, fresh from its files, and what builds batches for it."""
        ranker, encoder = load_backbone(self.context, self.backbone)
        return ranker, encoder, self._batch_builder(encoder)

    @cached_property
    def split(self) -> dict[str, np.ndarray]:
        """Positions of the rows: train, validation, test, warm; the cold users; and the cut, if there is one."""
        with np.load(self.context.folder / "split.npz") as held:
            return dict(held)

    @property
    def cut_us(self) -> int | None:
        """The moment from which on rows were held out; None where time has no part."""
        return next(iter(self.split["cut_us"].tolist()), None)

    @cached_property
    def judged(self) -> np.ndarray:
        """Positions of the rows to score: those of the cold users, then later rows of users whom training knows."""
        return np.r_[self.split["test"], self.split.get("warm", np.zeros(0, np.int64))]

    def rows(self, encoder: FeatureEncoder) -> Examples:
        """All rows of the domain, as they were when the launch was opened.

        Raises:
            InvalidData: more have arrived since.
        """
        rows = self.workspace.examples(encoder, self.name)
        if self.workspace.data(self.name).version != self.context.result_of("opened")["data"]:
            raise InvalidData(f"data of {self.name!r} changed while this launch ran; start a new one", domain=self.name)
        return rows

    @contextmanager
    def costs(self, what: str) -> Iterator[None]:
        """Keep what a piece of work took: seconds on the clock and of processors, of all threads of this process."""
        clock, processor = time.monotonic(), time.process_time()
        yield
        spent = {"seconds": time.monotonic() - clock, "processor_seconds": time.process_time() - processor}
        self.context.write(f"cost-{what}", spent)

    def spent(self) -> dict[str, dict[str, float]]:
        """What every finished piece of work took; a piece that was killed and begun again counts once."""
        found = {path.stem.removeprefix("cost-"): path.stem for path in sorted(self.context.folder.glob("cost-*.json"))}
        return {what: self.context.result_of(stem) for what, stem in found.items()}

    def keep_scores(self, row: str, seed: int, scores: np.ndarray) -> None:
        """Publish a row's predictions of the judged rows under a seed."""
        path = self._scores_path(row, seed)
        building = path.with_suffix(".building.npy")
        np.save(building, scores)
        building.rename(path)

    def scores(self, row: str, seed: int) -> np.ndarray | None:
        """Predictions that were kept; None before."""
        path = self._scores_path(row, seed)
        return np.load(path) if path.is_file() else None

    def _scores_path(self, row: str, seed: int) -> Any:
        return self.context.folder / f"scores-{row}-{seed}.npy"

    def _batch_builder(self, encoder: FeatureEncoder) -> BatchBuilder:
        return self.workspace.batch_builder(encoder, [domain.name for domain in self.workspace.domains])


def name_of(context: RunContext) -> str:
    """The domain that a launch is of."""
    assert context.domain is not None, "a launch names its domain"
    return context.domain


def load_backbone(context: RunContext, version: Version) -> tuple[Ranker, FeatureEncoder]:
    """A published shared model with its encoder."""
    folder = Artifacts(context.settings.artifacts_dir).path(version.artifact)
    return checkpoint.load_backbone(folder), FeatureEncoder.load(folder)


def later_rows_of_known_users(rows: Examples, split: Split) -> np.ndarray:
    """Rows after the cut of users whom training knows, some of them where there are many; none without times."""
    if split.cut_us is None:
        return np.zeros(0, np.int64)
    later = np.flatnonzero(np.isin(rows.user, np.unique(rows.user[split.train])) & (rows.time_us >= split.cut_us))
    return np.sort(np.random.default_rng(0).permutation(later)[:WARM_ROWS])
