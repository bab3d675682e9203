"""Roles on the pages: what each is shown, who acts, and what becomes of somebody who was removed meanwhile."""

import pytest

from tests.unit.ui.fake_browser import decide, open_page, press, said
from ui import session

PASSWORD = "correct horse battery"


@pytest.fixture
def sign_in(registry, monkeypatch):
    """Signs somebody in with a role; every page that is opened afterwards comes with their cookie."""

    def signed_in(role: str, *domains: str) -> None:
        registry.add_user("mia", role=role, password=PASSWORD, domains=domains, by="root")
        cookie = session.logins().sign_in("mia", PASSWORD)
        monkeypatch.setattr(session, "visitor", lambda: (cookie, None))

    return signed_in


def keys(app) -> set[str]:
    return {button.key for button in app.button}


@pytest.mark.slow
def test_a_viewer_is_shown_everything_and_offered_nothing(full, sign_in):
    """Neither on the domain's page nor on the list, nor to register."""
    sign_in("viewer")
    app = open_page("domain_page", name="live")
    assert not keys(app) & {"launch", "promote", "force", "roll-back", "pause", "retire", "preview", "save-spec"}
    assert not app.get("file_uploader")
    assert "team-live or an admin decides" in said(app)
    assert "no earlier" not in said(app)
    listed = open_page(None)
    assert "Register a domain" not in {button.label for button in listed.button}
    assert [button.disabled for button in listed.button if button.key == "train-shared"] == [True]
    assert "an owner or an admin registers" in said(open_page("register"))


@pytest.mark.slow
def test_an_owner_acts_under_the_name_of_the_login(full, sign_in):
    """No page asks who one is."""
    sign_in("owner", "live")
    app = open_page("domain_page", name="live")
    assert not [field for field in app.text_input if "acting" in field.label.lower()]
    press(app, "promote")
    decide(app, "promote", why="better on cold users")
    assert full.promotions("live")[0].who == "mia"
    other = open_page("domain_page", name="video")
    assert not other.get("file_uploader")


@pytest.mark.slow
def test_access_is_an_admins_page(full, sign_in):
    """For others it does not exist; what it shows would be refused to them too."""
    sign_in("viewer")
    with pytest.raises(ValueError, match="navigation page"):
        open_page("access")
    full.change_user("mia", role="admin", by="root")
    session.forget()
    app = open_page("access")
    assert "Who may sign in" in said(app)
    assert {"add-user", "change-user", "add-key"} <= keys(app)


@pytest.mark.slow
def test_who_was_removed_sees_nothing_more(full, sign_in):
    """At the next thing they do, on a page that is still open."""
    sign_in("owner", "live")
    app = open_page("domain_page", name="live")
    full.remove_user("mia", by="root")
    session.forget()
    app.run()
    assert not app.exception
    assert "Nobody is signed in" in said(app)
    assert not keys(app)


@pytest.mark.slow
def test_signing_out_ends_the_session(full, sign_in):
    """The cookie of before counts nowhere any more."""
    sign_in("viewer")
    app = open_page(None)
    cookie, _ = session.visitor()
    app.button(key="sign-out").click().run()
    assert "session has ended" in said(app)
    assert full.audit(limit=1)[0]["what"] == "end_sessions"
    with pytest.raises(session.LoginRefused):
        session.logins().by_session(cookie)
