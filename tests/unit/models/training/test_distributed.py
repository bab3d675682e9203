"""How rows are spread, and what is refused before any process waits for another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.layers.embeddings import RowTable
from models.training.distributed import Rows, large_tables
from orchestrator.settings import Settings
from orchestrator.training.recipe import Recipe
from orchestrator.training.torchrun import group_environment


@given(total=st.integers(1, 60), world=st.integers(1, 7))
def test_every_row_has_one_holder_and_one_place(total, world):
    """Addresses are distinct, name the process that has the row, and the place where it has it."""
    table = torch.arange(total).float()[:, None]
    shares = []
    for rank in range(world):
        held = RowTable(total, 1)
        held.weight.data = table.clone()
        rows = Rows(held, rank, world)
        shares.append(held.weight.detach())
    address = rows.address(torch.arange(total))
    assert len(set(address.tolist())) == total
    for row, at in enumerate(address.tolist()):
        assert shares[at // rows.held][at % rows.held] == row
    assert {len(share) for share in shares} == {-(-total // world)}


def test_rows_are_found_where_they_will_stand_and_strangers_are_the_unknown_row():
    """Of the rows asked for, each once and row 0 with them; an index beyond the table is row 0."""
    rows = Rows(RowTable(10, 3), 0, 2)
    assert rows.want([torch.tensor([[7, 4], [4, 7]]), torch.tensor([9])]).tolist() == [2, 2]
    places = rows.places(torch.tensor([0, 4, 7, 9]))
    assert places.tolist() == [0, 1, 2, 3]
    assert rows.places(torch.tensor([-1, 10, 99])).tolist() == [0, 0, 0]


def test_a_row_that_was_not_fetched_cannot_be_read():
    """A model that reads more than it said is stopped and never reads another row instead."""
    rows = Rows(RowTable(10, 3), 0, 2)
    rows.want([torch.tensor([4])])
    with pytest.raises(LookupError, match="not fetched"):
        rows.places(torch.tensor([4, 5]))


def test_tables_that_cannot_be_spread_are_refused():
    """A plain embedding, and a table of a model that does not say what it reads."""
    model = nn.Sequential(nn.Embedding(2000, 4))
    with pytest.raises(ValueError, match="Embedding of Sequential cannot be spread"):
        large_tables(model, 1024)
    with pytest.raises(ValueError, match="rows_read"):
        large_tables(nn.Sequential(RowTable(2000, 4)), 1024)
    assert large_tables(model, 5000) == []


def test_source_weighting_and_several_processes_exclude_each_other():
    """Said when the recipe is written, before anything starts."""
    with pytest.raises(ValueError, match="choose source_weighting=uniform or processes=1"):
        Recipe(source_weighting="weighed", processes=2)


def test_the_settings_of_a_run_reach_its_processes_as_they_are(monkeypatch, tmp_path):
    settings = Settings(home=tmp_path, required_baselines=("popularity", "scratch"), threads=3)
    for name, value in group_environment(settings, 2).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
