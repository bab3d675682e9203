"""The main job end to end, told as it happens: a cold domain from nothing to an endpoint that answers.

On a simulated marketplace, whose best reachable score is known, or on a public data set's files from disk. Everything
goes through the use cases that the command line and the pages call; running it again adds nothing twice.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from domains.errors import NotFound, PromotionRefused, Rejected
from domains.events.domain_data import DomainData
from domains.registry.registry import Registry, Run, Version
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.console import terminal
from orchestrator.console.terminal import console
from orchestrator.errors import Unavailable
from orchestrator.servers import supervisor
from orchestrator.settings import Settings

WHO = "demo"
SIMULATED = "simulated"
NEW_SIMULATED_DOMAIN = "live"
CANDIDATES = 8
BASELINE_SOURCE_ROWS = 5_000
PICK_UP_LIMIT_S = 30
"""A promotion reaches the service well within this."""


@dataclass(frozen=True)
class Prepared:
    """One domain's spec and files."""

    spec: DomainSpec
    interactions: Path
    items: Path | None
    users: Path | None
    truth: Path | None = None


def run(
    settings: Settings,
    *,
    data: str = SIMULATED,
    path: Path | None = None,
    size: str = "small",
    local: bool = False,
    leave_up: bool = True,
    ui: bool = True,
) -> Version:
    """Tell the whole story and answer the version that was launched.

    Args:
        data: ``simulated`` or the name of a public loader; the latter needs ``path``, the folder of its files.
        local: train in this process and start no servers; the last chapter, the endpoint, is left out.
        leave_up: leave the servers running at the end.

    Raises:
        NotFound: no such data set, or its folder is not there.
        Rejected: the data set has no domain to launch.
        Unavailable: the servers do not come up.
    """
    story = _Story(settings, local)
    if not local:
        story.start_servers(ui)
    try:
        return story.tell(data, path, size)
    finally:
        if not local and not leave_up:
            supervisor.down(settings, say=_say)
        elif not local:
            story.say_addresses()


class _Story:
    def __init__(self, settings: Settings, local: bool) -> None:
        self._settings, self._local = settings, local
        self._started = time.monotonic()
        settings.home.mkdir(parents=True, exist_ok=True)
        self._registry = Registry(settings.registry_url)
        self._registry.migrate()

    def start_servers(self, ui: bool) -> None:
        state = supervisor.read_state(self._settings)
        if state is not None and state.supervised and state.ready:
            _say("the servers are up already")
            return
        with self._chapter("Start the servers"):
            supervisor.up_in_background(self._settings, ui=ui, say=_say)

    def tell(self, data: str, path: Path | None, size: str) -> Version:
        with self._chapter("Data of a marketplace"):
            prepared = self._prepare(data, path, size)
            known, new = _choose(prepared)
            for one in known:
                self._bring_in(one)
        with self._chapter("Train the shared model on these domains"):
            task = new.spec.task
            trained = self._run("train-shared", None, {"task": task, "leave_out": [new.spec.name]})
            terminal.domain_metrics(self._registry.version(trained.result["version"]).metrics)
        with self._chapter(f"Register the new domain {new.spec.name!r}, whose users are cold"):
            self._bring_in(new)
            found = use_cases.readiness(new.spec.name, registry=self._registry, settings=self._settings)
            terminal.readiness(new.spec.name, found)
        with self._chapter(f"Launch {new.spec.name!r}: its own few weights on top of the shared model"):
            # All the baselines that the policy asks for; the one that learns from the sources too is kept short here.
            launched = self._run(
                "launch-domain", new.spec.name, {"task": task, "baseline_source_rows": BASELINE_SOURCE_ROWS}
            )
            version = self._registry.version(launched.result["version"])
        with self._chapter("What cold users would get"):
            terminal.cold_start_table(new.spec.name, version.report)
            terminal.decision_lines(version.report)
        with self._chapter("Promote"):
            self._promote(new.spec.name, version)
        if not self._local:
            with self._chapter("Ask the endpoint"):
                self._ask(new.spec.name)
        _say(f"\ndone in {time.monotonic() - self._started:.0f} s")
        return version

    def say_addresses(self) -> None:
        state = supervisor.read_state(self._settings)
        for server in state.servers if state else []:
            if server.address:
                _say(f"  {server.name:<8} {server.address}")
        _say("the servers stay up; `graft down` (or `make down`) ends them")

    def _prepare(self, data: str, path: Path | None, size: str) -> list[Prepared]:
        out = self._settings.home / "demo" / (f"{data}-{size}" if data == SIMULATED else data)
        if data == SIMULATED:
            from domains.simulation.simulator import SimulatorConfig, simulate

            made = simulate(SimulatorConfig(size=size), out)
            _say(f"simulated {sum(one.events for one in made):,} events in {len(made)} domains")
            return [Prepared(one.spec, one.interactions, one.items, one.users, one.truth) for one in made]
        from domains.public import LOADERS

        if data not in LOADERS:
            raise NotFound(f"no data set {data!r}: one of {', '.join([SIMULATED, *sorted(LOADERS)])}", field="data")
        if path is None or not path.is_dir():
            raise NotFound(f"the files of {data} are looked for in a folder: --path FOLDER (got {path})", field="path")
        return [Prepared(one.spec, one.interactions, one.items, one.users) for one in LOADERS[data](path, out)]

    def _bring_in(self, one: Prepared) -> None:
        use_cases.register(one.spec, registry=self._registry, by=WHO)
        report = use_cases.ingest_data(
            one.spec.name,
            interactions=[one.interactions],
            items=one.items,
            users=one.users,
            truth=one.truth,
            registry=self._registry,
            settings=self._settings,
            by=WHO,
        )
        _say(
            f"{one.spec.name} ({one.spec.role}): {report.rows_added:,} rows added, {report.rows_duplicate:,} known "
            f"already, {report.rows_quarantined:,} set aside; {report.users:,} users, {report.items:,} items"
        )

    def _run(self, kind: str, domain: str | None, params: dict[str, Any]) -> Run:
        if not self._local:
            started = use_cases.start(
                kind, domain=domain, params=params, registry=self._registry, settings=self._settings, by=WHO
            )
            ended = terminal.watch(started, registry=self._registry, settings=self._settings)
        else:
            with terminal.progress_bar(kind) as on_progress:
                common: dict[str, Any] = {"registry": self._registry, "settings": self._settings, "by": WHO}
                if domain is None:
                    use_cases.train_shared(**common, on_progress=on_progress, **params)
                else:
                    use_cases.launch(domain, **common, on_progress=on_progress, **params)
            ended = next(run for run in self._registry.runs(domain) if run.kind == kind)
        if ended.state != "succeeded":
            raise Unavailable(f"the run {ended.id} {ended.state}: {ended.error}")
        return ended

    def _promote(self, domain: str, version: Version) -> None:
        try:
            use_cases.promote(domain, version.id, registry=self._registry, who=WHO, why="the demo's first launch")
        except PromotionRefused as refusal:
            _say(f"not promoted: {refusal}")
        else:
            _say(f"version {version.id[:12]} is live")

    def _ask(self, domain: str) -> None:
        live = self._registry.live(domain)
        self._await_service(domain, None if live is None else live.version_id)
        users = use_cases.sample_users(domain, settings=self._settings, registry=self._registry, most=5)
        popularity = DomainData(self._settings.data_dir, domain).popularity().sort_by([("events", "descending")])
        items = popularity["item_id"].slice(0, CANDIDATES).to_pylist()
        body = json.dumps({"user_id": users[-1]["user_id"], "items": [{"item_id": item} for item in items]})
        url = f"{self._settings.service_url}/v1/domains/{domain}/rank"
        command = [
            "curl",
            "--silent",
            "--show-error",
            url,
            "--header",
            "content-type: application/json",
            "--data",
            body,
        ]
        _say(shlex.join(command))
        answer = json.loads(_answer(command, url, body))
        _say(_compact(answer))
        if live is not None and answer["model_version"] != live.version_id:
            raise Unavailable(
                f"the endpoint answers by {answer['served_by']} ({answer.get('reason')}) although version "
                f"{live.version_id[:12]} is live; see {self._settings.logs_dir / 'service.log'}"
            )

    def _await_service(self, domain: str, version_id: str | None) -> None:
        deadline = time.monotonic() + PICK_UP_LIMIT_S
        while time.monotonic() < deadline:
            served = httpx.get(f"{self._settings.service_url}/v1/domains", timeout=5.0, trust_env=False).text
            if version_id is None or version_id in served:
                return
            time.sleep(0.2)
        raise Unavailable(f"the service did not pick up version {version_id} of {domain} in {PICK_UP_LIMIT_S} s")

    @contextmanager
    def _chapter(self, title: str) -> Iterator[None]:
        console.print()
        console.rule(f"[bold]{title}", align="left", characters="-")
        began = time.monotonic()
        yield
        _say(f"({time.monotonic() - began:.0f} s)")


def _choose(prepared: list[Prepared]) -> tuple[list[Prepared], Prepared]:
    """The domains that are there already, and the target domain that is launched as new."""
    targets = [one for one in prepared if one.spec.role == "target"]
    if not targets:
        raise Rejected("the data set has no target domain to launch")
    new = next((one for one in targets if one.spec.name == NEW_SIMULATED_DOMAIN), targets[-1])
    return [one for one in prepared if one is not new and one.spec.task == new.spec.task], new


def _answer(command: list[str], url: str, body: str) -> str:
    """What the printed command answers; the same request without curl where curl is not installed."""
    if shutil.which(command[0]) is None:
        return httpx.post(url, content=body, headers={"content-type": "application/json"}, trust_env=False).text
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise Unavailable(f"curl failed: {done.stderr.strip()}")
    return done.stdout


def _compact(answer: dict[str, Any]) -> str:
    """JSON with one item a line."""
    items = ",\n".join(f"    {json.dumps(item)}" for item in answer["items"])
    rest = json.dumps({**answer, "items": "ITEMS"}, indent=2)
    return rest.replace('"ITEMS"', f"[\n{items}\n  ]")


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
