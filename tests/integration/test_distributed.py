"""Two processes train one model as one process would, lose a member, and go on.

Each start of a group imports torch three times; everything else here is small.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors import safe_open

from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from models.training.distributed import Alone
from orchestrator import use_cases
from orchestrator.settings import Settings
from orchestrator.training.torchrun import ProcessesFailed

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("distributed_run.py")
RULES = ["lazy_adam", "rowwise_adagrad", "dense"]
HALVES = [751, 650, 602]
"""Half of each table of the script's ranker, rounded up: source items, users, the target's own items."""


def together(answers: Path, *jobs: dict) -> tuple[int, list[list[dict]]]:
    """Train the jobs one after the other in two processes; torchrun's exit status and what each process told."""
    answers.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", str(SCRIPT), json.dumps({"answers": str(answers), "jobs": jobs})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    told = [json.loads(file.read_text()) for file in sorted(answers.glob("[01].json"))]
    assert done.returncode or len(told) == 2, done.stderr
    return done.returncode, told


def alone(**asked: object) -> dict:
    """The same training in this process."""
    spec = importlib.util.spec_from_file_location("distributed_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(json.dumps(module.run(asked, Alone())))


def values(told: dict) -> list[float]:
    return [row["value"] for row in told["history"]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, list[dict]]:
    """What both processes told of a training by each rule; the first also saved checkpoints."""
    folder = tmp_path_factory.mktemp("unbroken")
    jobs = [{"rule": RULES[0], "folder": str(folder / "state")}, *({"rule": rule} for rule in RULES[1:])]
    status, told = together(folder, *jobs, {"ages": 1100})
    assert status == 0
    return dict(zip([*RULES, "many categories"], map(list, zip(*told, strict=True)), strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_two_processes_follow_the_loss_curve_of_one(rule, unbroken):
    """Every step's loss, validation, and the weights at the end; parts are uneven and the last one is empty."""
    (first, second), expected = unbroken[rule], alone(rule=rule)
    np.testing.assert_allclose(list(first["losses"].values()), list(expected["losses"].values()), atol=1e-6)
    assert first["losses"] == second["losses"]
    np.testing.assert_allclose(values(first), values(expected), atol=1e-9)
    assert first["dense"] == second["dense"]
    for mine, theirs in zip(first["tables"], expected["tables"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert (first["shares"] == second["shares"] == [HALVES]) is (rule != "dense")


def test_categories_touched_a_few_at_a_time_are_moved_as_by_one_process(unbroken):
    """Every process has the whole table, and a row that only the other's part touched counts as touched."""
    (first, second), expected = unbroken["many categories"], alone(ages=1100)
    np.testing.assert_allclose(list(first["losses"].values()), list(expected["losses"].values()), atol=1e-6)
    np.testing.assert_allclose(first["fields"], expected["fields"], atol=1e-6)
    assert first["fields"] == second["fields"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Checkpoints of a training one of whose processes was killed, as by kill -9, right after its seventh step."""
    state = tmp_path_factory.mktemp("killed") / "state"
    status, _ = together(state.with_name("told"), {"folder": str(state), "die": 1, "die_at": 7})
    assert status != 0
    return state


def test_no_process_holds_or_saves_more_than_its_rows_of_a_table(killed):
    """Weights and the optimiser's state of a spread table are half as long in each file, and nothing is longer."""
    assert sorted(file.name for file in killed.iterdir()) == [f"rank{k}of2-step4.safetensors" for k in (0, 1)]
    for file in killed.iterdir():
        with safe_open(file, framework="pt") as held:
            shapes = [tuple(held.get_slice(key).get_shape()) for key in held.keys()]  # noqa: SIM118
        vectors = [shape[0] for shape in shapes if len(shape) == 2 and shape[0] > 100 and shape[1] == 8]
        assert sorted(vectors) == sorted(3 * HALVES), "weights and two moments of each table"


def test_after_a_kill_the_next_group_goes_on_to_the_same_bits(killed, unbroken, tmp_path):
    """It starts after the last step that both processes had saved, the fourth."""
    state = tmp_path / "state"
    shutil.copytree(killed, state)
    status, ((resumed,), _) = together(tmp_path, {"folder": str(state)})
    assert status == 0
    expected = unbroken["lazy_adam"][0]
    later = {step: loss for step, loss in expected["losses"].items() if int(step) > 4}
    assert resumed["losses"] == later
    assert resumed["tables"] == expected["tables"]
    assert resumed["dense"] == expected["dense"]
    assert values(resumed) == values(expected)


def test_checkpoints_of_another_number_of_processes_are_refused(killed):
    """A group of two must not begin anew in a folder that three had written."""
    with pytest.raises(ValueError, match="written by several processes"):
        Alone().load(killed)


QUICK = {"epochs": 1, "width": 8, "lifelong": 20, "batch_size": 256, "checkpoint_every_steps": 2}


@pytest.fixture(scope="module")
def marketplace(tmp_path_factory) -> Settings:
    """A home with simulated source domains and one target, ingested."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, device="cpu")
    registry = Registry(settings.registry_url)
    registry.migrate()
    for simulated in simulate(SimulatorConfig(events=3000), home / "simulated"):
        if simulated.spec.name in ("video", "shop", "grocery"):
            use_cases.register(simulated.spec, registry=registry, by="test")
            use_cases.ingest_data(
                simulated.spec.name,
                interactions=[simulated.interactions],
                items=simulated.items,
                users=simulated.users,
                registry=registry,
                settings=settings,
                by="test",
            )
    return settings


def losses(settings: Settings, run_id: str, **recipe: object) -> tuple[str, dict[int, float]]:
    """Shared training; the version's id and the loss at each reported step."""
    seen: dict[int, float] = {}

    def watch(_fraction: float, _step: str, detail: dict) -> None:
        if "steps" in detail:
            seen[detail["steps"]] = detail["loss"]

    registry = Registry(settings.registry_url)
    run = use_cases.run(
        "train-shared",
        params={**QUICK, **recipe},
        registry=registry,
        settings=settings,
        by="test",
        run_id=run_id,
        on_progress=watch,
    )
    return run.result["version"], seen


@pytest.fixture(scope="module")
def in_two(marketplace) -> tuple[str, dict[int, float]]:
    """Shared training in two processes that lost nobody."""
    return losses(marketplace, "run-two", processes=2)


def test_shared_training_in_two_processes_has_the_curve_of_one(marketplace, in_two):
    """The recipe's `processes` is all that differs; the published model is whole, and nothing is left running."""
    _, one = losses(marketplace, "run-one")
    version, two = in_two
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), atol=2e-3)
    _all_end("run-two")
    metrics = Registry(marketplace.registry_url).version(version).metrics
    assert metrics["video"]["rows"]["shared"]["auc"]["value"] > 0.5


def test_shared_training_survives_kill_minus_nine_of_one_of_its_processes(marketplace, in_two):
    """The group is started again by itself and ends in the very version of the run that lost nobody."""
    killed = []

    def kill() -> None:
        folder = marketplace.runs_dir / "run-hurt" / "training"
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not killed:
            if list(folder.glob("rank0of2-*.safetensors")):
                victim = _members("run-hurt")[0]
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    survived, _ = losses(marketplace, "run-hurt", processes=2)
    killer.join()
    assert killed
    assert survived == in_two[0]
    _all_end("run-hurt")


def test_a_fault_that_every_process_meets_is_told_in_its_words(marketplace):
    """No second try: it would come again."""
    with pytest.raises(ProcessesFailed, match="TrainingDiverged: the loss is"):
        losses(marketplace, "run-wild", processes=2, learning_rate=1e30)


def test_the_processes_end_when_the_one_that_started_them_is_killed(marketplace):
    """kill -9 reaches no child; their input closes instead."""
    code = (
        "import sys; from pathlib import Path; from domains.registry.registry import Registry\n"
        "from orchestrator import use_cases; from orchestrator.settings import Settings\n"
        "settings = Settings(home=Path(sys.argv[1]), device='cpu')\n"
        "use_cases.train_shared(registry=Registry(settings.registry_url), settings=settings, by='test',"
        f" run_id='run-orphan', processes=2, **{ {**QUICK, 'epochs': 200, 'patience': 0}!r})"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(marketplace.home)], cwd=ROOT)
    try:
        folder = marketplace.runs_dir / "run-orphan" / "training"
        deadline = time.monotonic() + 100
        while not list(folder.glob("rank1of2-*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(_members("run-orphan")) == 2
    finally:
        starter.kill()
        starter.wait()
    _all_end("run-orphan")


def _all_end(run_id: str) -> None:
    """No training process of a run is left; the operating system may take a moment to end them."""
    deadline = time.monotonic() + 15
    while _members(run_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _members(run_id)


def _members(run_id: str) -> list[psutil.Process]:
    """Training processes of a run that are alive, without torchrun itself."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and run_id in line and "torch.distributed.run" not in line:
            found.append(process)
    return found
