"""With a browser: registers a new domain, launches it and ranks, on real pages over a real service."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.servers import plan
from orchestrator.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
NEW = "live"
QUICK = {"epochs": 1, "width": 8, "lifelong": 20, "fine_tune_epochs": 1}
PATIENCE_MS = 90_000
"""Pages answer in a second; a machine under load may take this long."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.servers,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no browser at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    """A home and ports of its own; Prefect's port is closed."""
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        service, ui = one.getsockname()[1], two.getsockname()[1]
    return Settings(
        home=tmp_path_factory.mktemp("browser") / "home", service_port=service, ui_port=ui, prefect_port=1, threads=1
    )


@pytest.fixture(scope="module")
def new_domain(settings) -> Path:
    """A marketplace whose shared model is trained; returns the folder of one more domain that is not registered."""
    settings.home.mkdir()
    registry = Registry(settings.registry_url)
    registry.migrate()
    known = {"registry": registry, "settings": settings, "by": "ann"}
    made = simulate(SimulatorConfig(size="tiny"), settings.home / "market")
    for one in made:
        if one.spec.role == "source" and one.spec.name != "lies":
            use_cases.register(one.spec, registry=registry, by="ann")
            use_cases.ingest_data(
                one.spec.name, interactions=[one.interactions], items=one.items, users=one.users, **known
            )
    use_cases.train_shared(**known, **QUICK)
    return next(one.interactions.parent for one in made if one.spec.name == NEW)


@pytest.fixture(scope="module")
def stack(settings, new_domain) -> Iterator[str]:
    """The service and the pages as processes, without Prefect; yields the address of the pages."""
    wanted = [server for server in plan.servers(settings) if server.name in ("service", "ui")]
    started = [
        subprocess.Popen(server.command, env=plan.environment(settings), start_new_session=True) for server in wanted
    ]
    try:
        deadline = time.monotonic() + 120
        while not all(server.healthy() for server in wanted):
            assert all(process.poll() is None for process in started), "a server ended while it started"
            assert time.monotonic() < deadline, "the servers did not come up"
            time.sleep(0.3)
        yield settings.ui_url
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def asked() -> list[str]:
    """Addresses that the pages requested."""
    return []


@pytest.fixture
def page(asked):
    """A browser's page that notes what it requests."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1800})
        page.set_default_timeout(PATIENCE_MS)
        playwright.expect.set_options(timeout=PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        yield page
        browser.close()


def choose(page, at, file):
    """Choose a file; chosen while the page draws itself anew it is not taken, and a person would choose it again."""
    for _ in range(3):
        page.locator("input[type=file]").nth(at).set_input_files(file)
        try:
            return playwright.expect(page.get_by_text(file.name)).to_be_visible(timeout=PATIENCE_MS / 3)
        except AssertionError:
            continue
    raise AssertionError(f"{file.name} was not taken")


def test_a_domain_is_registered_launched_and_ranked_in_a_browser(stack, page, new_domain, settings, asked):
    """From the files of a new domain to a ranking, by clicks alone."""
    see, registry = playwright.expect, Registry(settings.registry_url)

    page.goto(f"{stack}/register")
    for at, name in enumerate(("interactions.parquet", "items.csv", "users.csv")):
        choose(page, at, new_domain / name)
    page.get_by_label("Name", exact=True).fill(NEW)
    page.get_by_label("Name", exact=True).press("Tab")
    page.get_by_label("Owner", exact=True).fill("team-live")
    page.get_by_label("Owner", exact=True).press("Tab")
    page.get_by_role("button", name="Register and check the data").click()
    see(page.get_by_text("All rows are valid:")).to_be_visible()
    assert registry.domain(NEW).counts["rows_added"] > 1000

    page.get_by_role("button", name=f"Open {NEW}").click()
    see(page.get_by_text("Next: launch it.")).to_be_visible()
    page.get_by_role("button", name="Launch", exact=True).click()
    page.get_by_role("button", name="Launch inside this UI").click()
    see(page.get_by_text("so far").first).to_be_visible()
    see(page.get_by_text("is running.")).to_have_count(0)
    launch = next(run for run in registry.runs(NEW) if run.kind == "launch-domain")
    assert (launch.state, launch.error) == ("succeeded", None)

    page.get_by_role("tab", name="Versions").click()
    see(page.get_by_text("Metrics on cold users, against the baselines")).to_be_visible()
    see(page.get_by_text("Nothing else changed")).to_be_visible()

    page.get_by_role("button", name="Try it").click()
    page.get_by_role("button", name="Rank ").click()
    see(page.get_by_text("took ")).to_be_visible()
    # What waits for a person's decision does not answer: until then the page is ranked by popularity.
    see(page.get_by_text("Ranked by popularity only").first).to_be_visible()

    outside = [url for url in asked if not url.startswith((stack, stack.replace("http", "ws"), "data:", "blob:"))]
    assert outside == []


@pytest.mark.parametrize("path", ["domains", "register", "domain", "playground", "runs"])
def test_a_page_fits_the_width_of_a_phone(stack, page, path):
    """Nothing has to be scrolled sideways; tables and code scroll within themselves."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{stack}/{path}")
    playwright.expect(page.locator("h1").first).to_be_visible()
    playwright.expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    main = page.get_by_test_id("stMain")
    assert main.evaluate("element => element.scrollWidth - element.clientWidth") == 0
