"""What a ranker is built of, and what one domain brings to it; stored beside the weights as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from models.layers.contrast import ContrastConfig
from models.layers.cross_attention import Memory, Vacated
from models.layers.pyramid import PyramidConfig
from models.layers.wide import CLICK_FEATURES, PLAIN_FEATURES, RATING_FEATURES

Architecture = Literal["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]


@dataclass(frozen=True)
class RankerConfig:
    """What the shared model is built of. Sizes count the row of the unknown.

    source_items: rows of the source item table
    item_fields, user_fields, context_fields, domain_fields: vocabulary size of each field
    actions: codes of event actions
    users: rows of the user table; 0 for no user identity
    architecture: ``dacdr``, ``lcn`` (the pyramid alone), ``dacdr+lcn`` (the two views beside each other) or
        ``domain_over_pyramid`` (DACDR reading only what the pyramid selected, beside the pyramid's view)
    ia_memory, domain_attention, item_attention, vacated: see AttentionConfig
    product: also give the head û ⊙ e_v, and each view of the pyramid and of the short histories ⊙ e_v, with these also
        the user's row ⊙ e_v; a multilayer perceptron is slow to find products
    user_dropout: share of training rows whose user is hidden, so that the unknown user means something
    contrast: LCN's cross representation production beside the task's loss; None for none. Training only
    wide: the wide part reads more features (`models.layers.wide`) and its weights are solved for in closed form
    mean_label: mean label of the training rows; what an item of which nothing is known is expected to get
    """

    source_items: int
    item_fields: tuple[int, ...] = ()
    user_fields: tuple[int, ...] = ()
    context_fields: tuple[int, ...] = ()
    domain_fields: tuple[int, ...] = ()
    actions: int = 1
    users: int = 0
    width: int = 32
    task: Literal["ctr", "rating"] = "ctr"
    architecture: Architecture = "dacdr"
    ia_memory: Memory = "concat"
    domain_attention: bool = True
    item_attention: bool = True
    vacated: Vacated = "drop"
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    encoder_hidden: int = 128
    head: tuple[int, ...] = (256, 128)
    product: bool = True
    user_dropout: float = 0.2
    wide: bool = False
    mean_label: float = 0.5
    contrast: ContrastConfig | None = None

    def __post_init__(self) -> None:
        if self.source_items < 1:
            raise ValueError("source_items counts the row of the unknown, so it is at least 1")
        if self.task not in ("ctr", "rating"):
            raise ValueError(f"task is ctr or rating, not {self.task!r}")
        if self.architecture not in ("dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"):
            raise ValueError(f"architecture is dacdr, lcn, both or domain_over_pyramid, not {self.architecture!r}")
        if self.architecture == "domain_over_pyramid" and not self.pyramid.levels:
            raise ValueError("DACDR cannot read what a pyramid of no level selected")
        if not 0 <= self.user_dropout < 1:
            raise ValueError(f"user_dropout is a share below 1, not {self.user_dropout}")

    @property
    def domain_tokens(self) -> int:
        """M: one token a domain feature, and a free one."""
        return len(self.domain_fields) + 1

    @property
    def uses_cross_attention(self) -> bool:
        """Whether DACDR's cross-attention is built."""
        return self.architecture != "lcn"

    @property
    def uses_pyramid(self) -> bool:
        """Whether LCN's pyramid is built."""
        return self.architecture != "dacdr"

    @property
    def frozen_vectors(self) -> int:
        """Vectors of the head that no weight of a target domain has a part in: user and context fields, the user."""
        return len(self.user_fields) + (self.users > 0) + len(self.context_fields)

    @property
    def head_vectors(self) -> int:
        """Vectors of width D that the head reads: the candidate, frozen ones, and what the architecture gives."""
        vectors = 1 + self.frozen_vectors
        if self.uses_cross_attention:
            vectors += 2 if self.product else 1  # û, and û ⊙ e_v
        else:
            vectors += self.domain_tokens  # the encoder is not there to read E_d
        if self.uses_pyramid:
            vectors += (len(self.pyramid.levels) + 2) * (2 if self.product else 1)
            vectors += self.product and self.users > 0  # the user's row ⊙ e_v
        return vectors

    @property
    def wide_features(self) -> int:
        """Numbers in a row of wide features."""
        if not self.wide:
            return PLAIN_FEATURES
        return RATING_FEATURES if self.task == "rating" else CLICK_FEATURES

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that `as_dict` wrote, perhaps by way of JSON.

        Raises:
            ValueError: an unknown name or a value out of range.
        """
        parts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        unknown = set(parts) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of a ranker: {sorted(unknown)}")
        if isinstance(parts.get("pyramid"), dict):
            pyramid = parts["pyramid"]
            parts["pyramid"] = PyramidConfig(**{**pyramid, "levels": tuple(pyramid["levels"])})
        if isinstance(parts.get("contrast"), dict):
            parts["contrast"] = ContrastConfig(**parts["contrast"])
        return cls(**parts)


@dataclass(frozen=True)
class DomainConfig:
    """What one domain brings.

    items: rows of the domain's own item table; 0 where its items live in the source table, which makes the slot part of
        the backbone
    feature_codes: code of each domain field
    """

    items: int
    feature_codes: tuple[int, ...] = ()

    @property
    def in_backbone(self) -> bool:
        return self.items == 0
