"""Self-supervised baselines on sequences: DSS, BERT4Rec, SQN, SAC, CLRec and CL4SRec as auxiliary losses (LCN table 5).

`WithAuxiliary(backbone, task)` scores exactly as its backbone and trains it with a second loss over the target and the
source short histories, on the backbone's own item vectors. The backbone is meant to be LCN without CRP; the training
loop's ``auxiliary_weight`` weighs the second loss. The tasks on items and features stand in ``feature_contrast.py``.

Each task is the smallest faithful form of its paper's idea. All similarities are cosines over a temperature unless the
paper's own form is named.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.sequences import (
    Pool,
    SequenceEncoder,
    Sequences,
    equal,
    info_nce,
    last,
    sides,
    some,
)
from models.batch import Batch
from models.layers.contrast import directions
from models.ranker.network import Ranker

MOST_CANDIDATES = 4096
MOST_ASKED = 2048  # events of a batch that a softmax is asked for: bounds its memory


class AuxiliaryTask(nn.Module):
    """A loss that a backbone is trained with beside its own; it may have parameters, which scoring never uses."""

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        """The loss, a scalar, not yet weighted; None where the batch has nothing for it."""
        raise NotImplementedError


class WithAuxiliary(nn.Module):
    """A backbone that learns a second task."""

    def __init__(self, backbone: Ranker, task: AuxiliaryTask) -> None:
        super().__init__()
        self.backbone, self.task = backbone, task

    def forward(self, batch: Batch) -> Tensor:
        return self.backbone(batch)

    def probability(self, batch: Batch) -> Tensor:
        """The backbone's calibrated answers."""
        return self.backbone.probability(batch)

    def auxiliary_loss(self, batch: Batch) -> Tensor | None:
        return self.task(self.backbone, batch)


class SequenceTask(AuxiliaryTask):
    """A task on one sequence at a time, averaged over the target and the source side."""

    fewest = 2

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        losses = [
            self.on_side(side, number)
            for number, side in enumerate(one.at_least(self.fewest) for one in sides(backbone, batch))
            if len(side)
        ]
        return torch.stack(losses).mean() if losses else None

    def on_side(self, side: Sequences, number: int) -> Tensor:
        """Loss of one side's sequences, each of at least ``fewest`` events; ``number`` 0 or 1 names the side."""
        raise NotImplementedError


class DSS(SequenceTask):
    """Disentangled self-supervision (Ma et al. 2020): what came first foretells the intents of what follows.

    A sequence is cut at a random place; both parts (the later one reversed) are encoded into K intents φ_k. The loss of
    intent k is -log [ exp(φ_k(x)·φ_k(x')/√D) / Σ_{others in the batch, all k'} exp(φ_k(x)·φ_k'(x'')/√D) ]. Only the
    lowest ``kept`` share of the terms counts: an intent that does not go on cannot be foretold.
    """

    def __init__(self, width: int, *, intents: int = 4, kept: float = 0.5) -> None:
        super().__init__()
        self.kept = kept
        self.encoder = SequenceEncoder(width)
        self.prototypes = nn.Parameter(torch.randn(intents, width))
        self.start = nn.Parameter(torch.randn(intents, width) * 0.02)
        self.importance = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)

    def intents(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """φ, (N, S, D) -> (N, K, D): each event is shared out among the prototypes that it is nearest to."""
        hidden = self.encoder(vectors, mask)
        nearness = F.normalize(hidden, dim=-1) @ F.normalize(self.prototypes, dim=-1).T  # [N, S, K]
        share = (nearness * hidden.shape[-1] ** 0.5).softmax(-1)
        score = self.importance(torch.tanh(hidden))[..., 0].masked_fill(~mask, torch.finfo(hidden.dtype).min)
        weight = score.softmax(-1)[..., None] * mask[..., None] * share
        return self.norm(self.start + torch.einsum("nsk,nsd->nkd", weight, hidden))

    def on_side(self, side: Sequences, number: int) -> Tensor:
        length = side.length
        cut = 1 + (torch.rand(len(side), device=length.device) * (length - 1)).long()  # 1 .. length - 1
        reach = torch.arange(side.mask.shape[1], device=length.device)
        back = length[:, None] - 1 - reach  # the later part, latest first
        later = back >= cut[:, None]
        place = back.clamp(min=0)[..., None].expand_as(side.vectors)
        first = self.intents(side.vectors, reach < cut[:, None])
        second = self.intents(side.vectors.gather(1, place), later)
        return dss_loss(first, second, self.kept)


def dss_loss(first: Tensor, second: Tensor, kept: float) -> Tensor:
    """Mean of the lowest ``kept`` share of the intents' terms; first, second (N, K, D)."""
    scale = first.shape[-1] ** -0.5
    products = torch.einsum("nkd,mld->nkml", first.float(), second.float()) * scale
    crowd = products.flatten(2).logsumexp(-1)  # [N, K]
    matched = torch.einsum("nkd,nkd->nk", first.float(), second.float()) * scale
    terms = (crowd - matched).flatten()
    return terms.topk(max(1, round(kept * len(terms))), largest=False).values.mean()


class SampledSoftmax(nn.Module):
    """Which item of a pool: cosine of a projected state and the item, over a temperature. (n, D), Pool -> (n, P)."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.temperature = temperature

    def forward(self, states: Tensor, pool: Pool) -> Tensor:
        asked = directions(self.project(states))
        return asked @ directions(pool.vectors).T / self.temperature


class BERT4Rec(SequenceTask):
    """Masked items (Sun et al. 2019): hide a share of the events from a two-way encoder and ask for their items."""

    def __init__(self, width: int, *, hidden_share: float = 0.2, temperature: float = 0.1, layers: int = 1) -> None:
        super().__init__()
        self.hidden_share = hidden_share
        self.encoder = SequenceEncoder(width, layers=layers, causal=False)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)
        self.choose = SampledSoftmax(width, temperature)

    def on_side(self, side: Sequences, number: int) -> Tensor:
        blank = self.draw(side)
        hidden = self.encoder(torch.where(blank[..., None], self.blank, side.vectors), side.mask)
        asked = some(blank, MOST_ASKED)
        pool = Pool.of(side, MOST_CANDIDATES, keep=asked)
        return F.cross_entropy(self.choose(hidden[asked], pool), pool.place[asked])  # once the mean, over all asked

    def draw(self, side: Sequences) -> Tensor:
        """Events to hide, (N, S) bool: each with the share's chance, at least one of each sequence, never all."""
        chance = torch.rand(side.mask.shape, device=side.mask.device).masked_fill(~side.mask, 2.0)
        rank = chance.argsort(1).argsort(1)
        return side.mask & ((chance < self.hidden_share) | (rank < 1)) & (rank < side.length[:, None] - 1)


class SQN(SequenceTask):
    """Self-supervised Q-learning (Xin et al. 2020): the next item, and how good a choice it was.

    The state is a causal encoding of the past, the action the next item, the reward that of the event's kind. Loss:
    CE(next item) + (r + γ Q'(s', argmax_a Q(s', a)) - Q(s, a))², with two Q heads that take turns by a coin as the one
    that learns and the one that judges. Actions are the distinct items of the batch's side.

    Args:
        rewards: reward for each action code; the paper's .2 for a click and 1 for a purchase. One number for all codes
            otherwise.
    """

    rewards: Tensor

    def __init__(
        self,
        width: int,
        *,
        rewards: Sequence[float] | float = 0.2,
        discount: float = 0.5,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.discount = discount
        self.encoder = SequenceEncoder(width)
        self.choose = SampledSoftmax(width, temperature)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        given = [rewards] if isinstance(rewards, int | float) else list(rewards)
        self.register_buffer("rewards", torch.tensor(given, dtype=torch.float32))

    def on_side(self, side: Sequences, number: int) -> Tensor:
        hidden = self.encoder(side.vectors, side.mask)
        steps = some(side.mask[:, 1:], MOST_ASKED)  # events that have a successor, by the successor
        taken = torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)
        pool = Pool.of(side, MOST_CANDIDATES, keep=taken)
        states, following = hidden[:, :-1][steps], hidden[taken]
        action = pool.place[taken]
        kind = side.action[taken].clamp(max=len(self.rewards) - 1)
        entropy = F.cross_entropy(self.choose(states, pool), action, reduction="none")
        coin = int(torch.rand(()) < 0.5)
        learner, judge = self.values[coin], self.values[1 - coin]
        items = directions(pool.vectors)
        value = (learner(states) * items[action]).sum(-1)
        with torch.no_grad():
            choice = (learner(following) @ items.T).argmax(-1)
            future = (judge(following) * items[choice]).sum(-1)
        return self.total(entropy, value, self.rewards[kind] + self.discount * future)

    def total(self, entropy: Tensor, value: Tensor, wanted: Tensor) -> Tensor:
        """The loss from cross-entropies, Q(s, a) and r + γ Q', each (n,)."""
        return (entropy + (wanted - value).square()).mean()


class SAC(SQN):
    """Self-supervised actor-critic (Xin et al. 2020): Q̄(s, a) · CE + the same Q-learning; Q̄ is not differentiated."""

    def total(self, entropy: Tensor, value: Tensor, wanted: Tensor) -> Tensor:
        return (value.detach() * entropy + (wanted - value).square()).mean()


class CLRec(SequenceTask):
    """Contrast against a queue (Zhou et al. 2021): a user's past against their next item.

    Negatives are the other positives of the batch and those of the batches before, kept first in, first out: drawn as
    often as they are popular, they remove the exposure bias. The queue keeps which items they were, and it is saved;
    their vectors are read anew each time. Old vectors would all lie where the items no longer are, and the cheapest way
    to be unlike them is for all items to move off together.
    """

    identity: Tensor
    filled: Tensor

    def __init__(self, width: int, *, queue: int = 2048, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.encoder = SequenceEncoder(width)
        self.project = nn.Linear(width, width)
        self.register_buffer("identity", torch.full((2, queue), -1, dtype=torch.long))
        self.register_buffer("filled", torch.zeros(2, dtype=torch.long))

    def on_side(self, side: Sequences, number: int) -> Tensor:
        past = side.mask.clone()
        end = side.length - 1
        past[torch.arange(len(side), device=end.device), end] = False
        user = self.project(last(self.encoder(side.vectors, past), past))
        item = last(side.vectors, side.mask)
        identity = side.identity.gather(1, end[:, None])[:, 0]
        filled = int(self.filled[number])
        names = self.identity[number, :filled].clone()
        same = torch.cat([equal(identity), equal(identity, names)], 1)
        loss = info_nce(user, item, temperature=self.temperature, same=same, extra=side.look_up(names))
        if self.training:
            self.remember(number, identity)
        return loss

    @torch.no_grad()
    def remember(self, number: int, identity: Tensor) -> None:
        size = self.identity.shape[1]
        self.identity[number] = torch.cat([identity, self.identity[number]])[:size]  # the latest first
        self.filled[number] = min(size, int(self.filled[number]) + len(identity))


class CL4SRec(SequenceTask):
    """Contrast of two views (Xie et al. 2022): crop .6, mask .5 or reorder .2 of a sequence is still the same user.

    NT-Xent over the other 2 (N - 1) views.
    """

    def __init__(
        self, width: int, *, crop: float = 0.6, mask: float = 0.5, reorder: float = 0.2, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.shares = {"crop": crop, "mask": mask, "reorder": reorder}
        self.temperature = temperature
        self.encoder = SequenceEncoder(width)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)

    def on_side(self, side: Sequences, number: int) -> Tensor:
        views = [self.encode(*self.view(side)) for _ in range(2)]
        return nt_xent(*views, temperature=self.temperature, user=side.user)

    def encode(self, vectors: Tensor, mask: Tensor) -> Tensor:
        return last(self.encoder(vectors, mask), mask)

    def view(self, side: Sequences) -> tuple[Tensor, Tensor]:
        """A changed copy, vectors and mask, each sequence by a way of its own."""
        ways = torch.randint(0, 3, (len(side), 1), device=side.mask.device)
        vectors, mask = self.cropped(side)
        for way, changed in ((1, self.masked(side)), (2, self.reordered(side))):
            vectors = torch.where((ways == way)[..., None], changed[0], vectors)
            mask = torch.where(ways == way, changed[1], mask)
        return vectors, mask

    def cropped(self, side: Sequences) -> tuple[Tensor, Tensor]:
        """A run of consecutive events."""
        place, size = self._run(side, self.shares["crop"])
        reach = torch.arange(side.mask.shape[1], device=place.device)
        position = (place[:, None] + reach).clamp(max=len(reach) - 1)
        return _taken(side.vectors, position), reach < size[:, None]

    def masked(self, side: Sequences) -> tuple[Tensor, Tensor]:
        """Some events blank, in their places."""
        rank = torch.rand(side.mask.shape, device=side.mask.device).masked_fill(~side.mask, 2.0).argsort(1).argsort(1)
        blank = rank < (self.shares["mask"] * side.length).long()[:, None]
        return torch.where(blank[..., None], self.blank, side.vectors), side.mask

    def reordered(self, side: Sequences) -> tuple[Tensor, Tensor]:
        """A run of consecutive events in another order."""
        place, size = self._run(side, self.shares["reorder"])
        reach = torch.arange(side.mask.shape[1], device=place.device)
        inside = (reach >= place[:, None]) & (reach < (place + size)[:, None])
        # Keys of the run are shuffled between its neighbours' keys, so nothing else moves.
        shuffled = place[:, None] - 0.5 + torch.rand(inside.shape, device=place.device) * size[:, None]
        key = torch.where(inside, shuffled, reach.float())
        return _taken(side.vectors, key.argsort(dim=1, stable=True)), side.mask

    def _run(self, side: Sequences, share: float) -> tuple[Tensor, Tensor]:
        size = (share * side.length).long().clamp(min=1)
        place = (torch.rand(len(side), device=size.device) * (side.length - size + 1)).long()
        return place, size


def nt_xent(one: Tensor, other: Tensor, *, temperature: float, user: Tensor) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views, (N, D) each; views of one user are no negatives."""
    views = directions(torch.cat([one, other]))
    partner = torch.arange(len(views), device=views.device).roll(len(one))
    same = equal(torch.cat([user, user]))
    same[torch.arange(len(views), device=views.device), partner] = False
    logits = (views @ views.T / temperature).masked_fill(same, float("-inf"))
    return F.cross_entropy(logits, partner)


def _taken(vectors: Tensor, position: Tensor) -> Tensor:
    return vectors.gather(1, position[..., None].expand_as(vectors))
