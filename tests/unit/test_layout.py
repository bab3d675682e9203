"""The project keeps its shape: names, sizes, words, arrows between packages, locked dependencies, make targets."""

import ast
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
CODE = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "__pycache__" not in path.parts and path.name != "__init__.py"
)
TESTS = ROOT / "tests"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def importable_names(folder: Path) -> list[Path]:
    """Every file and folder below a folder that Python could import by its bare name."""
    return [
        path
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and (path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py"))))
    ]


def test_no_file_or_folder_below_the_top_level_bears_a_top_level_name():
    """`feature_repo/domains.py` makes `feast apply` delete every view; `ui/domains.py` shadows the package.

    `tests/unit` mirrors the packages: its folders are no packages and never on the path.
    """
    shadows = [
        str(path.relative_to(ROOT))
        for package in [*PACKAGES, "tests"]
        for path in importable_names(ROOT / package)
        if path.stem in {*PACKAGES, "tests"} and path.parent != TESTS / "unit"
    ]
    assert shadows == []


def test_no_file_shadows_the_standard_library_where_streamlit_puts_it_on_the_path():
    """`streamlit run` puts the script's folder first on the path: `ui/calendar.py` would replace a standard module."""
    assert [path.name for path in (ROOT / "ui").glob("*.py") if path.stem in sys.stdlib_module_names] == []


def test_the_tests_are_no_package():
    """With `__init__.py` in it, `tests/models` would be imported as `models`."""
    assert [str(path.relative_to(ROOT)) for path in TESTS.rglob("__init__.py")] == []


def test_every_folder_with_code_is_a_package():
    """A folder without `__init__.py` would be left out of the installed project."""
    bare = {path.parent for path in CODE if not (path.parent / "__init__.py").is_file()}
    assert {str(path.relative_to(ROOT)) for path in bare} <= {
        "domains/registry/migrations",
        "domains/registry/migrations/versions",
    }


def test_every_package_has_a_place_among_the_layers():
    """A new top-level package must be put above or below the others."""
    contracts = PROJECT["tool"]["importlinter"]
    layered = {
        name.strip() for layer in contracts["contracts"][0]["layers"] for name in layer.replace(":", "|").split("|")
    }
    assert set(contracts["root_packages"]) == set(PACKAGES)
    assert layered == set(PACKAGES)


@pytest.mark.slow
def test_every_test_file_says_what_it_tests():
    """One file a module or story, by name; a program that a test starts ends in _run."""
    assert [
        path.name
        for path in TESTS.rglob("*.py")
        if not re.fullmatch(r"test_\w+\.py|conftest\.py|market\.py|fakes?\w*\.py|\w+_run\.py", path.name)
    ] == []


LONGEST_FUNCTION, LONGEST_CLASS, LONGEST_FILE = 60, 300, 400
LONGER = {
    "domains/registry/migrations/versions/r0001_first_tables.py": "a migration is written once, in one function",
    "tests/unit/models/ranker/test_network.py": "the network once more, written as in a textbook, in one function",
    "models/layers/shared_history.py": "each forward pass stands beside its gradient",
    "tests/unit/benchmarks/baselines/test_self_supervised.py": "one file a module",
}
"""Files that may hold longer parts than the rest, with the reason."""


def too_long(path: Path) -> list[str]:
    """The file, and each function or class in it, that is longer than it may be."""
    text = path.read_text()
    name = path.relative_to(ROOT)
    found = [f"{name}: {lines} lines"] if (lines := text.count("\n")) > LONGEST_FILE else []
    limits = {ast.FunctionDef: LONGEST_FUNCTION, ast.AsyncFunctionDef: LONGEST_FUNCTION, ast.ClassDef: LONGEST_CLASS}
    for part in ast.walk(ast.parse(text)):
        if type(part) in limits and (lines := part.end_lineno - part.lineno + 1) > limits[type(part)]:
            found.append(f"{name}: {part.name} has {lines} lines")
    return found


def test_nothing_is_too_long_to_be_read_at_once():
    """Functions of 60 lines, classes of 300, files of 400; a longer one has its reason in ``LONGER``."""
    paths = [*CODE, *TESTS.rglob("*.py")]
    long = {str(path.relative_to(ROOT)): found for path in paths if (found := too_long(path))}
    assert [line for name, found in long.items() if name not in LONGER for line in found] == []
    assert sorted(LONGER.keys() - long.keys()) == [], "exceptions that nothing needs any more"


REPLACED = {
    "rival": "baseline",
    "contender": "baseline",
    "entrant": "baseline",
    "rung": "fallback level",
    "scout": "target-only tower",
    "ledger": "source values",
    "witness": "probe row",
    "arena": "results table",
    "assembler": "batch builder",
    "placement": "rank",
}
"""Words that were made up here, and the field's own that stand in their place."""
PHRASES = ("on the books", "judge_again", "opened_launch", "item_means", "evidence_fit")


def words_of(path: Path) -> Iterator[str]:
    """The words of a file's identifiers, in the singular."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                parts = re.findall(r"[a-z]+", re.sub(r"(?=[A-Z])", " ", token.string).lower())
                yield from (
                    part.removesuffix("es") if part.endswith("sses") else part.removesuffix("s") for part in parts
                )


def test_identifiers_bear_the_words_of_the_field():
    """A word that an outsider has to look up does not come back."""
    paths = [*CODE, *TESTS.rglob("*.py")]
    found = {str(path.relative_to(ROOT)): set(words_of(path)) & REPLACED.keys() for path in paths}
    assert {name: words for name, words in found.items() if words} == {}


def test_no_text_says_what_was_renamed():
    """Nor in docstrings and pages; the changelog has to name the old words."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    paths = [path for path in [*CODE, *TESTS.rglob("*.py"), *pages] if path != Path(__file__)]
    found = {
        str(path.relative_to(ROOT)): words
        for path in paths
        if (
            words := re.findall(rf"\b(?:{'|'.join(PHRASES)}|rivals?|contenders?|entrants?|scouts?)\b", path.read_text())
        )
    }
    assert found == {}


def test_every_dependency_is_locked_to_one_version():
    """Two machines that install Graft hold the same versions."""
    lock = (ROOT / "constraints.txt").read_text().lower()
    locked = {re.split("==", line)[0].replace("_", "-") for line in lock.splitlines() if "==" in line}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    names = [re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in wanted]
    assert [name for name in names if name not in locked] == []
    assert "torch==2.13.0\n" in lock
    assert "://" not in lock, "packages are named, never where they come from"


def make(*arguments: str) -> str:
    # These tests may run under make themselves; this one must not take itself for a part of that.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=outside, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_make_demo_takes_the_folder_in_path_and_still_finds_python(tmp_path: Path):
    """`PATH=...` on make's command line is the data's folder, while the recipes keep the shell's search path."""
    planned = make("demo", "DATA=amazon", f"PATH={tmp_path}", "VENV=nowhere", "PYTHON=python3.11")
    assert f"demo --data amazon --path '{tmp_path}'" in planned
    probe = tmp_path / "Makefile"
    probe.write_text(f"include {ROOT / 'Makefile'}\nprobe:\n\t@command -v env sed\n")
    done = subprocess.run(
        ["make", "-f", str(probe), "probe", f"PATH={tmp_path}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_make_demo_without_a_data_set_is_the_simulated_one():
    """No option means no option."""
    assert make("demo").rstrip().splitlines()[-1].split() == [".venv/bin/graft", "demo"]
