"""Who is let in: no key, the right one, another's, a revoked one, and too many requests."""

from __future__ import annotations

import time

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from deployment.http import keys as http_keys
from deployment.http.keys import KEY, Keys, RequireKey
from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator.credentials import kept_secret
from orchestrator.settings import Settings

RANK = "/v1/domains/live/rank"


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A service on loopback."""
    return Settings(home=tmp_path)


@pytest.fixture
def registry(settings) -> Registry:
    """With two domains and no key."""
    registry = Registry(settings.registry_url)
    registry.migrate()
    for name in ("live", "shop"):
        registry.register_domain(
            DomainSpec.from_mapping(
                {
                    "name": name,
                    "role": "source",
                    "task": "ctr",
                    "owner": "t",
                    "interactions": {"user": "u", "item": "i", "time": "t", "label": "y"},
                }
            ),
            by="t",
        )
    return registry


@pytest.fixture
def client(settings, registry):
    """An app that answers everything with 200, behind the keys."""
    keys = Keys(settings, registry)
    keys.start()
    with _near(RequireKey(_app(), lambda: keys)) as client:
        yield client
    keys.close()


def _near(app: RequireKey, *, address: str = "127.0.0.1", host: str = "127.0.0.1:3000") -> TestClient:
    """Somebody who asks, by default from this machine."""
    return TestClient(app, base_url=f"http://{host}", client=(address, 50000))


def _app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def anything(request: Request) -> str:
        key = request.scope.get(KEY)
        return key.name if key else ""

    return app


def bearer(token: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {token}"}


def soon(status: int, ask) -> float:
    """Seconds until a request is answered with a status."""
    started = time.monotonic()
    while ask().status_code != status:
        assert time.monotonic() - started < 3
        time.sleep(0.01)
    return time.monotonic() - started


def test_without_any_key_loopback_answers_and_with_one_everybody_needs_one(client, registry):
    """The first try needs none; probes never do; /metrics needs an admin's."""
    assert client.post(RANK).status_code == 200
    _, token = registry.add_key("page", verbs=["rank"], by="t")
    soon(401, lambda: client.post(RANK))
    refused = client.post(RANK)
    assert refused.json()["error"]["code"] == "unauthorised"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert client.post(RANK, headers=bearer(token)).json() == "page"
    for wrong in ("Bearer x", f"Basic {token}", token, "Bearer", f"Bearer {token}x", "Bearer \xff"):
        assert client.post(RANK, headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer(token)).status_code == 403
    _, admin = registry.add_key("ops", verbs=["admin"], by="t")
    soon(200, lambda: client.get("/metrics", headers=bearer(admin)))


def test_a_key_counts_for_its_verbs_and_domains_alone(client, registry):
    """403 names what it lacks."""
    _, token = registry.add_key("page", domains=["live"], verbs=["rank"], by="t")
    soon(401, lambda: client.post(RANK))
    assert client.post(RANK, headers=bearer(token)).status_code == 200
    refused = client.post("/v1/domains/shop/rank", headers=bearer(token))
    assert refused.status_code == 403
    assert "shop" in refused.json()["error"]["message"]
    assert client.post("/v1/feedback", headers=bearer(token)).status_code == 403
    assert client.get("/v1/domains", headers=bearer(token)).status_code == 403


def test_a_revoked_and_a_rotated_key_end_within_a_second_everywhere(client, settings, registry):
    """In a second worker too, which reads for itself."""
    _, token = registry.add_key("page", by="t")
    soon(401, lambda: client.post(RANK))
    other = Keys(settings, Registry(settings.registry_url))
    other.start()
    with _near(RequireKey(_app(), lambda: other)) as second:
        assert second.post(RANK, headers=bearer(token)).status_code == 200
        _, new = registry.rotate_key("page", by="t")
        assert soon(401, lambda: client.post(RANK, headers=bearer(token))) < 1
        assert client.post(RANK, headers=bearer(new)).status_code == 200
        registry.revoke_key("page", by="t")
        assert soon(401, lambda: second.post(RANK, headers=bearer(new))) < 1
        assert soon(401, lambda: client.post(RANK, headers=bearer(new))) < 1
        # A registry whose only key is revoked does not fall back to answering everybody.
        assert client.post(RANK).status_code == 401
    other.close()


def test_over_its_quota_a_key_waits(client, registry):
    """429 with the seconds; another key is not touched, and what is refused costs nothing."""
    _, token = registry.add_key("slow", per_minute=3, by="t")
    _, free = registry.add_key("free", by="t")
    soon(401, lambda: client.post(RANK))
    answers = [client.post(RANK, headers=bearer(token)) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
    assert client.post(RANK, headers=bearer(free)).status_code == 200


def test_a_registry_that_is_away_changes_nothing_and_lets_nobody_in_at_the_start(settings, registry, monkeypatch):
    """What was known stays; before the first read only probes are answered."""
    _, token = registry.add_key("page", by="t")
    keys = Keys(settings, registry)
    with _near(RequireKey(_app(), lambda: keys)) as client:
        assert client.post(RANK, headers=bearer(token)).status_code == 503
        keys.look()
        monkeypatch.setattr(registry, "api_keys", lambda: 1 / 0)
        keys.look()
        assert client.post(RANK, headers=bearer(token)).status_code == 200
        assert client.post(RANK).status_code == 401


def test_wider_than_loopback_a_key_is_needed_even_where_there_is_none(settings, registry):
    """An empty registry is no open door; the stack's own key counts everywhere."""
    own = kept_secret(settings.service_key_file)
    keys = Keys(settings.model_copy(update={"bind_host": "0.0.0.0"}), registry)
    keys.look()
    with _near(RequireKey(_app(), lambda: keys)) as client:
        assert client.post(RANK).status_code == 401
        assert client.post(RANK, headers=settings.service_headers).status_code == 200
        assert settings.service_headers == bearer(own)
    assert http_keys.SEEN_EVERY_S < 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "graft.example", "127.evil.example"])
def test_an_interface_that_others_reach_asks_everybody(settings, registry, host):
    """Whatever it is called, with no key at all."""
    keys = Keys(settings.model_copy(update={"bind_host": host}), registry)
    keys.look()
    with _near(RequireKey(_app(), lambda: keys)) as client:
        assert client.post(RANK).status_code == 401


def test_whoever_comes_from_elsewhere_is_asked_whatever_the_settings_say(settings, registry):
    """By hand the service binds to every interface; a proxy passes requests on; a page may point its own name here."""
    keys = Keys(settings, registry)
    keys.look()
    app = RequireKey(_app(), lambda: keys)
    for address in ("10.0.0.7", "2001:db8::1", "::ffff:10.0.0.7"):
        assert _near(app, address=address).post(RANK).status_code == 401
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert _near(app).post(RANK, headers={header: "127.0.0.1"}).status_code == 401
    for name in ("evil.example", "127.0.0.1.evil.example:3000"):
        assert _near(app, host=name).post(RANK).status_code == 401
    for address, name in (("127.0.0.1", "localhost:3000"), ("::1", "[::1]:3000"), ("::ffff:127.0.0.1", "127.0.0.1")):
        assert _near(app, address=address, host=name).post(RANK).status_code == 200
    assert _near(app, address="10.0.0.7").get("/livez").status_code == 200
