"""A version on trial: is it better than what the team would otherwise use, is it calibrated, did anything else move."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.registry.records import Domain, Version
from orchestrator import use_cases
from orchestrator.evaluation import gate
from orchestrator.evaluation.report import ColdStartReport
from ui import session
from ui.components import charts, wording


def show(domain: Domain, live: Version | None) -> None:
    """All versions of a domain, and one of them in full."""
    versions = session.registry().versions(domain.name, "adapter")
    if not versions:
        st.markdown("No version yet. A launch makes one." if domain.role == "target" else "A source has no versions.")
        return
    metric = domain.spec.gate.metric
    live_id = live.id if live else None
    table = [
        {
            "Version": wording.short(version.id),
            "": "live" if version.id == live_id else "",
            "Made": wording.when(version.created_at),
            "Kind": wording.label(wording.FALLBACK_LEVELS, version.level or "").text,
            wording.metric_name(metric): _headline(version, metric),
            "Gate": _verdict(version),
        }
        for version in versions
    ]
    st.dataframe(table, hide_index=True)
    judged = [version for version in versions if version.level == "adapter"]
    if not judged:
        st.caption("The shared model answers here without any training on this domain; a launch makes its own version.")
        return
    by_id = {version.id: version for version in judged}
    chosen = st.selectbox(
        "Version in full",
        list(by_id),
        format_func=lambda id: (
            f"{wording.short(id)} of {wording.when(by_id[id].created_at)}{', live' if id == live_id else ''}"
        ),
        key=f"version-{domain.name}",
    )
    version = by_id[chosen]
    if version.report:
        _decision(version)
        _seeds(version)
        _download(domain, version)
        _comparison(domain, version)
        _segments(domain, version)
        _quality(version)
        _leaks(version)
        _cost(version)
        source_weighting(version.report.get("source_weighting"))
    else:
        _trained_together(domain, version)
    _certificate(version)
    with st.expander("How it was trained"):
        st.json(version.config)


def _headline(version: Version, metric: str) -> str:
    measured = version.metrics.get("rows", {}).get("shared", version.metrics).get(metric)
    return "–" if measured is None else wording.interval(measured)


def _verdict(version: Version) -> str:
    decision = version.report.get("decision")
    if decision is None:
        return "not judged"
    return "passed" if decision["promote"] else "held back"


def _decision(version: Version) -> None:
    decision = version.report["decision"]
    reasons = "\n".join(f"- {wording.said(reason)}" for reason in decision["reasons"])
    if decision["promote"]:
        st.success(f"**The gate lets it pass.**\n{reasons}")
    else:
        borrow = decision.get("verdict") != "do not borrow"
        st.error(f"**{'The gate holds it back.' if borrow else 'Do not borrow.'}**\n{reasons}")
    report = version.report
    figures = (
        ("Cold users judged on", wording.count(report["cold_users"])),
        ("Held-out events", wording.count(report["examples"])),
        ("Events trained on", wording.count(report.get("training_examples"))),
        ("Own weights", wording.count(report.get("trained_parameters"))),
        ("Predictions off by", f"{report['prediction_bias']:.0%}"),
        ("Fine-tuned in", wording.duration(report.get("fine_tune_seconds", 0.0))),
        ("Processors", wording.duration(report["cost"]["processor_seconds"]) if "cost" in report else "–"),
    )
    for column, (title, value) in zip(st.columns(len(figures)), figures, strict=True):
        column.metric(title, value)
    for note in report.get("notes", []):
        st.caption(note[:1].upper() + note[1:] + ".")
    if report["leaks"]:
        st.error("The evaluation leaks: " + "; ".join(report["leaks"]))


def _seeds(version: Version) -> None:
    report = version.report
    found = report.get("seeds", {}).get(report["metric"])
    if not found:
        return
    metric = wording.metric_name(report["metric"])
    st.markdown(
        f"Fine-tuned **{len(found['each'])} times** under other seeds: mean {metric} {wording.interval(found)}. "
        "This is the first, as settled beforehand."
    )
    with st.expander("Gain over each row, seed by seed"):
        st.dataframe(
            [
                {
                    "": wording.words(wording.ROWS, row),
                    f"Mean gain in {metric} over seeds": wording.interval(gained),
                    **{f"Seed {seed}": f"{value:+.4f}" for seed, value in gained["each"].items()},
                }
                for row, gained in report.get("gain_over_seeds", {}).items()
            ],
            hide_index=True,
        )


def _download(domain: Domain, version: Version) -> None:
    _, page = use_cases.report_page(domain.name, version.id, registry=session.registry())
    st.download_button(
        "Download this report", page, file_name=f"{domain.name}-{wording.short(version.id)}.html", mime="text/html"
    )


def _comparison(domain: Domain, version: Version) -> None:
    report = version.report
    st.subheader("On cold users, beside what one would otherwise use", anchor=False)
    names = list(report["rows"][report["subject"]])
    metric = st.segmented_control(
        "Metric",
        names,
        default=report["metric"] if report["metric"] in names else names[0],
        format_func=wording.metric_name,
        required=True,
        label_visibility="collapsed",
        key=f"metric-{version.id}",
    )
    baseline = gate.baseline_of(ColdStartReport.from_dict(report), domain.spec.gate)
    st.altair_chart(
        charts.forest(report["rows"], metric, subject=report["subject"], baseline=baseline), width="stretch"
    )
    if report["gain"]:
        st.altair_chart(charts.gains(report["gain"], report["metric"], baseline=baseline), width="stretch")
    with st.expander("The same as a table, and who asked for each row"):
        st.dataframe(_table(report["rows"], report.get("required", {}).get("baselines", {})), hide_index=True)


def _table(rows: dict[str, Any], required: dict[str, list[str]]) -> list[dict[str, str]]:
    return [
        {
            "": wording.words(wording.ROWS, name),
            "Asked for by": ", ".join(wording.words(wording.ASKED_BY, who) for who in required.get(name, [])),
            **{wording.metric_name(metric): wording.interval(value) for metric, value in measured.items()},
        }
        for name, measured in rows.items()
    ]


def _segments(domain: Domain, version: Version) -> None:
    report = version.report
    if not report["segments"]:
        return
    metric, subject = report["metric"], report["subject"]
    baseline = gate.baseline_of(ColdStartReport.from_dict(report), domain.spec.gate)
    asked = report.get("required", {}).get("baselines", {})
    rows = [name for name in dict.fromkeys([subject, baseline, *asked, "zero_shot"]) if name in report["rows"]]
    st.subheader(f"For whom it works: {wording.metric_name(metric)}", anchor=False)
    st.dataframe(
        [
            {
                "Segment": wording.words(wording.SEGMENTS, name),
                "Events": segment["examples"],
                "Users": segment["users"],
                **{
                    wording.words(wording.ROWS, row): wording.interval(segment["rows"][row][metric], 3)
                    if row in segment["rows"]
                    else "–"
                    for row in rows
                },
            }
            for name, segment in report["segments"].items()
        ],
        hide_index=True,
    )
    st.caption("A segment with too few events to measure is left out. Warm users decide nothing.")


def _leaks(version: Version) -> None:
    looked_at = version.report.get("leak_scan")
    if looked_at:
        clean = not version.report["leaks"]
        with st.expander(f"Leak scan: {'clean' if clean else 'the evaluation leaks'}"):
            for leak in version.report["leaks"]:
                st.error(leak)
            st.markdown("Looked at:\n" + "\n".join(f"- {check}" for check in looked_at))


def _cost(version: Version) -> None:
    cost = version.report.get("cost")
    if not cost:
        return
    money = "" if cost["money"] is None else f", {cost['money']:.4f} {cost['currency']}".rstrip()
    with st.expander(f"Cost: {wording.duration(cost['processor_seconds'])} of processors{money}"):
        st.dataframe(
            [
                {"": wording.words(wording.ROWS, what), "Processor time": wording.duration(seconds)}
                for what, seconds in cost["parts"].items()
            ],
            hide_index=True,
        )
        if cost["money"] is None:
            st.caption("In money too, once `GRAFT_PRICE_PER_PROCESSOR_HOUR` says what an hour of a processor costs.")


def source_weighting(told: dict[str, Any] | None) -> None:
    """What the shared model learned of its sources, where it weighed them: verdicts, and weights over time."""
    if not told or not told.get("verdicts"):
        return
    st.subheader("What the shared model borrowed from each source", anchor=False)
    st.dataframe(
        [
            {
                "Source": source,
                "Verdict": found.get("verdict") or ("borrow" if found["borrow"] else "do not borrow"),
                "Weight": f"{found['weight']:.2f}",
                "Why": found["reason"],
            }
            for source, found in told["verdicts"].items()
        ],
        hide_index=True,
    )
    if told.get("harmful_parts"):
        st.markdown("**Parts of sources that tell the opposite of what users do here**")
        st.dataframe(
            [
                {"Source": part["source"], "Part": part["part"], "Source value": f"{part['value']:.2f}", "Rows": part["rows"]}
                for part in told["harmful_parts"]
            ],
            hide_index=True,
        )
    if told["weights"]:
        st.altair_chart(charts.weights(told["weights"]), width="stretch")


def _quality(version: Version) -> None:
    bins, history = version.report.get("reliability"), version.report.get("learning_curve")
    left, right = st.columns(2, gap="large")
    if bins:
        with left:
            st.subheader("Do predictions mean what they say?", anchor=False)
            st.altair_chart(charts.reliability(bins), width="stretch")
            st.caption(
                "Each point is a tenth of the held-out events. On the dashed line predictions are exactly right."
            )
    if history:
        with right if bins else left:
            st.subheader("How it learnt", anchor=False)
            curves = charts.learning_curves(history)
            for column, curve in zip(st.columns(len(curves)), curves, strict=True):
                column.altair_chart(curve, width="stretch")
            st.caption("After each epoch; the best epoch is kept.")


def _trained_together(domain: Domain, version: Version) -> None:
    st.info("Trained together with the shared model, so there was no launch to judge it by.")
    measured = version.metrics
    if "rows" in measured:
        st.altair_chart(charts.forest(measured["rows"], domain.spec.gate.metric, subject="shared"), width="stretch")
    elif "note" in measured:
        st.caption(measured["note"])


def _certificate(version: Version) -> None:
    certificate = version.certificate
    if not certificate:
        return
    st.subheader("Freeze certificate", anchor=False)
    others = certificate.get("probe_rows", {})
    if certificate["ok"]:
        st.success(
            f"Nothing else moved: all {certificate['frozen_tensors']:,} frozen tensors have the same hash before and "
            f"after, and the predictions of {len(others)} other domains are equal bit for bit."
        )
    else:
        moved = [*certificate.get("changed", []), *certificate.get("predictions_moved", [])]
        st.error("Something else moved: " + ", ".join(moved))
    trained, total = certificate.get("trained_parameters"), certificate.get("all_parameters")
    if trained and total:
        st.markdown(f"It trained **{trained:,}** of {total:,} weights ({trained / total:.1%}).")
    st.caption(f"Loads only on shared model `{wording.short(version.backbone_id)}`. Content hash `{version.id}`.")
    with st.expander("Hashes and probe_rows"):
        if others:
            st.caption("Rows of each other domain whose predictions were compared")
            st.dataframe([{"Domain": name, "Rows": rows} for name, rows in others.items()], hide_index=True)
        st.caption(
            f"All frozen tensors before `{str(certificate.get('before'))[:16]}`, after "
            f"`{str(certificate.get('after'))[:16]}`; each of them:"
        )
        st.dataframe(
            [{"Tensor": name, "SHA-256": digest} for name, digest in certificate.get("hashes", {}).items()],
            hide_index=True,
        )
