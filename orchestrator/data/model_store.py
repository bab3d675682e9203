"""Versions on disk: BentoML's model store holds each one under its content hash, written once and never changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.errors import ArtifactMissing

TAG_DIGITS = 40
"""BentoML's tags hold at most 63 characters; loading checks the whole hash anyway."""


class Artifacts:
    """The model store in ``home``. Publishing the same content twice is harmless."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._home.mkdir(parents=True, exist_ok=True)

    def publish(self, kind: str, directory: Path, content_hash: str) -> str:
        """Copy a finished folder into the store and return its tag, ``graft-<kind>:<first of the hash>``."""
        import bentoml
        from bentoml.exceptions import BentoMLException

        tag = f"graft-{kind}:{content_hash[:TAG_DIGITS]}"
        store = self._store()
        if self._holds(tag):
            return tag
        # The store writes into a temporary folder and renames it at the end of the block: half a version is never seen.
        try:
            with bentoml.models.create(tag, labels={"kind": kind}, _model_store=store) as model:
                for file in directory.iterdir():
                    shutil.copy2(file, Path(model.path) / file.name)
        except BentoMLException:
            if not self._holds(tag):
                raise
        return tag

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
