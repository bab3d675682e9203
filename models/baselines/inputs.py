"""What every neural baseline reads, and reads in the same way: the ranker's embeddings and short-history view, one MLP.

A baseline differs from its neighbours in the table by the mechanism it is named after and by nothing else, so all of
them are built on `Inputs` and end in `Baseline.forward`. Symbols as in ``models/batch.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from models.batch import Batch, Events
from models.layers.embeddings import EventContext, FieldEmbedding, ItemTable, RowTable
from models.layers.target_attention import TargetAttention
from models.layers.wide import PLAIN_FEATURES, as_score, plain_features


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes that all baselines of one table share; each counts the row or code 0 of the unknown.

    source_items: rows of the source item table
    domain_items: for each domain slot the rows of its own item table; 0 where its items live in the source table
    item_fields, user_fields, context_fields: vocabulary size of each feature field
    actions: codes of event actions
    users: rows of the user table; 0 for no user identity
    width: D
    hidden: widths of the MLP
    short: latest source events that the short view reads when the batch brings no short history
    product: also give the MLP the products of user, short views and candidate, as the ranker's head has them
    user_dropout: share of training rows whose user is hidden, so that the unknown user means something
    mean_label: mean label of the training rows; what an item of which nothing is known is expected to get
    wide: start from the plain features that the ranker starts from (``layers/wide.py``): the item's mean, and what
        the user's own labels say of them; without them a network starts from the mean label alone
    """

    source_items: int
    domain_items: tuple[int, ...]
    item_fields: tuple[int, ...] = ()
    user_fields: tuple[int, ...] = ()
    context_fields: tuple[int, ...] = ()
    actions: int = 1
    users: int = 0
    width: int = 32
    hidden: tuple[int, ...] = (256, 128, 64)
    short: int = 24
    product: bool = True
    user_dropout: float = 0.2
    dropout: float = 0.0
    mean_label: float = 0.5
    wide: bool = True
    task: Literal["ctr", "rating"] = "ctr"

    def __post_init__(self) -> None:
        if self.source_items < 1 or not self.domain_items:
            raise ValueError("a baseline needs a source table of at least one row and at least one domain")
        if len(self.hidden) < 2:
            raise ValueError(f"hidden needs at least a shared layer and a tower, got {self.hidden}")

    @property
    def domains(self) -> int:
        return len(self.domain_items)

    @property
    def item_rows(self) -> int:
        """Rows of the joint item table: the source's first, then each domain's own."""
        return self.source_items + sum(self.domain_items)


def mlp(sizes: Sequence[int], dropout: float = 0.0, *, last_linear: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between, (..., sizes[0]) -> (..., sizes[-1]); ``last_linear`` leaves the last bare."""
    layers: list[nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        linear = nn.Linear(wide, narrow)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if not (last_linear and number == len(sizes) - 2):
            layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among True positions; padding gets exactly 0, a row without any gets all zeros."""
    return score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1) * mask


def latest(events: Events, length: int) -> Events:
    """The same events, each row seeing at most its ``length`` latest."""
    return replace(events, start=torch.maximum(events.start, events.stop - length))


@dataclass(frozen=True)
class Read:
    """An embedded batch.

    candidate: (B, D)
    features:  (B, Inputs.size), all that an MLP reads
    lifelong:  (B, L, D) item vectors of the long history, or None where not asked for
    """

    candidate: Tensor
    features: Tensor
    lifelong: Tensor | None = None


class Inputs(nn.Module):
    """Embeds a batch: user, candidate, context, short target history, short source history, and their products.

    Candidates and stored items are embedded alike: the item's own row plus its feature fields added up.

    Args:
        item_codes: (config.item_rows, F) feature codes in the order of the joint table; None without item fields
        reads_source: False for baselines that know one domain only
    """

    first_row: Tensor
    source_values: Tensor

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None, *, reads_source: bool = True) -> None:
        super().__init__()
        if (item_codes is None) != (not config.item_fields):
            raise ValueError("item codes are given exactly when the configuration names item fields")
        self.config = config
        own = torch.tensor([config.source_items, *config.domain_items]).cumsum(0)[:-1]
        first_row = torch.where(torch.tensor(config.domain_items) > 0, own, 0)
        self.register_buffer("first_row", first_row, persistent=False)
        width = config.width
        self.items = ItemTable(config.item_rows, width, item_codes, len(config.item_fields), mean=config.mean_label)
        self.register_buffer("source_values", torch.full((config.source_items,), config.mean_label))
        self.item_fields = FieldEmbedding(config.item_fields, width)
        self.user_fields = FieldEmbedding(config.user_fields, width)
        self.context_fields = FieldEmbedding(config.context_fields, width)
        self.users = RowTable(config.users, width) if config.users else None
        self.event_context = EventContext(config.actions, width)
        self.read_target = TargetAttention(width)
        self.read_source = TargetAttention(width) if reads_source else None
        views = 1 + reads_source
        parts = 1 + len(config.user_fields) + bool(config.users) + len(config.context_fields) + views
        if config.product:
            parts += bool(config.users) + views
        self.knows_user = config.wide and reads_source
        self.size = parts * width + PLAIN_FEATURES * self.knows_user
        self.wide_weights = nn.Parameter(torch.zeros(PLAIN_FEATURES)) if self.knows_user else None
        self.own_wide_weights = nn.Parameter(torch.zeros(config.domains, PLAIN_FEATURES)) if self.knows_user else None
        self.start = nn.Parameter(torch.zeros(()))

    def set_means(self, means: Tensor, source_values: Tensor) -> None:
        """Say what each item of the joint table gets on average, (item_rows,), and the mean value of each source item's
        events, (source_items,), as histories hold values; from training rows alone."""
        self.items.set_means(means)
        self.source_values.copy_(source_values)

    def expected(self, batch: Batch) -> Tensor:
        """What the wide part says of each row, (B,), in the unit of the output."""
        start = as_score(self.items.means[0], self.config.task) + self.start
        if not self.config.wide:
            return start.expand(len(batch))
        rows = torch.where(batch.item > 0, self.own_rows(batch.item, batch.domain), 0)
        expected = as_score(self.items.mean_of(rows), self.config.task) + self.start
        if self.wide_weights is not None and self.own_wide_weights is not None:
            weight = self.wide_weights + self.own_wide_weights[batch.domain]
            expected = expected + (plain_features(batch.lifelong, self.source_values) * weight).sum(-1)
        return expected

    def own_rows(self, item: Tensor, domain: Tensor) -> Tensor:
        """Rows of the joint table of items of the domains' own tables; item (B, ...), domain (B,)."""
        return item + self.first_row[domain].view(-1, *[1] * (item.dim() - 1))

    def item_vectors(self, rows: Tensor) -> Tensor:
        """Vectors of items given by row of the joint table, (...) -> (..., D)."""
        vectors = self.items.rows(rows)
        if len(self.item_fields):
            vectors = vectors + self.item_fields.sum(self.items.features(rows))
        return vectors

    def candidates(self, batch: Batch) -> Tensor:
        """Vectors of the candidates, (B, D)."""
        vectors = self.items.rows(self.own_rows(batch.item, batch.domain))
        return vectors + self.item_fields.sum(batch.item_features) if len(self.item_fields) else vectors

    def tokens(self, items: Tensor, events: Events, batch: Batch, position: Tensor | None = None) -> Tensor:
        """Item vectors of events (B, K, D) with what else is known of each event: action, value, recency.

        ``position`` (B, K) says which events of each row's stored history they are; all of them where absent.
        """
        parts = (part[events.row] for part in (events.action, events.value, events.time))
        action, value, time = (part if position is None else part.gather(1, position) for part in parts)
        codes = self.event_context.codes(action, value, time, batch.time[:, None])
        return items + self.event_context.vectors(codes)[:, 0]

    def short_source_of(self, batch: Batch) -> Events:
        """The latest source events: the batch's own short history, or the end of the long one."""
        return batch.short_source if batch.short_source is not None else latest(batch.lifelong, self.config.short)

    def forward(self, batch: Batch, *, lifelong: bool = False) -> Read:
        rows = [self.own_rows(batch.item, batch.domain)[:, None]]
        short = []
        if batch.short_target is not None:
            short.append((self.read_target, batch.short_target))
            rows.append(self.own_rows(batch.short_target.item[batch.short_target.row], batch.domain))
        if self.read_source is not None:
            events = self.short_source_of(batch)
            short.append((self.read_source, events))
            rows.append(events.item[events.row])
        if lifelong:
            rows.append(batch.lifelong.item[batch.lifelong.row])
        # One look-up of the table for all: see RowTable.
        vectors = list(self.items.rows(torch.cat(rows, 1)).split([part.shape[1] for part in rows], 1))
        if len(self.item_fields):
            vectors[1:] = [
                vector + self.item_fields.sum(self.items.features(part))
                for vector, part in zip(vectors[1:], rows[1:], strict=True)
            ]
            vectors[0] = vectors[0] + self.item_fields.sum(batch.item_features)[:, None]
        candidate = vectors[0][:, 0]
        views = [
            self._view(attention, events, items, batch, candidate)
            for (attention, events), items in zip(short, vectors[1 : 1 + len(short)], strict=True)
        ]
        if batch.short_target is None:
            views.insert(0, torch.zeros_like(candidate))
        features = self._features(batch, candidate, views)
        return Read(candidate, features, vectors[-1] if lifelong else None)

    def _features(self, batch: Batch, candidate: Tensor, views: list[Tensor]) -> Tensor:
        parts = [candidate, self.user_fields.tokens(batch.user_features).flatten(1)]
        parts += [self.context_fields.tokens(batch.context).flatten(1), *views]
        matched = list(views)
        if self.users is not None:
            user = batch.user
            if self.training and self.config.user_dropout:
                hidden = torch.rand(user.shape, device=user.device) < self.config.user_dropout
                user = torch.where(hidden, 0, user)
            vector = self.users(user)
            parts.append(vector)
            matched.append(vector)
        if self.config.product:
            parts += [view * candidate for view in matched]
        if self.knows_user:
            parts.append(plain_features(batch.lifelong, self.source_values))
        return torch.cat(parts, -1)

    def _view(self, attention: nn.Module, events: Events, items: Tensor, batch: Batch, candidate: Tensor) -> Tensor:
        """One short history against the candidate, (B, D); an empty one gives zeros."""
        tokens = self.tokens(items, events, batch)[:, None]  # [B, 1, S, D]
        return attention(tokens, events.mask()[:, None], candidate[:, None])[:, 0]


class Baseline(nn.Module):
    """A network of the table. Subclasses say what is `personal`; the rest is the same for all."""

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None, *, reads_source: bool = True) -> None:
        super().__init__()
        self.config = config
        self.inputs = Inputs(config, item_codes, reads_source=reads_source)

    def personal(self, batch: Batch) -> Tensor:
        """What the mechanism adds to the wide part and the offset, (B,)."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """Logits for clicks, ratings otherwise, (B,)."""
        return self.personal(batch) + self.inputs.expected(batch) + batch.offset

    def auxiliary_loss(self, batch: Batch) -> Tensor | None:
        """A loss beside the task's, not yet weighted; None where the baseline has none."""
        return None


def each_domain(batch: Batch) -> list[tuple[int, Tensor]]:
    """The slots present in the batch, each with the positions of its rows: a tower runs on its own rows only."""
    return [(int(slot), torch.nonzero(batch.domain == slot)[:, 0]) for slot in torch.unique(batch.domain)]
