"""``graft demo``: the main job end to end, from files on disk to a new domain's endpoint that answers.

On a simulated marketplace, whose best reachable score is known, or on a public data set's files. All of it goes through
the use cases that the command line and the pages call; running it again adds nothing twice.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from domains.errors import NotFound, PromotionRefused, Rejected
from domains.events.domain_data import DomainData
from domains.public.reading import PreparedDomain
from domains.registry.registry import Version
from domains.simulation.simulator import SimulatedDomain, SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.console import terminal
from orchestrator.console.terminal import console, say
from orchestrator.data.sample_users import sample_users
from orchestrator.errors import Unavailable
from orchestrator.evaluation.report import ColdStartReport, HeldOut
from orchestrator.jobs import results
from orchestrator.servers import state, supervisor
from orchestrator.settings import Settings

BY = "demo"
"""Whom the audit log names."""
SIMULATED = "simulated"
NEW_SIMULATED_DOMAIN = "live"
CANDIDATES = 8
BASELINE_SOURCE_ROWS = 5_000
PICK_UP_LIMIT_S = 30
"""The service picks up a promotion well within this."""

DomainFiles = SimulatedDomain | PreparedDomain


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
    """Run every step and return the version that was launched.

    Args:
        data: ``simulated`` or the name of a public loader; the latter needs ``path``, the folder of its files.
        local: train in this process and start no servers; the last step, the endpoint, is left out.
        leave_up: leave the servers running at the end.

    Raises:
        NotFound: no such data set, or its folder does not exist.
        Rejected: the data set has no domain to launch.
        Unavailable: the servers do not come up.
    """
    demo = _Demo(settings, local=local)
    if not local:
        demo.start_servers(ui=ui)
    try:
        return demo.launch_a_new_domain(data, path, size)
    finally:
        if not local and not leave_up:
            supervisor.down(settings, say=say)
        elif not local:
            demo.print_addresses()


class _Demo:
    def __init__(self, settings: Settings, *, local: bool) -> None:
        self._settings, self._local = settings, local
        self._started = time.monotonic()
        self._registry = use_cases.open_registry(settings)

    def start_servers(self, *, ui: bool) -> None:
        running = state.read(self._settings)
        if running is not None and running.supervised and running.ready:
            say("the servers are up already")
            return
        with _step("Start the servers"):
            supervisor.up_in_background(self._settings, ui=ui, say=say)

    def launch_a_new_domain(self, data: str, path: Path | None, size: str) -> Version:
        with _step("Data of a marketplace"):
            existing, new = _choose(self._prepare(data, path, size))
            for domain in existing:
                self._register_and_ingest(domain)
        name, task = new.spec.name, new.spec.task
        with _step("Train the shared model on these domains"):
            backbone = self._train("train-shared", None, {"task": task, "leave_out": [name]})
            terminal.domain_metrics(HeldOut.by_domain(backbone))
        with _step(f"Register the new domain {name!r}, whose users are cold"):
            self._register_and_ingest(new)
            found = use_cases.readiness(name, registry=self._registry, settings=self._settings)
            terminal.readiness(name, found)
        with _step(f"Launch {name!r}: its own few weights on top of the shared model"):
            # All the baselines that the policy asks for; the one that learns from the sources too is kept short here.
            version = self._train("launch-domain", name, {"task": task, "baseline_source_rows": BASELINE_SOURCE_ROWS})
        with _step("What cold users would get"):
            report = ColdStartReport.of(version)
            assert report is not None, "a launch makes a version with a report"
            terminal.cold_start(name, report)
        with _step("Promote"):
            self._promote(name, version)
        if not self._local:
            with _step("Ask the endpoint"):
                self._ask(name)
        say(f"\ndone in {time.monotonic() - self._started:.0f} s")
        return version

    def print_addresses(self) -> None:
        running = state.read(self._settings)
        for server in running.servers if running else []:
            if server.address:
                say(f"  {server.name:<8} {server.address}")
        say("the servers stay up; `graft down` (or `make down`) stops them")

    def _prepare(self, data: str, path: Path | None, size: str) -> list[SimulatedDomain] | list[PreparedDomain]:
        out = self._settings.home / "demo"
        if data == SIMULATED:
            simulated = simulate(SimulatorConfig(size=size), out / f"{data}-{size}")
            say(f"simulated {sum(domain.events for domain in simulated):,} events in {len(simulated)} domains")
            return simulated
        from domains.public import LOADERS

        if data not in LOADERS:
            raise NotFound(f"no data set {data!r}: one of {', '.join([SIMULATED, *sorted(LOADERS)])}", field="data")
        if path is None or not path.is_dir():
            raise NotFound(f"the files of {data} are looked for in a folder: --path FOLDER (got {path})", field="path")
        return LOADERS[data](path, out / data)

    def _register_and_ingest(self, domain: DomainFiles) -> None:
        use_cases.register(domain.spec, registry=self._registry, by=BY)
        report = use_cases.ingest_data(
            domain.spec.name,
            interactions=[domain.interactions],
            items=domain.items,
            users=domain.users,
            truth=domain.truth if isinstance(domain, SimulatedDomain) else None,
            registry=self._registry,
            settings=self._settings,
            by=BY,
        )
        say(
            f"{domain.spec.name} ({domain.spec.role}): {report.rows_added:,} rows added, {report.rows_duplicate:,} "
            f"known already, {report.rows_quarantined:,} set aside; {report.users:,} users, {report.items:,} items"
        )

    def _train(self, kind: str, domain: str | None, params: dict[str, Any]) -> Version:
        run = terminal.run_to_end(
            *(kind, domain), params=params, local=self._local, registry=self._registry, settings=self._settings, by=BY
        )
        return self._registry.version(results.version_of(run))

    def _promote(self, domain: str, version: Version) -> None:
        try:
            use_cases.promote(
                domain,
                version.id,
                registry=self._registry,
                settings=self._settings,
                who=BY,
                why="the demo's first launch",
            )
        except PromotionRefused as refusal:
            say(f"not promoted: {refusal}")
        else:
            say(f"version {version.id[:12]} is live")

    def _ask(self, domain: str) -> None:
        live = self._registry.live(domain)
        self._await_service(domain, None if live is None else live.version_id)
        user = sample_users(domain, settings=self._settings, most=5)[-1]["user_id"]
        popularity = DomainData(self._settings.data_dir, domain).popularity().sort_by([("events", "descending")])
        items = popularity["item_id"].slice(0, CANDIDATES).to_pylist()
        body = json.dumps({"user_id": user, "items": [{"item_id": item} for item in items]})
        url = f"{self._settings.service_url}/v1/domains/{domain}/rank"
        answer = json.loads(self._post(url, body))
        say(_one_item_per_line(answer))
        if live is not None and answer["model_version"] != live.version_id:
            raise Unavailable(
                f"the endpoint answers by {answer['served_by']} ({answer.get('reason')}) although version "
                f"{live.version_id[:12]} is live; see {self._settings.logs_dir / 'service.log'}"
            )

    def _post(self, url: str, body: str) -> str:
        """Print the request as a curl command and send it; by curl where that needs no key."""
        command = ["curl", "--silent", "--show-error", url, "--header", "content-type: application/json"]
        headers = self._settings.service_headers if self._registry.api_keys() else {}
        shown = shlex.join([*command, "--data", body])
        if headers:
            # The key is read where it lies: neither the terminal nor the list of processes shows it.
            token = f'--header "authorization: Bearer $(cat {shlex.quote(str(self._settings.service_key_file))})"'
            shown = f"{shlex.join(command)} {token} {shlex.join(['--data', body])}"
        say(shown)
        if headers or shutil.which("curl") is None:
            headers = {"content-type": "application/json", **headers}
            return httpx.post(url, content=body, headers=headers, timeout=30, trust_env=False).text
        done = subprocess.run([*command, "--data", body], capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise Unavailable(f"curl failed: {done.stderr.strip()}")
        return done.stdout

    def _await_service(self, domain: str, version_id: str | None) -> None:
        deadline = time.monotonic() + PICK_UP_LIMIT_S
        url, headers = f"{self._settings.service_url}/v1/domains", self._settings.service_headers
        while time.monotonic() < deadline:
            served = httpx.get(url, headers=headers, timeout=5.0, trust_env=False)
            if served.is_success and (version_id is None or version_id in served.text):
                return
            time.sleep(0.2)
        raise Unavailable(f"the service did not pick up version {version_id} of {domain} in {PICK_UP_LIMIT_S} s")


@contextmanager
def _step(title: str) -> Iterator[None]:
    """A heading before and the seconds after."""
    console.print()
    console.rule(f"[bold]{title}", align="left", characters="-")
    began = time.monotonic()
    yield
    say(f"({time.monotonic() - began:.0f} s)")


def _choose(prepared: list[SimulatedDomain] | list[PreparedDomain]) -> tuple[list[DomainFiles], DomainFiles]:
    """The domains that exist already, and the target domain that is launched as new."""
    targets = [domain for domain in prepared if domain.spec.role == "target"]
    if not targets:
        raise Rejected("the data set has no target domain to launch")
    new = next((domain for domain in targets if domain.spec.name == NEW_SIMULATED_DOMAIN), targets[-1])
    return [domain for domain in prepared if domain is not new and domain.spec.task == new.spec.task], new


def _one_item_per_line(answer: dict[str, Any]) -> str:
    """An answer as JSON with one item per line."""
    items = ",\n".join(f"    {json.dumps(item)}" for item in answer["items"])
    rest = json.dumps({**answer, "items": "ITEMS"}, indent=2)
    return rest.replace('"ITEMS"', f"[\n{items}\n  ]")
