"""Click models of FuxiCTR that a user would pick instead, built to the shapes of the workload.

The package is not a dependency of Graft: ``pip install fuxictr`` (the optional group ``bench``) brings it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from models.batch import Batch


def missing(package: str) -> str | None:
    """Why a peer cannot be run, or None."""
    if importlib.util.find_spec(package) is None:
        return f"{package} not installed"
    if package == "fuxictr":
        try:
            importlib.import_module("model_zoo.LongCTR.SIM")
        except ImportError as error:
            return f"fuxictr cannot be imported: {error}"
    return None


class FuxiCtr:
    """One of FuxiCTR's long-sequence models with its own training step: its loss, clipping and dense Adam.

    One item field (the id) and one profile field of the workload's width, head (256, 128) as Graft's, all else as the
    package has it by default. Inputs stand ready; what its loader would cost is not counted.
    """

    def __init__(self, name: str, *, items: int, width: int, batch: Batch) -> None:
        from fuxictr.features import FeatureMap

        features = FeatureMap("benchmark", "")
        features.labels, features.default_emb_dim, features.num_fields = ["label"], width, 2
        features.features["item"] = {
            "type": "categorical",
            "source": "item",
            "vocab_size": items,
            "embedding_dim": width,
            "padding_idx": 0,
        }
        features.features["profile"] = {
            "type": "categorical",
            "source": "user",
            "vocab_size": int(batch.user_features.max()) + 1,
            "embedding_dim": width,
        }
        model_class = getattr(importlib.import_module(f"model_zoo.LongCTR.{name}"), name)
        self.model = model_class(
            features,
            model_id=name,
            gpu=-1,
            embedding_dim=width,
            dnn_hidden_units=[256, 128],
            learning_rate=1e-3,
            optimizer="adam",
            loss="binary_crossentropy",
            task="binary_classification",
            metrics=["AUC"],
            verbose=0,
            model_root="",
        )
        self.model.train()
        # What FuxiCTR's own `fit` sets before its training steps; there is no public way.
        self.model._batch_index, self.model._max_gradient_norm = 0, 10.0  # noqa: SLF001
        self._inputs = as_fuxictr(batch)

    def step(self) -> None:
        """One training step on the batch."""
        features, items, mask = self._inputs
        self.model.train_step((features, dict(items), mask))


def as_fuxictr(batch: Batch) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor]:
    """A batch as its collator makes it: every row with a history of its own, the candidate behind it."""
    events = batch.lifelong
    seen = events.mask()
    history = torch.where(seen, events.item[events.row], 0)
    items = torch.cat([history, batch.item[:, None]], 1)
    return {"profile": batch.user_features[:, 0], "label": batch.label}, {"item": items.view(-1)}, seen.float()
