"""The one loop that scores rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from models.batch import Batch
from models.ranker.network import Ranker
from orchestrator.data.batches import BatchBuilder, Examples

ROWS_AT_ONCE = 4096


def outputs(
    model: Callable[[Batch], torch.Tensor], batch_builder: BatchBuilder, rows: Examples, slot: int
) -> np.ndarray:
    """What a model answers for each row, in their order, (N,) float32."""
    parts = [np.arange(at, min(at + ROWS_AT_ONCE, len(rows))) for at in range(0, len(rows), ROWS_AT_ONCE)]
    with torch.inference_mode():
        found = [model(batch_builder.batch(rows.take(part), slot)).float().numpy() for part in parts]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def score_rows(ranker: Ranker, batch_builder: BatchBuilder, rows: Examples, slot: int) -> np.ndarray:
    """Calibrated predictions of rows in their order, (N,): probabilities or ratings."""
    return outputs(ranker.eval().probability, batch_builder, rows, slot)
