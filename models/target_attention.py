"""DIN's view of a short history, as LCN's main network reads it, and the same in blocks that stay in a core's cache.

Rows that share a history see it with recencies of their own, so each has S tokens of its own. Written out for a batch,
they and what is made of them pass through memory a dozen times a step. In blocks of a few thousand tokens they are made
where they are used, and made again for the gradient instead of kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

_TOKENS_AT_ONCE = 3072


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
        of_query = candidate @ (query + difference) + self.first.bias
        last = (self.last.weight[0], self.last.bias[0])
        return _InBlocks.apply(shared, code, table, mask, candidate, of_query, event - difference, product, *last)


class _InBlocks(Function):
    """Target attention over tokens made block by block.

    With token t, candidate v and the first layer's parts A (event) and P (product), both (D, H):
        h = relu(of_query + t A + (t * v) P);   w = (h . a + b) masked;   answer = sum of w t
    """

    @staticmethod
    def forward(
        ctx: Any,
        shared: Tensor,
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
        (chunks, cells, length), (width, size) = code.shape, event.shape
        product = product.contiguous()
        hidden = shared.new_empty(chunks, cells * length, size)
        weight = shared.new_empty(chunks, cells, length)
        answer = shared.new_empty(chunks, cells, width)
        for part in _blocks(chunks, cells * length):
            tokens = _tokens(shared[part], code[part], table)
            own, rows = candidate[part][:, :, None], answer[part].shape[0] * cells
            layer = hidden[part].view(-1, size)
            torch.mm(tokens.view(-1, width), event, out=layer)
            layer.addmm_((tokens * own).view(-1, width), product)
            layer.view(-1, cells, length, size).add_(of_query[part][:, :, None]).relu_()
            scores = torch.mv(layer, last).add_(bias).view(-1, cells, length)
            torch.mul(scores, mask[part], out=weight[part])
            pooled = answer[part].view(rows, 1, width)
            torch.bmm(weight[part].view(rows, 1, length), tokens.view(rows, length, width), out=pooled)
        ctx.save_for_backward(shared, code, table, mask, candidate, event, product, last, hidden, weight)
        return answer

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shared, code, table, mask, candidate, event, product, last, hidden, weight = ctx.saved_tensors
        (chunks, cells, length), (width, size) = code.shape, event.shape
        asked = ctx.needs_input_grad
        of_tokens, of_table, of_layer = asked[0] or asked[2], asked[2], any(asked[6:])
        d_shared, d_candidate = torch.empty_like(shared), torch.empty_like(candidate)
        d_query = shared.new_empty(chunks, cells, size)
        d_table, d_last, d_bias = torch.zeros_like(table), torch.zeros_like(last), last.new_zeros(())
        event_t, product_t = event.t().contiguous(), product.t().contiguous()
        d_event, d_product = torch.zeros_like(event_t), torch.zeros_like(product_t)
        given = given.contiguous()
        for part in _blocks(chunks, cells * length):
            tokens = _tokens(shared[part], code[part], table).view(-1, length, width)
            rows = len(tokens)
            own, outer = candidate[part].reshape(rows, 1, width), given[part].view(rows, 1, width)
            layer = hidden[part].view(-1, size)
            d_weight = torch.bmm(tokens, outer.transpose(1, 2)).view(-1, cells, length).mul_(mask[part]).view(-1)
            d_layer = torch.ops.aten.threshold_backward(torch.outer(d_weight, last), layer, 0).view(rows, length, size)
            torch.sum(d_layer.view(-1, cells, length, size), 2, out=d_query[part])
            # Of a row, (H, D): from it follow the gradients of both parts of the layer and of the candidate.
            joint = torch.bmm(d_layer.transpose(1, 2), tokens)
            torch.sum((joint * product_t).view(-1, cells, size, width), 2, out=d_candidate[part])
            if of_layer:
                d_bias += d_weight.sum()
                d_last.addmv_(layer.t(), d_weight)
                d_event += joint.sum(0)
                d_product += joint.mul_(own).sum(0)
            if of_tokens:
                d_tokens = torch.bmm(weight[part].view(rows, length, 1), outer)
                d_tokens.baddbmm_(d_layer, torch.addcmul(event_t, product_t, own))
                torch.sum(d_tokens.view(-1, cells, length, width), 1, out=d_shared[part])
                if of_table:
                    flat = d_tokens.view(-1, width)
                    d_table += torch.ops.aten.embedding_dense_backward(
                        flat, code[part].reshape(-1), len(table), -1, False
                    )
        found = (d_shared, None, d_table, None, d_candidate, d_query, d_event.t(), d_product.t(), d_last, d_bias)
        return tuple(gradient if needed else None for gradient, needed in zip(found, asked, strict=True))


def _blocks(chunks: int, tokens_of_chunk: int) -> Iterator[slice]:
    """Whole chunks, as many as make a block."""
    at_once = max(1, _TOKENS_AT_ONCE // tokens_of_chunk)
    for begin in range(0, chunks, at_once):
        yield slice(begin, min(begin + at_once, chunks))


def _tokens(shared: Tensor, code: Tensor, table: Tensor) -> Tensor:
    """Tokens of a block, (c, G, S, D)."""
    tokens = table.index_select(0, code.reshape(-1)).view(*code.shape, table.shape[1])
    return tokens.add_(shared[:, None])
