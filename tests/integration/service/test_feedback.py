"""Feedback: joined with its ranking, counted once, and history at once."""

from __future__ import annotations

import sqlite3
import time

import pytest
from fastapi.testclient import TestClient

from deployment.engine.serving import Serving
from deployment.http.api import create_app
from feature_repo import materialise
from tests.integration.service.fakes import ask, assert_is_error, eventually


def test_feedback_is_joined_counted_once_and_history_at_once(market, serving, client):
    """The next request of the same user sees what they just clicked; sending it again changes nothing."""
    user, [first, *_] = market.user(), market.items("live")
    answer = ask(client, user, market.items("live"), request_id="r-1").json()
    before = len(market.read(user).recent)
    body = {"request_id": "r-1", "events": [{"item_id": first, "action": "click", "value": 1}]}
    assert client.post("/v1/feedback", json=body).json() == {"request_id": "r-1", "accepted": 1, "duplicates": 0}
    eventually(lambda: len(market.read(user).recent) == before + 1)
    assert client.post("/v1/feedback", json=body).json()["duplicates"] == 1
    recent = market.read(user).recent
    assert len(recent) == before + 1
    assert recent.item[-1] == market.data("live").item_vocabulary.index([first])[0]
    eventually(lambda: bool(market.registry.feedback("live")) and market.registry.feedback("live")[0]["score"])
    [joined] = market.registry.feedback("live")
    assert (joined["user_id"], joined["item_id"], joined["served_by"]) == (user, first, "zero_shot")
    [position] = [at for at, item in enumerate(answer["items"]) if item["item_id"] == first]
    assert joined["position"] == position


def test_feedback_in_a_source_domain_is_source_history(market, serving, client):
    """What a user does in the main shop is history for every target at once."""
    user = market.user()
    ask(client, user, market.items("video"), domain="video", request_id="r-2")
    before = market.read(user).history
    event = {"item_id": market.items("video")[2], "action": "click"}
    assert client.post("/v1/feedback", json={"request_id": "r-2", "events": [event]}).json()["accepted"] == 1
    eventually(lambda: len(market.read(user).history) == len(before) + 1)
    assert market.read(user).history.domain[-1] == market.registry.domain("video").number


def test_feedback_to_another_worker_reaches_the_history_too(market, serving, client):
    """The log says who asked, a moment after the other worker answered."""
    other = Serving(market.settings)
    other.start()
    user, [first, *_] = market.user(), market.items("live")
    with TestClient(create_app(lambda: other)) as elsewhere:
        ask(elsewhere, user, market.items("live"), request_id="r-9")
        before = len(market.read(user).recent)
        event = {"item_id": first, "action": "click"}
        assert client.post("/v1/feedback", json={"request_id": "r-9", "events": [event]}).json()["accepted"] == 1
        eventually(lambda: len(market.read(user).recent) == before + 1)
    other.close()


def test_histories_hold_only_the_sources_that_a_domain_names(market, serving):
    """As in training: the source whose labels lie is nobody's source here."""
    domain = serving.snapshot.domains["live"]
    spec = market.registry.domain("live").spec
    assert domain.sources == {market.registry.domain(name).number for name in spec.sources}
    assert market.registry.domain("lies").number not in domain.sources


def tell(client, request_id, events, **more):
    return client.post("/v1/feedback", json={"request_id": request_id, "events": events, **more})


def test_feedback_to_a_request_that_nobody_remembers_names_user_and_domain(market, client):
    """Without them it would be nobody's; a domain that does not exist is an error."""
    user, [item, *_] = market.user(), market.items("live")
    event = {"item_id": item, "action": "click"}
    assert assert_is_error(tell(client, "old", [event]), 422, "unknown_request")["field"] == "user_id"
    assert assert_is_error(tell(client, "old", [event], user_id=user), 422, "unknown_request")["field"] == "domain"
    assert tell(client, "old", [event], user_id=user, domain="live").json()["accepted"] == 1
    assert_is_error(tell(client, "older", [event], domain="nothing"), 404, "unknown_domain")
    surrogate = rb'{"request_id":"r","domain":"\ud800","events":[{"item_id":"i"}]}'
    assert_is_error(
        client.post("/v1/feedback", content=surrogate, headers={"content-type": "application/json"}),
        422,
        "invalid_request",
    )
    error = assert_is_error(client.post("/v1/feedback", json={"request_id": "r"}), 422, "invalid_request")
    assert error["field"] == "events"


NOW = time.time_ns() // 1_000


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        ({"item_id": "no-such-item"}, "item_id", "no item"),
        ({"action": "v"}, "action", "no kind"),
        ({"value": 1e308}, "value", "label_range"),
        ({"value": -1}, "value", "label_range"),
        ({"time_us": 9_999_999_999_999_999}, "time_us", "future"),
        ({"time_us": 10**40}, "time_us", "future"),
        ({"time_us": NOW // 1_000}, "time_us", "milliseconds"),
        ({"time_us": NOW * 1_000}, "time_us", "nanoseconds"),
        ({"time_us": NOW // 1_000_000}, "time_us", "seconds"),
        ({"time_us": NOW - 3_600_000_000}, "time_us", "before the ranking"),
        ({"time_us": NOW + 3_600_000_000}, "time_us", "future"),
    ],
)
def test_what_cannot_be_true_is_refused_whole(market, client, wrong, field, message):
    """The field is named, nothing of the request is kept, and a corrected retry is new."""
    user, [good, other, *_] = market.user(), market.items("live")
    ask(client, user, [good, other], request_id="r-3")
    events = [{"item_id": good}, {"item_id": other, **wrong}]
    error = assert_is_error(tell(client, "r-3", events), 422, "invalid_feedback")
    assert error["field"] == f"events.1.{field}"
    assert message in error["message"]
    assert market.registry.unpushed() == 0
    assert tell(client, "r-3", [{"item_id": good}, {"item_id": other}]).json()["accepted"] == 2


def test_feedback_belongs_to_who_asked(market, client):
    """Another user or domain is named; so is another value for what is on record."""
    user, [item, *_] = market.user(), market.items("live")
    ask(client, user, [item], request_id="r-4")
    for name, value in (("user_id", "somebody-else"), ("domain", "video")):
        error = assert_is_error(tell(client, "r-4", [{"item_id": item}], **{name: value}), 409, "feedback_conflict")
        assert error["field"] == name
    assert tell(client, "r-4", [{"item_id": item}]).json()["accepted"] == 1
    changed = tell(client, "r-4", [{"item_id": item, "value": 0}])
    assert assert_is_error(changed, 409, "feedback_conflict")["field"] == "events.0.value"


def test_an_id_names_one_ranking(market, serving, client):
    """Another user or domain cannot take it, in this process or after it died; the log keeps the first."""
    user, items = market.user(), market.items("live")
    assert ask(client, user, items, request_id="mine").status_code == 200
    assert ask(client, user, items, request_id="mine").status_code == 200
    assert (
        assert_is_error(ask(client, "thief", items, request_id="mine"), 409, "request_id_taken")["field"]
        == "request_id"
    )
    assert_is_error(
        ask(client, user, market.items("video"), domain="video", request_id="mine"), 409, "request_id_taken"
    )
    eventually(lambda: bool(market.registry.answered({"mine"})))
    other = Serving(market.settings)
    other.start()
    with TestClient(create_app(lambda: other)) as elsewhere:
        assert_is_error(ask(elsewhere, "thief", items, request_id="mine"), 409, "request_id_taken")
    other.close()
    market.registry.log_predictions(
        [{"request_id": "mine", "domain": "live", "user_id": "thief", "item_id": "new", "score": 1.0}]
    )
    assert market.registry.answered({"mine"})["mine"].user_id == user


def test_a_stranger_displaces_nothing(market, serving, client, monkeypatch):
    """Feedback without a ranking fills what room a history has; no event that is there gives way to it."""
    user, items = market.user(), market.items("video")
    before = market.read(user).history
    monkeypatch.setattr(materialise, "HISTORY_EVENTS", len(before) + 30)
    for number in range(3):
        events = [{"item_id": item, "action": "view"} for item in items[:20]]
        assert tell(client, f"made-up-{number}", events, user_id=user, domain="video").status_code == 200
    eventually(lambda: market.registry.unpushed() == 0)
    after = market.read(user).history
    assert len(after) == len(before) + 30
    assert set(before.time_us.tolist()) <= set(after.time_us.tolist())


def test_what_was_acknowledged_reaches_the_history_after_a_death(market, serving, client):
    """The next process pushes what the outbox holds, once."""
    user, items = market.user(), market.items("live")
    before = len(market.read(user).recent)
    serving._pusher.close()  # noqa: SLF001 (as dead as a thread can be made)
    assert (
        tell(client, "r-5", [{"item_id": item} for item in items[:5]], user_id=user, domain="live").json()["accepted"]
        == 5
    )
    assert market.registry.unpushed() == 5
    assert len(market.read(user).recent) == before
    other = Serving(market.settings)
    other.start()
    eventually(lambda: market.registry.unpushed() == 0)
    other.close()
    assert len(market.read(user).recent) == before + 5


def test_a_locked_registry_is_a_503_in_time(market, serving, client, caplog):
    """Nobody waits for long, the log stays short, and the same feedback is taken afterwards."""
    user, [item, *_] = market.user(), market.items("live")
    connection = sqlite3.connect(market.settings.registry_url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        began = time.monotonic()
        answer = tell(client, "r-6", [{"item_id": item}], user_id=user, domain="live")
        assert time.monotonic() - began < 2
        assert_is_error(answer, 503, "database_unavailable")
        assert answer.headers["Retry-After"]
        assert "Traceback" not in caplog.text
        began = time.monotonic()
        assert ask(client, user, [item], request_id="r-7").status_code == 200
        assert time.monotonic() - began < 1
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    assert tell(client, "r-6", [{"item_id": item}], user_id=user, domain="live").json()["accepted"] == 1
