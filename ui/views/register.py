"""Register: from a team's files and a spec to a domain with validated data."""

from __future__ import annotations

import streamlit as st

from domains.spec import DomainSpec
from ui import session
from ui.components import data_files, errors, layout, navigation, spec_form
from ui.components.ingest_job import DataFiles


def show() -> None:
    """Draw the page."""
    done: str | None = st.session_state.get("registered")
    if done is not None:
        _outcome(done)
        return
    layout.heading(
        "Register a domain",
        "Choose the files, say what their columns mean, and see at once which rows are valid.",
    )
    actor = session.actor()
    if not actor.may("owner"):
        st.info(f"{actor.name} sees all domains and changes none; an owner or an admin registers new ones.")
        return
    files = _files()
    st.subheader("2 · Spec", anchor=False)
    how = st.segmented_control("How", ["Form", "YAML"], default="Form", required=True, label_visibility="collapsed")
    if how == "YAML":
        spec = spec_form.yaml_editor(spec_form.EXAMPLE, key="yaml")
    else:
        entry, preview = st.columns([3, 1.35], gap="large")
        with entry:
            spec = spec_form.form(_columns(files))
        with preview:
            st.caption("The spec so far; keep it with your code")
            if spec is None:
                st.code("# incomplete", language="yaml")
            else:
                st.code(spec.to_yaml(), language="yaml", wrap_lines=True)
                st.download_button("Download spec.yaml", spec.to_yaml(), file_name=f"{spec.name}.yaml")
    _submit(spec, files)


def _files() -> DataFiles:
    st.subheader("1 · Files", anchor=False)
    st.caption("CSV, TSV or Parquet, plain or gzip. The form below reads their columns. You can also add data later.")
    with errors.shown():
        return data_files.choose_files("register")
    return DataFiles()


def _columns(files: DataFiles) -> spec_form.Columns:
    with errors.shown():
        return spec_form.Columns(
            data_files.look_at(files.interactions[0] if files else None),
            data_files.look_at(files.items),
            data_files.look_at(files.users),
        )
    return spec_form.Columns()


def _submit(spec: DomainSpec | None, files: DataFiles) -> None:
    st.subheader("3 · Register", anchor=False)
    text = "Register and check the data" if files else "Register without data"
    pressed = st.button(text, type="primary", disabled=spec is None, key="register")
    if spec is None:
        st.caption("Available once the spec is valid.")
        return
    if not pressed:
        return
    with errors.shown():
        session.acting().register(spec)
        if files:
            data_files.start(spec.name, files, key="register")
        st.session_state["registered"] = spec.name
        st.rerun()


def _outcome(name: str) -> None:
    domain = session.registry().domain(name)
    layout.heading(f"{name} is registered", f"A {domain.role} owned by {domain.owner}.")
    job = data_files.follow(name)
    going = st.session_state.get("ingest")
    if job is not None:
        data_files.show_outcome(job)
        if job.error is not None:
            with st.container(border=True):
                st.markdown("**Add the corrected files**")
                _add_files(name)
    elif going is None or going.domain != name:
        st.info("It has no data yet. Add some here, or later on the domain's page.")
        with st.container(border=True):
            _add_files(name)
    with st.container(horizontal=True):
        if st.button(f"Open {name}", type="primary", key="open"):
            del st.session_state["registered"]
            st.switch_page(navigation.DOMAIN, query_params={"name": name})
        if st.button("Register another", key="another"):
            of_this_page = ("register", "form-", "yaml-", "ingest")
            for key in [
                key for key in map(str, st.session_state) if key.startswith(of_this_page) and not key.endswith("-turn")
            ]:
                del st.session_state[key]
            st.rerun()


def _add_files(name: str) -> None:
    with errors.shown():
        files = data_files.choose_files(f"again-{name}")
        if st.button("Check and add", disabled=not files, key=f"again-{name}"):
            data_files.start(name, files, key=f"again-{name}")
            st.rerun()


show()
