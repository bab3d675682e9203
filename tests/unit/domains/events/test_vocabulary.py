"""Indices are for ever: what is appended later, or lost in a crash, never renumbers what was there."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.events import vocabulary as module
from domains.events.vocabulary import StaleVocabulary, Vocabulary


def test_an_absent_vocabulary_is_empty(tmp_path):
    """Index 0 is there before any name: the row of the unknown."""
    vocabulary = Vocabulary.load(tmp_path / "items")
    assert len(vocabulary) == 1
    assert vocabulary.index(["a", None, ""]).tolist() == [0, 0, 0]
    with pytest.raises(IndexError):
        vocabulary.name(0)


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.lists(st.text(max_size=3), max_size=8), max_size=5))
def test_appending_never_renumbers(tmp_path_factory, rounds):
    """Over any rounds of appending and reloading every name keeps the index that it got first."""
    path = tmp_path_factory.mktemp("vocabulary")
    first: dict[str, int] = {}
    for names in rounds:
        vocabulary = Vocabulary.load(path)
        for name, index in zip(names, vocabulary.extend(names), strict=True):
            assert first.setdefault(name, index) == index
        vocabulary.save()
    loaded = Vocabulary.load(path)
    known = {name: index for name, index in first.items() if name}
    assert len(loaded) == 1 + len(known)
    assert sorted(known.values()) == list(range(1, len(loaded)))
    assert all(loaded.name(index) == name for name, index in known.items())
    assert loaded.index(known).tolist() == list(known.values())


def test_nothing_is_kept_until_saved(tmp_path):
    """Names that were never saved are free for the next writer."""
    Vocabulary.load(tmp_path).extend(["lost"])
    assert len(Vocabulary.load(tmp_path)) == 1


def test_two_writers_cannot_give_one_index_twice(tmp_path):
    """The second of two that loaded the same state is refused, and must load again."""
    one, other = Vocabulary.load(tmp_path), Vocabulary.load(tmp_path)
    one.extend(["a"])
    other.extend(["b"])
    one.save()
    with pytest.raises(StaleVocabulary):
        other.save()
    assert Vocabulary.load(tmp_path).names().to_pylist() == ["a"]


def test_leaving_by_an_exception_saves_nothing(tmp_path):
    """``writing`` is all or nothing."""

    def fail():
        with Vocabulary.writing(tmp_path) as vocabulary:
            vocabulary.extend(["a"])
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
        with Vocabulary.writing(tmp_path) as vocabulary:
            vocabulary.extend([f"name {number}"])
    loaded = Vocabulary.load(tmp_path)
    assert len(loaded.segments()) <= 3
    assert loaded.names().to_pylist() == [f"name {number}" for number in range(10)]
