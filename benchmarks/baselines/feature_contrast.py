"""Self-supervised baselines on items and features: SSL, AT4CTR, CL4CTR, and plain InfoNCE with cross-domain pairs.

As in ``self_supervised.py``, each is an auxiliary loss on the backbone's own embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.self_supervised import MOST_ASKED, MOST_CANDIDATES, AuxiliaryTask, SampledSoftmax
from benchmarks.baselines.sequences import (
    Pool,
    SequenceEncoder,
    equal,
    info_nce,
    latest_row_of_each_user,
    one_name,
    pooled,
    sides,
    some,
)
from models.batch import Batch
from models.layers.contrast import directions
from models.ranker.network import Ranker


class SSL(AuxiliaryTask):
    """Self-supervised item towers (Yao et al. 2021): two complementary halves of an item's features know each other.

    The features are the item's own row and its fields. A feature is drawn, and with it the half of the others that
    tells most of it (mutual information) is hidden from one view and shown to the other alone. Each view passes
    a tower with dropout; InfoNCE over the distinct items of the batch.

    Args:
        item_codes: (V, F) codes of items, from which the mutual information is counted once

    Raises:
        ValueError: fewer than two features, so that no half would be left.
    """

    correlation: Tensor

    def __init__(self, width: int, item_codes: Tensor, *, temperature: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        self.features = 1 + item_codes.shape[1]
        if self.features < 2:
            raise ValueError("hiding correlated features needs items with at least one field beside their id")
        self.temperature = temperature
        self.register_buffer("correlation", mutual_information(item_codes))
        self.tower = nn.Sequential(
            nn.Linear(self.features * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        tokens, identity = distinct_items(backbone, batch)
        if len(identity) < 2:
            return None
        hidden = self.draw(tokens.device)
        one = self.tower((tokens * ~hidden[:, None]).flatten(1))
        other = self.tower((tokens * hidden[:, None]).flatten(1))
        return info_nce(one, other, temperature=self.temperature)

    def draw(self, device: torch.device) -> Tensor:
        """Features to hide from the first view, (F + 1,) bool: a drawn one and its nearest."""
        seed = int(torch.randint(0, self.features, ()))
        nearest = self.correlation[seed].clone()
        nearest[seed] = float("inf")
        hidden = torch.zeros(self.features, dtype=torch.bool, device=device)
        hidden[nearest.topk(max(1, self.features // 2)).indices] = True
        return hidden


def mutual_information(item_codes: Tensor) -> Tensor:
    """Mutual information of item features in nats, (F + 1, F + 1); feature 0 is the id, which knows all others."""
    items, fields = item_codes.shape
    columns = [torch.arange(items, device=item_codes.device), *item_codes.T]
    numbers = [torch.unique(column, return_inverse=True)[1] for column in columns]
    entropies = [_entropy(number) for number in numbers]
    table = torch.zeros(fields + 1, fields + 1, device=item_codes.device)
    for i in range(fields + 1):
        for j in range(fields + 1):
            joint = torch.unique(numbers[i] * items + numbers[j], return_inverse=True)[1]
            table[i, j] = entropies[i] + entropies[j] - _entropy(joint)
    return table


def _entropy(number: Tensor) -> Tensor:
    share = torch.bincount(number).float() / len(number)
    return torch.special.entr(share).sum()


def distinct_items(backbone: Ranker, batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch's known candidates, each once: feature tokens (N, F + 1, D), the own row first, and identities (N,)."""
    identity = one_name(batch.item, batch.domain)
    known = (batch.item > 0).nonzero()[:, 0]
    distinct, number = torch.unique(identity[known], return_inverse=True)
    lender = known.new_zeros(len(distinct)).scatter_reduce(0, number, known, "amax")
    rows = batch.rows(lender)
    own = torch.zeros(len(lender), backbone.config.width, device=batch.item.device)
    for slot in torch.unique(rows.domain).tolist():
        mine = (rows.domain == slot).nonzero()[:, 0]
        table = backbone.embeddings.items_of(backbone.owned(slot))
        own = own.index_copy(0, mine, table.rows(rows.item[mine]).to(own.dtype))
    return torch.cat([own[:, None], backbone.embeddings.item_fields.tokens(rows.item_features)], 1), distinct


def candidate_vectors(backbone: Ranker, batch: Batch) -> Tensor:
    """Vectors of the candidates of a batch that may mix domains, (B, D)."""
    vectors = torch.zeros(len(batch), backbone.config.width, device=batch.item.device)
    for slot in torch.unique(batch.domain).tolist():
        mine = (batch.domain == slot).nonzero()[:, 0]
        own = backbone.embeddings.candidates(backbone.owned(slot), batch.item[mine], batch.item_features[mine])
        vectors = vectors.index_copy(0, mine, own.to(vectors.dtype))
    return vectors


class AT4CTR(AuxiliaryTask):
    """Auxiliary match tasks (Liu et al. 2023): a user and the item they clicked, and a past and its next item.

    UIM: InfoNCE of user and item, on clicked rows alone; other rows of one item or one user are no negatives.
    NIP: a causal encoding of the past against the next item, among the distinct items of the batch.
    """

    def __init__(self, width: int, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature
        self.of_user = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.of_item = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.encoder = SequenceEncoder(width)
        self.choose = SampledSoftmax(width, temperature)

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        parts = [
            part for part in (self.user_item(backbone, batch), self.next_item(backbone, batch)) if part is not None
        ]
        return torch.stack(parts).sum() if parts else None

    def user_item(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        """UIM, over clicked rows of known items."""
        clicked = batch.rows(((batch.label > 0.5) & (batch.item > 0)).nonzero()[:, 0])
        clicked = clicked.rows(latest_row_of_each_user(clicked))  # one of each user
        if len(clicked) < 2:
            return None
        views = [torch.zeros(len(clicked), backbone.config.width, device=batch.item.device) for _ in range(2)]
        number = torch.arange(len(clicked), device=batch.item.device)
        for place, side in enumerate(sides(backbone, clicked)):
            # `sides` orders its sequences by user, as `clicked` now is.
            views[place] = views[place].index_copy(0, number, pooled(side.vectors, side.mask))
        profile = backbone.embeddings.user_fields.tokens(clicked.user_features)
        views.append(profile.mean(1) if profile.shape[1] else torch.zeros_like(views[0]))
        user = self.of_user(torch.cat(views, -1))
        item = self.of_item(candidate_vectors(backbone, clicked))
        same = equal(one_name(clicked.item, clicked.domain))
        return info_nce(user, item, temperature=self.temperature, same=same)

    def next_item(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        """NIP, averaged over target and source."""
        losses = []
        for side in (one.at_least(2) for one in sides(backbone, batch)):
            if not len(side):
                continue
            hidden = self.encoder(side.vectors, side.mask)
            steps = some(side.mask[:, 1:], MOST_ASKED)
            taken = torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)
            pool = Pool.of(side, MOST_CANDIDATES, keep=taken)
            losses.append(F.cross_entropy(self.choose(hidden[:, :-1][steps], pool), pool.place[taken]))
        return torch.stack(losses).mean() if losses else None


class CL4CTR(AuxiliaryTask):
    """Contrastive feature representations (Wang et al. 2023): α contrast + β (alignment + uniformity).

    contrast: ‖P(enc(drop x)) - P(enc(drop' x))‖², x the row's feature vectors, enc one transformer block over them.
    alignment: vectors of one field lie close, mean over pairs of rows of ‖e_i - e_j‖² = 2 Var, in time O(B).
    uniformity: vectors of different fields point apart, mean cosine over pairs of rows and fields, also O(B).
    """

    def __init__(
        self, width: int, *, contrast: float = 1.0, regular: float = 0.01, dropout: float = 0.2, heads: int = 2
    ) -> None:
        super().__init__()
        self.contrast, self.regular = contrast, regular
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.project = nn.Linear(width, width)

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        if len(batch) < 2:
            return None
        tables = backbone.embeddings
        fields = [candidate_vectors(backbone, batch)[:, None], tables.user_fields.tokens(batch.user_features)]
        fields += [tables.item_fields.tokens(batch.item_features), tables.context_fields.tokens(batch.context)]
        x = torch.cat(fields, 1)  # [B, fields, D]
        one, other = (self.project(self.encoder(self.drop(x)).mean(1)) for _ in range(2))
        contrast = (one - other).square().sum(-1).mean()
        return self.contrast * contrast + self.regular * (alignment(x) + uniformity(x))


def alignment(x: Tensor) -> Tensor:
    """Mean over fields and over all pairs of rows of the squared distance, x (B, fields, D): twice the variance."""
    return 2 * x.var(0, unbiased=False).sum(-1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Mean cosine over all pairs of rows and of different fields, x (B, fields, D); 0 of a single field."""
    fields = x.shape[1]
    if fields < 2:
        return x.sum() * 0
    centre = directions(x).mean(0)  # the mean of products is the product of means
    return (centre.sum(0).square().sum() - centre.square().sum()) / (fields * (fields - 1))


class PoolNCE(AuxiliaryTask):
    """Plain InfoNCE given the pairs that CRP has: a user's mean target item against their mean source item.

    The fairness row: none of the other tasks sees a pair across domains. Both directions count.
    """

    def __init__(self, width: int, *, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, backbone: Ranker, batch: Batch) -> Tensor | None:
        both = sides(backbone, batch)
        if len(both) < 2:
            return None
        target, source = both
        kept = (target.length > 0) & (source.length > 0)
        if int(kept.sum()) < 2:
            return None
        one, other = (pooled(side.vectors, side.mask)[kept] for side in (target, source))
        there = info_nce(one, other, temperature=self.temperature)
        return (there + info_nce(other, one, temperature=self.temperature)) / 2
