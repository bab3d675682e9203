"""The model store: written once, checked file by file, repaired by publishing again."""

import os
from pathlib import Path

import pytest

from orchestrator.data.model_store import Artifacts
from orchestrator.errors import ArtifactDamaged, ArtifactMissing

HASH = "a" * 64


@pytest.fixture
def finished(tmp_path):
    """A finished folder of two files."""
    folder = tmp_path / "finished"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "encoder.json").write_text('{"task": "ctr"}')
    return folder


@pytest.fixture
def store(tmp_path):
    return Artifacts(tmp_path / "store")


def test_what_was_published_is_found_whole(store, finished):
    """Publishing twice gives the same tag and the same files."""
    tag = store.publish("adapter", finished, HASH)
    assert store.publish("adapter", finished, HASH) == tag
    folder = store.verified(tag)
    for file in finished.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_every_file_and_folder_is_on_the_disk_before_anybody_can_point_at_it(store, finished, monkeypatch):
    """Each file is flushed under its hidden name and renamed, then its folder; the store's folder comes last."""
    done = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renamed(source, target) -> None:
        done.append(("rename", Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    tag = store.publish("adapter", finished, HASH)
    folder = store.path(tag)
    for number, (what, *where) in enumerate(done):
        if what == "rename":
            hidden, seen = where
            assert ("fsync", hidden) in done[:number], "its content first"
            assert ("fsync", seen.parent) in done[number:], "its name after"
    flushes = [where[0] for what, *where in done if what == "fsync"]
    for path in (*folder.iterdir(), folder):
        assert path in flushes, "in the place where the pointer will find it"
    assert flushes[-1] == folder.parent, "nothing is flushed after the return, and the folder's own name last"


def harm_bytes(file):
    """One bit is turned."""
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)


def harm_end(file):
    """The end is missing."""
    file.write_bytes(file.read_bytes()[:-3])


def harm_all(file):
    """The file is gone."""
    file.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "encoder.json", "files.json"])
@pytest.mark.parametrize("harm", [harm_bytes, harm_end, harm_all])
def test_a_damaged_file_is_named_and_publishing_again_repairs_it(store, finished, name, harm):
    """Whatever happened to whichever file."""
    tag = store.publish("adapter", finished, HASH)
    harm(store.path(tag) / name)
    with pytest.raises(ArtifactDamaged, match=r"safetensors|encoder|files\.json"):
        store.verified(tag)
    assert store.publish("adapter", finished, HASH) == tag
    assert (store.verified(tag) / "model.safetensors").read_bytes() == b"weights" * 100


def test_a_version_that_is_gone_is_missing(store):
    """Another error than damage: it may lie in another store."""
    with pytest.raises(ArtifactMissing):
        store.verified("graft-adapter:" + "b" * 40)
