"""``graft bench``: what there is, what it needs, and a run by name."""

import json

import pytest
from typer.testing import CliRunner

import benchmarks
from orchestrator.cli import app
from orchestrator.console import bench


@pytest.fixture
def graft(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_without_a_name_it_lists_what_there_is_and_where_data_comes_from(graft, words):
    """Every installed benchmark with its sets, every set with its origin."""
    shown = graft(*words)
    assert shown.exit_code == 0
    there, sets = bench.catalogue()
    assert "cold-start-ratings" in there
    for name in there:
        assert name in shown.output
    for folder in sets:
        assert folder in shown.output
    assert "J. McAuley" in shown.output


def test_a_wrong_name_is_answered_with_the_list_and_the_nearest(graft):
    """The nearest name is suggested, underscores count as hyphens; the status is 1."""
    shown = graft("cold_start_rating")
    assert shown.exit_code == 1
    assert "did you mean 'cold-start-ratings'" in shown.stderr
    assert "what it measures" in shown.output
    assert "did you mean" not in graft("qqq").stderr


def test_data_that_is_missing_is_asked_for_by_folder_and_origin(graft, tmp_path):
    """Without --data, and with a folder that holds nothing of it, one line says what is wanted."""
    shown = graft("cold-start-ratings")
    assert shown.exit_code == 1
    assert "--data DIR" in shown.stderr
    assert "GA-DTCDR" in shown.stderr
    shown = graft("cold-start-ratings", "--data", tmp_path, "--out", tmp_path / "out")
    assert shown.exit_code == 1
    assert "holds no files of" in shown.stderr


@pytest.mark.slow
def test_a_benchmark_runs_with_its_own_options(graft, tmp_path):
    """Options after the name reach the benchmark as they are."""
    assert graft("simulator", "--events", "3000", "--out", tmp_path / "simulator.json").exit_code == 0
    assert json.loads((tmp_path / "simulator.json").read_text())


def test_what_reads_public_sets_writes_at_home_unless_told(monkeypatch, tmp_path):
    """The default of --out is a folder of the benchmark's name; a given one stands."""
    seen = []
    monkeypatch.setattr(bench.runpy, "run_module", lambda module, **_: seen.append((module, bench.sys.argv[1:])))
    bench.run("cold-start-ratings", ["--data", "d"], out=tmp_path)
    bench.run("cold-start-ratings", ["--data=d", "--out=o"], out=tmp_path)
    module = "benchmarks.cold_start_ratings"
    assert seen == [
        (module, ["--data", "d", "--out", str(tmp_path / "cold-start-ratings")]),
        (module, ["--data=d", "--out=o"]),
    ]


def test_the_catalogue_names_only_known_sets():
    """Each set that a benchmark reads is described, each described set is read."""
    read = {folder for one in benchmarks.CATALOGUE.values() for folder in one.sets}
    assert read == set(benchmarks.SETS)
