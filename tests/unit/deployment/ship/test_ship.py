"""Image, compose and Kubernetes files: what they name is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

from orchestrator.cli import COMMANDS
from orchestrator.hosts import is_loopback
from orchestrator.servers import plan
from orchestrator.settings import Settings

ROOT = Path(__file__).parents[4]
SHIP = ROOT / "deployment" / "ship"
DOCKERFILE = (SHIP / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((SHIP / "compose.yaml").read_text())
FILES = [path for path in SHIP.rglob("*") if path.is_file()]


def test_the_image_is_built_from_the_top_of_the_repository():
    """With every package of the project, from the command in the file's head and by compose alike."""
    build = COMPOSE["x-graft"]["build"]
    assert (SHIP / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).read_text() == DOCKERFILE
    copied = [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(copied)


def test_every_file_starts_the_service_that_the_stack_starts():
    """By the same path, which can be imported."""
    [path] = [word for word in plan.service(Settings()).command if word.startswith("deployment.")]
    named = {word for file in FILES for word in re.findall(r"\bdeployment\.http\.[\w.:]+", file.read_text())}
    assert named == {path}
    assert importlib.util.find_spec(path) is not None


def test_every_variable_of_ours_is_a_setting():
    """A misspelt one would be ignored without a word."""
    known = set(Settings().as_environment())
    named = {name for file in FILES for name in re.findall(r"\bGRAFT_[A-Z_]+", file.read_text())}
    assert named - known == set()


KUBERNETES = [
    found for path in sorted((SHIP / "kubernetes").glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())
]


def of_kind(kind: str) -> dict[str, dict]:
    """The Kubernetes objects of a kind, by name."""
    return {found["metadata"]["name"]: found for found in KUBERNETES if found["kind"] == kind}


def containers() -> dict[str, dict]:
    """The containers of every deployment, by the deployment's name."""
    return {name: found["spec"]["template"]["spec"]["containers"][0] for name, found in of_kind("Deployment").items()}


def test_somebody_has_the_supervisors_duties_in_every_way_of_deployment():
    """Lost runs, schedules, what may be deleted: one replica; runs have a worker, Prefect a server."""
    for of_all in (COMPOSE["services"].values(), containers().values()):
        commands = [" ".join(one.get("command", [])) for one in of_all]
        assert commands.count("graft upkeep") == 1
        assert sum("prefect worker start" in command for command in commands) == 1
        assert sum("prefect server start" in command for command in commands) == 1
    for name in ("graft-upkeep", "graft-worker", "graft-prefect"):
        spec = of_kind("Deployment")[name]["spec"]
        assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate"), name


def test_every_command_of_ours_exists():
    """`graft deploy`, `graft upkeep` and what else the files name."""
    every = [" ".join(one.get("command", [])) for one in (*COMPOSE["services"].values(), *containers().values())]
    named = {word for command in every for word in re.findall(r"\bgraft ([a-z]+)\b", command)}
    assert {"deploy", "upkeep"} <= named
    assert named - {*COMMANDS} == set()


def test_no_probe_gives_up_after_a_second():
    """That is Kubernetes' default, and a busy core takes longer."""
    for name, container in containers().items():
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            if kind in container:
                assert container[kind].get("timeoutSeconds", 1) >= 5, (name, kind)
    checks = [one["healthcheck"] for one in COMPOSE["services"].values() if "healthcheck" in one]
    assert all(int(check["timeout"].removesuffix("s")) >= 5 for check in checks)
    assert set(containers()["graft-service"]) >= {"startupProbe", "readinessProbe", "livenessProbe"}


def test_what_containers_write_has_bounds():
    """Their logs, and Prefect's database; all but the one that only migrates come back after a death."""
    for name, one in COMPOSE["services"].items():
        assert one["logging"]["options"].keys() >= {"max-size", "max-file"}, name
        assert one["restart"] == ("no" if name == "migrate" else "unless-stopped"), name
    told = [COMPOSE["services"]["prefect"]["environment"], of_kind("ConfigMap")["graft-flows"]["data"]]
    for environment in told:
        assert "flow_runs" in environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"]
        assert int(environment["PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD"]) == 30 * 86_400


def test_whatever_a_pod_refers_to_is_there():
    """Volumes, secrets' keys (in the command that makes them), config maps and the addresses of services."""
    made = set(re.findall(r"--from-literal=([a-z-]+)=", (SHIP / "kubernetes" / "service.yaml").read_text()))
    for name, found in of_kind("Deployment").items():
        pod = found["spec"]["template"]["spec"]
        claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
        assert claims <= of_kind("PersistentVolumeClaim").keys(), name
        assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }
        for one in pod["containers"]:
            refs = [variable["valueFrom"]["secretKeyRef"] for variable in one["env"] if "valueFrom" in variable]
            assert {ref["key"] for ref in refs} <= made, name
            maps = {ref["configMapRef"]["name"] for ref in one.get("envFrom", [])}
            assert maps <= of_kind("ConfigMap").keys(), name
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert labels == found["spec"]["selector"]["matchLabels"]
    hosts = re.findall(r"http://(graft-[a-z]+):", str(of_kind("ConfigMap")))
    assert set(hosts) <= of_kind("Service").keys()
    depended = {name for one in COMPOSE["services"].values() for name in one.get("depends_on", {})}
    assert depended <= COMPOSE["services"].keys()


SECRET = re.compile(r"PASSWORD|AUTH|SECRET|DATABASE_URL|STORE_ADDRESS|API_KEY")


def test_no_secret_stands_in_a_file_or_an_argument():
    """Compose takes them from its environment and refuses to start without; pods take them from a Secret."""
    for name, one in COMPOSE["services"].items():
        for variable, value in one.get("environment", {}).items():
            if SECRET.search(variable):
                assert re.search(r"\$\{[A-Z_]+:\?", value), (name, variable)
        assert not re.search(r"(?<!\$)\$\{|--requirepass", " ".join(one.get("command", []))), name
    for found in of_kind("ConfigMap").values():
        assert [variable for variable in found["data"] if SECRET.search(variable)] == []
    for name, container in containers().items():
        for variable in container["env"]:
            if SECRET.search(variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}), (name, variable["name"])
    assert of_kind("Secret") == {}


def test_every_server_knows_who_asks():
    """Prefect's API has a password and allows no other site; the service and the pages know that others reach them."""
    prefect = COMPOSE["services"]["prefect"]["environment"]
    assert prefect.keys() >= {"PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"}
    [pod] = [one for name, one in containers().items() if name == "graft-prefect"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in {variable["name"] for variable in pod["env"]}
    assert of_kind("ConfigMap")["graft-flows"]["data"]["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] != "*"
    for name in ("service", "ui"):
        assert not is_loopback(COMPOSE["services"][name]["environment"]["GRAFT_BIND_HOST"])
    told = {variable["name"]: variable.get("value") for variable in containers()["graft-service"]["env"]}
    assert not is_loopback(told["GRAFT_BIND_HOST"])
    for name, one in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
    [script] = [word for word in COMPOSE["services"]["ui"]["command"] if word.endswith(".py")]
    assert script == "ui/door.py", "the pages without their door show nobody a way in"
