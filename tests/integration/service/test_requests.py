"""Requests that are wrong or too many, and faults: one shape of error, and no page without items."""

from __future__ import annotations

import pytest

from deployment.engine import scorer, serving
from tests.integration.service.fakes import ask, assert_is_error

pytestmark = pytest.mark.xdist_group("service")  # these files share one trained marketplace


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"items": []}, "items"),
        ({"items": [{"item_id": "a"}] * 1001}, "items"),
        ({"items": [{"item": "a"}]}, "items.0.item_id"),
        ({"items": [{"item_id": "a"}, {"item_id": "b", "features": {"price": [1]}}]}, "items.1.features.price.str"),
        ({"items": "a,b"}, "items"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": "many"}, "top_k"),
        ({"contxt": {}}, "contxt"),
        ({"request_id": "x" * 201}, "request_id"),
    ],
)
def test_a_wrong_request_names_the_field(shared_client, change, field):
    """422 with the place in the body."""
    body = {"user_id": "u", "items": [{"item_id": "a"}], **change}
    error = assert_is_error(shared_client.post("/v1/domains/live/rank", json=body), 422, "invalid_request")
    assert error["field"] == field
    assert error["details"]["problems"]


@pytest.mark.parametrize("body", [b"", b"{nope", b"[1, 2]", b"\xff\xfe", b"null"])
def test_a_body_that_is_no_json_object_says_so(shared_client, body):
    """Also with the right content type."""
    answer = shared_client.post("/v1/domains/live/rank", content=body, headers={"content-type": "application/json"})
    assert_is_error(answer, 422, "invalid_request")


def test_ids_may_be_numbers(shared_market, shared_client):
    """Callers hold ids as numbers; Graft knows them as text."""
    body = shared_client.post("/v1/domains/live/rank", json={"user_id": 12, "items": [{"item_id": 7}]}).json()
    assert body["items"][0]["item_id"] == "7"


def test_a_body_too_large_is_refused_before_it_is_read(shared_client):
    """By its declared length, and by what arrives where none is declared."""
    assert_is_error(shared_client.post("/v1/domains/live/rank", content=b"x" * 5_000_000), 413, "too_large")
    chunks = (b"x" * 100_000 for _ in range(50))
    assert_is_error(shared_client.post("/v1/domains/live/rank", content=chunks), 413, "too_large")


def test_paths_that_do_not_exist_have_the_same_error_shape(shared_client):
    """Unknown path, unknown domain, wrong method."""
    assert_is_error(shared_client.get("/v1/nothing"), 404, "not_found")
    assert_is_error(ask(shared_client, "u", ["a"], domain="nothing"), 404, "unknown_domain")
    assert_is_error(shared_client.get("/v1/domains/live/rank"), 404, "not_found")


def test_an_unexpected_fault_has_the_same_error_shape_and_tells_no_secrets(shared_serving, shared_client, monkeypatch):
    """500 once, in words for a caller; the log has the rest."""

    def broken() -> None:
        raise KeyError("a password")

    monkeypatch.setattr(shared_serving, "status", broken)
    answer = shared_client.get("/v1/domains")
    assert_is_error(answer, 500, "internal")
    assert "password" not in answer.text


def test_more_requests_than_may_wait_are_turned_away(shared_market, shared_client, monkeypatch):
    """503 with a hint when to come back, and no request is lost that was taken."""
    with monkeypatch.context() as patched:
        patched.setattr(serving, "MOST_WAITING", 0)
        answer = ask(shared_client, shared_market.user(), shared_market.items("live"))
    assert_is_error(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    assert ask(shared_client, shared_market.user(), shared_market.items("live")).status_code == 200


def test_a_model_that_fails_on_a_request_answers_by_popularity(shared_market, shared_client, monkeypatch):
    """Whatever is wrong with a version, the page gets its items."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(scorer, "BatchBuilder", broken)
    body = ask(shared_client, shared_market.user(), shared_market.items("live")).json()
    assert (body["served_by"], body["reason"]) == ("prior", "model_fault")
