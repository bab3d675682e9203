"""Reading YAML so that every value knows its line, and nothing is guessed.

PyYAML reads YAML 1.1, where ``label: on`` is true, ``2024-01-01`` a date, ``010`` eight and ``1e-3`` text. A column may
well be called ``on``, so scalars follow the core schema of YAML 1.2: only true / false, null, and plain numbers are not
text. A key given twice is an error instead of the last one winning, and aliases are refused: a page this small needs
none, and nested ones grow without bound.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from domains.errors import InvalidSpec

Lines = dict[tuple[str, ...], int]
"""For each value's place (its keys and list positions from the top, as text) the line of its key, from 1."""

LARGEST_SPEC_BYTES = 1 << 20
LONGEST_NUMBER = 400
"""Characters of a number."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = [
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
]


class _Reader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own class attribute, started afresh

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read here", self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Writer(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or 1.2 would take for something other than text."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


for _kind, _pattern, _first in _SCALARS:
    _Reader.add_implicit_resolver(_TAG + _kind, _pattern, _first)
    _Writer.add_implicit_resolver(_TAG + _kind, _pattern, _first)


def _number(kind: type[int] | type[float]) -> Any:
    def construct(loader: _Reader, node: yaml.ScalarNode) -> int | float:
        text = loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan")
        if len(text) <= LONGEST_NUMBER:
            with contextlib.suppress(ValueError):
                return kind(text)
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is no number", node.start_mark)

    return construct


_Reader.add_constructor(_TAG + "int", _number(int))
_Reader.add_constructor(_TAG + "float", _number(float))


def read_page(path: Path, origin: str) -> bytes:
    """The bytes of a file, and one beyond the limit where it is larger, so that ``parse_yaml`` refuses it.

    Raises:
        InvalidSpec: it cannot be read, or it is a pipe or a device.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # to open a pipe would wait for its writer
            raise InvalidSpec(f"{origin}: is no file, but a pipe or a device", file=origin)
        with open(path, "rb") as stream:
            return stream.read(LARGEST_SPEC_BYTES + 1)
    except OSError as fault:
        reason = fault.strerror or type(fault).__name__
        raise InvalidSpec(f"{origin}: cannot be read: {reason}", file=origin) from None


def parse_yaml(content: str | bytes, *, origin: str | None) -> tuple[dict[str, Any], Lines]:
    """One mapping out of one YAML page, and the line of each of its values.

    Raises:
        InvalidSpec: not UTF-8, not YAML, a key given twice, an alias, or not a mapping; names the line.
    """
    if len(content) > LARGEST_SPEC_BYTES:
        raise InvalidSpec(f"{origin or 'spec'}: larger than a megabyte; is it a data file?", file=origin)
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError as fault:
            raise _refused("is not UTF-8 text", origin, fault.object.count(b"\n", 0, fault.start) + 1) from None
    try:
        reader = _Reader(content.removeprefix("\ufeff"))
        try:
            root = reader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise _refused("must be keys with values, such as 'name: live-rooms'", origin, 1)
            lines: Lines = {(): root.start_mark.line + 1}
            _mark(root, (), lines, origin)
            return reader.construct_document(root), lines
        finally:
            reader.dispose()
    except InvalidSpec:
        raise
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        hint = "; put text that begins with * in quotes" if fault.context == "while scanning an alias" else ""
        message = f"is not readable YAML: {fault.problem or fault.context}{hint}"
        raise _refused(message, origin, mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as fault:
        line = content.count("\n", 0, fault.position) + 1
        raise _refused("holds a character that is not printable text", origin, line) from None
    except RecursionError:
        raise _refused("is nested too deeply", origin, None) from None
    except ValueError as fault:  # a value that its explicit tag does not fit, such as `!!int five`
        raise _refused(f"is not readable YAML: {fault}", origin, None) from None


def _mark(node: yaml.Node, place: tuple[str, ...], lines: Lines, origin: str | None) -> None:
    """Note the line of everything below ``node``, and refuse a key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                raise _refused(f"key {key.value!r} is given twice, first on line {lines[inner]}", origin, line, inner)
            lines[inner] = line
            _mark(value, inner, lines, origin)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            inner = (*place, str(position))
            lines[inner] = value.start_mark.line + 1
            _mark(value, inner, lines, origin)


def _refused(message: str, origin: str | None, line: int | None, place: tuple[str, ...] = ()) -> InvalidSpec:
    field = ".".join(place) or None
    problem = {"field": field, "line": line, "message": message}
    return InvalidSpec(sentence(origin, line, field, message), file=origin, field=field, line=line, problems=[problem])


def sentence(origin: str | None, line: int | None, field: str | None, message: str) -> str:
    """``live.yaml:4: gate.metric: must be ...``, leaving out what is not known."""
    where = ":".join(str(part) for part in (origin, line) if part) if origin else (f"line {line}" if line else None)
    return ": ".join(part for part in (where, field, message) if part)


def dump_yaml(declared: dict[str, Any]) -> str:
    """YAML text in the order of the keys, lists of plain values on one line."""
    return yaml.dump(declared, Dumper=_Writer, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
