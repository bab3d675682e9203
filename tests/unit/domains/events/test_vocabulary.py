"""Indices are for ever: what is appended later, or lost in a crash, never renumbers what was there."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.events import vocabulary as module
from domains.events.vocabulary import Vocabulary


def test_an_absent_vocabulary_is_empty(tmp_path):
    """Index 0 is there before any name: the row of the unknown."""
    vocabulary = Vocabulary.load(tmp_path / "items")
    assert len(vocabulary) == 1
    assert vocabulary.index(["a", None, ""]).tolist() == [0, 0, 0]
    with pytest.raises(IndexError):
        vocabulary.name(0)


def append(path, *names):
    with Vocabulary.writing(path) as vocabulary:
        vocabulary.append_new(pa.array(names, pa.string()))


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=8), max_size=5))
def test_appending_never_renumbers(tmp_path_factory, rounds):
    """Over any rounds of appending and reloading every name keeps the index that it got first."""
    path = tmp_path_factory.mktemp("vocabulary")
    first: dict[str, int] = {}
    for names in rounds:
        append(path, *dict.fromkeys(name for name in names if name not in first))
        for name, index in zip(names, Vocabulary.load(path).index(names), strict=True):
            assert first.setdefault(name, index) == index
    loaded = Vocabulary.load(path)
    assert len(loaded) == 1 + len(first)
    assert sorted(first.values()) == list(range(1, len(loaded)))
    assert all(loaded.name(index) == name for name, index in first.items())
    assert loaded.index(first).tolist() == list(first.values())


def test_nothing_is_on_disk_until_saved(tmp_path):
    """Names that were never saved are free for the next writer."""
    Vocabulary.load(tmp_path).append_new(pa.array(["lost"]))
    assert len(Vocabulary.load(tmp_path)) == 1


def test_two_writers_cannot_give_one_index_twice(tmp_path):
    """Each waits until the one before has saved, and then sees its names."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: append(tmp_path, name), "abcd"))
    assert sorted(Vocabulary.load(tmp_path).names().to_pylist()) == ["a", "b", "c", "d"]


def test_leaving_by_an_exception_saves_nothing(tmp_path):
    """``writing`` is all or nothing."""

    def fail():
        with Vocabulary.writing(tmp_path) as vocabulary:
            vocabulary.append_new(pa.array(["a"]))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert len(Vocabulary.load(tmp_path)) == 1


def test_bulk_names_must_be_new_to_each_other(tmp_path):
    """A name twice would have two indices."""
    vocabulary = Vocabulary.load(tmp_path)
    for names in (["a", "a"], ["a", None], [""]):
        with pytest.raises(ValueError, match="distinct"):
            vocabulary.append_new(pa.chunked_array([names], pa.string()))
    vocabulary.append_new(pa.chunked_array([["a", "b"]]))
    assert vocabulary.index(["b"]).tolist() == [2]


def test_many_small_appends_stay_few_files(tmp_path, monkeypatch):
    """Past a limit the list is rewritten as one segment, with every index as before."""
    monkeypatch.setattr(module, "MOST_SEGMENTS", 3)
    for number in range(10):
        append(tmp_path, f"name {number}")
    loaded = Vocabulary.load(tmp_path)
    assert len(loaded.segments()) <= 3
    assert loaded.names().to_pylist() == [f"name {number}" for number in range(10)]
