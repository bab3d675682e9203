"""Rank answers: order, reasons, and the rows that the prediction log gets."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from deployment.engine import answers, scorer
from deployment.engine.answers import LOGGED_POSITIONS, Answered, rank_answer
from deployment.engine.scorer import Scores
from deployment.messages import Candidate, RankAnswer, RankRequest


def an_answer(score: list[float], *, unknown: tuple[int, ...] = (), reason: str | None = None, **more) -> RankAnswer:
    """To a request for `a`, `b`, `c` and so on, with these scores."""
    names = [chr(ord("a") + at) for at in range(len(score))]
    request = RankRequest(user_id="ann", items=[Candidate(item_id=name) for name in names], **more)
    scores = Scores(
        score=np.array(score),
        unknown=np.isin(np.arange(len(score)), unknown),
        served_by="prior" if reason else "adapter",
        model_version=None if reason else "v1",
        reason=reason,
    )
    return rank_answer("live", request, scores, began=time.perf_counter())


def test_candidates_come_from_best_to_worst_and_equal_ones_in_the_order_asked():
    """As many as are asked for."""
    answer = an_answer([0.2, 0.9, 0.2, 0.5])
    assert [item.item_id for item in answer.items] == ["b", "d", "a", "c"]
    assert [item.item_id for item in an_answer([0.2, 0.9, 0.2, 0.5], top_k=2).items] == ["b", "d"]


def test_a_reason_is_sent_only_where_there_is_one():
    """That of the whole answer stands at every item but those that are unknown."""
    sent = json.loads(an_answer([0.3, 0.2, 0.1], unknown=(1,)).as_json())
    assert "reason" not in sent
    assert [item.get("reason") for item in sent["items"]] == [None, scorer.ITEM_UNKNOWN, None]
    assert "reason" not in sent["items"][0]
    sent = json.loads(an_answer([0.3, 0.2], unknown=(1,), reason=scorer.PAUSED).as_json())
    assert (sent["served_by"], sent["model_version"], sent["reason"]) == ("prior", None, scorer.PAUSED)
    assert [item["reason"] for item in sent["items"]] == [scorer.PAUSED, scorer.ITEM_UNKNOWN]


def test_a_request_without_an_id_gets_one():
    """Feedback needs one to name."""
    first, second = an_answer([0.1]), an_answer([0.1])
    assert first.request_id != second.request_id
    assert an_answer([0.1], request_id="mine").request_id == "mine"


def test_a_field_that_is_declared_is_sent_or_missed(monkeypatch):
    """What the schema says and what goes out cannot drift apart."""

    class Wider(RankAnswer):
        experiment: str
        """The experiment that the request took part in."""

    monkeypatch.setattr(answers, "RankAnswer", Wider)
    with pytest.raises(ValidationError, match="experiment"):
        an_answer([0.1])


def test_the_log_gets_the_first_positions_as_they_were_sent():
    """No more than a user could have seen."""
    answer, at = an_answer([1 - at / 100 for at in range(LOGGED_POSITIONS + 5)]), datetime.now(UTC)
    rows = Answered.of(answer, "ann", at).log_rows()
    assert [row["position"] for row in rows] == list(range(LOGGED_POSITIONS))
    assert [(row["item_id"], row["score"]) for row in rows] == [
        (item.item_id, item.score) for item in answer.items[:LOGGED_POSITIONS]
    ]
    same = {"request_id": answer.request_id, "domain": "live", "user_id": "ann", "model_version": "v1", "at": at}
    assert all(same.items() <= row.items() and row["served_by"] == "adapter" for row in rows)


def test_what_waits_for_the_log_holds_no_more_than_the_log_keeps():
    """Of an answer with more items the first twenty, as plain values."""
    kept = Answered.of(an_answer([0.5] * 26), "ann", datetime.now(UTC))
    assert len(kept.items) == LOGGED_POSITIONS
    assert {type(value) for pair in kept.items for value in pair} == {str, float}
