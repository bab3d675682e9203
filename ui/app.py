"""The web UI: `streamlit run ui/app.py`, or with everything else `graft up`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# Before the packages that read them: nothing that the pages import calls out.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("FEAST_USAGE", "False")

import streamlit as st

from orchestrator.jobs import runner
from ui import session
from ui.components import errors, navigation

HERE = Path(__file__).parent


def main() -> None:
    """Draw the frame that all pages share, then the page that was asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for package in ("ui", "orchestrator", "domains", "models", "feature_repo"):
        logging.getLogger(package).setLevel(logging.INFO)
    st.set_page_config(page_title="Graft", page_icon=str(HERE / "icon.png"), layout="wide")
    st.logo(str(HERE / "logo.svg"), size="large")
    st.html(HERE / "style.css")
    page = st.navigation(
        [
            st.Page(navigation.DOMAINS, title="Domains", url_path="domains", default=True),
            st.Page(navigation.REGISTER, title="Register", url_path="register"),
            st.Page(navigation.DOMAIN, title="Domain", url_path="domain"),
            st.Page(navigation.PLAYGROUND, title="Playground", url_path="playground"),
            st.Page(navigation.RUNS, title="Runs", url_path="runs"),
        ]
    )
    _acting_as()
    servers = st.sidebar.container()
    with errors.shown():
        runner.close_dead(session.registry(), session.settings())
        page.run()
    # Last: a server that is slow to answer does not hold up the page.
    with servers:
        _servers()


def _acting_as() -> None:
    with st.sidebar:
        st.text_input(
            "Acting as",
            value=session.who(),
            key="acting_as",
            help="Your name goes into the audit trail with everything you register, launch, promote or roll back.",
        )


def _servers() -> None:
    st.caption("Servers")
    for name, up, address in (
        ("Prediction service", session.service_answers(), ""),
        ("Prefect", session.prefect_answers(), session.prefect_page()),
    ):
        text = f"[{name}]({address})" if up and address else name
        st.caption(f":green[●] {text}" if up else f"○ {text} does not answer")


main()
