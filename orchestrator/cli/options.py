"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(help="The domain's name.")]
Version = Annotated[
    str | None, typer.Argument(help="The version's id, or how it begins; by default the newest that a launch made.")
]
Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.")]
Local = Annotated[bool, typer.Option("--local", help="Run here, without the Prefect worker.")]
Choices = Annotated[
    list[str] | None, typer.Option("--set", help="A choice of the recipe, such as epochs=2; may be repeated.")
]
Interactions = Annotated[
    list[Path] | None, typer.Option("--interactions", "-i", help="CSV, TSV or Parquet; may be repeated.")
]
Items = Annotated[Path | None, typer.Option("--items", help="The items' features.")]
Users = Annotated[Path | None, typer.Option("--users", help="The users' profiles.")]
Ui = Annotated[bool, typer.Option("--ui/--no-ui", help="Start the web UI too.")]
