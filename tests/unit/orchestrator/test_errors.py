"""One table of errors says what the outside world sees, and one line describes any of them."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from domains import errors as domain_errors
from domains.errors import InvalidData, UnknownDomain
from orchestrator import errors

ROOT = Path(__file__).parents[3]
PACKAGES = ("orchestrator", "domains", "models", "feature_repo", "deployment", "ui")
CAUGHT = {
    "BrokenRulesError": "the spec's reader turns it into InvalidSpec",
    "FeatureStoreDown": "the service answers at a lower fallback level",
    "HungUp": "nobody is left to be told",
    "LeakedFuture": "the splits list the leaks in the report; one in the code is a bug",
}
"""Errors that never reach the outside world, and why."""


def drawn() -> dict[str, int]:
    """Name and HTTP status of every error in the table at the top of the module."""
    found, status = {}, 0
    for line in errors.__doc__.splitlines():
        row = re.match(r" {4}\S.*? {2,}(\d{3}) +1 +(.*)$", line)
        if row or line.startswith(" " * 40):
            status = int(row.group(1)) if row else status
            found.update(dict.fromkeys(re.findall(r"\b[A-Z]\w+", row.group(2) if row else line), status))
    return found


def raised() -> dict[str, type]:
    """Every error class of the product by name, without those that only group others."""
    found, known = {}, {"ValueError", "RuntimeError", "Exception", *vars(errors), *vars(domain_errors)}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                bases = {getattr(base, "id", "") for base in getattr(node, "bases", ())}
                # A private one never leaves its module.
                if bases & known and node.name not in CAUGHT and not node.name.startswith("_"):
                    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                    found[node.name] = getattr(importlib.import_module(module), node.name)
    return {name: kind for name, kind in found.items() if not kind.__subclasses__() or name == "RunFailed"}


def test_the_drawn_table_holds_every_error_with_its_status():
    """The table at the top of the module names all that a user may meet, and none that is gone."""
    assert drawn() == {name: errors.http_status(kind.__new__(kind)) for name, kind in raised().items()}


def test_a_line_adds_the_place_that_its_message_leaves_out():
    """Field, file and line, each once."""
    error = InvalidData("line 7 has no label", file="events.csv", line=7)
    assert errors.as_line(error) == "line 7 has no label (file events.csv)"
    assert errors.as_line(UnknownDomain("no domain 'x'")) == "no domain 'x'"


def test_a_line_names_the_file_that_cannot_be_read(tmp_path):
    """The operating system's words come after the path."""
    with pytest.raises(OSError) as found:  # noqa: PT011  any of them
        (tmp_path / "missing.csv").read_text()
    assert errors.as_line(found.value) == f"{tmp_path / 'missing.csv'}: No such file or directory"


def test_a_line_names_the_field_of_an_invalid_value():
    """Pydantic's several lines become one."""

    class Sizes(BaseModel):
        width: int

    with pytest.raises(ValueError) as found:  # noqa: PT011  pydantic's own
        Sizes(width="wide")
    line = errors.as_line(found.value)
    assert line.startswith("Sizes: width: ")
    assert errors.as_json(found.value)["error"]["message"] == line


def test_a_line_of_a_bug_names_its_class():
    """A message alone would say too little."""
    assert errors.as_line(KeyError("rows")) == "KeyError: 'rows'"
    assert errors.as_json(KeyError("rows"))["error"]["code"] == "internal"


def test_json_holds_the_code_the_field_and_the_other_details():
    """The one shape."""
    found = errors.as_json(InvalidData("no label", field="label", line=7))
    assert found == {"error": {"code": "invalid_data", "message": "no label", "field": "label", "details": {"line": 7}}}
    assert errors.as_json(errors.Overloaded("busy")) == {"error": {"code": "overloaded", "message": "busy"}}
