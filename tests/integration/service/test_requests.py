"""Requests that are wrong or too many, and faults: one shape of error, and no page without items."""

from __future__ import annotations

import codecs
import gzip
import zlib
from functools import partial

import pytest

from deployment.engine import scorer, serving
from tests.integration.service.fakes import ask, assert_is_error

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\x00b"}, "user_id"),
        ({"items": []}, "items"),
        ({"items": [{"item_id": "a"}] * 1001}, "items"),
        ({"items": [{"item": "a"}]}, "items.0.item_id"),
        ({"items": [{"item_id": "a"}, {"item_id": "b", "features": [1]}]}, "items.1.features"),
        ({"items": "a,b"}, "items"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": "many"}, "top_k"),
        ({"top_k": "5"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
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


@pytest.mark.parametrize(
    "body",
    [
        {f"k{number}": 1 for number in range(40)},
        {"user_id": "u", "items": [{"item_id": "a"}, {f"k{number}": 1 for number in range(40)}]},
        {"user_id": "u", "items": [{"item_id": "a"} | {f"k{number}": 1 for number in range(300_000)}]},
    ],
)
def test_very_many_fields_are_one_mistake(shared_client, body):
    """To name each of 300,000 would hold up everybody."""
    answer = shared_client.post("/v1/domains/live/rank", json=body)
    error = assert_is_error(answer, 422, "invalid_request")
    assert "32 fields" in error["message"]
    assert "details" not in error


def test_head_is_get_without_the_body(shared_client):
    """Load balancers ask so."""
    for path in ("/livez", "/readyz", "/v1/domains"):
        answer = shared_client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert shared_client.head("/v1/feedback").headers["allow"] == "POST"
    assert shared_client.post("/livez").headers["allow"] == "GET, HEAD"


def test_ids_may_be_numbers(shared_market, shared_client):
    """Callers hold ids as numbers; Graft knows them as text."""
    body = shared_client.post("/v1/domains/live/rank", json={"user_id": 12, "items": [{"item_id": 7}]}).json()
    assert body["items"][0]["item_id"] == "7"


def test_a_body_too_large_is_refused_before_it_is_read(shared_client):
    """By its declared length, and by what arrives where none is declared."""
    post = partial(shared_client.post, "/v1/domains/live/rank", headers=JSON)
    assert_is_error(post(content=b"x" * 5_000_000), 413, "too_large")
    assert_is_error(post(content=(b"x" * 100_000 for _ in range(50))), 413, "too_large")


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_packed_body_is_unpacked(shared_market, shared_client, encoding, pack):
    """And answered as the plain one is; a byte-order mark before it does no harm."""
    user, items = shared_market.user(), shared_market.items("live")
    plain = ask(shared_client, user, items)
    body = pack(codecs.BOM_UTF8 + plain.request.content)
    headers = {**JSON, "content-encoding": encoding}
    answer = shared_client.post("/v1/domains/live/rank", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["items"] == plain.json()["items"]


def test_a_packed_body_is_bounded_and_whole(shared_client):
    """What comes out counts, not what goes in; what is not one whole stream is named."""
    headers = {**JSON, "content-encoding": "gzip"}
    post = partial(shared_client.post, "/v1/domains/live/rank", headers=headers)
    assert_is_error(post(content=gzip.compress(b" " * 500_000_000, 1)), 413, "too_large")
    packed = gzip.compress(b"{}")
    for content in (packed[:-4], packed + packed, b"{}", b""):
        assert assert_is_error(post(content=content), 422, "invalid_request")["field"] == "content-encoding"


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("content-encoding", "br", "unsupported_encoding"),
        ("content-encoding", "gzip, gzip", "unsupported_encoding"),
        ("content-encoding", "x" * 4000, "unsupported_encoding"),
        ("content-type", "text/plain", "unsupported_media_type"),
        ("content-type", "application/x-www-form-urlencoded", "unsupported_media_type"),
        ("content-type", "", "unsupported_media_type"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/domains/live/rank", "/v1/feedback"])
def test_an_encoding_or_a_type_that_is_not_known_is_named(shared_client, path, header, value, code):
    """By its header, in a message of bounded length."""
    error = assert_is_error(shared_client.post(path, content=b"{}", headers={**JSON, header: value}), 415, code)
    assert error["field"] == header
    assert len(error["message"]) < 200


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b'{"top_k": ' + b"1" * 5_000 + b"}", b'{"a": "\xff"}'])
def test_bytes_that_are_no_json_are_wrong_and_no_fault(shared_client, body):
    """No text, too deep, a number too long to read."""
    answer = shared_client.post("/v1/domains/live/rank", content=body, headers=JSON)
    assert_is_error(answer, 422, "invalid_request")


def test_callers_make_no_labels(shared_client):
    """Neither paths nor methods nor ids: /metrics stays as long as it was."""
    shared_client.get("/v1/never-there")
    shared_client.request("BREW", "/v1/domains")
    ask(shared_client, "u", ["a"], domain="no-such")
    shared_client.get("/metrics")
    before = shared_client.get("/metrics").text
    assert 'path="/v1/domains/{domain}/rank"' in before
    for number in range(300):
        shared_client.get(f"/v1/x{number}/{number}")
        shared_client.request(f"M{number}", "/v1/domains")
        ask(shared_client, f"user-{number}", ["a"], domain=f"d{number}", request_id=f"r{number}")
    after = shared_client.get("/metrics").text
    assert len(after.splitlines()) == len(before.splitlines())
    assert 'path="other"' in after


def test_the_first_page_is_ours_and_loads_nothing(shared_client):
    """No page here fetches a script from elsewhere."""
    assert shared_client.get("/").json()["service"] == "graft"
    for path in ("/docs.json", "/schema.json", "/static_content/index.html", "/docs", "/redoc"):
        assert_is_error(shared_client.get(path), 404, "not_found")


def test_paths_that_do_not_exist_have_the_same_error_shape(shared_client):
    """Unknown path, unknown domain, wrong method."""
    assert_is_error(shared_client.get("/v1/nothing"), 404, "not_found")
    assert_is_error(ask(shared_client, "u", ["a"], domain="nothing"), 404, "unknown_domain")
    assert_is_error(shared_client.get("/v1/domains/live/rank"), 405, "method_not_allowed")


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


def rank_raw(client, body: str):
    return client.post("/v1/domains/live/rank", content=body.encode(), headers={"content-type": "application/json"})


FAULTY = ["NaN", "-Infinity", "1e999", "9" * 44, '"\\ud800"', "[1]", '{"a": 1}', "true", '"many"', '"1_0"', '"inf"']


@pytest.mark.parametrize("value", FAULTY)
def test_a_faulty_number_costs_that_field_alone(shared_market, shared_client, caplog, value):
    """The page is ranked as if the field had not been sent, and the answer names it."""
    user, [first, second, *_] = shared_market.user(), shared_market.items("live")
    plain = ask(shared_client, user, [first, second]).json()
    faulty = f'{{"item_id":"{first}","features":{{"minutes":{value}}}}}'
    body = f'{{"user_id":"{user}","items":[{faulty},{{"item_id":"{second}"}}]}}'
    answer = rank_raw(shared_client, body)
    assert answer.status_code == 200, answer.text
    [warning] = answer.json()["warnings"]
    assert warning["field"] == "items.0.features.minutes"
    assert answer.json()["items"] == plain["items"]
    assert answer.json()["served_by"] == plain["served_by"]
    assert "scoring failed" not in caplog.text


@pytest.mark.parametrize("place", ["user", "context"])
@pytest.mark.parametrize("value", ["NaN", "9" * 44, '"\\ud800"', "[1]"])
def test_a_faulty_profile_or_context_costs_that_field_alone(shared_market, shared_client, place, value):
    """Names that nobody knows are named too, whatever characters they hold."""
    user, [first, *_] = shared_market.user(), shared_market.items("live")
    domain = shared_market.registry.domain("live").spec
    declared = domain.interactions.context if place == "context" else domain.users.features if domain.users else {}
    name = next(iter(declared), "no-such")
    body = f'{{"user_id":"{user}","{place}":{{"{name}":{value},"\\ud800x":1}},"items":[{{"item_id":"{first}"}}]}}'
    answer = rank_raw(shared_client, body).json()
    assert [warning["field"] for warning in answer["warnings"]] == [f"{place}.{name}", f"{place}.\\ud800x"]
    assert answer["served_by"] != "prior"


def test_a_candidate_is_answered_once_and_warnings_are_bounded(shared_market, shared_client):
    """The first of two counts."""
    user, [first, second, *_] = shared_market.user(), shared_market.items("live")
    answer = ask(shared_client, user, [first, first, second]).json()
    assert sorted(item["item_id"] for item in answer["items"]) == sorted([first, second])
    assert [warning["field"] for warning in answer["warnings"]] == ["items.1.item_id"]
    answer = ask(shared_client, user, [first] * 100).json()
    assert len(answer["warnings"]) == 20
    assert answer["warnings"][-1]["message"] == "and 80 more"


@pytest.mark.parametrize("user", [None, "nobody"])
def test_items_of_which_nothing_is_known_come_last(shared_market, shared_client, user):
    """By the model and by popularity alike, wherever they stand in the request."""
    known = shared_market.items("live")[:30]
    for features in (None, {}, {"minutes": None}, {"misspelt": 1}, {"minutes": "many"}):
        new = [{"item_id": name} | ({} if features is None else {"features": features}) for name in ("new-1", "new-2")]
        body = {"user_id": user or shared_market.user()}
        body["items"] = [new[0], *({"item_id": item} for item in known), new[1]]
        answer = shared_client.post("/v1/domains/live/rank", json=body).json()
        assert {item["item_id"] for item in answer["items"][-2:]} == {"new-1", "new-2"}, features


def test_spaces_around_an_id_do_not_count(shared_client):
    """As in the files that the ids came from; nothing but spaces is no id."""
    answer = rank_raw(shared_client, '{"user_id":" a\\u3000","items":[{"item_id":"\\t7\\u00a0"}]}').json()
    assert [item["item_id"] for item in answer["items"]] == ["7"]
    assert_is_error(rank_raw(shared_client, '{"user_id":" ","items":[{"item_id":7}]}'), 422, "invalid_request")


def test_a_whole_number_id_that_was_read_as_float_is_that_number(shared_client):
    """12.0 is 12; a half is no id."""
    answer = rank_raw(shared_client, '{"user_id":12.0,"items":[{"item_id":7.0}]}').json()
    assert [item["item_id"] for item in answer["items"]] == ["7"]
    assert_is_error(rank_raw(shared_client, '{"user_id":12.5,"items":[{"item_id":7}]}'), 422, "invalid_request")
