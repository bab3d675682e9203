"""Write the pages of the documentation that repeat what the code says; with ``--check`` only say which are out of date.

    python docs/generate.py [--check]

Reference pages come from `Settings`, `Recipe`, `DomainSpec`, the command line, the error classes and the service's
OpenAPI schema; the table of modules from their docstrings; the picture of the packages from their imports.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from picture import packages_picture

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "ui", "deployment", "orchestrator", "feature_repo", "models", "domains")
"""From the top down: each imports only what follows it."""
NOTICE = "<!-- Written by docs/generate.py from the code: change it there, then run `make docs-reference`. -->\n\n"
FIRST_MARK, LAST_MARK = "<!-- modules: written by docs/generate.py -->", "<!-- end of modules -->"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; what would end a cell is escaped."""

    def line(cells: Iterable[Any]) -> str:
        texts = (" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(texts)} |"

    head = list(head)
    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, rows)]) + "\n"


def code(text: Any) -> str:
    """As code, or nothing where there is nothing."""
    return f"`{text}`" if str(text) else ""


def markdown(text: str | None) -> str:
    """A docstring as Markdown: reStructuredText's double backticks become single ones, argument lists stay out."""
    body = inspect.cleandoc(text or "").replace("``", "`")
    return re.split(r"\n\s*(?:Args|Raises|Returns|Shapes)\b.*:\n", body)[0].strip()


# ------------------------------------------------------------------------------------------------ settings and schemas


PLAIN_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}


def schema_type(field: dict[str, Any]) -> str:
    """The type of a JSON schema's field in a few words; a model of its own becomes a link to its heading."""
    words = PLAIN_TYPES.get(str(field.get("type")), "any")
    several = field.get("anyOf") or field.get("oneOf") or field.get("allOf")
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        words = f"[{name}](#{name.lower()})"
    elif "enum" in field or "const" in field:
        words = ", ".join(code(value) for value in field.get("enum", [field.get("const")]))
    elif several:
        words = " or ".join(dict.fromkeys(schema_type(one) for one in several if one.get("type") != "null"))
    elif "prefixItems" in field:
        words = f"[{', '.join(schema_type(one) for one in field['prefixItems'])}]"
    elif field.get("type") == "array":
        words = f"list of {schema_type(field.get('items', {}))}"
    elif field.get("type") == "object":
        values = field.get("additionalProperties")
        words = f"map to {schema_type(values)}" if isinstance(values, dict) else "map"
    return words


def schema_bounds(field: dict[str, Any]) -> str:
    """Least and most, where the schema knows them."""
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {field[name]}" for name, sign in words.items() if name in field)


def default_of(field: dict[str, Any], *, required: bool) -> str:
    """What holds where the field is left out."""
    if required:
        return "required"
    value = field.get("default", "")
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value is None or value == {} else code(value)


def schema_table(schema: dict[str, Any]) -> str:
    """One row a field of an object."""
    required = schema.get("required", [])
    return table(
        ("field", "type", "default", "meaning"),
        (
            (
                code(name),
                " ".join(part for part in (schema_type(field), schema_bounds(field)) if part),
                default_of(field, required=name in required),
                markdown(field.get("description")),
            )
            for name, field in schema.get("properties", {}).items()
        ),
    )


def schema_sections(models: dict[str, Any]) -> Iterator[str]:
    """A heading, the docstring and a table for each object."""
    for name, schema in models.items():
        if "properties" in schema:
            yield f"## {name}\n\n{markdown(schema.get('description'))}\n\n{schema_table(schema)}"


def settings_page() -> str:
    """Every environment variable that Graft reads."""
    from orchestrator.settings import Settings

    schema = Settings.model_json_schema()
    rows = (
        (code(f"GRAFT_{name.upper()}"), schema_type(field), default_of(field, required=False), field["description"])
        for name, field in schema["properties"].items()
    )
    return (
        "# Settings\n\n"
        "Where Graft runs. All are environment variables, read once at start; a value is the same for every "
        "server. What to train is said by a [spec](spec.md) and a [recipe](recipe.md) instead.\n\n"
        + table(("variable", "value", "default", "meaning"), rows)
    )


def recipe_page() -> str:
    """Choices of a training run."""
    from orchestrator.training.recipe import RATING, Recipe

    changed = table(("choice", "for ratings"), ((code(name), code(value)) for name, value in RATING.items()))
    return (
        "# Recipe\n\n"
        f"{markdown(Recipe.__doc__)}\n\n"
        "Give one to a run with `graft train --set width=64` or `graft launch NAME --set fine_tune_epochs=4`; the "
        "option may be repeated. A choice that the shared model is built of cannot be changed by a launch.\n\n"
        + schema_table(Recipe.model_json_schema())
        + f"\nWhere the task is ratings, other defaults hold:\n\n{changed}"
    )


def spec_page() -> str:
    """What a team declares about its domain."""
    from domains.spec import DomainSpec

    schema = DomainSpec.model_json_schema()
    return (
        "# Domain spec\n\n"
        "One page of YAML declares a domain; an unknown key is refused, and each problem is named with its file, line "
        "and field. There is an example in the [quickstart](../quickstart.md#a-domain-of-your-own).\n\n"
        + "\n".join(schema_sections({"DomainSpec": schema, **schema.get("$defs", {})}))
    )


# --------------------------------------------------------------------------------------------- command line and errors


def cli_page() -> str:
    """Every command with its arguments and options."""
    from typer.main import get_command

    from orchestrator.cli import app
    from orchestrator.errors import EXIT_STATUS

    root = get_command(app)
    sections = [
        "# Command line\n\n"
        "`graft` is in `.venv/bin` after `make setup`. `graft COMMAND --help` tells the same as this page.\n",
        parameters(root),
        table(("exit status", "meaning"), ((code(status), meaning) for status, meaning in EXIT_STATUS.items())),
    ]
    sections += [section for name, command in commands_of(root, "graft") for section in command_section(name, command)]
    return "\n".join(sections)


def commands_of(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, by its full name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def command_section(name: str, command: Any) -> Iterator[str]:
    """The heading, help and parameters of a command."""
    arguments = " ".join(
        part.name.upper() if part.required else f"[{part.name.upper()}]"
        for part in command.params
        if part.param_type_name == "argument"
    )
    yield f"## {name}\n\n    {' '.join(part for part in (name, '[OPTIONS]', arguments) if part)}\n"
    yield markdown(command.help) + "\n"
    yield parameters(command)


def parameters(command: Any) -> str:
    """The options of a command, and the arguments that have a word of explanation."""
    rows = []
    for part in command.params:
        if part.name == "help" or "completion" in part.name:
            continue
        is_option = part.param_type_name == "option"
        names = ", ".join(code(word) for word in (*part.opts, *part.secondary_opts)) if is_option else ""
        default = part.default if isinstance(part.default, str | int | float | bool) else ""
        if isinstance(default, bool):
            default = "" if not part.secondary_opts else str(default).lower()
        if is_option or part.help:
            rows.append((names or code(part.name.upper()), part.help or "", code(default)))
    return table(("option", "meaning", "default"), rows) if rows else ""


def errors_page() -> str:
    """The error tree with codes and statuses."""
    import orchestrator.training.torchrun  # noqa: F401  (its error is listed below RunFailed)
    from domains.errors import DomainFault
    from models.ranker.adapters import AdapterMismatch
    from models.ranker.checkpoint import CorruptCheckpoint
    from models.training.config import CheckpointMismatch, TrainingDiverged
    from models.training.run_state import UnreadableState
    from orchestrator import errors
    from orchestrator.console.bench import BenchmarkUnavailable

    def rows(kind: type[Exception], depth: int) -> Iterator[tuple[str, str, int, str]]:
        yield (
            f"{'&emsp;' * depth}{code(kind.__name__)}",
            code(re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()),
            errors.http_status(kind.__new__(kind)),
            markdown(kind.__doc__).split("\n\n")[0],
        )
        for below in sorted(kind.__subclasses__(), key=lambda one: one.__name__):
            if below.__module__.split(".")[0] in PACKAGES:
                yield from rows(below, depth + 1)

    of_models = (AdapterMismatch, CheckpointMismatch, CorruptCheckpoint, TrainingDiverged, UnreadableState)
    roots = (DomainFault, errors.Unavailable, errors.Refused, errors.RunFailed, BenchmarkUnavailable, *of_models)
    found = [row for kind in roots for row in rows(kind, 0)]
    return (
        "# Errors\n\n"
        "The service, the command line and the pages show one error alike. Over HTTP its shape is "
        '`{"error": {"code", "message", "field"?, "details"?}}`; a broken promise about any other value (`ValueError`) '
        "is answered with 422, and what nobody meant to raise with 500 and the code `internal`.\n\n"
        + table(("error", "code", "HTTP", "meaning"), found)
    )


def http_page() -> str:
    """Paths and messages of the prediction service."""
    from deployment.http.api import create_app

    schema = create_app(lambda: None).openapi()  # type: ignore[arg-type,return-value]
    sections = [
        "# HTTP\n\n"
        "The prediction service answers at `http://127.0.0.1:3000` by default and describes itself at `/openapi.json`. "
        "Beside the paths below it has `/livez`, `/readyz` and `/metrics` (Prometheus).\n"
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            sections.append(f"## {method.upper()} {path}\n\n{markdown(operation.get('description'))}\n")
            answers = []
            for status, answer in operation["responses"].items():
                body = answer.get("content", {}).get("application/json", {}).get("schema", {})
                if body and "HTTPValidationError" not in str(body):
                    answers.append((status, schema_type(body), answer["description"]))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            sections.append(f"Body: {schema_type(body)}\n" if body else "")
            sections.append(table(("status", "answer", "when"), answers))
    bodies = {name: one for name, one in schema["components"]["schemas"].items() if "ValidationError" not in name}
    return "\n".join([*sections, *schema_sections(bodies)])


# --------------------------------------------------------------------------------------------------- modules


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = markdown(ast.get_docstring(ast.parse(path.read_text()))).split("\n\n")[0]
    return re.split(r"(?<=[.?!]) (?=[A-Z`])", " ".join(text.split()))[0]


def modules_of(package: str) -> Iterator[tuple[str, str]]:
    """Each folder and file of a package with its sentence, folders before what they hold."""
    for path in sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent.parts, path.name)):
        name = path.relative_to(ROOT / package).as_posix()
        if "__pycache__" in path.parts or "versions" in path.parts or name == "__init__.py":
            continue
        if path.name == "__init__.py":
            yield f"**`{path.parent.relative_to(ROOT / package).as_posix()}/`**", f"**{summary(path).rstrip('.')}**"
        else:
            yield code(name), summary(path).rstrip(".")


def architecture_page() -> str:
    """The page as it stands, with the tables of modules between their marks written anew."""
    sections = []
    for package in PACKAGES:
        about = summary(ROOT / package / "__init__.py")
        sections.append(f"### {package}\n\n{about}\n\n{table(('file', 'what it holds'), modules_of(package))}")
    text = (ROOT / "docs" / "architecture.md").read_text()
    before, rest = text.split(FIRST_MARK)
    return f"{before}{FIRST_MARK}\n\n{chr(10).join(sections)}\n{LAST_MARK}{rest.split(LAST_MARK)[1]}"


# ---------------------------------------------------------------------------------------------------------------- files


def pages() -> dict[Path, str]:
    """Every generated file below docs/ with its text."""
    reference = {
        "settings": settings_page,
        "recipe": recipe_page,
        "spec": spec_page,
        "cli": cli_page,
        "errors": errors_page,
        "http": http_page,
    }
    made = {
        Path("reference") / f"{name}.md": NOTICE + re.sub(r"\n{3,}", "\n\n", page()).rstrip() + "\n"
        for name, page in reference.items()
    }
    made[Path("architecture.md")] = architecture_page()
    return {**made, Path("figures/packages.svg"): packages_picture(PACKAGES)}


def outdated(folder: Path) -> list[str]:
    """Generated files that do not say what the code says."""
    return [
        str(name)
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text() != text
    ]


def main(arguments: list[str]) -> int:
    """Write the files, or with ``--check`` name those that would change."""
    sys.path.insert(0, str(ROOT))
    folder = ROOT / "docs"
    if arguments == ["--check"]:
        wrong = outdated(folder)
        if wrong:
            print(f"out of date: {', '.join(wrong)}; run `make docs-reference`", file=sys.stderr)
        return bool(wrong)
    for name, text in pages().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
