"""Rank answers: made from scores in one place, sent as they are and written down from the same value."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from deployment.engine.scorer import ITEM_UNKNOWN, Scores
from deployment.messages import FieldWarning, RankAnswer, RankRequest

LOGGED_POSITIONS = 20
"""Positions of each answer that the prediction log keeps: what a user could have seen without scrolling far."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the prediction log keeps of an answer that went out.

    Thousands of them wait while the registry is away, so they hold no more than that.
    """

    same: dict[str, Any]
    """Columns that are the same for all its rows."""
    items: tuple[tuple[str, float], ...]
    """The first positions: item and score."""

    @classmethod
    def of(cls, answer: RankAnswer, user_id: str, at: datetime) -> Answered:
        """To whom an answer went, and when."""
        same = {
            "request_id": answer.request_id,
            "domain": answer.domain,
            "model_version": answer.model_version,
            "served_by": answer.served_by,
            "user_id": user_id,
            "at": at,
        }
        return cls(same, tuple((item.item_id, item.score) for item in answer.items[:LOGGED_POSITIONS]))

    def log_rows(self) -> list[dict[str, Any]]:
        """Its first positions as rows of the prediction log."""
        return [
            {**self.same, "item_id": item, "score": score, "position": position}
            for position, (item, score) in enumerate(self.items)
        ]


def rank_answer(
    domain: str, request: RankRequest, scores: Scores, *, began: float, warnings: Sequence[FieldWarning] = ()
) -> RankAnswer:
    """The candidates of a request from best to worst, no more than it asks for; equal scores stay in the order
    asked, known items first.

    Args:
        began: when the work on the request began, by ``time.perf_counter``.
    """
    order = np.lexsort((scores.unknown, -scores.score))[: request.top_k]
    score, unknown = scores.score.tolist(), scores.unknown.tolist()
    items = []
    for at in order.tolist():
        item = {"item_id": request.items[at].item_id, "score": score[at]}
        reason = ITEM_UNKNOWN if unknown[at] else scores.reason
        items.append(item if reason is None else {**item, "reason": reason})
    whole: dict[str, Any] = {} if scores.reason is None else {"reason": scores.reason}
    if warnings:
        whole["warnings"] = list(warnings)
    return RankAnswer.model_validate(
        {
            "request_id": request.request_id or uuid.uuid4().hex,
            "domain": domain,
            "model_version": scores.model_version,
            "served_by": scores.served_by,
            "took_ms": round((time.perf_counter() - began) * 1e3, 3),
            "items": items,
            **whole,
        }
    )
