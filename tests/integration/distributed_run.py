"""Started by torchrun: one of several processes that train a small ranker, as `test_distributed` asks by JSON."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.batch import Batch, Events
from models.layers.embeddings import RowTable
from models.ranker.network import DomainConfig, Ranker, RankerConfig
from models.training import run_state
from models.training.distributed import Alone, joined
from models.training.loop import Progress, TrainConfig, train

SOURCE_ITEMS, OWN_ITEMS, USERS, LENGTH = 1501, 1203, 1300, 6
"""Tables just large enough to be spread; none divides by two evenly but the users'."""


class Part:
    """Rows ``rank``, ``rank + world``, ... of made-up batches, whose domains change; the last batch has one row."""

    def __init__(self, rank: int = 0, world: int = 1, *, rows: int = 385, seed: int = 0) -> None:
        self.rank, self.world, self.rows, self.seed = rank, world, rows, seed

    def __len__(self) -> int:
        return math.ceil(self.rows / 32)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, len(self)):
            rows = min(32, self.rows - 32 * step)
            whole = a_batch(rows, slot=step % 2, seed=1000 * self.seed + 100 * epoch + step)
            yield whole.rows(torch.arange(self.rank, rows, self.world))


def a_batch(rows: int, *, slot: int, seed: int) -> Batch:
    """Rows whose label follows from the parity of their item and of their last event."""
    chance = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=chance)

    def events(items: int) -> Events:
        time = torch.arange(LENGTH).expand(rows, -1) * 10**6
        # As from the store: nothing is laid into a batch that none of its rows sees.
        every, stop = torch.arange(rows), torch.full((rows,), LENGTH)
        return Events(
            draw(items, rows, LENGTH),
            draw(3, rows, LENGTH),
            torch.ones(rows, LENGTH).double(),
            time,
            every,
            0 * every,
            stop,
        )

    item, lifelong = draw(40, rows), events(SOURCE_ITEMS)
    return Batch(
        domain=torch.full((rows,), slot),
        user=draw(USERS, rows),
        item=item,
        item_features=draw(4, rows, 2),
        user_features=draw(3, rows, 1),
        context=draw(3, rows, 1),
        time=torch.full((rows,), 10**8),
        label=((item + draw(4, rows) // 3) % 2).double(),
        weight=torch.rand(rows, generator=chance).double() + 0.5,
        offset=torch.zeros(rows).double(),
        lifelong=lifelong,
        short_source=events(SOURCE_ITEMS),
        short_target=events(OWN_ITEMS if slot else SOURCE_ITEMS),
    )


def a_ranker(ages: int = 3) -> Ranker:
    """A source and a target, with a user table; no dropout, whose draws would differ between processes.

    Args:
        ages: categories of the one profile field; of many, rows are touched few at a time.
    """
    torch.manual_seed(3)
    ranker = Ranker(
        RankerConfig(
            source_items=SOURCE_ITEMS,
            item_fields=(4, 4),
            user_fields=(ages,),
            context_fields=(3,),
            domain_fields=(3,),
            actions=3,
            users=USERS,
            user_dropout=0.0,
            width=8,
            encoder_hidden=16,
            head=(16,),
        )
    ).double()
    ranker.add_domain(DomainConfig(0, (1,)))
    ranker.add_domain(DomainConfig(OWN_ITEMS, (2,)), torch.zeros(OWN_ITEMS, 2, dtype=torch.long))
    return ranker


def run(asked: dict, peers: Alone) -> dict:
    """Train and tell what happened: the losses, the largest share of a table seen, and the weights' fingerprint."""
    ranker = a_ranker(asked.get("ages", 3))
    tables = [module for module in ranker.modules() if isinstance(module, RowTable)]
    losses: dict[int, float] = {}
    shares: set[tuple[int, ...]] = set()

    def watch(progress: Progress) -> None:
        losses[progress.step] = progress.loss
        shares.add(tuple(len(table.weight) for table in tables))
        if asked.get("die_at") == progress.step and peers.rank == asked["die"]:
            os.kill(os.getpid(), signal.SIGKILL)

    result = train(
        ranker,
        Part(peers.rank, peers.world),
        config=TrainConfig(
            epochs=2,
            learning_rate=0.01,
            embedding_optimiser=asked.get("rule", "lazy_adam"),
            clip=0.5,
            weight_decay=1e-3,
            checkpoint_every_steps=4,
            progress_every_steps=1,
        ),
        validation=Part(peers.rank, peers.world, rows=97, seed=1),
        checkpoint_dir=Path(asked["folder"]) if "folder" in asked else None,
        on_progress=watch,
        peers=peers,
    )
    spread = {id(table.weight) for table in tables}
    dense = [p for p in ranker.parameters() if id(p) not in spread]
    return {
        "losses": losses,
        "history": result.history,
        "shares": sorted(shares),
        "dense": run_state.fingerprint(dense),
        "fields": ranker.embeddings.user_fields.weight.detach().flatten().tolist(),
        "tables": [table.weight.detach().flatten().tolist() for table in tables] if peers.leads else None,
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with joined("cpu") as peers:
        told = [run(job, peers) for job in asked["jobs"]]
    Path(asked["answers"], f"{peers.rank}.json").write_text(json.dumps(told))
