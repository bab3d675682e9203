"""A team's declaration: what is accepted, and how a mistake is explained."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.errors import InvalidSpec
from domains.spec import DomainSpec, Gate, Interactions

PAGE = """\
name: live-rooms
role: target
task: ctr
sources: [video, shop]
owner: team-live
interactions:
  user: user_id
  item: item_id
  time: ts
  time_unit: iso
  label: click
  label_range: [0, 1]
  action: event_type
  context: {hour: category}
items: {id: item_id, features: {category: category, price: number}}
users: {id: user_id, features: {age_band: category}}
domain_features: {surface: live, layout: feed, rows: 3}
history: {short: 24}
schedule: "0 3 * * *"
gate: {baseline: popularity, metric: auc, minimum_cold_users: 30}
"""


def changed(before: str, after: str) -> str:
    assert PAGE.count(before) == 1, f"{before!r} must stand once in the page"
    return PAGE.replace(before, after)


def refused(page: str | Path | bytes) -> InvalidSpec:
    with pytest.raises(InvalidSpec) as fault:
        DomainSpec.from_yaml(page, origin="live.yaml")
    return fault.value


class TestAccepted:
    def test_a_whole_page(self) -> None:
        spec = DomainSpec.from_yaml(PAGE)
        assert (spec.name, spec.role, spec.sources) == ("live-rooms", "target", ("video", "shop"))
        assert spec.interactions.context == {"hour": "category"}
        assert spec.domain_features == {"surface": "live", "layout": "feed", "rows": 3}

    def test_the_shortest_page(self) -> None:
        """A source of implicit positives needs its name, its role, its task, an owner and two columns."""
        spec = DomainSpec.from_yaml(
            "{name: shop, role: source, task: ctr, owner: us, interactions: {user: u, item: i}}"
        )
        assert (spec.interactions.label, spec.interactions.time, spec.items, spec.schedule) == (None, None, None, None)
        assert spec.gate == Gate(baseline="strongest_plain", metric="auc")

    def test_it_comes_back_equal_from_its_own_yaml(self) -> None:
        spec = DomainSpec.from_yaml(PAGE)
        assert DomainSpec.from_yaml(spec.to_yaml()) == spec

    @given(
        columns=st.lists(st.text(min_size=1, max_size=20), min_size=4, max_size=4),
        trait=st.one_of(st.text(max_size=20), st.integers(), st.floats()),
    )
    def test_any_column_name_survives_yaml(self, columns: list[str], trait: object) -> None:
        """Whatever a column is called (on, 010, 1e3, null, a date, a colon): read back, it is the same text."""
        user, item, feature, label = columns
        declared = {
            "name": "any",
            "role": "source",
            "task": "ctr",
            "owner": user,
            "interactions": {"user": user, "item": item, "label": label},
            "items": {"id": item, "features": {feature: "category"}},
            "domain_features": {feature: trait},
        }
        try:
            spec = DomainSpec.from_mapping(declared)
        except InvalidSpec:
            return
        assert DomainSpec.from_yaml(spec.to_yaml()) == spec

    @pytest.mark.parametrize("column", ["on", "yes", "no", "2024-01-01", "0o17", "12:30:00", "y", "=", "<<"])
    def test_a_column_is_not_taken_for_something_else(self, column: str) -> None:
        """YAML 1.1 would read these as a truth value, a date, a number of seconds or a merge."""
        assert DomainSpec.from_yaml(changed("label: click", f"label: {column}")).interactions.label == column

    def test_a_rating_domain_is_judged_by_mae_unless_it_says_otherwise(self) -> None:
        page = changed("task: ctr", "task: rating").replace("[0, 1]", "[1, 5]")
        assert DomainSpec.from_yaml(page.replace("metric: auc, ", "")).gate.metric == "mae"
        assert DomainSpec.from_yaml(page.replace("metric: auc", "metric: rmse")).gate.metric == "rmse"
        rating = Interactions(user="u", item="i", label="stars", label_range=(1, 5))
        built = DomainSpec(name="books", role="source", task="rating", owner="us", interactions=rating, gate=Gate())
        assert built.gate.metric == "mae"

    def test_one_vouches_for_features_by_their_names_alone(self) -> None:
        """Words for a feature that there is not would have no effect; other domains' and histories' are allowed."""
        gate = {"price": "on the page", "source history": "read before", "shop.age": "asked at sign-up"}
        declared = DomainSpec.from_yaml(PAGE).model_dump(mode="json", exclude_unset=True)
        held = DomainSpec.from_mapping({**declared, "gate": {"known_at_request": gate}})
        assert held.gate.known_at_request == gate
        with pytest.raises(InvalidSpec, match="no feature that this spec declares") as refused:
            DomainSpec.from_mapping({**declared, "gate": {"known_at_request": {"prize": "a slip"}}})
        assert refused.value.details["problems"][0]["field"] == "gate.known_at_request.prize"

    def test_clicks_can_be_made_of_ratings(self) -> None:
        spec = DomainSpec.from_yaml(changed("label_range: [0, 1]", "label_range: [1, 5]\n  positive_above: 3"))
        assert spec.interactions.positive_above == 3

    def test_from_a_file_by_path_or_by_name(self, tmp_path: Path) -> None:
        file = tmp_path / "live.yaml"
        file.write_bytes(b"\xef\xbb\xbf" + PAGE.replace("\n", "\r\n").encode())  # as some editors save it
        assert DomainSpec.from_yaml(file) == DomainSpec.from_yaml(str(file)) == DomainSpec.from_yaml(PAGE)

    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            DomainSpec.from_yaml(PAGE).owner = "other"  # type: ignore[misc]


class TestExplained:
    @pytest.mark.parametrize(
        ("before", "after", "line", "field", "words"),
        [
            ("owner:", "ownr:", 5, "ownr", "unknown key; did you mean 'owner'?"),
            ("  label: click", "  lable: click", 11, "interactions.lable", "did you mean 'label'?"),
            ("metric: auc", "metrik: auc", 20, "gate.metrik", "did you mean 'metric'?"),
            ("owner:", "positive_above: 3\nowner:", 5, "positive_above", "did you mean 'interactions.positive_above'?"),
            ("role: target", "role: targt", 2, "role", "did you mean 'target'?"),
            ("price: number", "price: numeric", 15, "items.features.price", "must be 'category' or 'number'"),
            ("baseline: popularity", "baseline: popular", 20, "gate.baseline", "did you mean 'popularity'?"),
            ("live-rooms", "Live Rooms", 1, "name", "a-z, 0-9 and '-'"),
            ("live-rooms", "users", 1, "name", "'users' is reserved"),
            ("live-rooms", "x", 1, "name", "2 to 48"),
            ("live-rooms", "a" * 49, 1, "name", "2 to 48"),
            ("live-rooms", "2024", 1, "name", "put 2024 in quotes"),
            ("[video, shop]", "[video, Shop]", 4, "sources.1", "a-z, 0-9 and '-'"),
            ("[video, shop]", "[video, video]", 4, "sources.1", "'video' is named twice"),
            ("[video, shop]", "[live-rooms]", 4, "sources.0", "cannot be its own source"),
            ("role: target", "role: source", 4, "sources", "only a target has sources"),
            ("task: ctr", "task: rating", 20, "gate.metric", "auc does not measure a rating domain; use mae or rmse"),
            ("metric: auc", "metric: rmse", 20, "gate.metric", "rmse does not measure a ctr domain"),
            ("[0, 1]", "[1, 5]", 12, "interactions.label_range", "add positive_above"),
            ("[0, 1]", "[1, 0]", 12, "interactions.label_range", "lowest label must be below"),
            ("[0, 1]", "[0]", 12, "interactions.label_range.1", "is required"),
            ("[0, 1]", "[0, .inf]", 12, "interactions.label_range.1", "finite"),
            ("[0, 1]", "[1, 5]\n  positive_above: 5", 13, "interactions.positive_above", "below its top, 5"),
            ("  label_range: [0, 1]", "  positive_above: 3", 6, "interactions.label_range", "needs the scale"),
            ("  time: ts\n", "", 9, "interactions.time_unit", "none is named"),
            ("  time: ts", "  time: user_id", 9, "interactions.time", "column 'user_id' is already the user"),
            ("  time: ts", "  time: ''", 9, "interactions.time", "must not be empty"),
            ("{hour: category}", "{Click: category}", 14, "interactions.context.Click", "is the label column"),
            ("{hour: category}", "{label: category}", 14, "interactions.context.label", "Graft writes itself"),
            (
                "price: number",
                "Category: number",
                15,
                "items.features.Category",
                "differs from 'category' only in case",
            ),
            ("price: number", "item_id: number", 15, "items.features.item_id", "is the id column"),
            (
                "surface: live",
                "surface: true",
                17,
                "domain_features.surface",
                "put a word such as yes or true in quotes",
            ),
            ("rows: 3", "rows: .nan", 17, "domain_features.rows", "finite"),
            ("rows: 3", "rows: [3]", 17, "domain_features.rows", "text or a number"),
            ("short: 24", "short: 5000", 18, "history.short", "less than or equal to 2000"),
            ("short: 24", "short: '24'", 18, "history.short", "valid integer"),
            ("0 3 * * *", "61 3 * * *", 19, "schedule", "not a schedule that ever fires"),
            ("0 3 * * *", "0 0 31 2 *", 19, "schedule", "not a schedule that ever fires"),
            ("0 3 * * *", "0 3 * *", 19, "schedule", "five fields"),
            ("0 3 * * *", "0 0 3 * * *", 19, "schedule", "five fields"),
            ("0 3 * * *", "@daily", 19, "schedule", "five fields"),
            ("0 3 * * *", "H 3 * * *", 19, "schedule", "five fields"),
            (
                "minimum_cold_users: 30",
                "minimum_cold_users: 0",
                20,
                "gate.minimum_cold_users",
                "greater than or equal to 1",
            ),
            ("minimum_cold_users: 30", "cold_share: 1", 20, "gate.cold_share", "less than 1"),
        ],
    )
    def test_a_mistake_names_its_line_its_field_and_what_was_meant(
        self, before: str, after: str, line: int, field: str, words: str
    ) -> None:
        fault = refused(changed(before, after))
        problem = fault.details["problems"][0]
        if problem["field"] != field:  # one mistake may break a second rule further up
            problem = next(other for other in fault.details["problems"] if other["field"] == field)
        assert problem["line"] == line
        assert words in problem["message"]
        assert f"live.yaml:{line}: {field}: " in str(fault)

    def test_every_problem_is_told_at_once_in_the_order_of_the_page(self) -> None:
        page = changed("owner:", "ownr:").replace("price: number", "price: numeric").replace("short: 24", "shortt: 24")
        fault = refused(page)
        assert [(problem["line"], problem["field"]) for problem in fault.details["problems"]] == [
            (1, "owner"),
            (5, "ownr"),
            (15, "items.features.price"),
            (18, "history.shortt"),
        ]
        assert (fault.details["line"], fault.details["field"]) == (1, "owner")
        assert len(str(fault).splitlines()) == 4

    def test_a_form_gets_fields_without_lines(self) -> None:
        with pytest.raises(InvalidSpec) as fault:
            DomainSpec.from_mapping(
                {"name": "live-rooms", "role": "target", "task": "ctr", "interactions": {"user": "u"}}
            )
        assert str(fault.value) == "owner: is required\ninteractions.item: is required"
        assert [problem["line"] for problem in fault.value.details["problems"]] == [None, None]

    def test_a_key_given_twice_is_an_error(self) -> None:
        """PyYAML would silently let the last one win."""
        fault = refused(PAGE + "owner: team-shop\n")
        assert str(fault) == "live.yaml:21: owner: key 'owner' is given twice, first on line 5"
        assert "is given twice" in str(refused(changed("price: number", "category: number")))

    @pytest.mark.parametrize(
        ("page", "line", "words"),
        [
            ("", 1, "must be keys with values"),
            ("just words", 1, "must be keys with values"),
            ("- name: live", 1, "must be keys with values"),
            (PAGE + "\tx: 1\n", 21, "not readable YAML"),
            (PAGE + "---\n" + PAGE, 21, "another document"),
            (PAGE.replace("[video, shop]", "[video, shop"), 5, "not readable YAML"),
            (PAGE.replace('"0 3 * * *"', "* * * * *"), 19, "put text that begins with * in quotes"),
            ("a: &x [1]\nb: *x\n", 2, "aliases are not read"),
            ("a: !!python/object/apply:os.getcwd []\n", 1, "could not determine a constructor"),
            ("a: !!int five\n", 1, "is no number"),
            ("a: 1\nb: \x07\n", 2, "not printable text"),
            ("[" * 5000, None, "nested too deeply"),
        ],
    )
    def test_what_is_not_a_page_is_told_with_its_line(self, page: str, line: int | None, words: str) -> None:
        fault = refused(page)
        assert words in str(fault)
        assert fault.details["line"] == line

    def test_what_is_not_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "latin.yaml").write_bytes(PAGE.replace("team-live", "équipe").encode("latin-1"))
        fault = refused(tmp_path / "latin.yaml")
        assert str(fault) == "live.yaml:5: is not UTF-8 text"
        (tmp_path / "events.yaml").write_bytes(b"x" * (2 << 20))
        assert "is it a data file" in str(refused(tmp_path / "events.yaml"))

    def test_a_file_that_is_not_there_is_refused_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSpec, match=r"nowhere\.yaml: cannot be read: No such file"):
            DomainSpec.from_yaml(str(tmp_path / "nowhere.yaml"))
        with pytest.raises(InvalidSpec, match="cannot be read: Is a directory"):
            DomainSpec.from_yaml(tmp_path)
