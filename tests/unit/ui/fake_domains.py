"""Specs, events, and the reports of a launch that passed its gate."""

from pathlib import Path

from domains.spec import DomainSpec
from models.intervals import Interval
from orchestrator.evaluation.preview_report import (
    Backtest,
    LearningCurve,
    PreviewedSource,
    PreviewReport,
    RowsNeeded,
)
from orchestrator.evaluation.report import (
    Certificate,
    ColdStartReport,
    ComparisonPolicy,
    Cost,
    Decision,
    Epoch,
    ReliabilityBin,
    SeedInterval,
    Segment,
    SourceVerdict,
    SourceWeighting,
    SourceWeights,
    ZeroShotReport,
)

REPORT = ColdStartReport(
    task="ctr",
    metric="auc",
    subject="adapter",
    examples=900,
    users=200,
    cold_users=200,
    label_mean=0.2,
    rows={"popularity": {"auc": Interval(0.60, 0.57, 0.63)}, "adapter": {"auc": Interval(0.71, 0.68, 0.74)}},
    gain={"popularity": Interval(0.11, 0.07, 0.15)},
    segments={"cold_item": Segment(examples=60, users=40, rows={"adapter": {"auc": Interval(0.6, 0.5, 0.7)}})},
    prediction_bias=0.05,
    pcoc=1.05,
    ece=0.012,
    reliability=[
        ReliabilityBin(predicted=0.1, observed=0.12, examples=450),
        ReliabilityBin(predicted=0.4, observed=0.38, examples=450),
    ],
    leaks=[],
    leak_scan=["900 rows: none on two sides of the split"],
    required=ComparisonPolicy(baselines={"popularity": ["policy", "gate"]}, seeds=2, seeds_by="policy"),
    seeds={"auc": SeedInterval(0.70, 0.6, 0.8, each={0: 0.71, 1: 0.69})},
    gain_over_seeds={"popularity": SeedInterval(0.1, 0.0, 0.2, each={0: 0.11, 1: 0.09})},
    certificate_ok=True,
    trained_parameters=18_277,
    all_parameters=324_706,
    fine_tune_seconds=12.0,
    learning_curve=[Epoch(epoch=1, step=9, loss=0.6, seconds=1.0, metric="auc", value=0.66)],
    training_examples=1200,
    notes=[],
    source_weighting=SourceWeighting(
        verdicts={
            "video": SourceVerdict(
                weight=0.9,
                influence=0.1,
                certainty=4.0,
                borrow=True,
                reason="its samples help the target",
                verdict="borrow",
            )
        },
        weights=[
            SourceWeights(step=step, source="video", rows=9, mean=0.5, p10=0.2, p50=0.5, p90=0.9) for step in (100, 200)
        ],
        windows=[],
        target_certainty=None,
        harmful_parts=[],
    ),
    launch_seconds=60.0,
    cost=Cost(
        processor_seconds=90.0,
        parts={"fine-tuning": 30.0, "scratch": 60.0},
        price_per_processor_hour=2.0,
        currency="EUR",
        money=0.05,
    ),
    decision=Decision(promote=True, verdict="ship", reasons=["auc on 200 cold users beats popularity by +0.11"]),
)
JUDGED = ZeroShotReport(
    metric="auc",
    baseline="popularity",
    cold_users=200,
    examples=900,
    decision=Decision(promote=True, verdict="ship", reasons=["auc on 200 cold users beats popularity by +0.05"]),
)
CERTIFICATE = Certificate(
    ok=True,
    changed=[],
    frozen_tensors=73,
    trained_parameters=18_277,
    all_parameters=324_706,
    before="ab" * 32,
    after="ab" * 32,
    hashes={"head.weight": "cd" * 32},
    backbone="b" * 64,
    probe_rows={"video": 256},
    predictions_moved=[],
)
LOWER, HIGHER = Interval(0.01, 0.005, 0.02), Interval(-0.01, -0.02, -0.005)
PREVIEW = PreviewReport(
    domain="live",
    task="ctr",
    metric="logloss",
    data="x",
    made_at="2026-01-02T03:04:05+00:00",
    run="preview-1",
    evaluation_rows=400,
    evaluation_users=80,
    folds=2,
    together=LOWER,
    sources=[PreviewedSource(name="video", alone=HIGHER, beside=HIGHER, verdict="do not borrow")],
    best=[],
    forecast_sources=[],
    curve=LearningCurve(
        rows=[500.0, 1000.0], errors={name: [LOWER, LOWER] for name in ("adapter", "popularity", "item_mean")}
    ),
    needed={"popularity": RowsNeeded(rows=1234.0, low=500.0, high=None, certain=0.8)},
    backtest=Backtest(held=5, of=6, checks=[]),
)


def spec(name: str, role: str = "target", **changes) -> DomainSpec:
    """A small valid spec of clicks."""
    declared = {
        "name": name,
        "role": role,
        "task": "ctr",
        "owner": f"team-{name}",
        "interactions": {"user": "user_id", "item": "item_id", "time": "ts", "label": "click"},
    }
    return DomainSpec.from_mapping({**declared, **changes})


def write_events(path: Path, *, bad: bool = False) -> Path:
    """A hundred clicks and skips; with ``bad`` one more row whose label is no click."""
    rows = [f"u{n % 20},i{n % 7},2025-03-01T10:{n % 60:02d}:00Z,{n % 2}" for n in range(100)]
    if bad:
        rows.append("u1,i1,2025-03-01T10:00:00Z,7")
    path.write_text("\n".join(["user_id,item_id,ts,click", *rows]) + "\n")
    return path
