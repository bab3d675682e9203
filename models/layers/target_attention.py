"""DIN's view of a short history, as LCN's main network reads it, and the same in blocks that stay in a core's cache.

Rows that share a history see it with recencies of their own, which mostly are the same: rows minutes apart see every
event in the same bucket. Such rows form a group, and a group's tokens are made once. In blocks of a few thousand tokens
they are made where they are used, and made again for the gradient instead of kept: written out for a batch, they and
what is made of them pass through memory a dozen times a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from models.layers.row_groups import RowGroups

_TOKENS_AT_ONCE = 3072
_SPLIT_UP_TO = 1.5  # groups a chunk from which it is quicker to read each cell by itself


class TargetAttention(nn.Module):
    """A small network weighs each event against the candidate; no softmax.

    Its first layer reads [query ; event ; query * event ; query - event]. The last part only adds to the first two, so
    the layer is written as three products and the four are never laid side by side for each event.

    Shapes:
        events (C, G, S, D), mask (C, G, S), candidate (C, G, D); returns (C, G, D)
    """

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, events: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        query, event, product, difference = self.first.weight.t().chunk(4)
        of_query = candidate @ (query + difference) + self.first.bias
        hidden = of_query[:, :, None] + events @ (event - difference) + (candidate[:, :, None] * events) @ product
        weight = self.last(hidden.relu()) * mask[..., None]
        return (weight * events).sum(2)

    def read(self, shared: Tensor, code: Tensor, table: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        """As `forward` on events that are ``shared[:, None] + table[code]``.

        Shapes:
            shared: (C, S, D), what all rows of a chunk see of an event
            code:   (C, G, S), rows of table (N, D): what each row sees beside it
        """
        kinds = {shared.dtype, table.dtype, candidate.dtype, self.first.weight.dtype}
        if len(kinds) > 1 or shared.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not mask.numel():
            return self(shared[:, None] + F.embedding(code, table), mask, candidate)
        query, event, product, difference = self.first.weight.t().chunk(4)
        groups = _Groups.of(code, mask)
        candidate = groups.laid_out(candidate)
        of_query = candidate @ (query + difference) + self.first.bias
        last = (self.last.weight[0], self.last.bias[0])
        chunk, code, mask = groups.chunk, groups.first_of(code), groups.first_of(mask)
        return groups.back(
            _InBlocks.apply(shared, chunk, code, table, mask, candidate, of_query, event - difference, product, *last)
        )


@dataclass(frozen=True)
class _Groups:
    """Neighbouring cells of a chunk that see the same, as groups of R cells; one left empty repeats its group's first.

    Shapes (N groups):
        shape:        (C, G) of the cells
        chunk:        (N,) the chunk of each group
        first:        (N,) the first cell of each group, in C * G
        cell_of_row:  (C * G,) where in N * R each cell stands, and row_of_cell (N * R,) the way back; None where cells
            lie as they did
    """

    shape: tuple[int, int]
    size: int
    chunk: Tensor
    first: Tensor
    cell_of_row: Tensor | None = None
    row_of_cell: Tensor | None = None

    @classmethod
    def of(cls, code: Tensor, mask: Tensor) -> _Groups:
        """From codes and mask, each (C, G, S)."""
        groups = RowGroups.of(code, mask)
        chunks, cells = groups.shape
        if len(groups) == chunks:
            return cls(groups.shape, cells, groups.chunk, groups.first)
        index = torch.arange(chunks * cells, device=code.device)
        if len(groups) > chunks * _SPLIT_UP_TO:
            return cls(groups.shape, 1, index // cells, index)
        cell_of_row = groups.of_cell * cells + index - groups.first[groups.of_cell]
        row_of_cell = groups.first.repeat_interleave(cells)
        row_of_cell[cell_of_row] = index
        return cls(groups.shape, cells, groups.chunk, groups.first, cell_of_row, row_of_cell)

    def laid_out(self, rows: Tensor) -> Tensor:
        """(C, G, D) as (N, R, D)."""
        flat = rows.flatten(0, 1)
        return (flat if self.row_of_cell is None else flat.index_select(0, self.row_of_cell)).unflatten(
            0, (-1, self.size)
        )

    def first_of(self, part: Tensor) -> Tensor:
        """What all of a group share, of (C, G, S): (N, S)."""
        return part.flatten(0, 1).index_select(0, self.first)

    def back(self, answers: Tensor) -> Tensor:
        """(N, R, D) as (C, G, D)."""
        flat = answers.flatten(0, 1)
        return (flat if self.cell_of_row is None else flat.index_select(0, self.cell_of_row)).unflatten(0, self.shape)


class _InBlocks(Function):
    """Target attention over tokens made block by block.

    With token t, candidate v and the first layer's parts A (event) and P (product), both (D, H):
        h = relu(of_query + t (A + diag(v) P));   w = (h . a + b) masked;   answer = sum of w t

    Shapes:
        shared (C, S, D), table (K, D);  chunk (N,), code (N, S), mask (N, S), candidate (N, R, D), of_query (N, R, H)
        returns (N, R, D)
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands arguments on by position
        ctx: Any,
        shared: Tensor,
        chunk: Tensor,
        code: Tensor,
        table: Tensor,
        mask: Tensor,
        candidate: Tensor,
        of_query: Tensor,
        event: Tensor,
        product: Tensor,
        last: Tensor,
        bias: Tensor,
    ) -> Tensor:
        (groups, rows, _), length, size = candidate.shape, code.shape[1], event.shape[1]
        event_t, product_t = event.t().contiguous(), product.t().contiguous()
        hidden = shared.new_empty(groups, length, rows * size)
        weight = shared.new_empty(groups, length, rows)
        answer = torch.empty_like(candidate)
        for part in _blocks(groups, rows * length):
            tokens = _tokens(shared, chunk[part], code[part], table)
            of_event = _layers(event_t, product_t, candidate[part]).transpose(1, 2)
            layer = torch.baddbmm(of_query[part].reshape(-1, 1, rows * size), tokens, of_event, out=hidden[part])
            scores = torch.mv(layer.relu_().view(-1, size), last).add_(bias).view(-1, length, rows)
            torch.mul(scores, mask[part][:, :, None], out=weight[part])
            torch.bmm(weight[part].transpose(1, 2), tokens, out=answer[part])
        ctx.save_for_backward(shared, chunk, code, table, mask, candidate, event_t, product_t, last, hidden, weight)
        return answer

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shared, chunk, code, table, mask, candidate, event, product, last, hidden, weight = ctx.saved_tensors
        (groups, rows, width), length, size = candidate.shape, code.shape[1], len(last)
        asked = ctx.needs_input_grad
        of_tokens, of_table, of_layer = asked[0] or asked[3], asked[3], any(asked[7:])
        d_shared, d_candidate = torch.zeros_like(shared), torch.empty_like(candidate)
        d_query = shared.new_empty(groups, 1, rows * size)
        d_table, d_last, d_bias = torch.zeros_like(table), torch.zeros_like(last), last.new_zeros(())
        d_event, d_product = torch.zeros_like(event), torch.zeros_like(product)
        given = given.contiguous()
        for part in _blocks(groups, rows * length):
            tokens = _tokens(shared, chunk[part], code[part], table)
            own, outer, layer = candidate[part], given[part], hidden[part].view(-1, size)
            d_weight = torch.bmm(tokens, outer.transpose(1, 2)).mul_(mask[part][:, :, None]).view(-1)
            d_layer = torch.ops.aten.threshold_backward(torch.outer(d_weight, last), layer, 0)
            d_layer = d_layer.view(-1, length, rows * size)
            torch.sum(d_layer, 1, keepdim=True, out=d_query[part])
            # Of a row, (H, D): from it follow the gradients of the layer's product part and of the candidate.
            joint = torch.bmm(d_layer.transpose(1, 2), tokens).view(-1, rows, size, width)
            torch.sum(joint * product, 2, out=d_candidate[part])
            if of_layer:
                d_bias += d_weight.sum()
                d_last.addmv_(layer.t(), d_weight)
                d_event.addmm_(d_layer.view(-1, rows, size).sum(1).t(), tokens.view(-1, width))
                d_product += joint.mul_(own[:, :, None]).sum((0, 1))
            if of_tokens:
                d_tokens = torch.bmm(weight[part], outer).baddbmm_(d_layer, _layers(event, product, own))
                d_shared.index_add_(0, chunk[part], d_tokens)
                if of_table:
                    d_table += torch.ops.aten.embedding_dense_backward(
                        d_tokens.view(-1, width), code[part].reshape(-1), len(table), -1, scale_grad_by_freq=False
                    )
        d_query = d_query.view(groups, rows, size)
        found = (d_shared, None, None, d_table, None, d_candidate, d_query, d_event.t(), d_product.t(), d_last, d_bias)
        return tuple(gradient if needed else None for gradient, needed in zip(found, asked, strict=True))


def _blocks(groups: int, tokens_of_group: int) -> Iterator[slice]:
    """Whole groups, as many as make a block."""
    at_once = max(1, _TOKENS_AT_ONCE // tokens_of_group)
    for begin in range(0, groups, at_once):
        yield slice(begin, min(begin + at_once, groups))


def _tokens(shared: Tensor, chunk: Tensor, code: Tensor, table: Tensor) -> Tensor:
    """Tokens of a block of groups, (n, S, D)."""
    tokens = table.index_select(0, code.reshape(-1)).view(*code.shape, table.shape[1])
    return tokens.add_(shared.index_select(0, chunk))


def _layers(event: Tensor, product: Tensor, candidate: Tensor) -> Tensor:
    """The first layer as each row has it, A + diag(v) P: (H, D) both parts and (n, R, D) -> (n, R * H, D)."""
    return torch.addcmul(event, product, candidate[:, :, None]).flatten(1, 2)
