"""``graft bench``: finds a benchmark by its name at run time and runs it as ``python -m`` would.

Benchmarks are above this package, which must not import them: the catalogue is looked up when it is needed.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = "benchmarks"


class BenchmarkUnavailable(ValueError):
    """There is no such benchmark, or its data was not named."""


def catalogue() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The installed benchmarks by name, and the public data sets that they read by folder.

    Raises:
        BenchmarkUnavailable: this installation has none.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise BenchmarkUnavailable("this installation has no benchmarks; run from a checkout of the project")
    package = importlib.import_module(PACKAGE)
    installed = {
        name: benchmark
        for name, benchmark in package.CATALOGUE.items()
        if importlib.util.find_spec(f"{PACKAGE}.{benchmark.module}")
    }
    return installed, package.SETS


def run(name: str, options: Sequence[str], *, out: Path) -> None:
    """Run a benchmark with its own options; one that reads public sets writes under ``out`` by default.

    Raises:
        BenchmarkUnavailable: there is no such benchmark, or it needs ``--data`` and none was given.
    """
    benchmarks, sets = catalogue()
    if name not in benchmarks:
        near = difflib.get_close_matches(name.replace("_", "-"), benchmarks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BenchmarkUnavailable(f"no benchmark is called {name!r}{hint}")
    chosen, given = benchmarks[name], list(options)
    if chosen.sets and not {"-h", "--help"} & set(given):
        if not (chosen.simulated or _has(given, "--data")):
            wanted = ", ".join(f"{folder}/ ({sets[folder].origin})" for folder in chosen.sets)
            raise BenchmarkUnavailable(f"{name} needs --data DIR, a folder that holds any of {wanted}")
        if not _has(given, "--out"):
            given += ["--out", str(out / name)]
    before = sys.argv
    sys.argv = [name, *given]
    try:
        runpy.run_module(f"{PACKAGE}.{chosen.module}", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before


def _has(options: Sequence[str], option: str) -> bool:
    return any(one == option or one.startswith(f"{option}=") for one in options)
