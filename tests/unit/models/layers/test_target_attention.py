"""Short histories read in blocks are read as if all tokens were laid out, whatever the block and what is frozen."""

import pytest
import torch

from models.layers import target_attention
from models.layers.target_attention import TargetAttention

CHUNKS, CELLS, EVENTS, WIDTH, ROWS = 5, 3, 4, 8, 6


def inputs(seed: int = 0, views: int = CHUNKS * CELLS):
    """Of these many different views of the histories; the last chunks' cells have one of their own each, if any."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.double).requires_grad_()

    code = torch.randint(0, ROWS, (CHUNKS, CELLS, EVENTS), generator=draw)
    mask = torch.rand(CHUNKS, CELLS, EVENTS, generator=draw) < 0.7
    alike = (CHUNKS * CELLS - views) // (CELLS - 1)
    code[:alike], mask[:alike] = code[:alike, :1].clone(), mask[:alike, :1].clone()
    return some(CHUNKS, EVENTS, WIDTH), code, some(ROWS, WIDTH), mask, some(CHUNKS, CELLS, WIDTH)


def laid_out(view: TargetAttention, *parts: torch.Tensor) -> torch.Tensor:
    shared, code, table, mask, candidate = parts
    return view(shared[:, None] + table[code], mask, candidate)


@pytest.mark.parametrize("views", [CHUNKS, CHUNKS + CELLS - 1, CHUNKS * CELLS])
@pytest.mark.parametrize("at_once", [1, 2 * CELLS * EVENTS, 10_000])
def test_blocks_of_any_size_give_the_same_answers_and_gradients(monkeypatch, at_once, views):
    """One group a block, two with one left over, or all at once; chunks whose cells see the same, differ, or both."""
    monkeypatch.setattr(target_attention, "_TOKENS_AT_ONCE", at_once)
    view, given = TargetAttention(WIDTH, hidden=7).double(), inputs(views=views)
    trained = [given[0], given[2], given[4], *view.parameters()]
    weight = torch.randn(CHUNKS, CELLS, WIDTH, dtype=torch.double)
    whole, blocks = laid_out(view, *given), view.read(*given)
    torch.testing.assert_close(blocks, whole)
    for mine, expected in zip(
        torch.autograd.grad((blocks * weight).sum(), trained),
        torch.autograd.grad((whole * weight).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("trained", [(0,), (2,), (4,), (0, 4)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(trained):
    """A frozen network still passes gradients to the tokens or the candidate, whichever are trained."""
    view, given = TargetAttention(WIDTH).double().requires_grad_(False), inputs()
    for place in (0, 2, 4):
        given[place].requires_grad_(place in trained)
    asked = [given[place] for place in trained]
    found = torch.autograd.grad(view.read(*given).square().sum(), asked)
    expected = torch.autograd.grad(laid_out(view, *given).square().sum(), asked)
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in view.parameters())


def test_a_history_of_which_nothing_is_seen_adds_nothing():
    shared, code, table, _, candidate = inputs()
    nothing = torch.zeros(CHUNKS, CELLS, EVENTS, dtype=torch.bool)
    assert not TargetAttention(WIDTH).double().read(shared, code, table, nothing, candidate).any()


def test_half_precision_takes_the_plain_way():
    """Autocast decides the types of products, which blocks written in place would not follow."""
    view, given = TargetAttention(WIDTH), [part.float() if part.is_floating_point() else part for part in inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        rough = view.read(*given)
    torch.testing.assert_close(rough.float(), view.read(*given), rtol=0.1, atol=0.1)
