"""The door of the pages: nothing behind it answers strangers, and no other site's page comes through."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from domains.registry.registry import Registry
from ui import door, session

PASSWORD = "correct horse battery"
HERE = ("127.0.0.1", 50000)
HTML = {"accept": "text/html"}


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("behind the door")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("behind the door")
    await socket.close()


@pytest.fixture
def app(settings) -> door.Door:
    """Streamlit's place is taken by an app that answers everything."""
    methods = ["GET", "POST", "PUT", "DELETE"]
    return door.Door(
        Starlette(routes=[WebSocketRoute("/{path:path}", _socket), Route("/{path:path}", _page, methods=methods)])
    )


def browser(app, *, client=HERE, host="127.0.0.1:8501") -> TestClient:
    return TestClient(app, base_url=f"http://{host}", client=client, follow_redirects=False)


@pytest.fixture
def ann(registry):
    return registry.add_user("ann", role="viewer", password=PASSWORD, by="root")


def sign_in(page: TestClient, name: str = "ann", password: str = PASSWORD, **headers: str):
    return page.post("/login", data={"name": name, "password": password}, headers=headers)


def refused_socket(page: TestClient, **headers: str) -> bool:
    try:
        with page.websocket_connect(f"ws://{page.base_url.netloc.decode()}/_stcore/stream", headers=headers) as socket:
            return socket.receive_text() != "behind the door"
    except WebSocketDisconnect:
        return True


def test_a_first_try_on_this_machine_needs_no_login(app, registry):
    """But it answers only as this machine, so that no foreign name can be pointed at it."""
    for host in ("127.0.0.1:8501", "localhost:8501", "[::1]:8501"):
        assert browser(app, host=host).get("/").text == "behind the door"
        assert not refused_socket(browser(app, host=host))
    for host in ("evil.example", "127.0.0.1.evil.example:8501", "evil.example:8501"):
        assert browser(app, host=host).get("/").status_code == 403
        assert refused_socket(browser(app, host=host))


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.2", "2001:db8::1"])
def test_from_another_machine_nobody_is_let_in_without_a_login(app, registry, address):
    """Whatever the settings say of the interface: by hand Streamlit binds to all of them."""
    page = browser(app, client=(address, 50000))
    assert page.get("/", headers=HTML).headers["location"] == "/login"
    assert page.get("/media/x").status_code == 401
    assert refused_socket(page)
    assert page.get("/_stcore/health").text == "behind the door"


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip"])
def test_what_a_proxy_passes_on_comes_from_elsewhere(app, registry, header):
    """Even if the proxy runs on this machine and the caller claims to be here."""
    assert browser(app).get("/", headers={header: "127.0.0.1"}).status_code == 401


def test_once_there_are_users_nothing_answers_strangers(app, ann):
    """No page, no upload, no download, no socket; the health alone."""
    page = browser(app)
    assert page.get("/", headers=HTML).headers["location"] == "/login"
    for path in ("/", "/domain?name=live", "/_stcore/host-config", "/media/abc", "/static/index.js", "//", "/login/x"):
        assert page.get(path).status_code == 401, path
    for method in ("POST", "PUT", "DELETE"):
        assert page.request(method, "/_stcore/upload_file/1/2").status_code in (401, 403)
    assert refused_socket(page)
    assert page.get("/_stcore/health").status_code == 200


def test_signing_in_opens_it_and_signing_out_closes_it(app, ann, registry):
    """The cookie is out of reach of scripts and of other sites; a removed user's counts no more."""
    page = browser(app)
    answer = sign_in(page)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert page.get("/").text == "behind the door"
    assert not refused_socket(page)
    session.logins().sign_out(session.logins().by_session(page.cookies[session.cookie_name()]))
    assert page.get("/").status_code == 401
    sign_in(page)
    assert page.get("/").status_code == 200
    registry.remove_user("ann", by="root")
    assert page.get("/").status_code == 401
    assert refused_socket(page)


def test_over_tls_the_cookie_stays_on_tls(app, ann):
    """As a proxy that ends TLS says."""
    page = TestClient(app, base_url="https://graft.example", client=("10.0.0.7", 1), follow_redirects=False)
    assert "secure" in sign_in(page).headers["set-cookie"].lower()


def test_a_wrong_password_is_said_and_damped(app, ann):
    """In the same words whether the name exists; what was typed comes back as text, never as HTML."""
    page = browser(app)
    wrong = sign_in(page, password="wrong password")
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    assert sign_in(browser(app), name="<script>alert(1)</script>", password="x").text.count("<script") == 0
    for _ in range(3):
        damped = sign_in(page, password="wrong password")
    assert damped.status_code == 429
    assert int(damped.headers["retry-after"]) >= 1
    assert page.get("/").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_sites_page_reaches_nothing(app, registry, headers):
    """With or without users: it may neither post, nor upload, nor open a socket, nor sign somebody in."""
    page = browser(app)
    assert page.post("/", headers=headers).status_code == 403
    assert page.put("/_stcore/upload_file/1/2", headers=headers).status_code == 403
    assert refused_socket(page, **headers)
    registry.add_user("ann", role="viewer", password=PASSWORD, by="root")
    assert sign_in(page, **headers).status_code == 403
    assert sign_in(page, origin="http://127.0.0.1:8501").status_code == 303
    assert page.put("/_stcore/upload_file/1/2", headers=headers).status_code == 403
    assert refused_socket(page, **headers)


def test_only_those_who_may_change_something_send_files(app, ann, monkeypatch):
    """A viewer fills no memory."""
    page = browser(app)
    sign_in(page)
    assert page.put("/_stcore/upload_file/session-1/f").status_code == 403
    monkeypatch.setattr(session, "may_upload", lambda session_id: session_id == "session-1")
    assert page.put("/_stcore/upload_file/session-1/f").status_code == 200
    assert page.put("/_stcore/upload_file/session-2/f").status_code == 403


def test_large_and_odd_forms_are_refused(app, ann):
    """Before they are read."""
    page = browser(app)
    assert page.post("/login", content=b"x" * 20_000).status_code == 413
    assert page.post("/login", content=iter([b"name=ann"])).status_code == 413
    assert page.post("/login", content=b"\xff\xfe=\xff", headers=_FORM).status_code in (400, 401)
    assert page.post("/login", json={"name": "ann", "password": PASSWORD}).status_code == 401
    assert page.get("/").status_code == 401


def test_a_registry_that_does_not_answer_lets_nobody_in(app, ann, monkeypatch):
    """Neither somebody who has signed in."""
    page = browser(app)
    sign_in(page)
    away = OperationalError("SELECT", None, Exception("away"))
    monkeypatch.setattr(Registry, "users", lambda self: (_ for _ in ()).throw(away))
    assert page.get("/").status_code == 503
    assert refused_socket(page)


def test_every_answer_says_how_it_may_be_used(app, registry):
    """No other site frames it."""
    answer = browser(app).get("/")
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


_FORM = {"content-type": "application/x-www-form-urlencoded"}
