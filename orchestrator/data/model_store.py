"""Versions on disk: BentoML's model store holds each one under its content hash, written once and never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from domains.events.publishing import copy_whole, flush_folder, flush_tree, point_at, pointed_at
from orchestrator.errors import ArtifactDamaged, ArtifactMissing

FILES = "files.json"
"""Lists the files of a version with their SHA-256, so that a damaged one is found before anything answers from it."""
TAG_DIGITS = 40
"""BentoML's tags hold at most 63 characters; loading checks the whole hash anyway."""


class Artifacts:
    """The model store in ``home``. Publishing the same content twice is harmless."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._home.mkdir(parents=True, exist_ok=True)

    def publish(self, kind: str, directory: Path, content_hash: str) -> str:
        """Copy a finished folder into the store and return its tag, ``graft-<kind>:<first of the hash>``.

        All of it is on the disk when this returns. A stored version whose files were damaged is repaired.
        """
        import bentoml
        from bentoml.exceptions import BentoMLException

        tag = f"graft-{kind}:{content_hash[:TAG_DIGITS]}"
        if not self._holds(tag):
            # The store writes into a temporary folder and renames it at the end of the block: half a version is never
            # seen.
            try:
                with bentoml.models.create(tag, labels={"kind": kind}, _model_store=self._store()) as model:
                    _fill(Path(model.path), directory)
            except BentoMLException:
                if not self._holds(tag):
                    raise
            else:
                flush_tree(self.path(tag))
                flush_folder(self.path(tag).parent)
        try:
            self.verified(tag)
        except ArtifactDamaged:
            _fill(self.path(tag), directory)
        return tag

    def verified(self, tag: str) -> Path:
        """Folder of a version whose files are what was published.

        Raises:
            ArtifactMissing: the store does not hold it.
            ArtifactDamaged: a file is missing or has changed; the message names it.
        """
        folder = self.path(tag)
        try:
            listed = pointed_at(folder / FILES)
        except (OSError, ValueError):
            listed = None
        if not isinstance(listed, dict) or not listed:
            raise ArtifactDamaged(f"{folder / FILES} cannot be read; publishing the version again repairs it")
        for name, digest in listed.items():
            if _digest(folder / name) != digest:
                raise ArtifactDamaged(f"{folder / name} is not what was published; publishing it again repairs it")
        return folder

    def path(self, tag: str) -> Path:
        """Folder of a version.

        Raises:
            ArtifactMissing: the store does not hold it.
        """
        from bentoml.exceptions import BentoMLException

        try:
            return Path(self._store().get(tag).path)
        except (BentoMLException, OSError) as error:
            raise ArtifactMissing(f"the model store {self._home} holds no {tag}: {error}") from error

    def delete(self, tag: str) -> int:
        """Delete a version's folder, if it is there; returns the bytes that it held.

        It is moved out of sight first, so that nobody loads half of it.
        """
        try:
            folder = self.path(tag)
        except ArtifactMissing:
            return 0
        held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        aside = self._home / "deleted" / f"{folder.parent.name}-{folder.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return held

    def _holds(self, tag: str) -> bool:
        try:
            self.path(tag)
        except ArtifactMissing:
            return False
        return True

    def _store(self):  # type: ignore[no-untyped-def]  # BentoML's store type is internal
        # An explicit store instead of BentoML's global one, which is fixed by the environment at first import.
        os.environ.setdefault("BENTOML_HOME", str(self._home))
        from bentoml._internal.models import ModelStore

        folder = self._home / "models"
        folder.mkdir(exist_ok=True)
        return ModelStore(folder)


def _fill(folder: Path, directory: Path) -> None:
    """Bring the files of a directory into a version's folder, each whole or not at all, and list them."""
    digests = {}
    for file in sorted(directory.iterdir()):
        digests[file.name] = _digest(file)
        copy_whole(file, folder / file.name)
    point_at(folder / FILES, digests)


def _digest(file: Path) -> str | None:
    """SHA-256 of a file; None where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
