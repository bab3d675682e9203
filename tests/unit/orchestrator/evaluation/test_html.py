"""The exported report: everything a team is told, in one file that needs nothing else."""

import re
from html.parser import HTMLParser

import pytest

from domains.registry.registry import Version
from domains.spec import Gate
from orchestrator.evaluation import html as report_page

COST = {
    "processor_seconds": 90.0,
    "parts": {"fine-tuning": 30.0, "scratch": 60.0},
    "price_per_processor_hour": None,
    "currency": "EUR",
    "money": None,
}
CERTIFICATE = {
    "ok": True,
    "changed": [],
    "frozen_tensors": 73,
    "trained_parameters": 18_277,
    "before": "ab" * 32,
    "after": "ab" * 32,
    "hashes": {"head.weight": "cd" * 32},
    "backbone": "e" * 64,
    "probe_rows": {"video": 9},
    "predictions_moved": [],
    "all_parameters": 324_706,
}


def a_row(value: float, half: float = 0.02) -> dict:
    return {"value": value, "low": value - half, "high": value + half}


@pytest.fixture
def a_report(comparison):
    """A report that shipped, as JSON, with changes."""

    def make(**changes) -> dict:
        return {
            **comparison,
            "launch_seconds": 240.0,
            "cost": COST,
            "decision": {"promote": True, "verdict": "ship", "reasons": ["auc beats popularity by +0.11"]},
            **changes,
        }

    return make


def a_version(report: dict, **changes) -> Version:
    fields = {
        "id": "f" * 64,
        "kind": "adapter",
        "artifact": "graft-adapter:f",
        "domain": "live",
        "backbone_id": "e" * 64,
        "level": "adapter",
        "certificate": CERTIFICATE,
        "report": report,
        "config": {"seed": 0},
        "created_by": "maria",
    }
    return Version(**{**fields, **changes})


def render(version: Version) -> str:
    return report_page.render(version, Gate())


class Page(HTMLParser):
    """What a page holds: its tags in order and its text; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing(a_report):
    """Every tag is closed; there is no script and no address to fetch anything from."""
    html = render(a_version(a_report()))
    page = Page(html)
    assert page.addresses == []
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert not re.search(r"url\(|@import|https?:", html)
    assert page.tags.count("svg") == 3  # two forests and the calibration


def test_the_page_tells_everything_the_report_holds(a_report):
    """Verdict and reason, rows, gain, segments, calibration, leaks, certificate, weights, minutes."""
    text = Page(render(a_version(a_report()))).text
    for told in (
        *("Ship", "auc beats popularity by +0.11", "0.7100", "[0.6900, 0.7300]", "+0.1100"),
        *("single-domain model", "warm users", "off by 5.0%", "Clean", "73 frozen tensors", "video"),
        *("18,277", "5.6% of 324,706", "1.5 min", "4.0 min", "seed=0"),
    ):
        assert told in text, told


def test_rows_stand_best_first_by_the_gates_metric(a_report):
    """On AUC the highest is first, on log loss the lowest."""
    for metric in ("auc", "logloss"):
        text = Page(render(a_version(a_report(metric=metric)))).text
        assert text.index("this version") < text.index("single-domain model")


@pytest.mark.parametrize(("verdict", "title"), [("hold", "Hold"), ("do not borrow", "Do not borrow")])
def test_a_refusal_says_so_with_its_reason(a_report, verdict, title):
    """The verdict is the first thing on the page."""
    decision = {"promote": False, "verdict": verdict, "reasons": ["only 3 cold users"]}
    text = Page(render(a_version(a_report(decision=decision)))).text
    assert title in text
    assert text.index("only 3 cold users") < text.index("On cold users")


def test_several_seeds_are_shown_with_their_mean_and_interval(a_report):
    """Each seed has its column, and the page says which one is offered."""
    seeds = {"auc": {"value": 0.70, "low": 0.68, "high": 0.72, "each": {"0": 0.71, "1": 0.69}}}
    text = Page(render(a_version(a_report(seeds=seeds)))).text
    assert "Fine-tuned 2 times" in text
    assert "seed 1" in text
    assert "[0.6800, 0.7200]" in text


def test_who_asked_for_each_baseline_stands_beside_its_row(a_report):
    """A team reads that it was not chosen for it, and what the same launch gains over each seed."""
    rows = {"popularity": a_row(0.6), "scratch": a_row(0.55)}
    report = a_report(
        required={
            "baselines": {"popularity": ["policy", "gate"], "scratch": ["policy"]},
            "seeds": 2,
            "seeds_by": "policy",
        },
        seeds={"auc": {**a_row(0.70), "each": {"0": 0.71, "1": 0.69}}},
        baselines_over_seeds={"single_domain": {"auc": {**a_row(0.61), "each": {"0": 0.62, "1": 0.60}}}},
        gain_over_seeds={"single_domain": {**a_row(0.09), "each": {"0": 0.0901, "1": 0.0899}}},
    )
    report["rows"] = report["rows"] | {name: {"auc": row} for name, row in rows.items()}
    text = Page(render(a_version(report))).text
    for told in ("policy, the gate", "trained from scratch", "Gain over each row, seed by seed", "+0.0901", "0.6200"):
        assert told in text, told


def test_every_row_is_shown_for_every_segment(a_report):
    """Cold, warm, new, popular and rare: no baseline is left out where it does better."""
    part = {"examples": 300, "users": 80, "rows": {"adapter": {"auc": a_row(0.7)}, "popularity": {"auc": a_row(0.81)}}}
    names = ("warm_user", "cold_item", "head_item", "tail_item")
    text = Page(render(a_version(a_report(segments=dict.fromkeys(names, part))))).text
    for told in (
        "cold users (the gate looks at these)",
        "warm users",
        "items never seen",
        "popular items",
        "rare items",
    ):
        assert told in text, told
    assert text.count("0.810") == len(names)


def test_cost_is_told_in_processor_minutes_and_in_money_where_there_is_a_price(a_report):
    """Piece by piece; without a price the page says which setting it would take."""
    text = Page(render(a_version(a_report()))).text
    assert "1.50 processor minutes" in text
    assert "GRAFT_PRICE_PER_PROCESSOR_HOUR" in text
    text = Page(render(a_version(a_report(cost={**COST, "price_per_processor_hour": 2.0, "money": 0.05})))).text
    for told in ("At 2 EUR an hour", "0.0500 EUR", "trained from scratch", "60.0 s"):
        assert told in text, told


def test_the_leak_scan_says_what_it_looked_at(a_report):
    """Clean means little to whoever does not know what was searched."""
    text = Page(render(a_version(a_report(leak_scan=["12 rows: none on two sides"])))).text
    assert "12 rows: none on two sides" in text


def test_what_was_borrowed_of_each_source_is_drawn_over_time(a_report):
    """Verdicts in words, and percentiles of the weights as lines and bands."""
    weights = [
        {"step": step, "source": source, "rows": 9, "mean": 0.5, "p10": 0.2, "p50": 0.5, "p90": 0.9}
        for step in (100, 200)
        for source in ("video", "lies")
    ]
    said = {"influence": 0.0, "certainty": 1.0, "borrow": True}
    verdicts = {
        "video": {**said, "weight": 0.9, "verdict": "borrow", "reason": "its samples help the target"},
        "shop": {**said, "weight": 0.9, "verdict": "not known", "reason": "nothing about it is certain"},
        "lies": {
            **said,
            "weight": 0.1,
            "verdict": "do not borrow",
            "reason": "its samples push the wrong way",
        },
    }
    harmful = [{"source": "video", "part": "feed partner <7>", "rows": 900, "value": -0.4, "certainty": -6.0}]
    told = {"verdicts": verdicts, "weights": weights, "windows": [], "target_certainty": None, "harmful_parts": harmful}
    page = Page(render(a_version(a_report(source_weighting=told))))
    assert page.tags.count("svg") == 4
    assert page.tags.count("polygon") == 2
    assert "do not borrow" in page.text
    assert "not known" in page.text
    assert "step 200" in page.text
    assert "video, feed partner <7>: source value -0.40 over 900 rows" in page.text


def test_words_of_others_are_text_and_never_markup(a_report):
    """A reason, a leak or a name with angle brackets comes out as it was written."""
    nasty = "<script>alert(1)</script>"
    report = a_report(leaks=[nasty], decision={"promote": False, "verdict": "hold", "reasons": [nasty]})
    html = render(a_version(report, created_by=nasty, config={"baselines": nasty}))
    assert "<script" not in html
    assert Page(html).text.count(nasty) == 4


def test_ratings_and_broken_certificates_are_told_too(a_report):
    """No reliability for ratings; a frozen tensor that moved is named."""
    report = a_report(task="rating", metric="rmse", reliability=None)
    report["rows"] = {"item_mean": {"rmse": a_row(1.1)}, "adapter": {"rmse": a_row(1.0)}}
    broken = {**CERTIFICATE, "ok": False, "changed": ["head.weight"], "predictions_moved": ["shop"]}
    page = Page(render(a_version(report, certificate=broken)))
    assert "RMSE ↓" in page.text
    assert "broken" in page.text
    assert "head.weight, shop" in page.text


def test_a_version_that_no_launch_judged_has_no_page():
    """Shared training makes versions without a report."""
    with pytest.raises(ValueError, match="no cold-start report"):
        render(a_version({}))
