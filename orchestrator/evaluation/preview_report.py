"""The report of a preview: what each source adds, and how much more data the domain needs."""

from __future__ import annotations

from typing import Literal, Self

from domains.registry.records import Run
from models.intervals import Interval
from models.metrics import METRICS
from orchestrator.values import Value

Verdict = Literal["borrow", "do not borrow", "no clear gain"]


class PreviewedSource(Value):
    """How far a source lowers the error, alone and beside the other sources."""

    name: str
    alone: Interval
    beside: Interval
    verdict: Verdict


class LearningCurve(Value):
    """Errors of each model at growing numbers of training rows: ``errors[model][point]`` beside ``rows[point]``."""

    rows: list[float]
    errors: dict[str, list[Interval]]


class RowsNeeded(Value):
    """Training rows until the adapter errs less than a baseline, with the 95 % interval; None is out of reach.

    ``certain`` is the share of draws in which it is ahead with the data there is.
    """

    rows: float | None
    low: float | None
    high: float | None
    certain: float


class ForecastCheck(Value):
    """The gain over a baseline at ``rows`` training rows, forecast from the points up to ``known_rows``."""

    baseline: str
    known_rows: float
    rows: float
    forecast: Interval
    seen: float
    held: bool


class Backtest(Value):
    """How many of the forecast intervals held."""

    held: int
    of: int
    checks: list[ForecastCheck]


class SourceValues(Value):
    """Results of short runs with and without each source; ``best`` is the set of sources with the lowest error."""

    sources: list[PreviewedSource]
    together: Interval
    best: list[str]


class DataForecast(Value):
    """Where the errors of adapters on growing shares of the domain's rows lead."""

    forecast_sources: list[str]
    curve: LearningCurve
    needed: dict[str, RowsNeeded]
    backtest: Backtest


class PreviewReport(SourceValues, DataForecast):
    """Source values and forecast, with the domain and the rows that they were measured on."""

    domain: str
    task: Literal["ctr", "rating"]
    metric: str
    data: str
    made_at: str
    run: str
    """What the domain's gate measures by; errors are those of it that are lower where the model is better."""
    evaluation_rows: int
    evaluation_users: int
    folds: int

    @property
    def error(self) -> str:
        """The error in words: the metric, or 1 less it where more of it is better."""
        metric = METRICS[self.metric]
        return f"1 - {metric.label}" if metric.greater_is_better else metric.label

    @classmethod
    def of(cls, run: Run) -> Self:
        """The report of a finished preview run."""
        return cls.from_dict(run.result)
