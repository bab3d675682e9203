"""What to do next with a domain, and the dialogs in which it is done: launch, promote, roll back, pause, retire."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from domains.registry.records import Domain, Run, Version
from orchestrator.evaluation.report import ColdStartReport, ZeroShotReport, decision_of
from ui import session
from ui.components import layout, navigation, runs, wording


def next_step(domain: Domain, live: Version | None) -> None:
    """The one thing to do now, and the buttons for everything else that may be done."""
    registry = session.registry()
    if domain.state == "retired":
        st.info("This domain is retired; it is kept for the record.")
        return
    if not domain.counts.get("rows_added") or domain.role == "source":
        if not domain.counts.get("rows_added"):
            st.info("**Next: add its data.** Open the tab *Data* below.")
        return
    going = runs.active(registry.runs(domain.name))
    if not session.actor().may("owner", domain):
        _look_on(domain, _advice(domain, live, going))
        return
    launching = any(run.kind != "ingest" for run in going)
    candidates = _promotable(domain, live)
    launched = live is not None and live.level == "adapter"
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(_advice(domain, live, going), width="stretch")
        if st.button(
            "Launch again" if launched else "Launch",
            type="primary" if not candidates and not launching else "secondary",
            disabled=registry.live(None) is None or launching,
            key="launch",
        ):
            _launch(domain)
        if st.button("Promote", type="primary" if candidates else "secondary", disabled=not candidates, key="promote"):
            _promote(domain, candidates)
        refused = _refused(domain, live)
        if refused and st.button("Force", key="force", help="Set live what the gate refused; marked for good."):
            _force(domain, refused)
        if st.button("Roll back", disabled=registry.earlier(domain.name) is None, key="roll-back"):
            _roll_back(domain, live)
        if st.button("Try it", key="try"):
            st.switch_page(navigation.PLAYGROUND, query_params={"name": domain.name})


def _look_on(domain: Domain, advice: str) -> None:
    """The step for somebody who may not take it."""
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"{advice}  \n:gray[{domain.owner} or an admin decides.]", width="stretch")
        if st.button("Try it", key="try"):
            st.switch_page(navigation.PLAYGROUND, query_params={"name": domain.name})


def pause_or_retire(domain: Domain) -> None:
    """Buttons that take a domain out of service, and one that brings it back."""
    st.subheader("Out of service", anchor=False)
    with st.container(horizontal=True):
        if domain.state == "paused":
            if st.button("Resume", key="resume"):
                _resume(domain)
        elif st.button("Pause", disabled=domain.state not in ("live", "data_ready"), key="pause"):
            _move(domain, session.acting().pause, "Pause", "Until it is resumed, its endpoint ranks by popularity.")
        if st.button("Retire", disabled=domain.state == "retired", key="retire"):
            _move(domain, session.acting().retire, "Retire", "Its endpoint stops answering. This cannot be undone.")


def _advice(domain: Domain, live: Version | None, going: list[Run]) -> str:
    if session.registry().live(None) is None:
        return "**Next: train the shared model** on the page *Domains*. This domain builds on it."
    if going:
        return f"**{wording.words(wording.KINDS, going[0].kind)} is running.** Follow it below."
    if domain.challenger is not None:
        return f"**Next: decide on version `{wording.short(domain.challenger)}`.** It passed the gate and waits."
    if live is not None and live.level == "adapter":
        return f"**Version `{wording.short(live.id)}` is live.** Launch again when there is new data to learn from."
    if _last_launch_was_held(domain):
        return "**The gate held the last launch back.** The tab *Versions* says why; more data may change that."
    unfit = _zero_shot_held(domain) if live is None else None
    meanwhile = f" Popularity answers until then: {unfit}." if unfit else ""
    return (
        "**Next: launch it.** Graft trains a few weights for this domain and tests them on held-out cold users."
        + meanwhile
    )


def _promotable(domain: Domain, live: Version | None) -> list[Version]:
    """Versions that could go live now: trained here, passed by the gate, and not live already; newest first."""
    return [
        version
        for version in session.registry().versions(domain.name, "adapter")
        if version.level == "adapter" and (live is None or version.id != live.id) and not _held_back(version)
    ]


def _refused(domain: Domain, live: Version | None) -> list[Version]:
    """Versions that only a person's forced decision lets answer, also one that is live without it; newest first."""
    registry = session.registry()
    answered_for = set(registry.forced(domain.name)) & ({live.id} if live else set())
    versions = registry.versions(domain.name, "adapter")
    return [version for version in versions if _held_back(version) and version.id not in answered_for]


def _held_back(version: Version) -> bool:
    """Whether the gate refused a version, or nothing has judged it."""
    decision = decision_of(version)
    return decision is None or not decision.promote


def _zero_shot_held(domain: Domain) -> str | None:
    """Why the shared model does not answer untrained; None where it was not judged or passed."""
    for version in session.registry().versions(domain.name, "adapter"):
        judged = ZeroShotReport.of(version)
        if judged is not None:
            return None if judged.decision.promote else "; ".join(judged.decision.reasons)
    return None


def _last_launch_was_held(domain: Domain) -> bool:
    versions = session.registry().versions(domain.name, "adapter")
    launched = [version for version in versions if ColdStartReport.of(version)]
    return bool(launched) and _held_back(launched[0])


@layout.dialog("Launch")
def _launch(domain: Domain) -> None:
    readiness = session.readiness(domain.name)
    st.markdown(
        f"Graft freezes the shared model, trains the few weights that **{domain.name}** owns, checks that nothing else "
        "changed, and compares the result with the baselines on cold users it was not trained on. You decide "
        "afterwards whether it goes live."
    )
    if readiness.missing:
        st.warning(
            "The domain is not ready:\n"
            + "\n".join(f"- {line}" for line in readiness.missing)
            + "\n\nThe gate will most likely hold the version back."
        )
    settings = session.settings()
    st.caption(wording.gate(domain.spec))
    st.caption(wording.policy(settings.required_baselines, settings.required_seeds))
    runs.start_button("launch-domain", domain=domain.name, params={"task": domain.spec.task}, label="Launch")


@layout.dialog("Promote")
def _promote(domain: Domain, candidates: list[Version]) -> None:
    by_id = {version.id: version for version in candidates}
    chosen = by_id[
        st.selectbox(
            "Version",
            list(by_id),
            format_func=lambda id: f"{wording.short(id)} of {wording.when(by_id[id].created_at)}",
        )
    ]
    report = ColdStartReport.of(chosen)
    for reason in report.decision.reasons if report else ():
        st.success(wording.sentence(reason))
    st.caption("The service switches to it within seconds, without a restart. You can roll back in one step.")
    if (why := _why("promote", "Promote it", example="beats popularity on cold users")) is not None:
        session.acting().promote(domain.name, chosen.id, why=why)
        st.rerun()


@layout.dialog("Force")
def _force(domain: Domain, refused: list[Version]) -> None:
    by_id = {version.id: version for version in refused}
    chosen = by_id[
        st.selectbox(
            "Version",
            list(by_id),
            format_func=lambda id: f"{wording.short(id)} of {wording.when(by_id[id].created_at)}",
        )
    ]
    decision = decision_of(chosen)
    for reason in decision.reasons if decision else ("Nothing has judged it.",):
        st.error(wording.sentence(reason))
    st.caption("Your name and reason stay with this version for good, wherever it is shown.")
    if (why := _why("force", "Set live against the gate")) is not None:
        session.acting().promote(domain.name, chosen.id, why=why, force=True)
        st.rerun()


@layout.dialog("Roll back")
def _roll_back(domain: Domain, live: Version | None) -> None:
    expect = None if live is None else live.id
    st.markdown(f"**{domain.name}** goes back at once to the version that was live before `{wording.short(expect)}`.")
    if (why := _why("roll-back", "Roll back", example="clicks fell since this morning")) is not None:
        session.acting().roll_back(domain.name, why=why, expect=expect)
        st.rerun()


def _resume(domain: Domain) -> None:
    live = session.registry().live(domain.name)
    meaning = "Its live version answers again at once." if live else "It stays with popularity until it is launched."
    _move(domain, session.acting().resume, "Resume", meaning)


@layout.dialog("Out of service")
def _move(domain: Domain, move: Callable[..., Domain], verb: str, meaning: str) -> None:
    st.markdown(f"**{verb} {domain.name}?** {meaning}")
    if (why := _why("move", verb)) is not None:
        move(domain.name, why=why)
        st.rerun()


def _why(key: str, confirm: str, *, example: str | None = None) -> str | None:
    """Ask for the reason of a decision; the reason once it is confirmed."""
    why = st.text_input("Why?", placeholder=example, key=f"why-{key}").strip()
    pressed = st.button(confirm, type="primary", disabled=not why, key=f"do-{key}")
    if not why:
        st.caption("Give a reason in a few words; it stays in the history.")
    return why if pressed else None
