"""Metrics against baselines on the same rows, with intervals over users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from models.intervals import Interval, bootstrap_interval, paired_difference, seed_interval
from models.metrics import METRICS, metrics_of
from orchestrator.data.batches import Examples
from orchestrator.evaluation.report import Metrics, ReliabilityBin, SeedInterval, Segment

DRAWS = 500
DRAWS_OF_A_SEGMENT = 200
FEWEST_ROWS = 50
"""Fewer rows than this measure nothing but chance."""

Scores = Mapping[str, np.ndarray]
"""Predictions of all evaluation rows by the name of a row of the table, (N,) each: probabilities or ratings."""


@dataclass(frozen=True)
class EvaluationRows:
    """Rows that models are compared on: ``label`` (N,) and ``user`` (N,)."""

    task: str
    label: np.ndarray
    user: np.ndarray

    @classmethod
    def of(cls, task: str, rows: Examples) -> EvaluationRows:
        return cls(task, rows.label, rows.user)

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: np.ndarray) -> EvaluationRows:
        """The rows at ``index``, positions or a mask."""
        return EvaluationRows(self.task, self.label[index], self.user[index])

    @property
    def enough(self) -> bool:
        """Whether there is anything to measure: rows, and both labels where they are clicks."""
        return len(self) >= FEWEST_ROWS and (self.task != "ctr" or 0 < self.label.mean() < 1)

    def table(self, scores: Scores, *, draws: int = DRAWS) -> dict[str, Metrics]:
        """Every metric of the task for every row of the table, with its 95 % interval over users."""
        return {
            name: {
                metric.name: bootstrap_interval(metric, label=self.label, score=score, user=self.user, draws=draws)
                for metric in metrics_of(self.task)
            }
            for name, score in scores.items()
        }

    def segment(self, scores: Scores) -> Segment | None:
        """The whole table on these rows; None where they are too few to measure."""
        if not self.enough:
            return None
        rows = self.table(scores, draws=DRAWS_OF_A_SEGMENT)
        return Segment(examples=len(self), users=len(np.unique(self.user)), rows=rows)

    def gain(self, metric: str, score: np.ndarray, other: np.ndarray) -> Interval:
        """Improvement of ``score`` over ``other`` on a metric, paired over users; positive is better."""
        found = paired_difference(
            METRICS[metric], label=self.label, score_a=score, score_b=other, user=self.user, draws=DRAWS
        )
        sign = METRICS[metric].sign
        low, high = sorted((sign * found.low, sign * found.high))
        return Interval(sign * found.value, low, high)

    def over_seeds(self, by_seed: Mapping[int, np.ndarray]) -> dict[str, SeedInterval]:
        """Every metric's mean over seeds with its t interval."""
        return {
            metric.name: _over({seed: metric(self.label, score, self.user) for seed, score in by_seed.items()})
            for metric in metrics_of(self.task)
        }

    def gain_over_seeds(
        self, metric: str, by_seed: Mapping[int, np.ndarray], other: Mapping[int, np.ndarray]
    ) -> SeedInterval:
        """Improvement over another row, seed by seed; a row with one seed is compared under that one throughout."""
        function, always = METRICS[metric], next(iter(other.values()))

        def value(score: np.ndarray) -> float:
            return function(self.label, score, self.user)

        return _over(
            {seed: function.sign * (value(score) - value(other.get(seed, always))) for seed, score in by_seed.items()}
        )


def prediction_bias(task: str, label: np.ndarray, score: np.ndarray) -> float:
    """How far predictions are off on average, as a share: |PCOC - 1|; for ratings |bias| / standard deviation."""
    if task == "ctr":
        return float(abs(score.mean() / max(label.mean(), 1e-9) - 1.0))
    return float(abs(score.mean() - label.mean()) / max(label.std(), 1e-9))


def reliability(label: np.ndarray, score: np.ndarray, bins: int = 10) -> list[ReliabilityBin]:
    """Predicted and observed click rates in equal-count bins of the prediction, for a plot."""
    order = np.argsort(score, kind="stable")
    return [
        ReliabilityBin(predicted=float(score[part].mean()), observed=float(label[part].mean()), examples=len(part))
        for part in np.array_split(order, bins)
        if len(part)
    ]


def _over(each: dict[int, float]) -> SeedInterval:
    found = seed_interval(list(each.values()))
    return SeedInterval(found.value, found.low, found.high, each)
