"""A consistent copy of a home under a running stack, and a home made of such a copy.

The registry is copied first, by SQLite's own online backup; what it speaks of was written before it and never changes,
so the copies of artifacts and events hold all of it and perhaps more. Restoring goes the other way: the registry comes
last, and as one transaction into the file that is there, so that processes which have it open go on with it. Not
copied: folders of runs, logs, Prefect's database and the secrets of this machine's servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import make_url

from domains.errors import Conflict, NotFound, Rejected
from domains.events.publishing import copy_whole, flush_tree, only_writer, point_at, pointed_at
from domains.registry.registry import Registry
from orchestrator.settings import Settings
from orchestrator.values import Value

MANIFEST = "manifest.json"
REGISTRY = "registry.db"
POINTERS = frozenset({"current.json", "vocabulary.json", "latest"})
"""Files that say which others count: they are brought last."""
LEFT_OUT = frozenset({"writer.lock", "writing.lock", "feature_store.yaml"})
"""Locks, and a file that names the home's own path and is written anew."""
SQLITE = b"SQLite format 3\x00"
BUSY_S = 60.0
FORMAT = 1


class Manifest(Value):
    """What a backup holds."""

    format: int
    made_at: str
    """UTC, ISO 8601."""
    registry: str
    """``sqlite``: in the backup. ``postgresql``: saved by its own tools."""
    files: dict[str, str]
    """SHA-256 of every file, by its path in the backup."""

    @property
    def in_words(self) -> str:
        return f"{len(self.files):,} files of {self.made_at}"


def back_up(target: Path, *, settings: Settings) -> Manifest:
    """Copy registry, events, features and artifacts into a new folder, or a file that ends in .tar, .tar.gz or .tgz.

    Raises:
        Conflict: the target exists.
        OSError: there is no room for it; nothing is left of it.
    """
    if target.exists():
        raise Conflict(f"{target} exists; name a folder or a file that does not")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        manifest = _fill(building, settings)
        if _is_archive(target):
            packed = building.with_name(f"{building.name}.tar")
            try:
                with tarfile.open(packed, "w:gz" if target.name.endswith("gz") else "w") as archive:
                    archive.add(building, arcname=".")
                packed.chmod(0o600)
                packed.rename(target)
            finally:
                packed.unlink(missing_ok=True)
        else:
            flush_tree(building)
            building.rename(target)
        return manifest
    finally:
        shutil.rmtree(building, ignore_errors=True)


def restore(source: Path, *, settings: Settings, replace: bool = False) -> Manifest:
    """Make the home what it was when the backup was made; it may be served meanwhile.

    Every file is compared with the manifest before anything is changed. Runs that were under way count as failed.

    Raises:
        NotFound: there is no backup.
        Rejected: it is damaged, or of another format.
        Conflict: the home holds a registry already, and ``replace`` was not said.
    """
    file = _registry_file(settings)
    with _opened(source) as backup:
        manifest = _checked(backup, source)
        if file is not None and file.exists() and not replace:
            raise Conflict(f"{settings.home} holds a registry already; --replace overwrites it and what belongs to it")
        if (file is None) != (manifest.registry != "sqlite"):
            place = "in SQLite" if file is None else "in PostgreSQL"
            raise Conflict(f"GRAFT_DATABASE_URL: the registry of the backup is {place}, the one of the settings is not")
        for folder in {_lock_of(name) for name in manifest.files if name != REGISTRY}:
            settings.home.joinpath(folder).mkdir(parents=True, exist_ok=True)
        for folder in sorted({_lock_of(name) for name in manifest.files if name != REGISTRY}):
            inside = [name for name in manifest.files if name != REGISTRY and _lock_of(name) == folder]
            with only_writer(settings.home / folder):
                for name in sorted(inside, key=lambda name: (Path(name).name in POINTERS, name)):
                    _bring(backup / name, settings.home / name, manifest.files[name])
        if file is not None:
            _bring_registry(backup / REGISTRY, file)
    return manifest


def _fill(building: Path, settings: Settings) -> Manifest:
    file = _registry_file(settings)
    # Old versions must not be deleted between the copy of the registry and that of their files.
    with only_writer(settings.artifacts_dir):
        if file is not None:
            if not file.is_file():
                raise NotFound(f"there is no registry at {file} to back up")
            _copy_database(file, building / REGISTRY)
        for folder in _locked_folders(settings):
            with only_writer(settings.home / folder) if folder != "bentoml/models" else contextlib.nullcontext():
                _copy_folder(settings.home, folder, building)
    digests = {str(path.relative_to(building)): _digest(path) for path in _files_in(building)}
    registry = "sqlite" if file is not None else "postgresql"
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(format=FORMAT, made_at=made_at, registry=registry, files=digests)
    point_at(building / MANIFEST, manifest.as_dict())
    return manifest


def _locked_folders(settings: Settings) -> list[str]:
    """The folders that have a writer each. Domains before vocabularies: these only grow, and must know all the ids."""
    home = settings.home
    data = [path for path in (home / "data").glob("*") if path.is_dir()]
    domains = [path for path in (home / "data" / "domains").glob("*") if path.is_dir()]
    rest = [path for path in data if path.name != "domains"]
    found = [*sorted(domains), *sorted(rest), home / "bentoml" / "models", home / "features"]
    return [str(path.relative_to(home)) for path in found if path.is_dir()]


def _lock_of(name: str) -> str:
    """The folder of a file whose one writer it belongs to."""
    parts = Path(name).parts
    depth = 1 if parts[0] in ("features", "bentoml") else 3 if parts[:2] == ("data", "domains") else 2
    return str(Path(*parts[:depth]))


def _copy_folder(home: Path, folder: str, building: Path) -> None:
    for path in _files_in(home / folder):
        if (
            path.name not in LEFT_OUT
            and not path.name.startswith(".")
            and not path.name.endswith(("-wal", "-shm", ".tmp"))
        ):
            place = building / path.relative_to(home)
            place.parent.mkdir(parents=True, exist_ok=True)
            if _is_sqlite(path):
                _copy_database(path, place)
            else:
                shutil.copyfile(path, place)


def _bring(source: Path, target: Path, digest: str) -> None:
    """Make a file what it was; one that is the same already is left alone, a database is replaced as a transaction."""
    if _is_sqlite(source) and target.exists():
        _copy_database(source, target)
    elif not target.exists() or _digest(target) != digest:
        copy_whole(source, target)


def _bring_registry(source: Path, file: Path) -> None:
    """Put the backup's registry in the place of the one that is there, in one transaction.

    Its generation becomes higher than both had, so that every process which watches it reads all anew.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.restored")
    try:
        shutil.copyfile(source, staged)
        registry = Registry(f"sqlite:///{staged}")
        registry.migrate()
        for run in registry.unfinished_runs():
            registry.finish_run(
                run.id, state="failed", error="it was under way when the backup was made; start it again"
            )
        registry.note("restore", "restore", why=f"the backup {source.parent}")
        registry.close()
        with closing(sqlite3.connect(staged)) as connection, connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            held = _generation(file) if file.exists() else 0
            newer = "UPDATE counters SET value = MAX(value, ?) + 1 WHERE name = 'generation'"
            connection.execute(newer, (held,))
        if file.exists():
            _copy_database(staged, file)
        else:
            copy_whole(staged, file)
    finally:
        for ending in ("", "-wal", "-shm"):
            staged.with_name(staged.name + ending).unlink(missing_ok=True)


def _generation(file: Path) -> int:
    try:
        with closing(sqlite3.connect(file, timeout=BUSY_S)) as connection:
            return int(connection.execute("SELECT value FROM counters WHERE name = 'generation'").fetchone()[0])
    except (sqlite3.DatabaseError, TypeError):  # what is to be replaced may be damaged
        return int(time.time())


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database that others may read and write meanwhile, also into one that others have open.

    Raises:
        sqlite3.OperationalError: the target stays locked.
    """
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as held,
        closing(sqlite3.connect(target, timeout=BUSY_S)) as copy,
    ):
        until = time.monotonic() + BUSY_S

        def give_up(*_progress: int) -> None:
            if time.monotonic() > until:  # Python would try for ever
                raise sqlite3.OperationalError(f"{target} stays locked")

        held.backup(copy, progress=give_up, sleep=0.05)


def _checked(backup: Path, source: Path) -> Manifest:
    try:
        found = pointed_at(backup / MANIFEST)
        manifest = None if found is None else Manifest.from_dict(found)
    except ValueError as fault:
        raise Rejected(f"{source}: its {MANIFEST} cannot be read") from fault
    if manifest is None:
        raise NotFound(f"{source} is no backup: it holds no {MANIFEST}")
    if manifest.format != FORMAT:
        raise Rejected(f"{source} is a backup of format {manifest.format}; this version of Graft reads format {FORMAT}")
    for name, digest in manifest.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Rejected(f"{source}: {name} leads out of the backup")
        path = backup / name
        if not path.is_file() or _digest(path) != digest:
            raise Rejected(f"{source}: {name} is missing or damaged; nothing was changed")
    return manifest


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    """The backup as a folder."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise NotFound(f"there is no backup at {source}")
    with tempfile.TemporaryDirectory(prefix=".graft-restore-", dir=source.parent) as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError) as fault:
            raise Rejected(f"{source} cannot be read as a backup: {fault}") from fault
        yield Path(folder)


def _registry_file(settings: Settings) -> Path | None:
    """SQLite's file of the registry; None where it is in PostgreSQL."""
    url = make_url(settings.registry_url)
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def _is_archive(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
