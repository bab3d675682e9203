"""The calibrator of a domain: fitted on rows held out, and left alone where they are too few."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.training.fine_tune import FEWEST_TO_CALIBRATE, calibrate


def a_ranker(task: str = "ctr") -> SimpleNamespace:
    """Something with one domain, whose calibrator changes nothing yet."""
    calibrator = SimpleNamespace(scale=torch.ones(()), shift=torch.zeros(()))
    return SimpleNamespace(
        config=SimpleNamespace(task=task), owned=lambda slot: SimpleNamespace(calibrator=calibrator), found=calibrator
    )


def clicks(rows: int, scale: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and clicks that follow them after a map."""
    random = np.random.default_rng(0)
    logit = random.normal(0, 2, rows)
    return logit, (random.random(rows) < 1 / (1 + np.exp(-(scale * logit + shift)))).astype(np.float32)


def test_platt_scaling_finds_a_planted_map():
    """Clicks follow half the logit less one."""
    ranker = a_ranker()
    calibrate(ranker, 0, *clicks(20_000, 0.5, -1.0))
    assert float(ranker.found.scale) == pytest.approx(0.5, abs=0.05)
    assert float(ranker.found.shift) == pytest.approx(-1.0, abs=0.1)


def test_a_handful_of_rows_leaves_predictions_as_they_are():
    """One click among ten rows may lie anywhere: a map fitted to it would be as wild as it likes."""
    ranker = a_ranker()
    label = np.zeros(400, np.float32)
    label[: FEWEST_TO_CALIBRATE - 1] = 1
    calibrate(ranker, 0, np.linspace(-1, 1, 400), label)
    assert (float(ranker.found.scale), float(ranker.found.shift)) == (1.0, 0.0)


def test_a_slope_against_the_ranking_is_never_taken():
    """Clicks that fall as the score rises leave the order alone; ratings only move."""
    ranker = a_ranker()
    score, label = clicks(5_000, -1.0, 0.0)
    calibrate(ranker, 0, score, label)
    assert float(ranker.found.scale) == 1.0
    ranker = a_ranker("rating")
    calibrate(ranker, 0, score, 3.0 - score)
    assert float(ranker.found.scale) == 1.0
    assert float(ranker.found.shift) == pytest.approx(float((3.0 - 2 * score).mean()), abs=1e-4)
