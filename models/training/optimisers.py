"""Optimisers whose cost follows the rows that a batch touched, not the size of the table.

An embedding table of millions of rows sees a few thousand of them in a step. A dense optimiser still reads and writes
all of it. Those here take sparse gradients, as ``nn.Embedding(sparse=True)`` gives them, sum the gradients of repeated
ids once, and touch nothing else.

    R  rows of a table    D  width    n  gradient rows of a step, ids repeated    m <= n  distinct ids

What is not touched does not move: no momentum, no decay. Rows touched in every step follow dense Adam exactly, and for
the others the lazy rule makes up at each touch for the moves that dense Adam makes between touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from models.layers.sparse import pooled_by_row

Nested = dict[str, Any]

_ROWS_AT_ONCE = 4096  # of a CPU update: a block of each of its arrays stays in the cache between its passes


def summed_by_row(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids in rising order, (m,), and the sum of each one's rows, (m, D), from ids (n,) and rows (n, D).

    A sort and one pooled gather: half the time of ``Tensor.coalesce``, and the same order of summation every time.
    """
    return pooled_by_row(ids[:, None], rows)


def coalesced(gradient: Tensor) -> Tensor:
    """The same sparse gradient (R, D) with each row once; free when it already is."""
    if gradient.is_coalesced():
        return gradient
    # torch reads gradients that are not coalesced yet by these two alone.
    ids, rows = summed_by_row(gradient._indices()[0], gradient._values())  # noqa: SLF001
    return torch.sparse_coo_tensor(ids[None], rows, gradient.shape, is_coalesced=True, check_invariants=False)


class _TouchedRows(torch.optim.Optimizer):
    """The common part of the rules below: find the touched rows, then update them block by block."""

    def __init__(self, params: Iterable[nn.Parameter], defaults: dict[str, Any]) -> None:
        if defaults["lr"] < 0 or defaults["eps"] < 0 or defaults["weight_decay"] < 0:
            raise ValueError(f"learning rate, eps and weight decay must not be negative: {defaults}")
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the rows that each parameter's gradient names; a dense gradient names all."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    gradient = coalesced(gradient)
                    self._apply(parameter, group, gradient.indices()[0], gradient.values())
                else:
                    self._apply(parameter, group, torch.arange(len(parameter), device=parameter.device), gradient)
        return loss

    def _apply(self, parameter: nn.Parameter, group: dict[str, Any], ids: Tensor, rows: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._fresh(parameter))
        if "step" in state:
            state["step"] += 1
        at_once = _ROWS_AT_ONCE if parameter.device.type == "cpu" else max(len(ids), 1)
        for begin in range(0, len(ids), at_once):
            self._update(parameter, state, group, ids[begin : begin + at_once], rows[begin : begin + at_once])

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        raise NotImplementedError

    def _update(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], ids: Tensor, rows: Tensor
    ) -> None:
        raise NotImplementedError


class LazyAdam(_TouchedRows):
    """Dense Adam's path for tables, walked only where a batch touches them.

    Dense Adam goes on moving a row after its gradient is gone: its momentum runs out over the next steps, and its
    second moment fades, so rare rows take long steps. A lazy rule without the two falls behind on them. Here a touched
    row first fades for the steps it missed and then makes at once the moves that dense Adam would make until the next
    touch, which is expected after its mean gap.

    With step t of the table, touch n_r of row r, its last touch at step l_r,
    gradient g, k = t / n_r and q = b1 / sqrt(b2):

        m_r = b1^(t - l_r) m_r + (1 - b1) g;   v_r = b2^(t - l_r) v_r + (1 - b2) g^2
        p_r = (1 - lr c)^(t - l_r) p_r - lr (1 - q^k) / (1 - q) (m_r / (1 - b1^t)) / (sqrt(v_r / (1 - b2^t)) + eps)

    A row touched in every step has k = 1: it follows AdamW with decay c.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        rows, device = len(parameter), parameter.device
        return {
            "step": torch.zeros((), dtype=torch.int64),
            "touches": torch.zeros(rows, dtype=torch.int32, device=device),
            "last": torch.zeros(rows, dtype=torch.int32, device=device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _update(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], ids: Tensor, rows: Tensor
    ) -> None:
        (b1, b2), lr, step = group["betas"], group["lr"], int(state["step"])
        ratio = b1 / b2**0.5
        touches = state["touches"].index_select(0, ids) + 1
        missed = _per_row((step - state["last"].index_select(0, ids)).double(), rows)
        ahead = (1 - ratio ** _per_row(step / touches.double(), rows)) / (1 - ratio)
        mean = state["exp_avg"].index_select(0, ids).mul_((b1**missed).to(rows.dtype)).add_(rows, alpha=1 - b1)
        square = state["exp_avg_sq"].index_select(0, ids).mul_((b2**missed).to(rows.dtype))
        square.addcmul_(rows, rows, value=1 - b2)
        state["touches"].index_copy_(0, ids, touches)
        state["last"].index_fill_(0, ids, step)
        state["exp_avg"].index_copy_(0, ids, mean)
        state["exp_avg_sq"].index_copy_(0, ids, square)
        denominator = square.div_(1 - b2**step).sqrt_().add_(group["eps"])
        moved = mean.mul_((ahead * (lr / (1 - b1**step))).to(rows.dtype)).div_(denominator)
        values = parameter.index_select(0, ids)
        if group["weight_decay"]:
            values.mul_(((1 - lr * group["weight_decay"]) ** missed).to(rows.dtype))
        parameter.index_copy_(0, ids, values.sub_(moved))


class RowwiseAdagrad(_TouchedRows):
    """Adagrad with one accumulator a row: a table's optimiser state is 1 / D of its size.

    For a touched row r with gradient g:  a_r += mean(g^2);  p_r = (1 - lr c) p_r - lr g / (sqrt(a_r) + eps)
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"sum": torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)}

    def _update(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], ids: Tensor, rows: Tensor
    ) -> None:
        flat = rows.reshape(len(rows), -1).float()
        total = state["sum"].index_select(0, ids) + flat.square().mean(1)
        state["sum"].index_copy_(0, ids, total)
        moved = rows * _per_row(group["lr"] / (total.sqrt() + group["eps"]), rows).to(rows.dtype)
        if group["weight_decay"]:
            values = parameter.index_select(0, ids).mul_(1 - group["lr"] * group["weight_decay"])
            parameter.index_copy_(0, ids, values.sub_(moved))
        else:
            parameter.index_add_(0, ids, moved, alpha=-1)


def sparse_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Tables that will receive sparse gradients: weights of modules that say ``sparse``, as ``nn.Embedding`` does."""
    return [m.weight for m in model.modules() if getattr(m, "sparse", False) and isinstance(m.weight, nn.Parameter)]


EmbeddingRule = Literal["lazy_adam", "rowwise_adagrad"]


class Optimisers:
    """Adam for dense parameters and a touched-row rule for sparse tables, stepped and saved as one.

    Only parameters that require gradients are taken: a frozen one is neither stepped nor decayed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        embedding_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        embedding_rule: EmbeddingRule = "lazy_adam",
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> None:
        self._rules = {
            "learning_rate": learning_rate,
            "embedding_learning_rate": embedding_learning_rate,
            "weight_decay": weight_decay,
            "embedding_rule": embedding_rule,
        }
        wanted = None if parameters is None else {id(p) for p in parameters}
        self.named = {
            name: p for name, p in model.named_parameters() if p.requires_grad and (wanted is None or id(p) in wanted)
        }
        if not self.named:
            raise ValueError("nothing to train: every parameter is frozen")
        sparse = {id(p) for p in sparse_parameters(model)}
        tables = [p for p in self.named.values() if id(p) in sparse]
        dense = [p for p in self.named.values() if id(p) not in sparse]
        self.sparse = frozenset(map(id, tables))
        """Ids of the parameters that a touched-row rule moves."""
        self.parts: list[torch.optim.Optimizer] = []
        if dense:
            self.parts.append(torch.optim.AdamW(dense, learning_rate, weight_decay=weight_decay, fused=True))
        if tables:
            rate = learning_rate if embedding_learning_rate is None else embedding_learning_rate
            rule = {"lazy_adam": LazyAdam, "rowwise_adagrad": RowwiseAdagrad}[embedding_rule]
            self.parts.append(rule(tables, lr=rate, weight_decay=weight_decay))

    def like(self, model: nn.Module) -> Optimisers:
        """The same rules with fresh state for the same parameters of a copy of the model."""
        twins = dict(model.named_parameters())
        return Optimisers(model, parameters=[twins[name] for name in self.named], **self._rules)  # type: ignore[arg-type]

    def zero_grad(self) -> None:
        for p in self.named.values():
            p.grad = None

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def clip(self, longest: float, norm_of: Callable[[list[nn.Parameter], Tensor], Tensor] | None = None) -> Tensor:
        """Scale all gradients so that their common norm is at most ``longest``; returns the norm before.

        Args:
            norm_of: the common norm from parameters and the norms of their gradients, where other processes hold some.
        """
        values, owners = [], []
        for p in self.named.values():
            if p.grad is not None and p.grad.is_sparse:
                p.grad = coalesced(p.grad)  # norms need each row once; the rules below then find it done
            if p.grad is not None:
                values.append(p.grad.values() if p.grad.is_sparse else p.grad)
                owners.append(p)
        if not values:
            return torch.zeros(())
        norms = torch.stack([torch.linalg.vector_norm(v.float()) for v in values])
        norm = torch.linalg.vector_norm(norms) if norm_of is None else norm_of(owners, norms)
        torch._foreach_mul_(values, (longest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def state_dict(self) -> Nested:
        """State tensors by parameter name. They are the live ones: copy them to keep them."""
        state = {name: part.state[p] for name, p in self.named.items() for part in self.parts if p in part.state}
        return {name: dict(own) for name, own in state.items() if own}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from a copy of ``state``; parameters it does not name start afresh.

        Raises:
            ValueError: it names a parameter that is not trained here.
        """
        unknown = set(state) - set(self.named)
        if unknown:
            raise ValueError(f"optimiser state for parameters that are not trained: {sorted(unknown)}")
        for part in self.parts:
            own = {id(p) for group in part.param_groups for p in group["params"]}
            for name, p in self.named.items():
                if id(p) not in own:
                    continue
                part.state.pop(p, None)
                if name in state:
                    part.state[p] = {key: value.detach().clone() for key, value in state[name].items()}


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
