"""DACDR's two steps against a textbook that projects every event, and the variants of the paper."""

import math

import pytest
import torch
from torch import Tensor

from models.layers.cross_attention import (
    AttentionConfig,
    DomainAwareCrossAttention,
    DomainEncoder,
    StepWeights,
    _SoftmaxOfSeen,
)
from models.layers.embeddings import EventContext
from models.layers.shared_history import History

CHUNKS, CELLS, LENGTH, WIDTH, DOMAIN_TOKENS, SIDE = 3, 4, 9, 6, 3, 2


def textbook_attention(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """CA(A W_Q, C W_K, C W_V), equations 1 and 2, for one row."""
    scores = (queries @ weight[0]) @ (keys @ weight[1]).T / math.sqrt(weight.shape[-1])
    return scores.softmax(-1) @ (keys @ weight[2])


class Case:
    """One attention module with inputs, and what a row of it sees."""

    def __init__(self, *, views: int = CELLS, empty: bool = False, **settings: object) -> None:
        torch.manual_seed(1)
        self.config = AttentionConfig(WIDTH, DOMAIN_TOKENS, **settings)  # type: ignore[arg-type]
        self.attention = DomainAwareCrossAttention(self.config).double()
        context = EventContext(2, WIDTH).double()
        codes = context.codes(
            torch.randint(0, 2, (CHUNKS, LENGTH)),
            torch.rand(CHUNKS, LENGTH).double(),
            torch.randint(0, 10**9, (CHUNKS, LENGTH)),
            torch.randint(10**9, 10**13, (CHUNKS, views)),
        )
        items = torch.randn(CHUNKS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(CHUNKS, views, LENGTH) < 0.6
        if empty:
            mask = torch.zeros_like(mask)
        self.history = History(items, mask, codes, context.weight)
        self.tokens = (items[:, None] + context.vectors(codes)).expand(CHUNKS, CELLS, LENGTH, WIDTH)
        self.mask = mask.expand(CHUNKS, CELLS, LENGTH)
        self.domain = torch.randn(CHUNKS, DOMAIN_TOKENS, WIDTH, dtype=torch.float64)
        self.item = torch.randn(CHUNKS, CELLS, 1, WIDTH, dtype=torch.float64)
        self.side = torch.randn(CHUNKS, CELLS, SIDE, WIDTH, dtype=torch.float64)
        self.shared = torch.randn(2, 3, WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)
        self.own = torch.randn(CHUNKS, 2, 3, WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)

    def views(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weights = [StepWeights.fold(self.shared[step], self.own[:, step]) for step in (0, 1)]
        return self.attention(
            self.history, self.domain, self.item, self.side, domain_weights=weights[0], item_weights=weights[1]
        )

    def row(self, chunk: int, cell: int) -> tuple[Tensor, Tensor, Tensor]:
        """S with its null token, and the effective weights of both steps."""
        seen = self.tokens[chunk, cell][self.mask[chunk, cell]]
        history = torch.cat([self.attention.null[None], seen])
        effective = self.shared + self.own[chunk]
        return history, effective[0], effective[1]


def each_row() -> list[tuple[int, int]]:
    return [(chunk, cell) for chunk in range(CHUNKS) for cell in range(CELLS)]


@pytest.mark.parametrize("views", [1, CELLS])
def test_the_domain_view_equals_the_textbook(views: int) -> None:
    """Equation 3 with every event projected, per domain weights, for shared and own views."""
    case = Case(views=views)
    domain_view = case.views()[0]
    assert domain_view is not None
    for chunk, cell in each_row():
        history, weight, _ = case.row(chunk, cell)
        expected = textbook_attention(case.domain[chunk], history, weight)
        torch.testing.assert_close(domain_view[chunk, min(cell, views - 1)], expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
@pytest.mark.parametrize("views", [1, CELLS])
def test_the_item_view_equals_the_textbook(memory: str, views: int) -> None:
    """Equation 4 over each memory."""
    case = Case(ia_memory=memory, views=views)
    item_view = case.views()[1]
    assert item_view is not None
    for chunk, cell in each_row():
        history, first, second = case.row(chunk, cell)
        domain_view = textbook_attention(case.domain[chunk], history, first)
        alpha = ((case.domain[chunk] @ first[0]) @ (history @ first[1]).T / math.sqrt(WIDTH)).softmax(-1).mean(0)
        keys = {
            "concat": torch.cat([domain_view, case.side[chunk, cell], history]),
            "cascade": domain_view,
            "rescale": len(history) * alpha[:, None] * history,
        }[memory]
        expected = textbook_attention(case.item[chunk, cell], keys, second)
        torch.testing.assert_close(item_view[chunk, cell], expected, atol=1e-8, rtol=1e-8)


def test_without_the_domain_step_the_item_reads_behaviour_and_side_information() -> None:
    """Ablation w/o DA: M = X and T_d leaves."""
    case = Case(domain_attention=False)
    domain_view, item_view, mean = case.views()
    assert domain_view is None
    assert item_view is not None
    assert mean is not None
    for chunk, cell in each_row():
        history, _, second = case.row(chunk, cell)
        keys = torch.cat([case.side[chunk, cell], history])
        torch.testing.assert_close(item_view[chunk, cell], textbook_attention(case.item[chunk, cell], keys, second))
        torch.testing.assert_close(mean[chunk, cell, 0], history.mean(0))


def test_without_the_item_step_only_the_domain_view_stands() -> None:
    """Ablation w/o IA: T_i leaves."""
    domain_view, item_view, _ = Case(item_attention=False).views()
    assert domain_view is not None
    assert item_view is None


@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
def test_an_empty_history_reads_the_null_event(memory: str) -> None:
    """No event is visible: the answer is finite and so are its gradients."""
    case = Case(ia_memory=memory, empty=True)
    domain_view, item_view, _ = case.views()
    assert domain_view is not None
    assert item_view is not None
    (domain_view.sum() + item_view.sum()).backward()
    assert torch.isfinite(domain_view).all()
    assert torch.isfinite(item_view).all()
    assert case.shared.grad is not None
    assert torch.isfinite(case.shared.grad).all()


def test_a_cascade_over_one_domain_token_is_refused() -> None:
    """METHODS' trap: over one key the softmax is constant and W_Q, W_K of step 2 never learn."""
    with pytest.raises(ValueError, match="at least 2 domain tokens"):
        AttentionConfig(WIDTH, 1, ia_memory="cascade")


@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
def test_gradients_reach_every_projection_of_both_steps(memory: str) -> None:
    """In each memory W_Q, W_K and W_V of both steps learn, and so do the events."""
    case = Case(ia_memory=memory)
    domain_view, item_view, _ = case.views()
    assert domain_view is not None
    assert item_view is not None
    (domain_view.square().sum() + item_view.square().sum()).backward()
    assert case.own.grad is not None
    assert (case.own.grad.flatten(3).abs().amax(-1) > 1e-9).all()
    items = case.history.items.grad
    assert items is not None
    assert (items.abs().sum(-1) > 0)[case.mask.any(1)].all()
    assert (items[~case.mask.any(1)] == 0).all()


@pytest.mark.parametrize("domain_attention", [True, False])
@pytest.mark.parametrize("item_attention", [True, False])
@pytest.mark.parametrize("vacated", ["drop", "mean"])
def test_the_encoder_takes_what_each_ablation_leaves(
    domain_attention: bool, item_attention: bool, vacated: str
) -> None:
    """Equation 6 for all four ablations; with the vacated places filled the encoder keeps its width."""
    case = Case(domain_attention=domain_attention, item_attention=item_attention, vacated=vacated)
    encoder = DomainEncoder(case.config, item_tokens=1, hidden=10).double()
    encoded = encoder(*case.views(), case.domain, CELLS)
    assert encoded.shape == (CHUNKS, CELLS, WIDTH)
    full = DomainEncoder(AttentionConfig(WIDTH, DOMAIN_TOKENS), item_tokens=1, hidden=10)
    if vacated == "mean":
        assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in full.parameters())


@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
def test_cells_that_see_the_same_are_read_as_if_each_were_alone(memory: str) -> None:
    """Answers and gradients are those of a history in which every cell has a view of its own."""
    case = Case(ia_memory=memory)
    view = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]])

    def spread(part: Tensor) -> Tensor:
        return part if part.shape[1] == 1 else torch.stack([own[at] for own, at in zip(part, view, strict=True)])

    codes = tuple(spread(code) for code in case.history.codes)
    case.history = History(case.history.items, spread(case.history.mask), codes, case.history.table)
    found = []
    for narrow in (True, False):
        history = case.history
        assert history.row_groups() is not None
        if not narrow:
            history.__dict__["views"] = lambda: None
        domain_view, item_view, _ = case.views()
        assert domain_view is not None
        assert item_view is not None
        leaves = (case.shared, case.own, case.history.items)
        found.append([domain_view, item_view, *torch.autograd.grad(domain_view.sin().sum() + item_view.sum(), leaves)])
    for shared, own in zip(*found, strict=True):
        torch.testing.assert_close(shared, own)


def test_the_softmax_over_events_has_its_gradients() -> None:
    """Of the shares and of the log sum, by differences; a row that sees nothing has no share and total -inf."""
    torch.manual_seed(3)
    scores = torch.randn(2, 1, 2, 5, dtype=torch.float64, requires_grad=True)
    seen = torch.tensor([[True, True, False, True, True], [True, False, False, False, True]])[:, None, None]
    assert torch.autograd.gradcheck(lambda scores: _SoftmaxOfSeen.apply(scores, seen), (scores,))
    shares, total = _SoftmaxOfSeen.apply(scores, torch.zeros_like(seen))
    assert not shares.any()
    assert (total == -torch.inf).all()
