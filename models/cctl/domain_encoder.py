"""CCTL's representation enhancement network: a domain encoder beside the shared one, kept apart by contrast.

SourceWeighting pulls the shared representation towards what domains have in common. A small encoder per domain reads
the same sample and is trained to say what the shared one and other domains' encoders do not: its view of a sample must
resemble its second view under other dropout, and neither the shared state of the sample nor other domains' views.

    B  rows    H  width of the model's last hidden state    E  width of a domain encoder    K  domains
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.information_flow import ShowsHidden


@dataclass(frozen=True)
class EnhancementConfig:
    """How the domain encoders are built and trained.

    Attributes:
        domains: K, slots from 0.
        state: H.
        width: E.
        temperature: tau of the contrast.
        share: lambda_REN relative to the loop's ``auxiliary_weight``: 1 makes it 0.1 by default.
        predicts: scores come from [h_shared; h_domain]; else the encoders serve training alone.
    """

    domains: int
    state: int
    width: int = 16
    temperature: float = 0.1
    dropout: float = 0.2
    share: float = 1.0
    predicts: bool = True


class RepresentationEnhancement(nn.Module):
    """A model that shows its last hidden state, with an encoder per domain beside it; trains through the same loop.

    A fresh one scores exactly as the model inside does: the part of the last layer that reads h_domain starts at zero.
    """

    def __init__(self, model: nn.Module, config: EnhancementConfig) -> None:
        super().__init__()
        if not isinstance(model, ShowsHidden):
            raise TypeError(f"{type(model).__name__} has no hidden(batch): domain encoders have nothing to read")
        self.model, self.config = model, config
        scale = config.state**-0.5
        self.encode_in = nn.Parameter(torch.randn(config.domains, config.state, config.width) * scale)
        self.encode_bias = nn.Parameter(torch.zeros(config.domains, config.width))
        self.encode_out = nn.Parameter(torch.randn(config.domains, config.width, config.width) * config.width**-0.5)
        self.shared_view = nn.Linear(config.state, config.width, bias=False)
        self.last = nn.Parameter(torch.zeros(config.domains, config.width))
        self._seen: tuple[Batch, Tensor] | None = None

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[h_shared; h_domain], (B, H + E), and the output (B,)."""
        state, output = self._inside(batch)
        own = self.encoded(state, batch.domain)
        if self.config.predicts:
            output = output + (own * self.last[batch.domain]).sum(1)
        return torch.cat([state, own], 1), output

    def forward(self, batch: Batch) -> Tensor:
        state, output = self._inside(batch)
        self._seen = (batch, state) if self.training else None
        if not self.config.predicts:
            return output
        return output + (self.encoded(state, batch.domain) * self.last[batch.domain]).sum(1)

    def encoded(self, state: Tensor, domain: Tensor) -> Tensor:
        """h_domain, (B, E), of shared states (B, H) as the encoders of ``domain`` (B,) see them."""
        first = torch.empty(len(state), self.config.width, dtype=state.dtype, device=state.device)
        dropped = F.dropout(state, self.config.dropout, self.training)
        for number in torch.unique(domain).tolist():
            mine = domain == number
            inner = torch.relu(dropped[mine] @ self.encode_in[number] + self.encode_bias[number])
            first = first.masked_scatter(mine[:, None], (inner @ self.encode_out[number]).to(first.dtype))
        return first

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        """The model's own auxiliary loss, if any, and the contrast: InfoNCE of each row's two views."""
        seen, self._seen = self._seen, None
        state = seen[1] if seen is not None and seen[0] is batch else self._inside(batch)[0]
        loss = self.config.share * self.contrast(state, batch.domain)
        own = getattr(self.model, "auxiliary_loss", None)
        inside = None if own is None else own(batch)
        return loss if inside is None else loss + inside

    def contrast(self, state: Tensor, domain: Tensor) -> Tensor:
        """-log of a row's own second view against the shared state's view and another domain's view of the row."""
        anchor, positive = (F.normalize(self.encoded(state, domain).float(), dim=1) for _ in range(2))
        negatives = [F.normalize(self.shared_view(state).float(), dim=1)]
        if self.config.domains > 1:
            step = torch.randint(1, self.config.domains, domain.shape, device=domain.device)
            other = (domain + step) % self.config.domains
            negatives.append(F.normalize(self.encoded(state, other).float(), dim=1))
        influence = [(anchor * view).sum(1) for view in (positive, *negatives)]
        logits = torch.stack(influence, 1) / self.config.temperature
        return F.cross_entropy(logits, torch.zeros(len(state), dtype=torch.long, device=state.device))

    def _inside(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(self.model, ShowsHidden)
        return self.model.hidden(batch)
