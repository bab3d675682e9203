"""Answers and feedback in the registry, on SQLite and on PostgreSQL."""

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from domains.errors import (
    InvalidData,
)
from domains.registry.registry import Registry
from tests.integration.registry.fakes import at_once, click, prediction, spec


class TestPredictionLog:
    def test_feedback_joins_its_prediction(self, registry: Registry) -> None:
        registry.log_predictions([prediction(position=3, model_version="a", served_by="adapter", shadow=True)])
        assert registry.log_feedback([click(label=1, seconds=12)]) == 1
        (row,) = registry.feedback("live-rooms")
        assert (row["user_id"], row["score"], row["position"], row["model_version"]) == ("u1", 0.5, 3, "a")
        assert (row["served_by"], row["value"], row["detail"]) == ("adapter", 1.0, {"seconds": 12})

    def test_sent_twice_is_kept_once(self, registry: Registry) -> None:
        for _ in range(2):
            registry.log_predictions([prediction("i1"), prediction("i2"), prediction("i1", score=0.9)])
        assert registry.log_feedback([click("i1"), click("i2"), click("i1")]) == 2
        assert registry.log_feedback([click("i1"), click("i1", action="buy")]) == 1
        found = registry.feedback("live-rooms")
        assert [(row["item_id"], row["action"], row["score"]) for row in found] == [
            ("i1", "click", 0.5),
            ("i2", "click", 0.5),
            ("i1", "buy", 0.5),
        ]

    def test_feedback_may_come_before_its_prediction(self, registry: Registry) -> None:
        """It waits, and is paged after rows that overtook it: a reader who has passed them still sees it."""
        assert registry.log_feedback([click(request="early")]) == 1
        registry.log_predictions([prediction()])
        registry.log_feedback([click()])
        (first,) = registry.feedback("live-rooms")
        registry.log_predictions([prediction(request="early")])
        (late,) = registry.feedback("live-rooms", after_id=first["id"])
        assert (late["request_id"], late["user_id"], late["score"]) == ("early", "u1", 0.5)

    def test_old_answers_are_forgotten_and_young_ones_kept(self, registry: Registry) -> None:
        """In batches, with their feedback, also feedback whose request never became known; again changes nothing."""
        registry.register_domain(spec(), by="ann")
        today = datetime.now(UTC)
        for number in range(25):
            at = today - timedelta(days=10 if number < 20 else 1, seconds=number)
            registry.log_predictions([prediction(request=f"q{number}", at=at)])
            registry.log_feedback([click(request=f"q{number}", at=at)])
        registry.log_feedback([click(request="never-asked", at=today - timedelta(days=10))])
        assert registry.forget_answers(today - timedelta(days=5), batch=3) == 20 + 20 + 1
        left = registry.feedback("live-rooms")
        assert sorted(row["request_id"] for row in left) == ["q20", "q21", "q22", "q23", "q24"]
        assert {row["score"] for row in left} == {0.5}
        assert set(registry.answered({f"q{number}" for number in range(25)})) == {
            f"q{number}" for number in range(20, 25)
        }
        assert registry.forget_answers(today - timedelta(days=5)) == 0

    def test_a_reader_that_pages_misses_nothing(self, registry: Registry) -> None:
        """Ids appear in the order of commits, whoever writes at the same time."""
        seen: list[tuple[int, str]] = []
        done = threading.Event()

        def page() -> None:
            while True:
                ending = done.is_set()
                rows = registry.feedback("live-rooms", after_id=seen[-1][0] if seen else 0, limit=7)
                seen.extend((row["id"], row["item_id"]) for row in rows)
                if ending and not rows:
                    return

        reader = threading.Thread(target=page)
        reader.start()

        def write(number: int) -> None:
            for batch in range(5):
                registry.log_feedback([click(f"{number}-{batch}-{n}", domain="live-rooms") for n in range(3)])

        at_once(6, write)
        done.set()
        reader.join()
        assert sorted(item for _, item in seen) == sorted(
            f"{w}-{b}-{n}" for w in range(6) for b in range(5) for n in range(3)
        )

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"item_id": None}, "item_id"),
            ({"user_id": ""}, "user_id"),
            ({"user_id": 7}, "user_id"),
            ({"user_id": "a\x00b"}, "user_id"),
            ({"request_id": "x" * 201}, "request_id"),
            ({"score": "high"}, "score"),
            ({"at": "yesterday"}, "at"),
        ],
    )
    def test_a_wrong_row_is_named_and_none_is_kept(self, registry: Registry, wrong: dict, field: str) -> None:
        with pytest.raises(InvalidData, match="row 2") as refused:
            registry.log_predictions([prediction(), {**prediction("i2"), **wrong}])
        assert refused.value.details == {"row": 2, "field": field}
        registry.log_feedback([click()])
        assert registry.feedback("live-rooms") == []

    def test_no_rows_are_no_work(self, registry: Registry) -> None:
        registry.log_predictions([])
        assert registry.log_feedback([]) == 0

    def test_times_are_kept_in_utc(self, registry: Registry) -> None:
        """Another zone is converted, a naive time is taken to be UTC, a number is microseconds."""
        noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
        tokyo = noon.astimezone(timezone(timedelta(hours=9)))
        moments = [tokyo, noon.replace(tzinfo=None), int(noon.timestamp() * 1e6)]
        registry.log_feedback([click(f"i{n}", at=at, domain="live-rooms") for n, at in enumerate(moments)])
        assert [row["at"] for row in registry.feedback("live-rooms")] == [noon] * 3
        assert {row["at"].tzinfo for row in registry.feedback("live-rooms")} == {UTC}
