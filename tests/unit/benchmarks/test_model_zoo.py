"""Every network of the tables can be built by name, learns from the same rows and is asked in the same way."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import model_zoo
from domains.events.histories import Histories
from domains.events.splits import Split
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.settings import Settings
from orchestrator.training import fit
from orchestrator.training.recipe import Recipe

SLOTS = ("video", "live")
RECIPE = Recipe(width=8, epochs=1, batch_size=128, lifelong=20, short=8, user_embedding=True, architecture="dacdr+lcn")


@dataclass(frozen=True)
class FewRows(Workspace):
    """So few rows that a network trains in a second."""

    def split(self, rows: Examples) -> Split:
        split = super().split(rows)
        return replace(split, train=split.train[-600:], validation=split.validation[-200:], test=split.test[-200:])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> FewRows:
    """A source and a target of the simulator's marketplace, ingested."""
    home: Path = tmp_path_factory.mktemp("home")
    settings = Settings(home=home)
    registry = Registry(settings.registry_url)
    registry.migrate()
    for domain in simulate(SimulatorConfig("tiny", events=6000), home / "raw"):
        if domain.spec.name in SLOTS:
            sources = tuple(name for name in domain.spec.sources if name in SLOTS)
            spec = domain.spec.model_copy(update={"sources": sources})
            use_cases.register(spec, registry=registry, by="test")
            use_cases.ingest_data(
                domain.spec.name,
                interactions=[domain.interactions],
                items=domain.items,
                users=domain.users,
                registry=registry,
                settings=settings,
                by="test",
            )
    Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in registry.domains()])
    return FewRows(settings, tuple(registry.domains()))


@pytest.mark.parametrize("name", model_zoo.NAMES)
@pytest.mark.slow
def test_every_name_trains_and_answers_each_row_of_each_domain(workspace: FewRows, name: str):
    """One probability a row, in the rows' order, whatever else is asked beside it."""
    found = model_zoo.fit(name, workspace, RECIPE, SLOTS)
    for slot, domain in enumerate(SLOTS):
        rows = workspace.examples(found.encoder, domain)
        rows = rows.take(workspace.split(rows).test)
        score = found.score(rows, slot)
        assert score.shape == (len(rows),)
        assert ((score > 0) & (score < 1)).all()
        half = rows.take(np.arange(len(rows) // 2))
        assert np.allclose(found.score(half, slot), score[: len(half)], atol=1e-5)
    assert found.detail["parameters"] > 0


@pytest.mark.parametrize("name", ["MMoE", "TWIN", "Graft"])
def test_before_training_everybody_starts_from_the_same_item_means(workspace: FewRows, name: str):
    """What differs between rows of the table is the mechanism, never what is known of the items."""
    learnt = fit.training_set(workspace, RECIPE, SLOTS)
    network = model_zoo.build(name, workspace, RECIPE, learnt)
    if name == "Graft":
        fit.prepare(network, learnt, workspace.batch_builder(learnt.encoder, SLOTS), seed=0)
        source, own = network.embeddings.source_items.means, network.owned(1).items.means
    else:
        means = network.inputs.items.means
        source, own = means[: learnt.encoder.source_rows_total], means[learnt.encoder.source_rows_total :]
    assert np.allclose(source.numpy()[1:], learnt.means["video"][1:])
    assert np.allclose(own.numpy(), learnt.means["live"])


def test_a_baseline_of_one_domain_has_a_network_for_each(workspace: FewRows):
    """A single-domain row may not learn from the other domain's rows."""
    found = model_zoo.fit("DNN-single", workspace, RECIPE, SLOTS)
    assert found.networks[0] is not found.networks[1]
    learnt = fit.training_set(workspace, RECIPE, SLOTS)
    assert {rows.domain for rows, _ in model_zoo.only(learnt, 1).train} == {"live"}


def test_an_unknown_name_is_refused_with_the_names_that_there_are(workspace: FewRows):
    """A misspelt row must not train something else."""
    with pytest.raises(ValueError, match="there are Graft"):
        model_zoo.fit("MMOE", workspace, RECIPE, SLOTS)
