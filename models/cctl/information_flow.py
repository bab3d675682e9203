"""CCTL's information flow network (IFN): a weight for every source sample, and what it sees of a sample.

    w = w_max sigmoid(u),    u = MLP(domain, codes, label, outputs of both towers) + a part that is solved for

The weight in (0, w_max) lets a sample's information through in part. ``learners.py`` says how u is learned.

    B  rows
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.training.optimisers import Nested

SLOTS = 256
BUCKETS = 4096
SOLVED = 1024
"""Keys of what is shown of samples whose part in their weight is solved for: sources first, then codes, hashed."""
ANY_SOURCE = -1
_SOURCES = 64
_GROUPS = ("item", "user", "context", "provenance")
_FIELD_STRIDE = 1_000_003


@dataclass(frozen=True)
class Traits:
    """What the flow network sees of samples: all of a batch but its histories and ids, and where rows came from.

    Shapes:
        domain: (B,) long    label: (B,)
        codes:  item features, user features, context and provenance, each (B, fields) long
        scores: (B, 2) outputs of the mixed and the pure tower, or zeros where they are not shown
    """

    domain: Tensor
    codes: tuple[Tensor, ...]
    label: Tensor
    scores: Tensor

    @classmethod
    def of(cls, batch: Batch, scores: Tensor | None = None, provenance: Tensor | None = None) -> Traits:
        unknown = batch.context[:, :0]
        codes = (batch.item_features, batch.user_features, batch.context, unknown if provenance is None else provenance)
        shown = batch.label.new_zeros(len(batch), 2) if scores is None else scores.detach().float()
        return cls(batch.domain, codes, batch.label, shown)

    def rows(self, index: Tensor) -> Traits:
        codes = tuple(group[index] for group in self.codes)
        return Traits(self.domain[index], codes, self.label[index], self.scores[index])

    def keys(self) -> Tensor:
        """Keys of each row, (B, 1 + 2 fields) long: its source, and each of its codes in that source and in any."""
        columns = [self.domain % _SOURCES]
        for source in (self.domain, torch.full_like(self.domain, ANY_SOURCE)):
            field = 0
            for group in self.codes:
                for at in range(group.shape[1]):
                    mixed = ((source + 1) * 8191 + field) * 1_000_003 + group[:, at]
                    columns.append(_SOURCES + mixed * 2_654_435_761 % 2**32 % (SOLVED - _SOURCES))
                    field += 1
        return torch.stack(columns, 1)

    def names(self) -> dict[int, tuple[int, str, int, int]]:
        """What stands behind the keys of these rows: source, group of fields ("source" for itself), field, code."""
        keys = self.keys().cpu()
        columns = [(self.domain, "source", 0, torch.zeros_like(self.domain))]
        for source in (self.domain, torch.full_like(self.domain, ANY_SOURCE)):
            for name, group in zip(_GROUPS, self.codes, strict=True):
                columns += [(source, name, at, group[:, at]) for at in range(group.shape[1])]
        found: dict[int, tuple[int, str, int, int]] = {}
        for column, (source, name, at, code) in enumerate(columns):
            rows = set(zip(keys[:, column].tolist(), source.tolist(), code.tolist(), strict=True))
            found |= {key: (number, name, at, value) for key, number, value in rows}
        return found

    def state(self) -> Nested:
        return {"domain": self.domain, "codes": list(self.codes), "label": self.label, "scores": self.scores}

    @classmethod
    def from_state(cls, state: Nested) -> Traits:
        return cls(state["domain"], tuple(state["codes"]), state["label"], state["scores"])


class InformationFlow(nn.Module):
    """w = w_max sigmoid(u), with u = MLP of a sample's domain, feature codes, label and the towers' scores.

    Codes of all fields share one hashed table; code 0 is a missing field, whose vector is learned like the others. The
    label may be seen since weights serve training alone. The bound on w keeps it from growing to please its own loss.
    ``solved`` (SOLVED,) is a linear part by keys that is solved for in closed form (``influence.py``).
    """

    solved: Tensor

    def __init__(self, width: int = 8, hidden: int = 32, largest: float = 1.0, start: float = 0.8) -> None:
        super().__init__()
        self.largest = largest
        self.domain = nn.Embedding(SLOTS, width)
        self.codes = nn.Embedding(BUCKETS, width)
        nn.init.normal_(self.domain.weight, std=0.1)
        nn.init.normal_(self.codes.weight, std=0.01)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, torch.logit(torch.tensor(start)).item())
        self.score = nn.Sequential(nn.Linear((1 + len(_GROUPS)) * width + 3, hidden), nn.ReLU(), last)
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.register_buffer("solved", torch.zeros(SOLVED))

    def forward(self, traits: Traits) -> Tensor:
        """u, (B,): the weight before its sigmoid."""
        seen = [self.domain(traits.domain % SLOTS)]
        offset = 0
        for group in traits.codes:
            field = torch.arange(group.shape[1], device=group.device) + offset
            offset += group.shape[1]
            rows = (group * 31 + field * _FIELD_STRIDE) % BUCKETS
            seen.append(self.codes(rows).sum(1))
        searched = self.score(torch.cat([*seen, traits.label[:, None], traits.scores], 1)).squeeze(-1)
        return searched + self.solved[traits.keys()].sum(1)

    def weight(self, traits: Traits) -> Tensor:
        """w, (B,)."""
        return self.largest * torch.sigmoid(self(traits))

    def policy_loss(self, traits: Traits, action: Tensor, reward: float, entropy: float, target_mean: float) -> Tensor:
        """-R mean log pi(a | z) - beta log sigma + gamma (mean w - rho)^2, with pi = N(u, sigma^2) and gamma = 0.01."""
        u = self(traits)
        log_probability = -((action - u) ** 2) / (2 * torch.exp(2 * self.log_sigma)) - self.log_sigma
        pull = (torch.sigmoid(u).mean() - target_mean) ** 2
        return -reward * log_probability.mean() - entropy * self.log_sigma + 0.01 * pull
