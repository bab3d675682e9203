"""Callers who take the service at its word, and callers who make no sense: the OpenAPI document against what comes."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import httpx

from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack

CONTRACT_S, PATHS_S = 150.0, 60.0
EXAMPLES, BROKEN = 10_000, 1_000
DRAWN_BY = 2
"""Processes that draw requests: to think one up takes longer than to answer it."""
LIMIT_S = 5.0
"""An answer that takes longer hangs."""
PATIENCE_S = 0.3
"""A broken request that is not answered by then waits for more of itself."""
GROWTH_BYTES = 20e6
NOWHERE = frozenset(("404", "405"))
"""Where a broken request hits no path, or one that does not take its method."""

Known = tuple[list[str], list[str]]


def contract(stack: Stack, seconds: float) -> Measured:
    """Requests drawn from the OpenAPI document, right ones and wrong ones, and requests with broken bytes.

    Each drawn request is sent as it is, and once more for a domain, a user and items that exist. An answer may have the
    statuses, headers and shapes that the document declares and none else; a wrong request may not be taken.
    """
    share = seconds / CONTRACT_S
    drawn = max(1, round(EXAMPLES * share / DRAWN_BY / 2))
    with ProcessPoolExecutor(DRAWN_BY) as pool:
        until = time.time() + 2 * seconds
        parts = [pool.submit(_drawn, stack.url, stack.people(), seed, drawn, until) for seed in range(DRAWN_BY)]
        seen, wrong = Counter[str](), Counter[str]()
        for part in parts:
            statuses, problems = part.result()
            seen += statuses
            wrong += problems
    broken, problems = _broken(stack, max(1, round(BROKEN * share)))
    wrong += problems
    return Measured(
        f"{seen.total()} drawn requests ({_listed(seen)}), {broken.total()} broken ones ({_listed(broken)}); "
        f"{wrong.total()} answers that the document does not declare",
        not wrong,
        {"drawn": seen, "broken": broken, "wrong": wrong},
    )


def _drawn(url: str, known: Known, seed: int, most: int, until: float) -> tuple[Counter[str], Counter[str]]:
    """Statuses of twice ``most`` requests drawn from the document, and what was wrong with answers."""
    import hypothesis
    import schemathesis
    from requests import Session
    from schemathesis.generation import GenerationMode

    seen, wrong = Counter[str](), Counter[str]()
    session, chance = Session(), random.Random(seed)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    document = schema.raw_schema["paths"]
    operations = [schema[path][method] for path, methods in document.items() for method in methods]
    # Of requests without a body there are few different ones, and none that is wrong.
    posted = [operation for operation in operations if operation.method == "post"]
    each = most // len(posted) // len(GenerationMode)

    def send(case: Any, *, may_be_right: bool) -> None:
        called = f"{case.method} {case.path}"
        checks = [*_checks(), schemathesis.checks.CHECKS.get_one("negative_data_rejection")][: 5 - may_be_right]
        try:
            answer = case.call(base_url=url, session=session, timeout=LIMIT_S)
            seen[str(answer.status_code)] += 1
            wrong[f"{called}: 500"] += answer.status_code == 500
            case.validate_response(answer, checks=checks)
        except Exception as fault:
            wrong[f"{called}: {type(fault).__name__} {str(fault)[:200]}"] += 1

    for operation in operations:
        for mode in GenerationMode if operation in posted else [GenerationMode.POSITIVE]:

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=max(1, each),
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                if time.time() > until:
                    raise _TimeIsUp
                send(case, may_be_right=False)
                if isinstance(case.body, dict):
                    _aim(case, known, chance)
                    send(case, may_be_right=True)

            try:
                ask()
            except _TimeIsUp:
                wrong["not all was drawn in time"] = 1
    return seen, +wrong


class _TimeIsUp(Exception):
    pass


def _checks() -> list[Any]:
    from schemathesis.checks import CHECKS

    names = ("status_code", "content_type", "response_headers", "response_schema")
    return [CHECKS.get_one(f"{name}_conformance") for name in names]


def _aim(case: Any, known: Known, chance: random.Random) -> None:
    """Have a request ask for what exists, in some of its fields."""
    users, items = known
    if "domain" in (case.path_parameters or {}):
        case.path_parameters["domain"] = TARGET
    else:
        case.body["domain"] = TARGET
    case.body["user_id"] = chance.choice(users)
    for listed in (case.body.get("items"), case.body.get("events")):
        for one in listed if isinstance(listed, list) else []:
            if isinstance(one, dict) and chance.random() < 0.7:
                one["item_id"] = chance.choice(items)


def _broken(stack: Stack, count: int) -> tuple[Counter[str], Counter[str]]:
    """Statuses of requests with broken bytes, and what was wrong with answers; "ended" is a connection without one."""
    declared = {*NOWHERE, "ended"}
    for operations in httpx.get(f"{stack.url}/openapi.json").json()["paths"].values():
        for operation in operations.values():
            declared.update(operation["responses"])
    address = ("127.0.0.1", stack.settings.service_port)
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda number: _answer_of(address, _mutated(stack.people(), number)), range(count)))
    seen = Counter(told)
    return seen, Counter({f"broken request: {one}": seen[one] for one in seen if one not in declared or one == "500"})


def _mutated(known: Known, seed: int) -> bytes:
    chance = random.Random(seed)
    users, items = known
    candidate = {"item_id": chance.choice(items), "features": {"a": 1}}
    body = json.dumps({"user_id": chance.choice(users), "items": [candidate]})
    raw = bytearray(
        f"POST /v1/domains/{TARGET}/rank HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    for _ in range(chance.randint(1, 6)):
        at, end = sorted((chance.randrange(len(raw)), chance.randrange(len(raw))))
        how = chance.randrange(5)
        if how == 0:
            raw[at] = chance.randrange(256)
        elif how == 1:
            raw[at:at] = chance.randbytes(chance.randint(1, 20))
        elif how == 2:
            del raw[at : min(end, at + 20)]
        elif how == 3:
            raw[at:at] = raw[at:end]
        else:
            raw[at:at] = chance.choice((b"\r\n", b"\x00", b"{", b'"', b"9" * 50, b"\xff\xfe", b"\\ud800"))
    return bytes(raw)


def _answer_of(address: tuple[str, int], raw: bytes) -> str:
    """The status of the answer; a caller that has no more to send ends its side after a while."""
    with socket.create_connection(address, timeout=LIMIT_S) as caller:
        try:
            caller.sendall(raw)
            caller.settimeout(PATIENCE_S)
            with contextlib.suppress(TimeoutError):
                return _status(caller.recv(65536))
            caller.shutdown(socket.SHUT_WR)
            caller.settimeout(LIMIT_S)
            return _status(caller.recv(65536))
        except TimeoutError:
            return "hangs"
        except OSError as fault:
            return type(fault).__name__


def _status(answer: bytes) -> str:
    if not answer:
        return "ended"
    found = re.match(rb"HTTP/1.1 (\d{3}) ", answer)
    return found[1].decode() if found else "no HTTP"


def paths(stack: Stack, seconds: float) -> Measured:
    """Paths, methods, domains and request ids that nobody knows: what they leave in memory and in the metrics."""
    count = max(10, round(3_000 * seconds / PATHS_S))
    chance = random.Random(0)
    with httpx.Client(base_url=stack.url, timeout=LIMIT_S) as client:

        def ask(number: int) -> None:
            name = f"{chance.randbytes(12).hex()}-{number}"
            body = {"request_id": name, "user_id": name, "items": [{"item_id": name}]}
            client.get(f"/v1/{name}")
            client.request(f"M{number}" if number % 2 else "PROPFIND", f"/{name}")
            client.post(f"/v1/domains/{name}/rank", json=body)
            client.post(f"/v1/domains/{TARGET}/rank", json=body)

        for number in range(100):  # what the first ones of each kind leave, stays
            ask(number)
        _exposed(client)
        before = _held(stack), _exposed(client)
        for number in range(count):
            ask(number)
        after = _held(stack), _exposed(client)
    grown = [now - then for then, now in zip(before, after, strict=True)]
    return Measured(
        f"{count} unknown paths, methods, domains and request ids each: memory {before[0] / 1e6:.0f} to "
        f"{after[0] / 1e6:.0f} MB, /metrics {before[1]} to {after[1]} bytes",
        grown[0] < GROWTH_BYTES and grown[1] < 500,
        {"count": count, "memory": [before[0], after[0]], "metrics": [before[1], after[1]]},
    )


def _held(stack: Stack) -> int:
    return sum(process.memory_info().rss for process in stack.scorers())


def _exposed(client: httpx.Client) -> int:
    return len(client.get("/metrics").content)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} x {count}" for name, count in sorted(counts.items()))


ROWS = (
    Row(
        "contract",
        f"{EXAMPLES} requests drawn from the OpenAPI document, {BROKEN} broken: no 500, no hang, nothing undeclared",
        CONTRACT_S,
        contract,
    ),
    Row("paths", "3,000 unknown paths, methods, domains and ids: memory and /metrics flat", PATHS_S, paths),
)
