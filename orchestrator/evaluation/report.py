"""What the registry holds of a version: its cold-start report, its freeze certificate, its held-out metrics.

Frozen values with one writer (`as_dict`) and one reader (`from_dict`, or `of` a version). The registry stores them as
JSON; the keys of that JSON are the field names here and appear nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field

from domains.registry.records import Version
from models.intervals import Interval, Measured
from orchestrator.values import Value

Verdict = Literal["ship", "hold", "do not borrow"]


@dataclass(frozen=True)
class SeedInterval(Interval):
    """A mean over seeds with Student's t interval, and the value under each seed."""

    each: dict[int, Measured]


Metrics = dict[str, Interval]
"""Intervals by the name of the metric."""


class Segment(Value):
    """Every row of the results table, measured on a part of the test examples."""

    examples: int
    users: int
    rows: dict[str, Metrics]


class ReliabilityBin(Value):
    """Predicted and observed click rate of one bin of predictions."""

    predicted: float
    observed: float
    examples: int


class Epoch(Value):
    """One pass over the training rows; ``value`` is the validation metric, where there are validation rows."""

    epoch: int
    step: int
    loss: float
    seconds: float
    metric: str | None = None
    value: float | None = None


class ComparisonPolicy(Value):
    """What a launch is compared with, how often it is repeated, and who requires it.

    ``baselines`` names, for each row that the report must hold, who requires it.
    """

    baselines: dict[str, list[str]] = Field(default_factory=dict)
    seeds: int = 1
    seeds_by: str = "policy"


class SourceVerdict(Value):
    """Whether a source helps the targets, by its settled weight and its influence (t value ``certainty``)."""

    weight: float
    influence: float
    certainty: float
    borrow: bool
    reason: str
    verdict: str


class SourceWeights(Value):
    """Weights of one source's rows in one window of shared training: mean and percentiles."""

    step: int
    source: str
    rows: int
    mean: float
    p10: float
    p50: float
    p90: float


class Window(Value):
    """One window of shared training: what the sources gave on fresh target rows."""

    step: int
    gain: float | None
    control_gain: float | None
    fresh_loss: float
    seen_loss: float
    frozen: bool


class HarmfulPart(Value):
    """Rows of a source whose labels contradict those of the targets."""

    source: str
    part: str
    rows: int
    value: float
    certainty: float


class SourceWeighting(Value):
    """What shared training learned of its sources; see ``models.cctl``."""

    verdicts: dict[str, SourceVerdict]
    weights: list[SourceWeights]
    windows: list[Window]
    target_certainty: float | None
    harmful_parts: list[HarmfulPart]


class Cost(Value):
    """What a launch took of processors, piece by piece, and in money where there is a price."""

    processor_seconds: float
    parts: dict[str, float]
    price_per_processor_hour: float | None
    currency: str
    money: float | None


class Decision(Value):
    """Whether a version may go live, and why."""

    promote: bool
    verdict: Verdict
    reasons: list[str]


class Suspect(Value):
    """A feature that tells the label beyond what is plausible, and how; ``feature`` is what one vouches for it by."""

    feature: str
    why: str


class SplitDraw(Value):
    """How the cold users of a launch were drawn, so that later ones can tell who they were.

    ``users`` and ``digest`` are the number of users known then and a hash of their ids in order: a user's number, by
    which it is drawn, is the place there.
    """

    seed: int
    share: float
    validation_share: float
    cut_us: int | None
    users: int
    digest: str


class Comparison(Value):
    """A version against its baselines on users whom training never saw: all that the gate looks at.

    ``rows[name][metric]`` are the results of each row of the table, ``subject`` among them; ``gain[name]`` is the
    subject's improvement over a row on the gate's ``metric``, positive is better, paired over users. Calibration is the
    subject's: ``prediction_bias`` is what the gate limits (``measure.prediction_bias``), ``pcoc`` and ``ece`` are of
    click rates alone.
    """

    task: Literal["ctr", "rating"]
    metric: str
    subject: str
    examples: int
    users: int
    cold_users: int
    label_mean: float
    rows: dict[str, Metrics]
    gain: dict[str, Interval]
    segments: dict[str, Segment]
    prediction_bias: float
    pcoc: float | None
    ece: float | None
    reliability: list[ReliabilityBin] | None
    leaks: list[str]
    leak_scan: list[str]
    suspects: list[Suspect] = Field(default_factory=list)
    drawn: SplitDraw | None = None
    required: ComparisonPolicy
    seeds: dict[str, SeedInterval] = Field(default_factory=dict)
    baselines_over_seeds: dict[str, dict[str, SeedInterval]] = Field(default_factory=dict)
    gain_over_seeds: dict[str, SeedInterval] = Field(default_factory=dict)
    certificate_ok: bool
    trained_parameters: int
    all_parameters: int
    fine_tune_seconds: float
    learning_curve: list[Epoch]
    training_examples: int
    notes: list[str]
    source_weighting: SourceWeighting | None


class ColdStartReport(Comparison):
    """The comparison of a launch, the gate's decision on it, and what it took to find out."""

    launch_seconds: float
    cost: Cost
    decision: Decision

    @classmethod
    def completing(cls, comparison: Comparison, *, launch_seconds: float, cost: Cost, decision: Decision) -> Self:
        """The comparison with what is known after it."""
        compared = {name: getattr(comparison, name) for name in comparison.model_fields_set}
        return cls(**compared, launch_seconds=launch_seconds, cost=cost, decision=decision)

    @classmethod
    def of(cls, version: Version) -> Self | None:
        """A version's report; None where no launch made it."""
        return cls.from_dict(version.report) if version.level == "adapter" and version.report else None


class Certificate(Value):
    """The proof that a launch moved nothing but the domain's own tensors.

    ``before`` and ``after`` are hashes over the names and hashes of all frozen tensors, ``hashes`` the single ones
    after; ``probe_rows`` counts the rows of each other domain whose predictions were compared bit for bit.
    """

    ok: bool
    changed: list[str]
    frozen_tensors: int
    trained_parameters: int
    before: str
    after: str
    hashes: dict[str, str]
    backbone: str
    probe_rows: dict[str, int]
    predictions_moved: list[str]
    all_parameters: int

    @classmethod
    def of(cls, version: Version) -> Self | None:
        """A version's certificate; None where no launch made it."""
        return cls.from_dict(version.certificate) if version.certificate else None


class ZeroShotReport(Value):
    """Whether the shared model, untrained on a domain, ranks its cold users better than popularity for certain.

    ``rows`` and ``gain`` (of ``shared`` over ``baseline`` on ``metric``, positive is better) are empty and None where
    there is nothing to measure on; the decision then says why.
    """

    metric: str
    baseline: str
    cold_users: int
    examples: int
    rows: dict[str, Metrics] = Field(default_factory=dict)
    gain: Interval | None = None
    decision: Decision

    @classmethod
    def of(cls, version: Version) -> Self | None:
        """A zero-shot version's report; None of any other version."""
        return cls.from_dict(version.report) if version.level == "zero_shot" and version.report else None


class SharedReport(Value):
    """The report of a shared model."""

    source_weighting: SourceWeighting | None = None

    @classmethod
    def of(cls, version: Version) -> Self:
        """Of a backbone."""
        return cls.from_dict(version.report)


class HeldOut(Value):
    """The shared model on one domain's held-out rows, beside the plain rows; or a note why it was not measured."""

    note: str | None = None
    examples: int = 0
    rows: dict[str, Metrics] = Field(default_factory=dict)

    @classmethod
    def by_domain(cls, version: Version) -> dict[str, Self]:
        """Of a backbone, on each domain that it learned from."""
        return {domain: cls.from_dict(found) for domain, found in version.metrics.items()}


def metrics_of(version: Version) -> Metrics:
    """An adapter's own metrics on cold users; none where nothing measured it."""
    report = ColdStartReport.of(version)
    if report is not None:
        return report.rows[report.subject]
    judged = ZeroShotReport.of(version)
    return {} if judged is None else judged.rows.get("shared", {})


def decision_of(version: Version) -> Decision | None:
    """What the gate decided on a version; None where nothing has judged it."""
    report = ColdStartReport.of(version) or ZeroShotReport.of(version)
    return None if report is None else report.decision
