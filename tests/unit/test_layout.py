"""The house keeps its shape: names, arrows between packages, the map in the README."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

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
    """`feature_repo/domains.py` makes `feast apply` delete every view; `ui/domains.py` shadows the package."""
    shadows = [
        str(path.relative_to(ROOT))
        for package in [*PACKAGES, "tests"]
        for path in importable_names(ROOT / package)
        if path.stem in {*PACKAGES, "tests"}
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


def test_imports_obey_the_contracts():
    """Arrows point down, and the inner packages know no framework."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_test_file_says_what_it_tests():
    """One file a module or story, by name; a program that a test starts ends in _run."""
    assert [
        path.name
        for path in TESTS.rglob("*.py")
        if not re.fullmatch(r"test_\w+\.py|conftest\.py|fakes?\w*\.py|\w+_run\.py", path.name)
    ] == []


def test_every_module_stands_in_the_tree_of_the_readme():
    """The README carries the whole tree, five words a file."""
    text = (ROOT / "README.md").read_text()
    by_folder = {"migrations", "versions", "baselines", "public", "views"}
    alone = [path for path in CODE if path.parent.name not in by_folder]
    assert [str(p.relative_to(ROOT)) for p in alone if not re.search(rf"^  {re.escape(p.name)}\s+\S", text, re.M)] == []


def test_every_file_in_the_tree_of_the_readme_exists():
    """A map of what is no more misleads."""
    tree = re.search(r"```\n(domains/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree, "the README has no tree"
    folder, missing = "", []
    for line in tree.group(1).splitlines():
        entry = re.match(r"(\s*)([\w.-]+/?)", line)
        if entry is None:
            continue
        if not entry.group(1):
            folder = entry.group(2)
        path = ROOT / entry.group(2) if not entry.group(1) else ROOT / folder / entry.group(2)
        if not path.exists():
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_the_spec_in_the_readme_is_valid():
    """The first thing that a team copies."""
    from domains.spec import DomainSpec

    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert DomainSpec.from_yaml(block.group(1)).name == "live-rooms"


def test_every_command_in_the_readme_exists():
    """`graft <word>` is a command, `make <word>` a target."""
    from orchestrator.cli import app, domains_app

    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operations.md").read_text()
    commands = {info.name or info.callback.__name__ for info in app.registered_commands} | {"domains"}
    assert set(re.findall(r"^graft ([a-z]+)|`graft ([a-z]+)", text, re.MULTILINE)) <= {
        pair for command in commands for pair in ((command, ""), ("", command))
    }
    sub = {info.name or info.callback.__name__ for info in domains_app.registered_commands}
    assert set(re.findall(r"graft domains ([a-z]+)", text)) <= sub
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_every_setting_is_documented():
    """docs/operations.md names each environment variable that Graft reads."""
    from orchestrator.settings import Settings

    text = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in Settings.model_fields if f"GRAFT_{name.upper()}" not in text] == []


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


def test_make_demo_without_a_data_set_is_the_simulated_one():
    """No option means no option."""
    assert make("demo").rstrip().splitlines()[-1].split() == [".venv/bin/graft", "demo"]
