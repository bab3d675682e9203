"""Feedback: joined with its ranking, counted once, and history at once."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from deployment.engine.serving import Serving
from deployment.http.api import create_app
from tests.integration.service.fakes import ask, assert_is_error, eventually

pytestmark = pytest.mark.xdist_group("service")  # these files share one trained marketplace


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


def test_feedback_to_a_request_that_nobody_remembers_is_kept(market, client):
    """Its user and domain may come with it; a domain that does not exist is an error."""
    event = {"item_id": "i", "action": "click"}
    assert client.post("/v1/feedback", json={"request_id": "old", "events": [event]}).json()["accepted"] == 1
    wrong = client.post("/v1/feedback", json={"request_id": "older", "domain": "nothing", "events": [event]})
    assert_is_error(wrong, 404, "unknown_domain")
    error = assert_is_error(client.post("/v1/feedback", json={"request_id": "r"}), 422, "invalid_request")
    assert error["field"] == "events"
