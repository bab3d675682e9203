"""Strangers at every door: Prefect's API, the service, the pages, and interfaces that others reach."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from streamlit.testing.v1 import AppTest

import ui
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack, wait_for
from domains.errors import RoleRefused
from domains.registry.registry import Registry
from orchestrator.acting import Acting, Actor
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import doors, plan
from orchestrator.settings import Settings
from ui import session

EVIL = "https://evil.example"
PASSWORD = "a password of the rehearsal"
REVOKED_WITHIN_S = 1.0
WORKERS = 2

Checks = dict[str, bool]
"""By what was tried: whether it was refused."""


def strangers(stack: Stack, _seconds: float) -> Measured:
    """Try every door, count those that opened, and look for the lines of the audit log."""
    checks: Checks = {}
    checks |= _interfaces(stack.settings)
    checks |= _prefect(stack.settings)
    checks |= _other_sites(stack.settings)
    checks |= _feedback(stack)
    checks |= _path_of_the_server(stack)
    checks |= _roles(stack)
    took_s = _keys(stack, checks)
    checks |= _logins(stack.settings, stack.registry)
    noted = {entry["what"] for entry in stack.registry.audit(limit=None)}
    missing = {"refuse_path", "refuse_role", "refuse_login", "add_key", "revoke_key", "add_user", "remove_user"} - noted
    opened = sorted(name for name, refused in checks.items() if not refused)
    return Measured(
        f"{len(checks) - len(opened)} of {len(checks)} tries refused{''.join(f'; OPEN: {name}' for name in opened)}; "
        f"a revoked key was out of {WORKERS} workers after {took_s:.2f} s; {len(missing)} audit lines missing",
        not opened and not missing and took_s < REVOKED_WITHIN_S,
        {"opened": opened, "missing": sorted(missing), "revoked_after_s": took_s},
    )


def _interfaces(settings: Settings) -> Checks:
    """While there is neither a key nor a user."""

    def refused(host: str) -> bool:
        try:
            doors.refuse_open_doors(settings.model_copy(update={"bind_host": host}), ui=True)
        except ServersUnavailable:
            return True
        return False

    hosts = ("0.0.0.0", "::", "10.1.2.3", "graft.example", "127.evil.example")
    return {f"servers on {host}": refused(host) for host in hosts}


def _prefect(settings: Settings) -> Checks:
    """Runs without the secret, with another, and with a command of one's own; another site's page."""
    user, _, password = settings.prefect_credentials.partition(":")
    with httpx.Client(base_url=settings.prefect_url, timeout=20) as prefect:

        def ask(method: str, path: str, **options: Any) -> httpx.Response:
            return prefect.request(method, path, **options)

        own = {"auth": (user, password)}
        deployment = ask("GET", "/deployments/name/train-shared/train-shared", **own).json()["id"]
        start = f"/deployments/{deployment}/create_flow_run"
        commands = {
            f"Prefect: job variable {name}": ask("POST", start, json={"job_variables": {name: value}}, **own)
            for name, value in (("command", "touch /tmp/x"), ("env", {"A": "b"}), ("working_dir", "/"))
        }
        asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        return {
            "Prefect: no secret": ask("POST", start, json={}).status_code == 401,
            "Prefect: wrong secret": ask("POST", start, json={}, auth=("graft", "x")).status_code == 401,
            **{name: answer.status_code == 422 for name, answer in commands.items()},
            "Prefect: another site": "access-control-allow-origin" not in ask("OPTIONS", start, headers=asked).headers,
        }


def _other_sites(settings: Settings) -> Checks:
    """What a page of another site can make a browser send, and a name of its own that it points at this machine."""
    socket_asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    socket_asked |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    body = {"user_id": "u", "items": [{"item_id": "i"}]}
    rank = f"{settings.service_url}/v1/domains/{TARGET}/rank"
    with httpx.Client(timeout=20) as browser:
        stream = f"{settings.ui_url}/_stcore/stream"
        answers = {
            "pages: socket": browser.get(stream, headers={**socket_asked, "Origin": EVIL}),
            "pages: socket of another port": browser.get(
                stream, headers={**socket_asked, "Origin": "http://127.0.0.1:1"}
            ),
            "pages: post": browser.post(settings.ui_url, headers={"Origin": EVIL}),
            "pages: upload": browser.put(f"{settings.ui_url}/_stcore/upload_file/a/b", headers={"Origin": EVIL}),
            "pages: another name": browser.get(settings.ui_url, headers={"Host": "evil.example"}),
            "service: another name": browser.post(rank, json=body, headers={"Host": "evil.example"}),
            "service: form": browser.post(rank, content=b'{"user_id": "u"}', headers={"Content-Type": "text/plain"}),
        }
        asked = {"Origin": EVIL, "Access-Control-Request-Method": "POST"}
        allowed = browser.options(rank, headers=asked).headers
        paths = ("/..%2f..%2f..%2fetc%2fpasswd", "/media/..%2f..%2fetc/passwd", "/static/../../../etc/passwd")
        read = {f"pages: {path}": "root:" not in browser.get(f"{settings.ui_url}{path}").text for path in paths}
    refused = {f"another site, {name}": answer.status_code in (401, 403, 415) for name, answer in answers.items()}
    return refused | {"another site, service: CORS": "access-control-allow-origin" not in allowed} | read


def _feedback(stack: Stack) -> Checks:
    """Events of one's own in the name of whoever was ranked for."""
    users, items = stack.people()
    request_id = uuid.uuid4().hex
    with httpx.Client(base_url=stack.url, timeout=20) as client:
        body = {"user_id": users[0], "items": [{"item_id": items[0]}], "request_id": request_id}
        client.post(f"/v1/domains/{TARGET}/rank", json=body).raise_for_status()
        event = {"item_id": items[0], "time_us": time.time_ns() // 1000}
        told = {"request_id": request_id, "domain": TARGET, "events": [event]}

        def tell(**changed: Any) -> int:
            return client.post("/v1/feedback", json={**told, "user_id": users[0], **changed}).status_code

        return {
            "feedback: another user's request": tell(user_id=users[1]) == 409,
            "feedback: another domain's request": tell(domain="video") in (409, 422),
            "feedback: unknown request, no user": tell(request_id=uuid.uuid4().hex, user_id=None) == 422,
            "feedback: unknown item": tell(events=[{**event, "item_id": "no such item"}]) == 422,
        }


def _path_of_the_server(stack: Stack) -> Checks:
    """A file outside the folder that the pages may read, named on the page that takes files."""
    folder = stack.folder / "imports"
    folder.mkdir(exist_ok=True)
    (folder / "link.csv").symlink_to("/etc/passwd")
    environment = {**stack.settings.as_environment(), "GRAFT_IMPORT_DIR": str(folder)}
    refused = {}
    with patch.dict(os.environ, environment), patch.object(session, "visitor", lambda: (None, None)):
        for path in ("/etc/passwd", "../home/registry.db", "link.csv"):
            page = AppTest.from_file(str(Path(str(ui.__file__)).with_name("app.py")), default_timeout=60).run()
            page.switch_page("views/register.py").run()
            page.segmented_control(key="register-where").set_value("On this server").run()
            page.text_input(key="register-path-Interactions").input(path).run()
            said = " ".join(error.value for error in page.error)
            refused[f"pages: read {path}"] = "are read from" in said and "root:" not in said
    return refused


def _roles(stack: Stack) -> Checks:
    """What a viewer and another domain's owner try."""

    def refused(actor: Actor) -> bool:
        acting = Acting(actor, registry=stack.registry, settings=stack.settings)
        try:
            acting.pause(TARGET, why="a rehearsal")
        except RoleRefused:
            return True
        return False

    people = (Actor("vera", "viewer", (TARGET,)), Actor("olaf", "owner", ("elsewhere",)))
    return {f"pages: pause as {actor.role} {actor.name}": refused(actor) for actor in people}


def _keys(stack: Stack, checks: Checks) -> float:
    """Keys that do not count here, and one that counts no more; seconds until every worker has noticed."""
    registry, users, items = stack.registry, *stack.people()
    body = {"user_id": users[0], "items": [{"item_id": items[0]}]}
    with _service(stack) as url:

        def rank(token: str | None, domain: str = TARGET) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return httpx.post(f"{url}/v1/domains/{domain}/rank", json=body, headers=headers, timeout=20).status_code

        _, token = registry.add_key("rehearsal", domains=[TARGET], verbs=["rank"], by="chaos")
        _, few = registry.add_key("few", verbs=["rank"], per_minute=WORKERS, by="chaos")
        wait_for(lambda: rank(None) == 401 and rank(token) == 200, 10, "key that counts")
        bearer = {"Authorization": f"Bearer {token}"}
        told = httpx.post(f"{url}/v1/feedback", json={}, headers=bearer, timeout=20)
        checks |= {
            "keys: none": rank(None) == 401,
            "keys: unknown": rank("graft_guessed") == 401,
            "keys: another domain": rank(token, "video") == 403,
            "keys: another verb": told.status_code == 403,
            "keys: metrics": httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}).status_code
            == 403,
            "keys: quota": 429 in [rank(few) for _ in range(4 * WORKERS)],
        }
        registry.revoke_key("rehearsal", by="chaos", why="a rehearsal")
        began = last = time.monotonic()
        # A new connection each time: the workers take turns.
        while time.monotonic() - began < 4 * REVOKED_WITHIN_S:
            if rank(token) == 200:
                last = time.monotonic()
        checks["keys: revoked"] = rank(token) == 401
    return last - began


@contextlib.contextmanager
def _service(stack: Stack) -> Iterator[str]:
    """A prediction service of several workers beside the stack's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = stack.settings.model_copy(update={"service_port": port, "service_workers": WORKERS})
    server = plan.service(settings)
    log = (stack.folder / "doors-service.log").open("wb")
    with log, subprocess.Popen(server.command, env=plan.environment(settings), stdout=log, stderr=log) as process:
        try:
            wait_for(server.healthy, 300, "service of several workers")
            yield settings.service_url
        finally:
            process.terminate()
            process.wait(60)


def _logins(settings: Settings, registry: Registry) -> Checks:
    """The pages once there is a user: without a session, with a forged one, with guesses, and after a removal."""
    registry.add_user("vera", role="viewer", password=PASSWORD, by="chaos")
    registry.add_user("olaf", role="owner", password=PASSWORD, by="chaos")
    url = settings.ui_url
    with httpx.Client(base_url=url, timeout=30) as browser:

        def sign_in(name: str, password: str) -> httpx.Response:
            return browser.post("/login", data={"name": name, "password": password})

        checks = {
            f"pages: {path} without a session": browser.get(path).status_code in (303, 401)
            for path in ("/", "/domain", "/access", "/media/a", "/_stcore/host-config")
        }
        guesses = [sign_in("olaf", f"guess {number}").status_code for number in range(5)]
        checks["pages: guesses"] = set(guesses) == {401, 429}
        checks["pages: the right password after guesses"] = sign_in("olaf", PASSWORD).status_code == 429
        signed_in = sign_in("vera", PASSWORD).status_code == 303 and browser.get("/").status_code == 200
        name, cookie = next(iter(browser.cookies.items()))
        for at in (3, len(cookie) // 2, len(cookie) - 3):
            forged = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
            checks[f"pages: session changed at {at}"] = httpx.get(url, cookies={name: forged}).status_code == 401
        checks["pages: upload by a viewer"] = browser.put("/_stcore/upload_file/a/b").status_code == 403
        registry.remove_user("vera", by="chaos")
        checks["pages: session of a removed user"] = signed_in and browser.get("/").status_code == 401
    return checks


ROWS = (
    Row(
        "doors",
        f"every door refuses strangers, with audit lines; a revoked key is out in < {REVOKED_WITHIN_S:.0f} s",
        0,
        strangers,
    ),
)
