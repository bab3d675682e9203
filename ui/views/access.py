"""Access: who may sign in, which programs may ask the service, and who changed what. For admins."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.registry.key_verbs import VERBS
from domains.registry.user_verbs import ROLES, User
from orchestrator import changes
from ui import session
from ui.components import errors, layout, tables, wording

ENTRIES = 1000


def show() -> None:
    """Draw the page."""
    layout.heading("Access", "Who may sign in, which programs may ask the service, and who changed what.")
    people, keys, trail = st.tabs(["Users", "API keys", "Audit trail"])
    with people, errors.shown():
        _users()
    with keys, errors.shown():
        _keys()
    with trail, errors.shown():
        _trail()


def _users() -> None:
    users = session.acting().users()
    if not users:
        st.info(
            "There are no users: on this machine everybody is let in. Once there is one, everybody signs in; make "
            "yourself an admin first."
        )
    with st.container(horizontal=True):
        if st.button("Add a user", type="primary", key="add-user"):
            _add_user([domain.name for domain in session.registry().domains()])
        present = [user for user in users if user.removed_at is None]
        if present and st.button("Change or remove", key="change-user"):
            _change_user(present, [domain.name for domain in session.registry().domains()])
    if users:
        tables.show(
            [
                {
                    "Name": user.name,
                    "Role": user.role,
                    "Domains": ", ".join(user.domains),
                    "Signs in by": "password" if user.has_password else "provider",
                    "Added": f"{wording.when(user.created_at)} by {user.created_by}",
                    "State": "removed" if user.removed_at else "may sign in",
                }
                for user in users
            ],
            hide_index=True,
        )


@layout.dialog("Add a user")
def _add_user(domains: list[str]) -> None:
    name = st.text_input("Name", key="user-name", help="What they sign in as; an e-mail address for a provider.")
    role = st.segmented_control("Role", ROLES, default="viewer", required=True, key="user-role")
    granted = _granted(domains, (), role)
    password = st.text_input(
        "Password", type="password", key="user-password", help="Empty: only an identity provider can vouch for them."
    )
    if st.button("Add", type="primary", disabled=not name.strip(), key="do-add-user"):
        session.acting().add_user(name.strip(), role=role, password=password or None, domains=granted)
        session.forget()
        st.rerun()


@layout.dialog("Change or remove")
def _change_user(users: list[User], domains: list[str]) -> None:
    by_name = {user.name: user for user in users}
    user = by_name[st.selectbox("User", list(by_name), key="user-chosen")]
    role = st.segmented_control("Role", ROLES, default=user.role, required=True, key=f"role-of-{user.name}")
    granted = _granted(domains, user.domains, role)
    with st.container(horizontal=True):
        if st.button("Save", type="primary", key="do-change-user"):
            session.acting().change_user(user.name, role=role, domains=granted)
            session.forget()
            st.rerun()
        if st.button(f"Remove {user.name}", key="do-remove-user"):
            session.acting().remove_user(user.name)
            session.forget()
            st.rerun()


def _granted(domains: list[str], held: tuple[str, ...], role: str) -> list[str]:
    """Domains that an owner may change besides their own."""
    if role != "owner":
        return []
    known = sorted({*domains, *held})
    return st.multiselect("Domains besides their own", known, default=list(held), accept_new_options=True)


def _keys() -> None:
    keys = session.acting().api_keys()
    if not keys:
        st.info("There are no keys: on this machine everybody may ask the service. Once there is one, all need one.")
    token = st.session_state.pop("token", None)
    if token is not None:
        st.success("The token, which is shown only now:")
        st.code(token, language=None)
    with st.container(horizontal=True):
        if st.button("Make a key", type="primary", key="add-key"):
            _add_key([domain.name for domain in session.registry().domains()])
        counting = {key.id: key.name for key in keys if key.revoked_at is None}
        if counting and st.button("Rotate or revoke", key="change-key"):
            _change_key(counting)
    if keys:
        tables.show(
            [
                {
                    "Name": key.name,
                    "Id": key.id,
                    "Domains": ", ".join(key.domains) or "all",
                    "Allows": ", ".join(key.verbs),
                    "A minute": key.per_minute or "no bound",
                    "Made": f"{wording.when(key.created_at)} by {key.created_by}",
                    "State": "revoked" if key.revoked_at else "counts",
                }
                for key in keys
            ],
            hide_index=True,
        )


@layout.dialog("Make a key")
def _add_key(domains: list[str]) -> None:
    name = st.text_input("Whose key it is", placeholder="checkout-page", key="key-name")
    chosen = st.multiselect("Domains", domains, placeholder="All", key="key-domains")
    verbs = st.multiselect("Allows", VERBS, default=["rank", "feedback"], key="key-verbs")
    per_minute = st.number_input("Requests a minute (0: no bound)", 0, 10_000_000, 0, key="key-quota")
    if st.button("Make", type="primary", disabled=not (name.strip() and verbs), key="do-add-key"):
        made = session.acting().add_key(name.strip(), domains=chosen, verbs=verbs, per_minute=int(per_minute))
        st.session_state["token"] = made[1]
        st.rerun()


@layout.dialog("Rotate or revoke")
def _change_key(keys: dict[str, str]) -> None:
    chosen = st.selectbox("Key", list(keys), format_func=lambda id: keys[id], key="key-chosen")
    why = st.text_input("Why?", key="key-why")
    with st.container(horizontal=True):
        if st.button("Give it another token", key="do-rotate-key"):
            st.session_state["token"] = session.acting().rotate_key(chosen)[1]
            st.rerun()
        if st.button("Revoke", type="primary", key="do-revoke-key"):
            session.acting().revoke_key(chosen, why=why.strip())
            st.rerun()


def _trail() -> None:
    entries: list[dict[str, Any]] = session.acting().audit(ENTRIES)
    text = st.text_input("Find", placeholder="name, domain or what was done", key="trail-find").strip().lower()
    rows = [
        {
            "When": wording.when(entry["at"]),
            "Who": entry["who"],
            "Domain": entry["domain"] or "",
            "What": wording.action(entry),
            "Why": wording.sentence(entry["why"] or ""),
            "Change": changes.change_in_words(entry["details"]),
        }
        for entry in entries
    ]
    found = [row for row in rows if text in " ".join(map(str, row.values())).lower()]
    if not found:
        st.caption("No entry matches.")
        return
    wide = {name: st.column_config.Column(width="large") for name in ("Why", "Change")}
    tables.show(found, hide_index=True, column_config=wide, height=min(38 + 35 * len(found), 720))
    st.download_button("Download the entries", tables.as_csv(found), file_name="graft-audit.csv", mime="text/csv")
    if len(entries) == ENTRIES:
        st.caption(f"The latest {ENTRIES:,}; `graft audit --limit 0 --json` gives all of them.")


show()
