"""The prediction service over a trained marketplace: in this process, and as real servers on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
from fastapi.testclient import TestClient

from deployment.engine import scorer
from deployment.engine.serving import Serving
from deployment.http.api import create_app
from deployment.messages import Candidate
from domains.events.domain_data import DomainData
from domains.lifecycle import State
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from models.ranker import adapters, checkpoint
from orchestrator import use_cases
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.settings import Settings

LEFT_OUT = "reading"
"""A target that is registered and has data, and that no training has seen."""


@dataclass
class Market:
    """One home folder with a trained marketplace."""

    settings: Settings

    @property
    def registry(self) -> Registry:
        return Registry(self.settings.registry_url)

    def data(self, name: str) -> DomainData:
        return DomainData(self.settings.data_dir, name)

    def items(self, name: str, most: int = 20) -> list[str]:
        return self.data(name).item_vocabulary.names().to_pylist()[:most]

    def user(self) -> str:
        return self.data("live").interactions()["user_id"][0].as_py()

    def flip(self, name: str, version_id: str) -> None:
        live = self.registry.live(name)
        expect = live.version_id if live else None
        self.registry.promote(name, version_id, expect=expect, who="tests", why="a flip")

    def versions(self, name: str = "live") -> dict[str, str]:
        return {version.level: version.id for version in self.registry.versions(name, "adapter")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """A tiny marketplace after one epoch; `live` has a zero-shot and a fine-tuned version, the former answers."""
    home = tmp_path_factory.mktemp("market")
    market = Market(Settings(home=home))
    registry = market.registry
    registry.migrate()
    for domain in simulate(SimulatorConfig(size="tiny"), home / "simulated"):
        use_cases.register(domain.spec, registry=registry, by="tests")
        use_cases.ingest_data(
            domain.spec.name,
            interactions=[domain.interactions],
            items=domain.items,
            users=domain.users,
            registry=registry,
            settings=market.settings,
            by="tests",
        )
    common = {"registry": registry, "settings": market.settings, "by": "tests"}
    use_cases.train_shared(**common, epochs=1, leave_out=("live", LEFT_OUT))
    use_cases.launch("live", **common, fine_tune_epochs=1)
    return market


@pytest.fixture
def market(trained: Market, tmp_path: Path) -> Market:
    """A copy that a test may harm."""
    home = tmp_path / "home"
    shutil.copytree(trained.settings.home, home)
    return Market(Settings(home=home))


@pytest.fixture
def serving(market: Market) -> Iterator[Serving]:
    started = Serving(market.settings, watch_every_s=0.05)
    started.start()
    yield started
    started.close()


@pytest.fixture
def client(serving: Serving) -> Iterator[TestClient]:
    with TestClient(create_app(lambda: serving), raise_server_exceptions=False) as made:
        yield made


def ask(client: httpx.Client, user: str, items: list[str], domain: str = "live", **more: object) -> httpx.Response:
    body = {"user_id": user, "items": [{"item_id": item} for item in items], **more}
    return client.post(f"/v1/domains/{domain}/rank", json=body)


def eventually(what: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def with_one_bit_turned(good: bytes) -> bytes:
    return good[:-1] + bytes([good[-1] ^ 1])


def assert_is_error(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error) <= {"code", "message", "field", "details"}
    return error


# What an answer is


def test_a_ranking_names_what_it_rests_on(market, client):
    """Sorted scores between 0 and 1, the version, the level, the time, and the request's own id."""
    body = ask(client, market.user(), market.items("live"), request_id="mine", top_k=5).json()
    assert body["request_id"] == "mine"
    assert body["domain"] == "live"
    assert body["served_by"] == "zero_shot"
    assert body["model_version"] == market.versions()["zero_shot"]
    assert body["took_ms"] > 0
    scores = [item["score"] for item in body["items"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all("reason" not in item for item in body["items"])


@pytest.mark.parametrize("level", ["zero_shot", "adapter"])
def test_scores_served_are_those_that_evaluation_computes(market, serving, level):
    """The same user, items and moment through Feast and the service, and through training's own batches: equal."""
    market.flip("live", market.versions()[level])
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
            user=serving._online.read_user(user_id, "live"),
            now_us=moment,
        )
        assert online.served_by == level
        np.testing.assert_allclose(online.score, offline, rtol=1e-5)


def test_a_source_domain_answers_from_the_shared_model(market, client):
    """Its slot is part of the backbone, so the backbone is its version."""
    body = ask(client, market.user(), market.items("video"), domain="video").json()
    assert body["served_by"] == "adapter"
    assert body["model_version"] == market.registry.live(None).version_id


def test_every_domain_is_listed_with_its_rung(market, client):
    """What answers, from which version, and how this process is."""
    body = client.get("/v1/domains").json()
    listed = {domain["name"]: domain for domain in body["domains"]}
    assert set(listed) == {domain.name for domain in market.registry.domains()}
    assert listed["live"]["served_by"] == "zero_shot"
    assert body["features"] == "up"
    assert body["lost_records"] == 0
    assert body["generation"] == market.registry.generation()


# Lower levels


def test_an_unknown_user_gets_the_popular_items(market, client):
    """Served by the prior, with the reason on the answer and on every item."""
    items = market.items("live")
    body = ask(client, "nobody-we-know", items).json()
    assert (body["served_by"], body["model_version"], body["reason"]) == ("prior", None, "user_unknown")
    popular = {row["item_id"]: row["score"] for row in market.data("live").popularity().to_pylist()}
    assert [item["item_id"] for item in body["items"]] == sorted(items, key=lambda item: -popular[item])
    assert {item["reason"] for item in body["items"]} == {"user_unknown"}


def test_an_unknown_item_is_scored_and_says_so(market, client):
    """The others are not touched by it."""
    body = ask(client, market.user(), [*market.items("live", 3), "never-seen"]).json()
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


def test_a_feature_store_that_is_gone_costs_the_rung_and_not_the_answer(market, client):
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
    market.flip("live", market.versions()["adapter"])
    market.registry.move("live", State.LIVE, by="tests")
    market.registry.move("live", State.PAUSED, by="tests")
    eventually(lambda: serving.snapshot.domains["live"].paused)
    assert ask(client, market.user(), market.items("live")).json()["reason"] == "paused"


def test_a_registry_that_is_gone_stops_nothing(market, serving, client, monkeypatch):
    """Answers go on from what is loaded; records that cannot be kept are counted."""

    def gone(*_: object, **__: object) -> None:
        raise ConnectionError("the database does not answer")

    for verb in ("generation", "lives", "domains", "log_predictions"):
        monkeypatch.setattr(serving._registry, verb, gone)
    for _ in range(5):
        assert ask(client, market.user(), market.items("live")).json()["served_by"] == "zero_shot"
    eventually(lambda: serving.lost_records > 0)
    assert ask(client, market.user(), market.items("live")).json()["served_by"] == "zero_shot"


# Versions


def test_a_promotion_is_picked_up_and_rolled_back_without_a_restart(market, serving, client):
    """The pointer in the registry is all that moves."""
    user, items = market.user(), market.items("live")
    adapter, zero_shot = market.versions()["adapter"], market.versions()["zero_shot"]
    market.flip("live", adapter)
    eventually(lambda: ask(client, user, items).json()["model_version"] == adapter)
    assert ask(client, user, items).json()["served_by"] == "adapter"
    market.registry.roll_back("live", who="tests", why="back")
    eventually(lambda: ask(client, user, items).json()["model_version"] == zero_shot)


@pytest.mark.parametrize("harm", ["bytes", "missing", "another domain's"])
def test_a_broken_version_keeps_the_one_before(market, serving, client, harm):
    """A tampered adapter does not load; what answered goes on, the status says why, repairing it is enough."""
    user, items = market.user(), market.items("live")
    adapter = market.versions()["adapter"]
    weights = Artifacts(market.settings.artifacts_dir).path(market.registry.version(adapter).artifact)
    file = weights / "model.safetensors"
    good = file.read_bytes()
    kept_config = (weights / "config.json").read_bytes()
    if harm == "bytes":
        file.write_bytes(with_one_bit_turned(good))
    elif harm == "missing":
        file.unlink()
    else:
        version = market.registry.live("grocery").version_id
        other = Artifacts(market.settings.artifacts_dir).path(market.registry.version(version).artifact)
        shutil.copy(other / "model.safetensors", file)
        shutil.copy(other / "config.json", weights / "config.json")
    market.flip("live", adapter)
    eventually(lambda: bool(serving.snapshot.faults))
    assert ask(client, user, items).json()["model_version"] == market.versions()["zero_shot"]
    [fault] = [domain["fault"] for domain in client.get("/v1/domains").json()["domains"] if domain["name"] == "live"]
    assert adapter[:12] in fault
    file.write_bytes(good)
    (weights / "config.json").write_bytes(kept_config)
    eventually(lambda: ask(client, user, items).json()["model_version"] == adapter)
    assert not serving.snapshot.faults


def test_a_swap_shares_what_did_not_change(market, serving):
    """One backbone in memory for all its domains, and no other domain is loaded anew by a promotion."""
    before = serving.snapshot.domains
    market.flip("live", market.versions()["adapter"])
    eventually(lambda: serving.snapshot.domains["live"].served_by == "adapter")
    after = serving.snapshot.domains
    assert after["grocery"].model is before["grocery"].model
    assert after["live"].model.ranker.head is after["grocery"].model.ranker.head
    assert len(before["live"].model.ranker.domains) == len(after["live"].model.ranker.domains)


# Bad requests


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
def test_a_wrong_request_names_the_field(client, change, field):
    """422 with the place in the body."""
    body = {"user_id": "u", "items": [{"item_id": "a"}], **change}
    error = assert_is_error(client.post("/v1/domains/live/rank", json=body), 422, "invalid_request")
    assert error["field"] == field
    assert error["details"]["problems"]


@pytest.mark.parametrize("body", [b"", b"{nope", b"[1, 2]", b"\xff\xfe", b"null"])
def test_a_body_that_is_no_json_object_says_so(client, body):
    """Also with the right content type."""
    answer = client.post("/v1/domains/live/rank", content=body, headers={"content-type": "application/json"})
    assert_is_error(answer, 422, "invalid_request")


def test_ids_may_be_numbers(market, client):
    """Callers hold ids as numbers; Graft knows them as text."""
    body = client.post("/v1/domains/live/rank", json={"user_id": 12, "items": [{"item_id": 7}]}).json()
    assert body["items"][0]["item_id"] == "7"


def test_a_body_too_large_is_refused_before_it_is_read(client):
    """By its declared length, and by what arrives where none is declared."""
    assert_is_error(client.post("/v1/domains/live/rank", content=b"x" * 5_000_000), 413, "too_large")
    chunks = (b"x" * 100_000 for _ in range(50))
    assert_is_error(client.post("/v1/domains/live/rank", content=chunks), 413, "too_large")


def test_paths_that_do_not_exist_have_the_same_error_shape(client):
    """Unknown path, unknown domain, wrong method."""
    assert_is_error(client.get("/v1/nothing"), 404, "not_found")
    assert_is_error(ask(client, "u", ["a"], domain="nothing"), 404, "unknown_domain")
    assert_is_error(client.get("/v1/domains/live/rank"), 404, "not_found")


def test_an_unexpected_fault_has_the_same_error_shape_and_tells_no_secrets(serving, client, monkeypatch):
    """500 once, in words for a caller; the log has the rest."""

    def broken() -> None:
        raise KeyError("a password")

    monkeypatch.setattr(serving, "status", broken)
    answer = client.get("/v1/domains")
    assert_is_error(answer, 500, "internal")
    assert "password" not in answer.text


def test_more_requests_than_may_wait_are_turned_away(market, serving, client):
    """503 with a hint when to come back, and no request is lost that was taken."""
    serving._waiting = 64
    answer = ask(client, market.user(), market.items("live"))
    assert_is_error(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    serving._waiting = 0
    assert ask(client, market.user(), market.items("live")).status_code == 200


def test_a_model_that_fails_on_a_request_answers_by_popularity(market, client, monkeypatch):
    """Whatever is wrong with a version, the page gets its items."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(scorer, "_batch_builder", broken)
    body = ask(client, market.user(), market.items("live")).json()
    assert (body["served_by"], body["reason"]) == ("prior", "model_fault")


# Feedback


def test_feedback_is_joined_counted_once_and_history_at_once(market, serving, client):
    """The next request of the same user sees what he just clicked; sending it again changes nothing."""
    user, [first, *_] = market.user(), market.items("live")
    answer = ask(client, user, market.items("live"), request_id="r-1").json()
    before = len(serving._online.read_user(user, "live").recent)
    body = {"request_id": "r-1", "events": [{"item_id": first, "action": "click", "value": 1}]}
    assert client.post("/v1/feedback", json=body).json() == {"request_id": "r-1", "accepted": 1, "duplicates": 0}
    eventually(lambda: len(serving._online.read_user(user, "live").recent) == before + 1)
    assert client.post("/v1/feedback", json=body).json()["duplicates"] == 1
    recent = serving._online.read_user(user, "live").recent
    assert len(recent) == before + 1
    assert recent.item[-1] == market.data("live").item_vocabulary.index([first])[0]
    eventually(lambda: bool(market.registry.feedback("live")) and market.registry.feedback("live")[0]["score"])
    [joined] = market.registry.feedback("live")
    assert (joined["user_id"], joined["item_id"], joined["served_by"]) == (user, first, "zero_shot")
    [position] = [at for at, item in enumerate(answer["items"]) if item["item_id"] == first]
    assert joined["position"] == position


def test_feedback_in_a_source_domain_is_source_history(market, serving, client):
    """What a user does in the main shop is lent to every target at once."""
    user = market.user()
    ask(client, user, market.items("video"), domain="video", request_id="r-2")
    before = serving._online.read_user(user, "live").history
    event = {"item_id": market.items("video")[2], "action": "click"}
    assert client.post("/v1/feedback", json={"request_id": "r-2", "events": [event]}).json()["accepted"] == 1
    eventually(lambda: len(serving._online.read_user(user, "live").history) == len(before) + 1)
    assert serving._online.read_user(user, "live").history.domain[-1] == market.registry.domain("video").number


def test_feedback_to_another_worker_reaches_the_history_too(market, serving, client):
    """The log says who asked, a moment after the other worker answered."""
    other = Serving(market.settings)
    other.start()
    user, [first, *_] = market.user(), market.items("live")
    with TestClient(create_app(lambda: other)) as elsewhere:
        ask(elsewhere, user, market.items("live"), request_id="r-9")
        before = len(serving._online.read_user(user, "live").recent)
        event = {"item_id": first, "action": "click"}
        assert client.post("/v1/feedback", json={"request_id": "r-9", "events": [event]}).json()["accepted"] == 1
        eventually(lambda: len(serving._online.read_user(user, "live").recent) == before + 1)
    other.close()


def test_histories_hold_only_the_sources_that_a_domain_borrows_from(market, serving):
    """As in training: the source whose labels lie is nobody's source here."""
    domain = serving.snapshot.domains["live"]
    spec = market.registry.domain("live").spec
    assert domain.borrows == {market.registry.domain(name).number for name in spec.sources}
    assert market.registry.domain("lies").number not in domain.borrows


def test_feedback_to_a_request_that_nobody_remembers_is_kept(market, client):
    """Its user and domain may come with it; a domain that does not exist is an error."""
    event = {"item_id": "i", "action": "click"}
    assert client.post("/v1/feedback", json={"request_id": "old", "events": [event]}).json()["accepted"] == 1
    wrong = client.post("/v1/feedback", json={"request_id": "older", "domain": "nothing", "events": [event]})
    assert_is_error(wrong, 404, "unknown_domain")
    error = assert_is_error(client.post("/v1/feedback", json={"request_id": "r"}), 422, "invalid_request")
    assert error["field"] == "events"


# Real servers


class Server:
    """The service as its own processes, on a free port of loopback."""

    def __init__(self, market: Market, workers: int = 1) -> None:
        from deployment.http.service import serve

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.settings = market.settings.model_copy(update={"service_port": port, "service_workers": workers})
        self.process = serve(self.settings)
        self.client = httpx.Client(base_url=self.settings.service_url, timeout=10)

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, "the service ended"
            try:
                return self.client.get("/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, timeout_s)

    def workers(self) -> list[psutil.Process]:
        """Processes that answer requests."""
        return [process for process in psutil.Process(self.process.pid).children(recursive=True) if _answers(process)]

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.wait()


def _answers(process: psutil.Process) -> bool:
    try:
        return "_bentoml_impl.worker.service" in " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return False


class Load:
    """Callers that ask without pause, each on a connection of its own, until told to stop."""

    def __init__(self, server: Server, user: str, items: list[str], callers: int = 4) -> None:
        self.answers: list[tuple[int, str | None]] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server.settings.service_url, user, items)) for _ in range(callers)
        ]

    def _ask(self, url: str, user: str, items: list[str]) -> None:
        client = httpx.Client(base_url=url, timeout=20)
        while not self._stop.is_set():
            try:
                answer = ask(client, user, items)
            except httpx.HTTPError as error:
                self.broken.append(repr(error))
                client.close()
                client = httpx.Client(base_url=url, timeout=20)
                continue
            self.answers.append((answer.status_code, answer.json().get("model_version")))
        client.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.servers
def test_the_real_service_serves_and_promotes_under_load_without_a_failed_request(market):
    """Health, metrics, OpenAPI and the contract over HTTP; then twelve flips, a broken one among them, under load."""
    server = Server(market)
    try:
        server.wait_until_ready()
        client = server.client
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/domains/{domain}/rank", "/v1/feedback", "/v1/domains"} <= set(paths)
        user, items = market.user(), market.items("live")
        answer = ask(client, user, items)
        assert answer.json()["served_by"] == "zero_shot"
        assert {"features", "model", "rank"} <= {
            part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")
        }
        assert_is_error(ask(client, user, items, domain="nothing"), 404, "unknown_domain")
        assert_is_error(client.post("/v1/domains/live/rank", json={"user_id": "u"}), 422, "invalid_request")
        assert 'graft_answers_total{domain="live"' in client.get("/metrics").text

        versions = market.versions()
        weights = (
            Artifacts(market.settings.artifacts_dir).path(market.registry.version(versions["adapter"]).artifact)
            / "model.safetensors"
        )
        good = weights.read_bytes()
        with Load(server, user, items) as load:
            for turn in range(12):
                wanted = versions["adapter" if turn % 2 == 0 else "zero_shot"]
                if turn == 6:
                    weights.write_bytes(with_one_bit_turned(good))
                market.flip("live", wanted)
                if turn == 6:
                    time.sleep(1.5)
                    assert ask(client, user, items).json()["model_version"] == versions["zero_shot"]
                    weights.write_bytes(good)
                eventually(lambda wanted=wanted: ask(client, user, items).json()["model_version"] == wanted)
        assert not load.broken
        assert {status for status, _ in load.answers} == {200}
        assert {version for _, version in load.answers} == set(versions.values())
        assert len(load.answers) > 100

        (market.settings.features_dir / "online.db").unlink()
        body = ask(client, user, items).json()
        assert (body["served_by"], body["reason"]) == ("prior", "features_unavailable")
    finally:
        server.stop()
    assert server.process.returncode == 0


@pytest.mark.servers
def test_killing_a_worker_costs_at_most_what_it_was_answering(market):
    """Of two workers one is killed under load: the other goes on, and a new one takes its place."""
    server = Server(market, workers=2)
    try:
        server.wait_until_ready()
        eventually(lambda: len(server.workers()) == 2, 60)
        user, items = market.user(), market.items("live")
        with Load(server, user, items, callers=4) as load:
            eventually(lambda: len(load.answers) > 50, 60)
            [killed, _] = server.workers()
            os.kill(killed.pid, signal.SIGKILL)
            at_kill = len(load.answers)
            eventually(lambda: len(load.answers) > at_kill + 50, 60)
            eventually(lambda: len(server.workers()) == 2 and killed.pid not in [w.pid for w in server.workers()], 60)
        assert {status for status, _ in load.answers} == {200}
        assert len(load.broken) <= 4
    finally:
        server.stop()
