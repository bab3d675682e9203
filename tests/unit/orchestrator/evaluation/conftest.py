"""A comparison as the registry holds it."""

from typing import Any

import pytest


def row(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


@pytest.fixture
def comparison() -> dict[str, Any]:
    """The JSON of a version that is better than two baselines."""
    return {
        "task": "ctr",
        "metric": "auc",
        "subject": "adapter",
        "examples": 900,
        "users": 210,
        "cold_users": 205,
        "label_mean": 0.25,
        "rows": {
            "popularity": {"auc": row(0.60), "logloss": row(0.5)},
            "adapter": {"auc": row(0.71), "logloss": row(0.4)},
            "single_domain": {"auc": row(0.64), "logloss": row(0.45)},
        },
        "gain": {"popularity": row(0.11), "single_domain": row(0.07)},
        "segments": {"warm_user": {"examples": 300, "users": 80, "rows": {"adapter": {"auc": row(0.74)}}}},
        "prediction_bias": 0.05,
        "pcoc": 1.05,
        "ece": 0.012,
        "reliability": [
            {"predicted": 0.1, "observed": 0.12, "examples": 450},
            {"predicted": 0.4, "observed": 0.38, "examples": 450},
        ],
        "leaks": [],
        "leak_scan": [],
        "required": {"baselines": {}, "seeds": 1, "seeds_by": "policy"},
        "certificate_ok": True,
        "trained_parameters": 18_277,
        "all_parameters": 324_706,
        "fine_tune_seconds": 90.0,
        "learning_curve": [
            {"epoch": 1, "step": 50, "loss": 0.6, "seconds": 1.5, "metric": "auc", "value": 0.66},
        ],
        "training_examples": 5_000,
        "notes": [],
        "source_weighting": None,
    }
