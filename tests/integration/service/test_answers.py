"""Rankings over HTTP: what they rest on, and how they fall back."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
import torch
from sqlalchemy.exc import OperationalError

from deployment.engine import scorer
from deployment.messages import Candidate
from domains.lifecycle import FALLBACK_LEVELS, State
from models.ranker import adapters, checkpoint
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from tests.integration.service.conftest import client_of, served
from tests.integration.service.fakes import CONTRACT, ask, assert_is_error, eventually


def test_a_ranking_names_what_it_rests_on(shared_market, shared_client):
    """Sorted scores between 0 and 1, the version, the level, the time, and the request's own id."""
    body = ask(shared_client, shared_market.user(), shared_market.items("live"), request_id="mine", top_k=5).json()
    assert body["request_id"] == "mine"
    assert body["domain"] == "live"
    assert body["served_by"] == "zero_shot"
    assert body["model_version"] == shared_market.versions()["zero_shot"]
    assert body["took_ms"] > 0
    scores = [item["score"] for item in body["items"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all("reason" not in item for item in body["items"])


@pytest.mark.parametrize("level", ["zero_shot", "adapter"])
def test_scores_served_are_those_that_evaluation_computes(market, serving, level):
    """The same user, items and moment through Feast and the service, and through training's own batches: equal."""
    market.set_live("live", market.versions()[level])
    eventually(lambda: serving.snapshot.domains["live"].served_by == level)
    registry, settings = market.registry, market.settings
    version = registry.version(market.versions()[level])
    store = Artifacts(settings.artifacts_dir)
    ranker = checkpoint.load_backbone(store.path(registry.version(version.backbone_id).artifact))
    slot = adapters.attach(ranker, checkpoint.load_adapter(store.path(version.artifact)))
    encoder = FeatureEncoder.load(store.path(version.artifact))
    workspace = Workspace(settings, tuple(registry.domains()))
    rows = workspace.examples(encoder, "live")
    moment = int(rows.time_us.max()) + 60_000_000
    items = market.items("live")
    users = np.unique(rows.user)[:10]
    for user in users:
        count = len(items)
        asked = Examples(
            domain="live",
            number=rows.number,
            user=np.full(count, user),
            item=np.arange(1, count + 1),
            time_us=np.full(count, moment),
            label=np.zeros(count, np.float32),
            value=np.zeros(count, np.float32),
            context=encoder.codes(encoder.context_fields, None, count),
            weight=np.ones(count, np.float32),
            offset=np.zeros(count, np.float32),
        )
        with torch.inference_mode():
            offline = ranker.probability(workspace.batch_builder(encoder, ["live"]).batch(asked, slot)).numpy()
        user_id = market.data("live").user_vocabulary.name(int(user))
        online = scorer.score(
            serving.snapshot.domains["live"],
            [Candidate(item_id=item) for item in items],
            user=market.read(user_id),
            now_us=moment,
        )
        assert online.served_by == level
        np.testing.assert_allclose(online.score, offline, rtol=1e-5)


def test_a_source_domain_answers_from_the_shared_model(shared_market, shared_client):
    """Its slot is part of the backbone, so the backbone is its version."""
    body = ask(shared_client, shared_market.user(), shared_market.items("video"), domain="video").json()
    assert body["served_by"] == "adapter"
    assert body["model_version"] == shared_market.registry.live(None).version_id


def test_every_domain_is_listed_with_its_fallback_level(shared_market, shared_client):
    """What answers, from which version, and how this process is."""
    body = shared_client.get("/v1/domains").json()
    listed = {domain["name"]: domain for domain in body["domains"]}
    assert set(listed) == {domain.name for domain in shared_market.registry.domains()}
    assert listed["live"]["served_by"] == "zero_shot"
    assert body["features"] == "up"
    assert body["lost_records"] == 0
    assert body["generation"] == shared_market.registry.generation()


def test_every_answer_is_what_the_schema_declares(shared_market, shared_client):
    """At every fallback level, with and without reasons, and errors too; and what it declares is sent."""
    user, items = shared_market.user(), shared_market.items("live", 3)
    rankings = [
        ask(shared_client, user, [*items, "never-seen", "never-seen"]),
        ask(shared_client, "a-stranger", items, request_id="of-the-schema"),
        ask(shared_client, user, shared_market.items("video", 3), domain="video", top_k=1),
    ]
    event = {"item_id": items[0]}
    others = [
        ask(shared_client, user, items, domain="nothing"),
        ask(shared_client, user, []),
        shared_client.get("/v1/domains"),
        shared_client.post("/v1/feedback", json={"request_id": "of-the-schema", "events": [event]}),
        shared_client.post("/v1/feedback", json={"request_id": "of-the-schema", "domain": "nothing"}),
    ]
    for answer in rankings + others:
        CONTRACT(answer)
    bodies = [answer.json() for answer in rankings]
    assert {body["served_by"] for body in bodies} == set(FALLBACK_LEVELS)
    sent = {"RankAnswer": bodies, "RankedItem": [item for body in bodies for item in body["items"]]}
    for name, values in sent.items():
        schema = CONTRACT.declared["components"]["schemas"][name]
        assert schema["additionalProperties"] is False
        assert {field for value in values for field in value} == set(schema["properties"])


# Fallback levels


def test_an_unknown_user_gets_the_popular_items(shared_market, shared_client):
    """Served by the prior, with the reason on the answer and on every item."""
    items = shared_market.items("live")
    body = ask(shared_client, "nobody-we-know", items).json()
    assert (body["served_by"], body["model_version"], body["reason"]) == ("prior", None, "user_unknown")
    popular = {row["item_id"]: row["score"] for row in shared_market.data("live").popularity().to_pylist()}
    assert [item["item_id"] for item in body["items"]] == sorted(items, key=lambda item: -popular[item])
    assert {item["reason"] for item in body["items"]} == {"user_unknown"}


def test_an_unknown_item_is_scored_and_says_so(shared_market, shared_client):
    """The others are not touched by it."""
    body = ask(shared_client, shared_market.user(), [*shared_market.items("live", 3), "never-seen"]).json()
    reasons = {item["item_id"]: item.get("reason") for item in body["items"]}
    assert reasons.pop("never-seen") == "item_unknown"
    assert set(reasons.values()) == {None}
    assert body["served_by"] == "zero_shot"


def test_a_new_domain_answers_as_soon_as_it_is_registered(market, client):
    """Without a version and even without data, by the prior; before that it is unknown."""
    spec = market.registry.domain("live").spec.model_copy(update={"name": "brand-new"})
    assert_is_error(ask(client, "u", ["i"], domain="brand-new"), 404, "unknown_domain")
    market.registry.register_domain(spec, by="tests")
    eventually(lambda: ask(client, "u", ["i"], domain="brand-new").status_code == 200)
    body = ask(client, "u", ["i"], domain="brand-new").json()
    assert (body["served_by"], body["reason"], body["items"][0]["reason"]) == ("prior", "no_version", "item_unknown")


def test_a_feature_store_that_is_gone_costs_the_level_and_not_the_answer(market, client):
    """The prior while it is away, the model again once it is back."""
    user, items = market.user(), market.items("live")
    assert ask(client, user, items).json()["served_by"] == "zero_shot"
    file = market.settings.features_dir / "online.db"
    away = file.with_name("away")
    file.rename(away)
    body = ask(client, user, items).json()
    assert (body["served_by"], body["reason"]) == ("prior", "features_unavailable")
    assert client.get("/v1/domains").json()["features"] != "up"
    away.rename(file)
    eventually(lambda: ask(client, user, items).json()["served_by"] == "zero_shot")
    assert client.get("/v1/domains").json()["features"] == "up"


def test_a_paused_domain_answers_by_popularity(market, serving, client):
    """Pausing is a switch that a team can throw without a promotion."""
    market.set_live("live", market.versions()["adapter"])
    market.registry.move("live", State.LIVE, by="tests")
    market.registry.move("live", State.PAUSED, by="tests")
    eventually(lambda: serving.snapshot.domains["live"].paused)
    assert ask(client, market.user(), market.items("live")).json()["reason"] == "paused"


def test_a_registry_that_is_gone_stops_nothing(market, registry, serving, client, monkeypatch):
    """Answers go on from what is loaded; records that cannot be kept are counted."""

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the database does not answer")

    for verb in ("generation", "lives", "domains", "log_predictions"):
        monkeypatch.setattr(registry, verb, gone)
    for _ in range(5):
        assert ask(client, market.user(), market.items("live")).json()["served_by"] == "zero_shot"
    eventually(lambda: serving.lost_records > 0)
    assert ask(client, market.user(), market.items("live")).json()["served_by"] == "zero_shot"
    body = client.get("/v1/domains").json()
    assert "does not answer" in body["registry"]
    assert body["domains"]
    assert not serving.ready
    monkeypatch.undo()
    eventually(lambda: serving.ready)
    assert client.get("/v1/domains").json()["registry"] == "up"


def test_a_process_that_never_read_its_registry_is_not_ready_and_knows_no_domain(market):
    """It would answer 404 for every domain and, being ready, replace the processes that answer."""
    file = market.settings.home / "registry.db"
    away = file.rename(file.with_name("away.db"))
    with served(market, market.registry) as serving, client_of(serving) as client:
        assert not serving.ready
        answer = ask(client, "u", ["a"])
        assert_is_error(answer, 503, "registry_unread")
        assert answer.headers["retry-after"] == "1"
        away.rename(file)
        eventually(lambda: serving.ready)
        assert ask(client, market.user(), market.items("live")).json()["served_by"] == "zero_shot"


def test_a_registry_replaced_by_a_backup_is_read_anew(market, registry, serving, client, tmp_path):
    """Feedback after it is in the backup, and promotions are seen."""
    file = market.settings.home / "registry.db"
    with sqlite3.connect(file) as from_, sqlite3.connect(tmp_path / "backup.db") as to:
        from_.backup(to)
    (tmp_path / "backup.db").rename(file)
    event = {"item_id": market.items("live")[0], "action": "click"}
    for number in range(20):
        body = {"request_id": f"after-{number}", "user_id": market.user(), "domain": "live", "events": [event]}
        assert client.post("/v1/feedback", json=body).status_code == 200
    kept = {row["request_id"] for row in market.registry.feedback("live")}
    assert kept == {f"after-{number}" for number in range(20)}
    market.set_live("live", market.versions()["adapter"])
    eventually(lambda: ask(client, market.user(), market.items("live")).json()["served_by"] == "adapter")
    assert serving.ready


def test_a_database_that_is_away_is_503_and_says_when_to_come_back(market, registry, client, monkeypatch):
    """On every path that asks it, without a traceback for each request."""

    def gone(*_: object, **__: object) -> None:
        raise OperationalError("SELECT 1", None, Exception("a secret"))

    monkeypatch.setattr(type(registry), "log_feedback", gone)
    body = {"request_id": "r", "user_id": market.user(), "domain": "live"}
    answer = client.post("/v1/feedback", json=body | {"events": [{"item_id": market.items("live")[0]}]})
    assert_is_error(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in answer.text
