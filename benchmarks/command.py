"""The command line of a benchmark that fills a results table: one set of options, the page printed at the end."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import results_page
from benchmarks.results_table import Method, Result, Table


def run(
    measure: Callable[..., Table],
    *,
    page: str,
    about: str | None,
    folders: str,
    settings: Sequence[str],
    default: Sequence[str] = (),
    needs_data: bool = True,
    arguments: Sequence[str] | None = None,
) -> None:
    """Read the options, measure, write ``--json``, print the page.

    Args:
        page: name of the page that ``measure`` writes under ``--out``.
        about: the module's docstring, for ``--help``.
        folders: what ``--data`` holds.
        default: settings to measure where none is named; where this is empty ``measure`` decides.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=needs_data, help=f"folder that holds {folders}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--settings", nargs="+", default=list(default), choices=settings, metavar="SETTING", help="; ".join(settings)
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="rows to train; all by default")
    parser.add_argument("--json", type=Path, help="also write the results as one JSON file")
    given: Any = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = measure(given.data, given.out, settings=given.settings, seeds=given.seeds, models=given.models)
    if given.json:
        given.json.write_text(json.dumps(results_page.as_dict(table), indent=1))
    print((given.out / page).read_text())


def printing(*names: str) -> Callable[[Result], None]:
    """A callback that prints the named metrics of each result, those of its segments too, and what it cost."""

    def say(result: Result) -> None:
        shown = {key: value for key, value in result.metrics.items() if key.rpartition("/")[2] in names}
        text = " ".join(f"{key} {value:.4f}" for key, value in shown.items())
        print(f"{result.setting} seed {result.seed} {result.model}: {text} in {result.seconds:.1f} s", flush=True)

    return say


def chosen(methods: Sequence[Method], models: Sequence[str]) -> list[Method]:
    """The methods that fill any of the rows named; all of them where none is."""
    return [one for one in methods if not models or set(one.names) & set(models)]
