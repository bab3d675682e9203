"""Training in several processes at once: the same loop, each process on its part of every batch.

Dense parameters stand in every process, and their gradients are summed in each step. Large tables stand in none: each
process holds the rows whose number leaves its rank when divided by the number of processes, with the optimiser's state
of those rows. Before a step the rows that its part of the batch reads are fetched from their holders; after it, the
gradients of the rows that it touched go back to them.

    R  rows of a table    D  width    W  processes    P = ceil(R / W)  rows that one holds
    m  distinct rows that a process reads in a step

    with joined(cpu_only=True) as peers:
        train(model, part_of(peers.rank, peers.world), config=config, peers=peers)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from models.batch import Batch
from models.layers.embeddings import FieldEmbedding, RowTable, known
from models.training import run_state
from models.training.optimisers import Optimisers, coalesced

SILENT_AFTER = timedelta(minutes=10)
"""A process that keeps the others waiting for this long counts as lost."""
_ROWS_AT_ONCE = 65_536  # of a table on its way to the process that saves it


class Alone:
    """What the training loop asks of the other processes where there are none."""

    rank, world = 0, 1
    device: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self.rank == 0

    def sharing(self, model: nn.Module, *, from_rows: int | None) -> AbstractContextManager[None]:
        """While it lasts, tables of at least ``from_rows`` rows are spread over the processes; None spreads none."""
        return nullcontext()

    def following(self, model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, each with the rows at hand that it reads."""
        yield from batches

    def rows_of(self, batch: Batch) -> int:
        """Rows of the whole batch of which ``batch`` is this process's part; asked right after it came."""
        return len(batch)

    def backward(self, total: Tensor, optimisers: Optimisers) -> None:
        """Leave in every parameter the gradient of the loss of the whole batch."""
        total.backward()

    def norm(self, owners: Sequence[nn.Parameter], norms: Tensor) -> Tensor:
        """The norm of all gradients from those of some parameters' gradients, one each."""
        return torch.linalg.vector_norm(norms)

    def whole(self, *losses: Tensor) -> tuple[Tensor, ...]:
        """Losses of the whole batch from those of this process's part."""
        return losses

    def gathered(self, rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The columns of all processes, one after the other."""
        return rows

    def load(self, folder: Path) -> Any | None:
        """The newest state that every process has saved in ``folder``; None where there is none.

        Raises:
            ValueError: another number of processes has saved there.
        """
        if any(folder.glob("rank*of*-step*.safetensors")):
            raise ValueError(f"{folder} was written by several processes: continue with as many")
        return run_state.load(folder / "run.safetensors")

    def save(self, folder: Path, step: int, state: Any) -> None:
        """Save the state after ``step``; the one before counts until every process has done so."""
        run_state.save(folder / "run.safetensors", state)


class Rows:
    """This process's rows of a table, and those of others that it has fetched for a batch.

    Row r is held by process r mod W, at place r div W: neighbours, and so rows that came together, are spread evenly.
    """

    def __init__(self, table: RowTable, rank: int, world: int) -> None:
        self.table, self.rank, self.world = table, rank, world
        weight = table.weight.detach()
        self.total = len(weight)
        self.held = -(-self.total // world)
        own = weight[rank::world]
        share = weight.new_zeros(self.held, weight.shape[1])
        share[: len(own)] = own
        table.weight.data = share
        self.fetched: Tensor | None = None
        self._addresses = torch.zeros(0, dtype=torch.long)
        self._asked = self._addresses  # places here of the rows that each process asked for, one after the other
        self._sent: list[int] = []
        self._got: list[int] = []

    def address(self, index: Tensor) -> Tensor:
        """Holder and place of rows as one number that sorts by holder: holder * P + place."""
        return index % self.world * self.held + index.div(self.world, rounding_mode="floor")

    def want(self, index: Sequence[Tensor]) -> Tensor:
        """Note the rows to fetch, and row 0 beside them; returns how many lie with each process, (W,)."""
        self.fetched = None
        if not index:
            self._addresses = self._addresses[:0]
            return torch.zeros(self.world, dtype=torch.long)
        device = self.table.weight.device
        flat = [known(part.reshape(-1), self.total) for part in index]
        wanted = torch.cat([*flat, flat[0].new_zeros(1)])
        self._addresses = torch.unique(self.address(wanted)).to(device)
        return torch.bincount(self._addresses.div(self.held, rounding_mode="floor"), minlength=self.world).cpu()

    def fetch(self, counts: Tensor) -> None:
        """Get the rows. ``counts[a, b]``, (W, W), is how many process a wants of process b; all call it together."""
        weight = self.table.weight.detach()
        self._sent, self._got = counts[:, self.rank].tolist(), counts[self.rank].tolist()
        self._asked = self._addresses.new_empty(sum(self._sent))
        dist.all_to_all_single(self._asked, self._addresses % self.held, self._sent, self._got)
        rows = weight.new_empty(sum(self._got), weight.shape[1])
        dist.all_to_all_single(rows, weight.index_select(0, self._asked), self._got, self._sent)
        self.fetched = rows.requires_grad_(self.table.weight.requires_grad and torch.is_grad_enabled())

    def places(self, index: Tensor) -> Tensor:
        """Where rows stand among those that were fetched.

        Raises:
            LookupError: a row was not fetched; the model reads what its ``rows_read`` does not name.
        """
        address = self.address(known(index, self.total))
        place = torch.searchsorted(self._addresses, address).clamp(max=max(len(self._addresses) - 1, 0))
        if not len(self._addresses) or bool((self._addresses[place] != address).any()):
            raise LookupError("a row was looked up that was not fetched for this batch")
        return place

    def give_back(self) -> None:
        """Send gradients to the holders of the rows; afterwards the table has the gradient of its own rows.

        A last column says whether a row was touched: one that was fetched in vain must not count as touched.
        """
        weight, width = self.table.weight, self.table.weight.shape[1]
        out = weight.new_zeros(sum(self._got), width + 1)
        gradient = None if self.fetched is None else self.fetched.grad
        if gradient is not None:
            gradient = coalesced(gradient)
            touched = gradient.indices()[0]
            out[touched] = torch.cat([gradient.values(), weight.new_ones(len(touched), 1)], 1)
        back = weight.new_empty(sum(self._sent), width + 1)
        dist.all_to_all_single(back, out, self._sent, self._got)
        mine = back[:, width] > 0
        weight.grad = torch.sparse_coo_tensor(
            self._asked[mine][None], back[mine, :width], weight.shape, check_invariants=False
        )

    def gather(self) -> None:
        """Make the first process's table whole again, block by block; the others keep what they hold."""
        share = self.table.weight.detach()
        blocks = [(at, min(at + _ROWS_AT_ONCE, self.held)) for at in range(0, self.held, _ROWS_AT_ONCE)]
        if self.rank:
            for begin, end in blocks:
                dist.send(share[begin:end].contiguous(), dst=0)
            return
        whole = share.new_empty(self.total, share.shape[1])
        for holder in range(self.world):
            for begin, end in blocks:
                block = share[begin:end] if holder == 0 else torch.empty_like(share[begin:end])
                if holder:
                    dist.recv(block, src=holder)
                rows = whole[holder + begin * self.world : holder + end * self.world : self.world]
                rows.copy_(block[: len(rows)])
        self.table.weight.data = whole


class Ranks(Alone):
    """The processes of a `torch.distributed` group that train one model together."""

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self._spread: list[Rows] = []
        self._share = torch.ones(())
        self._rows = 0

    @contextmanager
    def sharing(self, model: nn.Module, *, from_rows: int | None) -> Iterator[None]:
        """See `Alone.sharing`. When it ends without a fault, the first process has the whole tables."""
        if from_rows is not None:
            self._spread = [Rows(table, self.rank, self.world) for table in large_tables(model, from_rows)]
        for rows in self._spread:
            rows.table.elsewhere, rows.table.sparse = rows, True
        spread = {id(rows.table.weight) for rows in self._spread}
        for tensor in [*model.parameters(), *model.buffers()]:
            if id(tensor) not in spread:
                dist.broadcast(tensor.detach(), src=0)
        yield
        for rows in self._spread:
            rows.gather()
            rows.table.sparse = False
            if self.leads:
                rows.table.elsewhere = None
        self._spread = []

    def following(self, model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._fetch(model, batch)
            yield batch

    def _fetch(self, model: nn.Module, batch: Batch) -> None:
        wanted: dict[int, list[Tensor]] = {}
        if self._spread and len(batch):
            for table, index in model.rows_read(batch):  # type: ignore[operator]
                wanted.setdefault(id(table), []).append(index)
        counts = [rows.want(wanted.get(id(rows.table), [])) for rows in self._spread]
        own = torch.tensor([float(batch.weight.sum()), len(batch)], dtype=torch.float64)
        heard = self._from_all(torch.cat([own, *counts]))
        self._share = heard[self.rank, 0] / heard[:, 0].sum().clamp(min=1e-12)
        self._rows = int(heard[:, 1].sum())
        for rows, part in zip(self._spread, heard[:, 2:].long().split(self.world, 1), strict=False):
            if part.any():
                rows.fetch(part)

    def rows_of(self, batch: Batch) -> int:
        return self._rows

    def backward(self, total: Tensor, optimisers: Optimisers) -> None:
        """The loss of a whole batch is the mean of its parts' losses, each weighed by its rows' weights."""
        if total.requires_grad:
            (total * self._share.to(total)).backward()
        spread = {id(rows.table.weight): rows for rows in self._spread}
        sparse = optimisers.sparse
        source = [spread[id(p)].fetched if id(p) in spread else p for p in optimisers.named.values()]
        moved = torch.tensor([float(p is not None and p.grad is not None) for p in source])
        dense, touched = [], []
        # What is moved for one must be moved for all, or the processes' weights would part.
        for p, some in zip(optimisers.named.values(), self._from_all(moved).any(0).tolist(), strict=True):
            if some and id(p) in spread:
                spread[id(p)].give_back()
            elif some and id(p) in sparse:
                touched.append((p, _with_touched(p)))
                dense.append(touched[-1][1])
            elif some:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dense.append(p.grad)
        if dense:
            flat = torch.cat([gradient.reshape(-1) for gradient in dense])
            dist.all_reduce(flat)
            for gradient, part in zip(dense, flat.split([g.numel() for g in dense]), strict=True):
                gradient.copy_(part.view_as(gradient))
        for p, rows in touched:
            ids = (rows[:, -1] > 0).nonzero()[:, 0]
            p.grad = torch.sparse_coo_tensor(ids[None], rows[ids, :-1], p.shape, check_invariants=False)

    def norm(self, owners: Sequence[nn.Parameter], norms: Tensor) -> Tensor:
        """Squares of spread tables are added up over the processes; of the rest each holds the whole gradient."""
        tables = {id(rows.table.weight) for rows in self._spread}
        spread = torch.tensor([id(p) in tables for p in owners], device=norms.device)
        elsewhere = torch.where(spread, norms, 0).square().sum()
        dist.all_reduce(elsewhere)
        return (torch.where(spread, 0, norms).square().sum() + elsewhere).sqrt()

    def whole(self, *losses: Tensor) -> tuple[Tensor, ...]:
        parts = torch.stack(losses).double() * self._share.to(losses[0].device)
        dist.all_reduce(parts)
        return tuple(parts.to(losses[0].dtype).unbind())

    def gathered(self, rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, rows)
        return {name: np.concatenate([part[name] for part in parts]) for name in rows}

    def load(self, folder: Path) -> Any | None:
        own = self._files(folder)
        steps: list[Any] = [None] * self.world
        dist.all_gather_object(steps, sorted(own))
        common = set(steps[0]).intersection(*steps[1:])
        if common:
            return run_state.load(own[max(common)])
        if any(folder.glob("*.safetensors")) and not any(map(len, steps)):
            raise ValueError(f"{folder} was written by another number of processes than {self.world}")
        return None

    def save(self, folder: Path, step: int, state: Any) -> None:
        path = folder / f"rank{self.rank}of{self.world}-step{step}.safetensors"
        run_state.save(path, state)
        dist.barrier()
        for other in self._files(folder).values():
            if other != path:
                other.unlink()

    def _from_all(self, numbers: Tensor) -> Tensor:
        """The same few numbers (n,) of every process, (W, n), on the CPU."""
        numbers = numbers.to(self.device or "cpu")
        heard = [torch.empty_like(numbers) for _ in range(self.world)]
        dist.all_gather(heard, numbers)
        return torch.stack(heard).cpu()

    def _files(self, folder: Path) -> dict[int, Path]:
        found = folder.glob(f"rank{self.rank}of{self.world}-step*.safetensors")
        return {int(path.stem.rpartition("-step")[2]): path for path in found}


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Join the group that torchrun describes in the environment: NCCL with a GPU for each process, or gloo on CPUs.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for GPUs where this machine has one for each of its processes.

    Raises:
        ValueError: ``cuda`` was asked for and there are too few GPUs.
    """
    own, wanted = None, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    enough = torch.cuda.device_count() >= wanted
    if device == "cuda" and not enough:
        raise ValueError(f"{wanted} processes need as many GPUs here; there are {torch.cuda.device_count()}")
    if device != "cpu" and enough:
        own = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(own)
    dist.init_process_group("gloo" if own is None else "nccl", timeout=SILENT_AFTER)
    try:
        yield Ranks(own)
    finally:
        dist.destroy_process_group()


def _with_touched(parameter: nn.Parameter) -> Tensor:
    """A sparse gradient written out, (rows, D + 1): the last column is above 0 where a row was touched."""
    out = parameter.new_zeros(len(parameter), parameter.shape[1] + 1)
    if parameter.grad is not None:
        gradient = coalesced(parameter.grad)
        ids = gradient.indices()[0]
        out[ids] = torch.cat([gradient.values(), out.new_ones(len(ids), 1)], 1)
    return out


def large_tables(model: nn.Module, from_rows: int) -> list[RowTable]:
    """Tables to spread.

    Raises:
        ValueError: one is large, but of a kind that cannot be spread, or the model does not say which rows it reads.
    """
    large = [
        module
        for module in model.modules()
        if getattr(module, "sparse", None) is not None
        and len(module.weight) >= from_rows  # type: ignore[arg-type]
        and not isinstance(module, FieldEmbedding)  # categories are few beside items: each process has them all
    ]
    for module in large:
        if not isinstance(module, RowTable) or not hasattr(model, "rows_read"):
            raise ValueError(
                f"a {type(module).__name__} of {type(model).__name__} cannot be spread over processes: tables must be "
                "RowTables, and the model must have rows_read"
            )
    return [module for module in large if isinstance(module, RowTable)]
