"""A version's cold-start report: the gate's decision, metrics against baselines, calibration, cost, certificate."""

from __future__ import annotations

import streamlit as st

from domains.registry.records import Domain, Version
from orchestrator import use_cases
from orchestrator.evaluation import gate
from orchestrator.evaluation.report import Certificate, ColdStartReport, decision_of, metrics_of
from orchestrator.evaluation.rows import REQUIRED_BY
from ui import session
from ui.components import charts, layout, source_weighting, wording


def show(domain: Domain, live: Version | None) -> None:
    """All versions of a domain, and one of them in full."""
    versions = session.registry().versions(domain.name, "adapter")
    if not versions:
        st.markdown("No version yet. A launch makes one." if domain.role == "target" else "A source has no versions.")
        return
    live_id, forced = live.id if live else None, session.registry().forced(domain.name)
    metric = domain.spec.gate.metric
    table = [
        {
            "Version": wording.short(version.id),
            "": "live" if version.id == live_id else "",
            "Created": wording.when(version.created_at),
            "Kind": wording.label(wording.FALLBACK_LEVELS, version.level or "").text,
            wording.metric_name(metric): _headline(version, metric),
            "Gate": _verdict(version, forced=version.id in forced),
        }
        for version in versions
    ]
    st.dataframe(table, hide_index=True)
    trained = {version.id: version for version in versions if version.level == "adapter"}
    if not trained:
        for version in versions:
            for reason in decision.reasons if (decision := decision_of(version)) else ():
                st.caption(f"The shared model, untrained here: {wording.sentence(reason)}")
        st.caption("A launch adds a version of the domain's own.")
        return
    chosen = st.selectbox(
        "Show version",
        list(trained),
        format_func=lambda id: (
            f"{wording.short(id)} of {wording.when(trained[id].created_at)}{', live' if id == live_id else ''}"
        ),
        key=f"version-{domain.name}",
    )
    if chosen in forced:
        move = forced[chosen]
        st.error(f"**Set live against the gate** by {move.who}, {wording.when(move.at)}: {move.why}")
    _in_full(domain, trained[chosen])


def _in_full(domain: Domain, version: Version) -> None:
    report = ColdStartReport.of(version)
    if report is None:
        st.info("Nothing has judged this version: there is no launch report.")
    else:
        _decision(report)
        _seeds(report)
        _download(domain, version)
        _comparison(domain, version, report)
        _segments(domain, report)
        _quality(report)
        _leaks(report)
        _cost(report)
        source_weighting.show(report.source_weighting)
    certificate = Certificate.of(version)
    if certificate is not None:
        _certificate(version, certificate)
    with st.expander("Training settings"):
        st.json(version.config)


def _headline(version: Version, metric: str) -> str:
    measured = metrics_of(version).get(metric)
    return "–" if measured is None else wording.interval(measured)


def _verdict(version: Version, *, forced: bool) -> str:
    decision = decision_of(version)
    verdict = "not evaluated" if decision is None else "passed" if decision.promote else "held back"
    return f"{verdict}, forced live" if forced else verdict


def _decision(report: ColdStartReport) -> None:
    decision = report.decision
    reasons = "\n".join(f"- {wording.sentence(reason)}" for reason in decision.reasons)
    if decision.promote:
        st.success(f"**Passed the gate.**\n{reasons}")
    else:
        title = "Do not borrow." if decision.verdict == "do not borrow" else "Held back by the gate."
        st.error(f"**{title}**\n{reasons}")
    layout.figures(
        {
            "Cold users": wording.count(report.cold_users),
            "Held-out events": wording.count(report.examples),
            "Training events": wording.count(report.training_examples),
            "Trained weights": wording.count(report.trained_parameters),
            "Prediction bias": f"{report.prediction_bias:.0%}",
            "Fine-tuned in": wording.duration(report.fine_tune_seconds),
            "Processor time": wording.duration(report.cost.processor_seconds),
        }
    )
    for note in report.notes:
        st.caption(note[:1].upper() + note[1:] + ".")
    if report.leaks:
        st.error("The evaluation leaks: " + "; ".join(report.leaks))


def _seeds(report: ColdStartReport) -> None:
    found = report.seeds.get(report.metric)
    if found is None:
        return
    metric = wording.metric_name(report.metric)
    st.markdown(
        f"Fine-tuned under **{len(found.each)} seeds**: mean {metric} {wording.interval(found)}. "
        "This version is the first seed's, as fixed beforehand."
    )
    with st.expander("Gain over each baseline, by seed"):
        st.dataframe(
            [
                {
                    "": wording.row_name(row),
                    f"Mean gain in {metric}": wording.gain(gained),
                    **{f"Seed {seed}": f"{value:+.4f}" for seed, value in gained.each.items()},
                }
                for row, gained in report.gain_over_seeds.items()
            ],
            hide_index=True,
        )


def _download(domain: Domain, version: Version) -> None:
    _, page = use_cases.report_page(domain.name, version.id, registry=session.registry())
    st.download_button(
        "Download this report", page, file_name=f"{domain.name}-{wording.short(version.id)}.html", mime="text/html"
    )


def _comparison(domain: Domain, version: Version, report: ColdStartReport) -> None:
    st.subheader("Metrics on cold users, against the baselines", anchor=False)
    names = list(report.rows[report.subject])
    metric = st.segmented_control(
        "Metric",
        names,
        default=report.metric if report.metric in names else names[0],
        format_func=wording.metric_name,
        required=True,
        label_visibility="collapsed",
        key=f"metric-{version.id}",
    )
    baseline = gate.baseline_of(report, domain.spec.gate)
    st.altair_chart(charts.forest(report.rows, metric, subject=report.subject, baseline=baseline), width="stretch")
    if report.gain:
        st.altair_chart(charts.gains(report.gain, report.metric, baseline=baseline), width="stretch")
    with st.expander("As a table, with who requires each baseline"):
        st.dataframe(
            [
                {
                    "": wording.row_name(name),
                    "Required by": ", ".join(REQUIRED_BY[who] for who in report.required.baselines.get(name, [])),
                    **{wording.metric_name(metric): wording.interval(value) for metric, value in measured.items()},
                }
                for name, measured in report.rows.items()
            ],
            hide_index=True,
        )


def _segments(domain: Domain, report: ColdStartReport) -> None:
    if not report.segments:
        return
    baseline = gate.baseline_of(report, domain.spec.gate)
    wanted = dict.fromkeys([report.subject, baseline, *report.required.baselines, "zero_shot"])
    rows = [name for name in wanted if name in report.rows]
    st.subheader(f"{wording.metric_name(report.metric)} by segment", anchor=False)
    st.dataframe(
        [
            {
                "Segment": wording.segment_name(name),
                "Events": segment.examples,
                "Users": segment.users,
                **{
                    wording.row_name(row): wording.interval(segment.rows[row][report.metric], 3)
                    if row in segment.rows
                    else "–"
                    for row in rows
                },
            }
            for name, segment in report.segments.items()
        ],
        hide_index=True,
        column_config={
            count: st.column_config.NumberColumn(format="localized", width="small") for count in ("Events", "Users")
        },
    )
    st.caption("Segments with too few events to measure are left out. The gate looks at cold users only.")


def _quality(report: ColdStartReport) -> None:
    left, right = st.columns(2, gap="large")
    if report.reliability:
        with left:
            st.subheader("Calibration", anchor=False)
            st.altair_chart(charts.reliability(report.reliability), width="stretch")
            st.caption(
                "Each point is a tenth of the held-out events; on the dashed line predicted and observed rates agree."
            )
    with right if report.reliability else left:
        st.subheader("Fine-tuning", anchor=False)
        curves = charts.learning_curves(report.learning_curve)
        for column, curve in zip(st.columns(len(curves)), curves, strict=True):
            column.altair_chart(curve, width="stretch")
        st.caption("After each epoch; the best epoch is kept.")


def _leaks(report: ColdStartReport) -> None:
    found = "the evaluation leaks" if report.leaks else "features tell too much" if report.suspects else "clean"
    with st.expander(f"Leak scan: {found}"):
        for leak in report.leaks:
            st.error(leak)
        for suspect in report.suspects:
            st.warning(f"`{suspect.feature}`: {suspect.why}")
        st.markdown("Checked:\n" + "\n".join(f"- {check}" for check in report.leak_scan))


def _cost(report: ColdStartReport) -> None:
    cost = report.cost
    money = "" if cost.money is None else f", {cost.money:.4f} {cost.currency}".rstrip()
    with st.expander(f"Cost: {wording.duration(cost.processor_seconds)} of processor time{money}"):
        st.dataframe(
            [
                {"": wording.row_name(what), "Processor time": wording.duration(seconds)}
                for what, seconds in cost.parts.items()
            ],
            hide_index=True,
        )
        if cost.money is None:
            st.caption("Set `GRAFT_PRICE_PER_PROCESSOR_HOUR` to see the cost in money too.")


def _certificate(version: Version, certificate: Certificate) -> None:
    st.subheader("Freeze certificate", anchor=False)
    if certificate.ok:
        others = wording.plural(len(certificate.probe_rows), "other domain")
        st.success(
            f"Nothing else changed: all {certificate.frozen_tensors:,} frozen tensors have the same hash before and "
            f"after, and the predictions for {others} are identical bit for bit."
        )
    else:
        st.error("Something else changed: " + ", ".join([*certificate.changed, *certificate.predictions_moved]))
    trained, total = certificate.trained_parameters, certificate.all_parameters
    st.markdown(f"It trained **{trained:,}** of {total:,} weights ({trained / total:.1%}).")
    st.caption(f"Loads only on shared model `{wording.short(version.backbone_id)}`. Content hash `{version.id}`.")
    with st.expander("Hashes and probe rows"):
        if certificate.probe_rows:
            st.caption("Rows of each other domain whose predictions were compared")
            st.dataframe(
                [{"Domain": name, "Rows": rows} for name, rows in certificate.probe_rows.items()], hide_index=True
            )
        st.caption(
            f"All frozen tensors before `{certificate.before[:16]}`, after `{certificate.after[:16]}`; each of them:"
        )
        st.dataframe(
            [{"Tensor": name, "SHA-256": digest} for name, digest in certificate.hashes.items()], hide_index=True
        )
