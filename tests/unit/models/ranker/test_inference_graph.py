"""LCN's contrast costs nothing at inference: the graph of scoring is the same with it and without it."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.layers.contrast import ContrastConfig, CrossRepresentation
from models.ranker.network import Ranker

ARCHITECTURES = ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]


class Scoring(nn.Module):
    """What serving asks of a ranker, as a function of the candidates."""

    def __init__(self, ranker: Ranker, batch) -> None:
        super().__init__()
        self.ranker, self.batch = ranker, batch

    def forward(self, item: torch.Tensor) -> torch.Tensor:
        return self.ranker.probability(replace(self.batch, item=item))


def graph(ranker: Ranker, batch) -> list[str]:
    """Every operator of scoring in order, each with the types and shapes of what comes out of it."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # that this batch's sizes become constants is meant
        traced = torch.jit.trace(Scoring(ranker, batch), batch.item, check_trace=False)
    # The look-ups of modules by name are no work; torch numbers the names anew in every trace.
    return [
        f"{node.kind()} {[str(out.type()) for out in node.outputs()]}"
        for node in traced.inlined_graph.nodes()
        if node.kind() != "prim::GetAttr"
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.slow
def test_scoring_with_contrast_runs_the_same_operators_on_the_same_weights(architecture, make_ranker, make_batch):
    """Same tensors under the same names, same operators, same shapes, and the same scores to the bit."""
    plain = make_ranker(architecture=architecture)
    contrasted = make_ranker(architecture=architecture, contrast=ContrastConfig(negatives=64))
    assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == {
        name: tensor.shape for name, tensor in contrasted.state_dict().items()
    }
    contrasted.load_state_dict(plain.state_dict())
    batch = make_batch(20)
    assert graph(plain, batch) == graph(contrasted, batch)
    with torch.inference_mode():
        assert torch.equal(plain.probability(batch), contrasted.probability(batch))


@pytest.mark.slow
def test_a_graph_that_does_more_is_told_apart(make_ranker, make_batch):
    """The comparison is no empty one: another way to read the history is another graph."""
    batch = make_batch(20)
    assert graph(make_ranker(architecture="lcn"), batch) != graph(make_ranker(architecture="dacdr+lcn"), batch)


def test_only_training_comes_to_the_contrast(make_ranker, make_batch, monkeypatch):
    """Scoring never calls it; the training loss does."""
    called = []
    monkeypatch.setattr(CrossRepresentation, "loss", lambda self, **given: called.append(1))
    ranker, batch = make_ranker(architecture="lcn", contrast=ContrastConfig(negatives=64)), make_batch(20, domain=2)
    with torch.inference_mode():
        ranker.probability(batch)
    assert called == []
    ranker.auxiliary_loss(batch)
    assert called == [1]
