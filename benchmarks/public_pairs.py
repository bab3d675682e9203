"""Pairs of domains of public sets: which loader reads which folder, whether the files lie there, a home for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domains.errors import InvalidData
from domains.events.histories import Histories
from domains.public import LOADERS, PreparedDomain
from domains.registry.registry import Domain, Registry
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.settings import Settings


@dataclass(frozen=True)
class Pair:
    """A source and a target of a public set: which loader reads which folder, and how.

    ``files`` are patterns that each must match a file of the folder: a pair is offered where they do.
    """

    loader: str
    folder: str
    files: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def lies_in(self, data: Path) -> bool:
        return all(any((data / self.folder).glob(pattern)) for pattern in self.files)

    def load(self, data: Path, raw: Path, **more: Any) -> list[PreparedDomain]:
        """The set's loader on the original files; what it writes goes under ``raw``."""
        return LOADERS[self.loader](data / self.folder, raw, **self.options, **more)


def amazon_reviews(source: str, target: str, **options: Any) -> dict[str, Any]:
    """Fields of a `Pair` of two categories in McAuley's original review files; ``options`` go to the loader."""
    # A category's review file starts with a capital, or with "r"; "meta_..." is none.
    files = tuple(f"[!m]*{category}*" for category in (source, target))
    return {
        "loader": "amazon",
        "folder": "amazon",
        "files": files,
        "options": {**options, "sources": [source], "targets": [target]},
    }


def offered(data: Path, settings: Sequence[str], pair_of: Callable[[str], Pair]) -> list[str]:
    """The settings whose files lie under ``data``.

    Raises:
        InvalidData: of no setting.
    """
    found = [setting for setting in settings if pair_of(setting).lies_in(data)]
    if not found:
        folders = ", ".join(sorted({f"{pair_of(setting).folder}/" for setting in settings}))
        raise InvalidData(f"{data}: holds no files of {folders}", file=str(data))
    return found


def settle(
    home: Path, load: Callable[[Path], Iterable[tuple[DomainSpec, PreparedDomain]]], *, histories: bool
) -> tuple[Settings, tuple[Domain, ...]]:
    """Register and ingest domains in a home of their own; a home that is settled already stays as it is.

    Args:
        load: writes raw files into a folder and gives each domain with the spec to register it by.
        histories: publish the histories too.
    """
    settings = Settings(home=home)
    if not (home / "prepared").is_file():
        home.mkdir(parents=True, exist_ok=True)
        registry = Registry(settings.registry_url)
        registry.migrate()
        for spec, domain in load(home / "raw"):
            use_cases.register(spec, registry=registry, by="benchmark")
            use_cases.ingest_data(
                spec.name,
                interactions=[domain.interactions],
                items=domain.items,
                users=domain.users,
                registry=registry,
                settings=settings,
                by="benchmark",
            )
        if histories:
            Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in registry.domains()])
        (home / "prepared").touch()
    return settings, tuple(Registry(settings.registry_url).domains())
