"""A run without Prefect whose process is gone is told apart from one that goes on."""

import subprocess
import sys
import time

import pytest

from domains.registry.registry import Registry
from orchestrator.jobs import runner
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.settings import Settings

KILLED = """
    import sys, time
    from pathlib import Path
    from domains.registry.registry import Registry
    from orchestrator.jobs.runner import RunContext, Step, execute
    from orchestrator.settings import Settings

    settings = Settings(home=Path(sys.argv[1]))
    registry = Registry(settings.registry_url)
    context = RunContext("run-1", "preview", None, {}, "ann", registry, settings)
    execute([Step("Wait", lambda context: (print("waiting", flush=True), time.sleep(60)))], context)
"""


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A home of its own."""
    return Settings(home=tmp_path)


@pytest.fixture
def registry(settings) -> Registry:
    """Its registry."""
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


def context(registry: Registry, settings: Settings) -> RunContext:
    return RunContext("run-1", "preview", None, {}, "ann", registry, settings)


@pytest.mark.slow
def test_a_killed_run_is_closed_and_can_be_continued(registry, settings):
    """While its process lives it is left alone; once that is killed it has failed; started again it succeeds."""
    script = "\n".join(line[4:] for line in KILLED.splitlines())
    process = subprocess.Popen([sys.executable, "-c", script, str(settings.home)], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"waiting"
    assert runner.close_dead(registry, settings) == []
    assert registry.run("run-1").state == "running"
    process.kill()
    process.wait()
    assert runner.close_dead(registry, settings) == ["run-1"]
    ended = registry.run("run-1")
    assert (ended.state, ended.error) == ("failed", "its process ended without a word; it can be continued")
    again = runner.execute([Step("Go on", lambda context: None)], context(registry, settings))
    assert again.state == "succeeded"


def test_a_run_of_this_process_or_of_prefect_is_nobodys_to_close(registry, settings):
    """A thread of this process is at work; Prefect looks after its own."""
    seen = []
    steps = [Step("Look", lambda context: seen.append(runner.close_dead(registry, settings)))]
    runner.execute(steps, context(registry, settings))
    registry.start_run("preview", None, params={}, by="ann", run_id="run-2")
    registry.link_flow_run("run-2", "flow-2")
    (settings.runs_dir / "run-2").mkdir(parents=True)
    (settings.runs_dir / "run-2" / "process.json").write_text('{"host": "here", "pid": 1, "created": 0.0}')
    assert seen == [[]]
    assert runner.close_dead(registry, settings) == []


def test_a_reused_process_number_is_no_sign_of_life():
    """Only the process that began then counts."""
    assert not runner.alive(1, time.time())
