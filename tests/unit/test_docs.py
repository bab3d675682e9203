"""What the documentation says is true: commands and files exist, generated pages are current, links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONT = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
EVERYTHING = "\n".join(page.read_text() for page in PAGES)
PACKAGES = ("domains", "models", "feature_repo", "orchestrator", "deployment", "ui", "benchmarks", "tests")


def test_the_spec_in_the_quickstart_is_valid():
    """The first thing that a team copies."""
    from domains.spec import DomainSpec

    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    assert DomainSpec.from_yaml(block.group(1)).name == "live-rooms"


def test_every_command_in_the_docs_exists():
    """`graft <word>` is a command, `make <word>` a target."""
    from orchestrator.cli import app, domains_app, keys_app, users_app

    commands = {info.name or info.callback.__name__ for info in app.registered_commands}
    commands |= {"domains", "keys", "users"}
    assert set(re.findall(r"(?:^|`)graft ([a-z]+)", EVERYTHING, re.MULTILINE)) <= commands
    sub = {info.name or info.callback.__name__ for info in domains_app.registered_commands}
    assert set(re.findall(r"graft domains ([a-z]+)", EVERYTHING)) <= sub
    sub = {info.name or info.callback.__name__ for info in users_app.registered_commands}
    assert set(re.findall(r"graft users ([a-z]+)", EVERYTHING)) <= sub
    sub = {info.name or info.callback.__name__ for info in keys_app.registered_commands}
    assert set(re.findall(r"graft keys ([a-z]+)", EVERYTHING)) <= sub
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", EVERYTHING, re.MULTILINE)) <= targets


def test_every_file_that_the_docs_name_exists():
    """`models/layers/pyramid.py` in a page is a file."""
    named = set(re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/.-]*\.\w+)[`:]", EVERYTHING))
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


@pytest.mark.parametrize("page", FRONT, ids=lambda page: page.name)
def test_links_of_the_front_pages_lead_somewhere(page: Path):
    """mkdocs checks the links below docs/; these pages stand beside it."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_every_page_has_a_place_in_the_navigation():
    """A page that no menu leads to is not read."""
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in menu] == []


@pytest.mark.slow
def test_generated_pages_say_what_the_code_says():
    """Settings, recipe, spec, commands, errors, HTTP, modules, and the picture of the packages."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
