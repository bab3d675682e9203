"""What a team declares about its domain: one YAML page, validated whole, unknown keys refused.

Others call a domain a scene, a scenario or a surface. Reading reports every problem at once, each with its file, line
and field, and suggests the key that was probably meant. ``domains/spec_yaml.py`` hides how YAML is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from croniter import CroniterError, croniter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic import model_validator as rule

from domains.errors import InvalidSpec
from domains.spec_features import Place, feature_problems, vouched_problems
from domains.spec_yaml import Lines, dump_yaml, parse_yaml, read_page, sentence

NAME = re.compile(r"[a-z][a-z0-9-]{1,47}")
RESERVED_NAMES = frozenset({"all", "backbone", "default", "items", "new", "none", "null", "unknown", "users"})
"""Names that mean something else in addresses, folders or commands."""
LONGEST_HISTORY = 2000
MOST_PROBLEMS = 20
"""Problems of one spec that are told at once."""
METRICS_BY_TASK = {"ctr": ("auc", "gauc", "logloss"), "rating": ("mae", "rmse")}


def _printable(text: str) -> str:
    text = text.strip()
    if not text:
        raise ValueError("must not be empty")
    if len(text) > 200 or not text.isprintable():
        raise ValueError("must be at most 200 printable characters")
    return text


def _domain_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("a domain name has 2 to 48 of a-z, 0-9 and '-', and starts with a letter")
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} is reserved; choose another name")
    return name


def _text_or_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be text or a number; put a word such as yes or true in quotes")
    if isinstance(value, str):
        return _printable(value)
    if not math.isfinite(value) or abs(value) > 2**53:
        raise ValueError("must be a finite number of ordinary size")
    return value


def _cron(expression: str) -> str:
    expression = " ".join(expression.split())
    # croniter also reads six fields, @nicknames and hashed or random fields, which the scheduler would refuse later.
    if len(expression.split()) != 5 or re.search(r"(^|[ ,])[hr]($|[ ,(/])", expression.lower()):
        raise ValueError("must be a cron schedule of five fields, such as '0 3 * * *' (every night at three)")
    try:
        croniter(expression, datetime(2024, 1, 1, tzinfo=UTC)).get_next()
    except CroniterError as fault:
        raise ValueError(f"is not a schedule that ever fires: {fault}") from None
    return expression


Text = Annotated[str, AfterValidator(_printable)]
Name = Annotated[str, AfterValidator(_domain_name)]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
FeatureType = Literal["category", "number"]
Features = dict[Text, FeatureType]


class BrokenRulesError(ValueError):
    """Rules that several fields break together; each with the place of the field to change."""

    def __init__(self, problems: list[tuple[Place, str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in problems))
        self.problems = problems


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Interactions(_Declared):
    """Which columns of the events file say who, what, when and how it went."""

    user: Text
    """Column of the user's id."""
    item: Text
    """Column of the item's id."""
    time: Text | None = None
    """Column of the event's time; absent when the data knows no time."""
    time_unit: Literal["iso", "s", "ms", "us", "auto"] = "auto"
    """How the time is written: ISO 8601 text, or seconds, milliseconds or microseconds since 1970 UTC."""
    label: Text | None = None
    """Column of the click (0 or 1) or the rating; absent when each row is itself a positive."""
    label_range: tuple[Number, Number] = (0.0, 1.0)
    """Lowest and highest label; a row outside is quarantined."""
    action: Text | None = None
    """Column of the kind of event, such as view, cart or buy."""
    context: Features = Field(default_factory=dict)
    """Columns known at request time, such as the hour, and their types."""
    positive_above: Number | None = None
    """For click-through from ratings: a label above this is a click."""


class Entities(_Declared):
    """An items or users file: its id column and the typed features of each item or user."""

    id: Text
    """Column of the id."""
    features: Features = Field(default_factory=dict)
    """Columns and their types; the same name in another domain is the same field."""


class HistoryLengths(_Declared):
    """How many of a user's latest events in this domain are kept at hand for answers.

    The network reads as many of them as its shared model was trained to read (the recipe's ``short``).
    """

    short: Whole = Field(default=24, ge=1, le=LONGEST_HISTORY)
    """Latest events of this domain itself."""


class Gate(_Declared):
    """What a version must show on held-out cold users before it may go live."""

    baseline: Literal[
        "strongest_plain",
        "popularity",
        "item_mean",
        "item_user_bias",
        "declared_columns",
        "zero_shot",
        "single_domain",
        "shared_bottom",
        "full_fine_tune",
        "scratch",
        "strongest",
    ] = "strongest_plain"
    """What the team would otherwise use: one baseline, the strongest of all that are required (strongest), or the
    strongest of item mean, item + user bias and a regression on the declared columns (strongest_plain); the lower bound
    of the interval must beat it."""
    metric: Literal["auc", "gauc", "logloss", "mae", "rmse"] = "auc"
    """Measured by: auc, gauc or logloss for ctr (auc unless said); mae or rmse for rating (mae unless said)."""
    minimum_cold_users: Whole = Field(default=30, ge=1)
    """Fewer held-out cold users than this prove nothing."""
    maximum_prediction_bias: Number = Field(default=0.25, gt=0)
    """How far predictions of a version that goes live may be off on average, as a share: for clicks
    |predicted / clicks - 1|, for ratings |bias| over their standard deviation."""
    cold_share: Number = Field(default=0.2, gt=0, lt=1)
    """Share of the users with source history that is held out as cold."""
    known_at_request: dict[Text, Text] = Field(default_factory=dict)
    """Features that tell the label beyond what is plausible and yet are known when a request comes, and how somebody
    knows that: name (of another domain's users file ``DOMAIN.NAME``, of histories ``source history``) -> reason. Such
    a feature holds every launch until it stands here."""


class DomainSpec(_Declared):
    """One domain as its team declares it: everything that is needed to launch it.

    Raises:
        pydantic.ValidationError: built by keyword from wrong values. ``from_yaml`` and ``from_mapping`` raise
            ``InvalidSpec`` in its place.
    """

    name: Name
    """Lower-case letters, digits and '-'; part of the endpoint's address."""
    role: Literal["source", "target"]
    """source: rich in data, and its histories help the targets. target: the surface to launch."""
    task: Literal["ctr", "rating"]
    """What is predicted: the probability of a click, or a rating."""
    sources: tuple[Name, ...] = ()
    """For a target: the source domains whose histories it learns from; empty means all of them."""
    owner: Text
    """Team that is responsible for the domain."""
    interactions: Interactions
    """The events file."""
    items: Entities | None = None
    """The items file, if there is one."""
    users: Entities | None = None
    """The users file, if there is one."""
    domain_features: dict[Text, Annotated[str | int | float, BeforeValidator(_text_or_number)]] = Field(
        default_factory=dict
    )
    """Traits of the domain itself, such as its surface; they let it start near domains like it."""
    history: HistoryLengths = Field(default_factory=HistoryLengths)
    """How much of a user's past is read."""
    schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """When to retrain, as a cron schedule of five fields in UTC; absent means only by hand."""
    gate: Gate = Field(default_factory=Gate)
    """The go-live rule."""

    @rule(mode="before")
    @classmethod
    def _measure_ratings_by_mae(cls, declared: Any) -> Any:
        if not isinstance(declared, Mapping) or declared.get("task") != "rating":
            return declared
        gate = declared.get("gate", {})
        if isinstance(gate, Gate):
            gate = gate.model_dump(exclude_unset=True)
        return {**declared, "gate": {"metric": "mae", **gate}} if isinstance(gate, Mapping) else declared

    @rule(mode="after")
    def _fields_agree(self) -> DomainSpec:
        problems = [*_role_problems(self), *_task_problems(self), *_column_problems(self)]
        if problems:
            raise BrokenRulesError(problems)
        return self

    @classmethod
    def from_yaml(cls, text_or_path: str | Path, *, origin: str | None = None) -> DomainSpec:
        """Read a spec from a file (a ``Path``, or text that is one line ending in .yaml or .yml) or from YAML text.

        ``origin`` names the text in error messages, such as the name of an uploaded file.

        Raises:
            InvalidSpec: unreadable, not YAML, or a broken rule; lists every problem with line and field.
        """
        path = text_or_path if isinstance(text_or_path, Path) else None
        if isinstance(text_or_path, str) and re.fullmatch(r"[^\n]*\.ya?ml", text_or_path.strip()):
            path = Path(text_or_path.strip())
        if path is not None:
            origin = origin or str(path)
            content: str | bytes = read_page(path, origin)
        else:
            content = str(text_or_path)
        declared, lines = parse_yaml(content, origin=origin)
        return cls._checked(declared, lines=lines, origin=origin)

    @classmethod
    def from_mapping(cls, declared: Mapping[str, Any]) -> DomainSpec:
        """Check values that never were YAML, such as a form's.

        Raises:
            InvalidSpec: lists every problem with its field.
        """
        return cls._checked(declared, lines={}, origin=None)

    @classmethod
    def _checked(cls, declared: Any, *, lines: Lines, origin: str | None) -> DomainSpec:
        try:
            return cls.model_validate(declared)
        except ValidationError as fault:
            problems = list(islice(_explained(fault), MOST_PROBLEMS))
        found = [(_line_of(place, lines), ".".join(map(str, place)), message) for place, message in problems]
        found.sort(key=lambda problem: problem[0] or 0)
        raise InvalidSpec(
            "\n".join(sentence(origin, *problem) for problem in found),
            file=origin,
            line=found[0][0],
            field=found[0][1],
            problems=[{"field": field, "line": line, "message": message} for line, field, message in found],
        )

    def to_yaml(self) -> str:
        """The spec as YAML that ``from_yaml`` reads back to an equal spec; what is absent is left out."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True))


def _role_problems(spec: DomainSpec) -> Iterator[tuple[Place, str]]:
    if spec.role == "source" and spec.sources:
        yield ("sources",), "only a target has sources, and this domain is a source itself"
    if spec.name in spec.sources:
        yield ("sources", spec.sources.index(spec.name)), "a domain cannot be its own source"
    for position, name in enumerate(spec.sources):
        if name in spec.sources[:position]:
            yield ("sources", position), f"{name!r} is named twice"


def _task_problems(spec: DomainSpec) -> Iterator[tuple[Place, str]]:
    columns, metrics = spec.interactions, METRICS_BY_TASK[spec.task]
    low, high = columns.label_range
    if spec.gate.metric not in metrics:
        yield (
            ("gate", "metric"),
            f"{spec.gate.metric} does not measure a {spec.task} domain; use {' or '.join(metrics)}",
        )
    if low >= high:
        yield ("interactions", "label_range"), "the lowest label must be below the highest"
    yield from _rating_problems(columns) if spec.task == "rating" else _click_problems(columns)


def _rating_problems(columns: Interactions) -> Iterator[tuple[Place, str]]:
    if columns.label is None:
        yield ("interactions", "label"), "a rating domain must name the column of the rating"
    if columns.positive_above is not None:
        yield ("interactions", "positive_above"), "makes clicks of ratings, so it belongs to task ctr"
    if "label_range" not in columns.model_fields_set:
        yield ("interactions", "label_range"), "a rating domain must say its scale, such as [1, 5]"


def _click_problems(columns: Interactions) -> Iterator[tuple[Place, str]]:
    low, high = columns.label_range
    if columns.positive_above is None:
        if (low, high) != (0.0, 1.0):
            hint = "for clicks made of ratings add positive_above"
            yield ("interactions", "label_range"), f"a click is 0 or 1, so the range is [0, 1]; {hint}"
    elif columns.label is None:
        yield ("interactions", "positive_above"), "needs the column of the label that it cuts"
    elif "label_range" not in columns.model_fields_set:
        yield ("interactions", "label_range"), "positive_above needs the scale of the label, such as [1, 5]"
    elif not low <= columns.positive_above < high:
        yield ("interactions", "positive_above"), f"must lie within label_range and below its top, {high:g}"


def _column_problems(spec: DomainSpec) -> Iterator[tuple[Place, str]]:
    columns = spec.interactions
    # DuckDB compares column names without case, so "Price" and "price" would be one column.
    roles: dict[str, str] = {}
    for role in ("user", "item", "time", "label", "action"):
        column = getattr(columns, role)
        if column is None:
            continue
        if column.lower() in roles:
            yield ("interactions", role), f"column {column!r} is already the {roles[column.lower()]}"
        roles.setdefault(column.lower(), role)
    if columns.time is None and columns.time_unit != "auto":
        yield ("interactions", "time_unit"), "says how to read a time column, and none is named"
    entities = [entity.features for entity in (spec.items, spec.users) if entity is not None]
    features = {name for named in (*entities, columns.context) for name in named}
    yield from vouched_problems(spec.gate.known_at_request, features)
    yield from feature_problems(("interactions", "context"), columns.context, roles)
    for table, declared in (("items", spec.items), ("users", spec.users)):
        if declared is not None:
            yield from feature_problems((table, "features"), declared.features, {declared.id.lower(): "id"})


def _explained(fault: ValidationError) -> Iterator[tuple[Place, str]]:
    for error in fault.errors(include_url=False):
        place = tuple(part for part in error["loc"] if part != "[key]")
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, BrokenRulesError):
            yield from ((place + where, message) for where, message in cause.problems)
        elif error["type"] == "extra_forbidden":
            yield place, "unknown key" + _meant(str(place[-1]), place[:-1])
        elif error["type"] == "missing":
            yield place, "is required"
        elif error["type"] == "string_type" and isinstance(error["input"], int | float):
            yield place, f"must be text; put {error['input']} in quotes if that is its name"
        elif error["type"] == "literal_error":
            close = get_close_matches(str(error["input"]), re.findall(r"'([^']+)'", error["msg"]), n=1)
            yield (
                place,
                error["msg"].replace("Input should", "must") + (f"; did you mean {close[0]!r}?" if close else ""),
            )
        else:
            yield place, error["msg"].removeprefix("Value error, ").replace("Input should", "must")


def _meant(key: str, parent: Place) -> str:
    """The known key nearest to a misspelt one, or the section that the key belongs to."""
    sections = dict(_sections(DomainSpec, ()))
    close = get_close_matches(key.lower(), sections.get(parent, ()), n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = {key: (*place, key) for place, keys in sections.items() if place != parent for key in keys}
    close = get_close_matches(key.lower(), elsewhere, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {'.'.join(map(str, elsewhere[close[0]]))!r}?"
    return f"; known here: {', '.join(sections.get(parent, ()))}"


def _sections(model: type[BaseModel], place: Place) -> Iterator[tuple[Place, list[str]]]:
    yield place, list(model.model_fields)
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _sections(kind, (*place, name))


def _line_of(place: Place, lines: Lines) -> int | None:
    """The line of the field, or of the nearest section that is written down."""
    written = tuple(map(str, place))
    return next((lines[written[:n]] for n in range(len(written), -1, -1) if written[:n] in lines), None)
