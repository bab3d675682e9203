"""Image, compose and Kubernetes files: what they name is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

from orchestrator.servers import plan
from orchestrator.settings import Settings

ROOT = Path(__file__).parents[4]
SHIP = ROOT / "deployment" / "ship"
DOCKERFILE = (SHIP / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((SHIP / "compose.yaml").read_text())
FILES = [path for path in SHIP.rglob("*") if path.is_file()]


def test_the_image_is_built_from_the_top_of_the_repository():
    """With every package of the project, from the command in the file's head and by compose alike."""
    build = COMPOSE["x-graft"]["build"]
    assert (SHIP / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).read_text() == DOCKERFILE
    copied = [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(copied)


def test_every_file_starts_the_service_that_the_stack_starts():
    """By the same path, which can be imported."""
    [path] = [word for word in plan.service(Settings()).command if ":" in word]
    named = {word for file in FILES for word in re.findall(r"[\w.]+:Graft\b", file.read_text())}
    assert named == {path}
    assert importlib.util.find_spec(path.split(":")[0]) is not None


def test_every_variable_of_ours_is_a_setting():
    """A misspelt one would be ignored without a word."""
    known = set(Settings().as_environment())
    named = {name for file in FILES for name in re.findall(r"\bGRAFT_[A-Z_]+", file.read_text())}
    assert named - known == set()
