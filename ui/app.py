"""The frame of all pages; `door.py` is what answers, and `graft up` starts it with everything else."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# Before the packages that read them: nothing that the pages import calls out.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("FEAST_USAGE", "False")

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from domains.errors import LoginRefused
from ui import session
from ui.components import errors, navigation, wording

HERE = Path(__file__).parent


def main() -> None:
    """Draw the frame that all pages share, then the page that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for package in ("ui", "orchestrator", "domains", "models", "feature_repo"):
        logging.getLogger(package).setLevel(logging.INFO)
    st.set_page_config(page_title="Graft", page_icon=str(HERE / "icon.png"), layout="wide")
    st.logo(str(HERE / "logo.svg"), size="large")
    st.html(HERE / "style.css")
    if not _signed_in():
        return
    page = st.navigation(
        [
            st.Page(navigation.DOMAINS, title="Domains", url_path="domains", default=True),
            st.Page(navigation.REGISTER, title="Register", url_path="register"),
            st.Page(navigation.DOMAIN, title="Domain", url_path="domain"),
            st.Page(navigation.PLAYGROUND, title="Playground", url_path="playground"),
            st.Page(navigation.RUNS, title="Runs", url_path="runs"),
            *([st.Page(navigation.ACCESS, title="Access", url_path="access")] if session.actor().may("admin") else []),
        ]
    )
    _who()
    servers = st.sidebar.container()
    with errors.shown():
        session.close_dead_runs()
        page.run()
    # Last: a server that is slow to answer does not hold up the page.
    with servers:
        _servers()


def _signed_in() -> bool:
    """Whether the pages may be shown; else why not, and the ways in."""
    try:
        session.actor()
    except LoginRefused as refusal:
        st.title("Sign in", anchor=False)
        st.markdown(wording.sentence(str(refusal)))
        if session.provider():
            if st.user.is_logged_in:
                st.button("Use another account", on_click=st.logout)
            else:
                st.button("Sign in with your organisation", type="primary", on_click=st.login)
        # No button: the page of the password stands before the door.
        st.html('<a href="/login" target="_self">Sign in with a password</a>')
        return False
    context = get_script_run_ctx()
    if context is not None:
        session.remember_uploader(context.session_id)
    return True


def _who() -> None:
    """Who is signed in, and the way out."""
    actor, way = session.actor(), session.signed_in_by()
    with st.sidebar:
        if way == "os":
            st.caption(
                f"**{actor.name}** · {actor.role}, without a login",
                help="Nobody needs to sign in on this machine, as there are no users. `graft users add` changes that.",
            )
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"**{actor.name}** · {actor.role}")
            if st.button("Sign out", type="tertiary", key="sign-out", help="On every device."):
                session.sign_out()
                if way == "provider":
                    st.logout()
                st.rerun()


def _servers() -> None:
    st.caption("Servers")
    for name, up, address in (
        ("Prediction service", session.service_answers(), ""),
        ("Prefect", session.prefect_answers(), session.prefect_page()),
    ):
        text = f"[{name}]({address})" if up and address else name
        st.caption(f":green[●] {text}" if up else f"○ {text} does not answer")


main()
