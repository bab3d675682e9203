"""What a domain owns, the freeze and its certificate, and adapters on the move."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.ranker.adapters import (
    AdapterMismatch,
    attach,
    backbone_hash,
    certificate,
    extract,
    fingerprint,
    freeze_all_but,
    tensor_hash,
    trained_parameter_count,
    unfreeze,
)
from models.ranker.domain_adapter import DomainOwned
from models.ranker.network import DomainConfig, Ranker

MakeBatch = Callable[..., Batch]
MakeRanker = Callable[..., Ranker]
ARCHITECTURES = ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]
TARGET = 2


def fine_tune(ranker: Ranker, batches: Iterator[Batch], parameters: list[torch.nn.Parameter], steps: int = 4) -> None:
    """A few steps of the least careful kind: momentum and weight decay, which move what they should not touch."""
    optimiser = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    for _, batch in zip(range(steps), batches, strict=False):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(ranker(batch), batch.label).backward()
        optimiser.step()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("give_all", [False, True])
def test_fine_tuning_moves_nothing_that_is_frozen(
    architecture: str, give_all: bool, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Every frozen tensor and every other domain's prediction is bit-equal, even if the optimiser holds all tensors."""
    ranker = make_ranker(architecture=architecture)
    others = [make_batch(20, domain=0), make_batch(20, domain=1)]
    own = make_batch(20, domain=TARGET)
    scores = [ranker(batch) for batch in others]
    own_before = ranker(own)
    ranker(own).sum().backward()  # gradients left over from earlier training
    before = fingerprint(ranker, excluding=TARGET)

    parameters = freeze_all_but(ranker, TARGET)
    count = trained_parameter_count(ranker)
    batches = iter([make_batch(30, domain=TARGET) for _ in range(4)])
    fine_tune(ranker, batches, list(ranker.parameters()) if give_all else parameters)

    proof = certificate(before, fingerprint(ranker, excluding=TARGET))
    assert proof.ok
    assert proof.changed == ()
    assert count == sum(parameter.numel() for parameter in ranker.owned(TARGET).parameters())
    ranker.eval()
    assert all(torch.equal(ranker(batch), score) for batch, score in zip(others, scores, strict=True))
    assert not torch.equal(ranker(own), own_before)


def test_a_certificate_names_what_changed(make_ranker: MakeRanker) -> None:
    """A parameter, a buffer and a tensor that came are all told."""
    ranker = make_ranker()
    before = fingerprint(ranker, excluding=TARGET)
    with torch.no_grad():
        ranker.embeddings.free_token.add_(1e-12)
        ranker.embeddings.source_items.codes[3, 0] += 1
    ranker.register_buffer("stranger", torch.zeros(1))
    proof = certificate(before, fingerprint(ranker, excluding=TARGET))
    assert not proof.ok
    assert proof.changed == ("embeddings.free_token", "embeddings.source_items.codes", "stranger")
    assert proof.before_hash != proof.after_hash
    assert len(proof.before) == len(before)


def test_ownership_is_structure(make_ranker: MakeRanker) -> None:
    """Whatever stands under a DomainOwned module, and only under this domain's, is owned; the rest is fingerprinted."""
    ranker = make_ranker()
    ranker.owned(TARGET).extra = torch.nn.Linear(2, 2)  # a part that no list of names knows
    assert isinstance(ranker.owned(TARGET), DomainOwned)
    assert any(parameter is ranker.owned(TARGET).extra.weight for parameter in freeze_all_but(ranker, TARGET))  # type: ignore[union-attr]
    frozen = fingerprint(ranker, excluding=TARGET)
    everything = fingerprint(ranker)
    assert {name for name in everything if name not in frozen} == {
        f"domains.{TARGET}.{name}" for name in ranker.owned(TARGET).state_dict()
    }


def test_frozen_modules_stay_in_evaluation_mode(make_ranker: MakeRanker) -> None:
    """A training loop calls train() each epoch; frozen dropout must still act as in serving."""
    ranker = make_ranker(user_dropout=0.5)
    freeze_all_but(ranker, TARGET)
    ranker.train()
    assert not ranker.training
    assert ranker.owned(TARGET).training
    assert not ranker.owned(0).training
    ranker.eval()
    assert not ranker.owned(TARGET).training
    unfreeze(ranker)
    assert ranker.training
    assert all(parameter.requires_grad for parameter in ranker.parameters())


def test_the_hash_sees_type_shape_and_every_bit() -> None:
    """Also the sign of zero, and half precision, which numpy does not know."""
    hashes = [
        tensor_hash(tensor)
        for tensor in (
            torch.zeros(2, 3),
            torch.zeros(3, 2),
            torch.zeros(2, 3, dtype=torch.int32),
            -torch.zeros(2, 3),
            torch.zeros(2, 3, dtype=torch.bfloat16),
            torch.zeros(()),
            torch.zeros(0),
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert tensor_hash(torch.arange(6.0).view(2, 3).t()) == tensor_hash(torch.arange(6.0).view(2, 3).t().contiguous())


def test_an_extracted_adapter_scores_the_same_where_it_is_attached(
    make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Out of one ranker, into another with the same backbone."""
    ranker, batch = make_ranker(), make_batch(20, domain=TARGET)
    adapter = extract(ranker, TARGET)
    expected = ranker.probability(batch)
    home = make_ranker()
    del home.domains[TARGET]
    home.load_state_dict({k: v for k, v in ranker.state_dict().items() if not k.startswith("domains.2.")})
    slot = attach(home, adapter)
    assert slot == TARGET
    assert torch.equal(home.probability(batch), expected)
    held = sum(tensor.numel() for tensor in adapter.tensors.values() if tensor.is_floating_point())
    assert held >= sum(p.numel() for p in ranker.owned(TARGET).parameters())


def test_an_adapter_is_a_copy(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """Training on does not change what was extracted."""
    ranker = make_ranker()
    adapter = extract(ranker, TARGET)
    tokens = adapter.tensors["tokens"].clone()
    fine_tune(ranker, iter([make_batch(20, domain=TARGET)]), freeze_all_but(ranker, TARGET))
    assert torch.equal(adapter.tensors["tokens"], tokens)


def test_an_adapter_of_another_backbone_is_refused(make_ranker: MakeRanker) -> None:
    """One bit of the backbone is enough; the ranker is left as it was."""
    ranker = make_ranker()
    adapter = extract(ranker, TARGET)
    with torch.no_grad():
        ranker.head.first.bias[0] += 1e-9
    with pytest.raises(AdapterMismatch, match="trained on backbone"):
        attach(ranker, adapter)
    assert len(ranker.domains) == 3


def test_a_tampered_adapter_is_refused(make_ranker: MakeRanker) -> None:
    """Changed numbers, changed config, or tensors that do not fit although the hash was made to."""
    from models.ranker.adapters import adapter_config, content_hash

    ranker = make_ranker()
    adapter = extract(ranker, TARGET)
    changed = {**adapter.tensors, "tokens": adapter.tensors["tokens"] + 1}
    with pytest.raises(AdapterMismatch, match="content hash"):
        attach(ranker, replace(adapter, tensors=changed))
    with pytest.raises(AdapterMismatch, match="content hash"):
        attach(ranker, replace(adapter, config=DomainConfig(adapter.config.items, (0, 0))))
    fewer = {name: tensor for name, tensor in adapter.tensors.items() if name != "tokens"}
    content = content_hash(fewer, adapter_config(adapter.config, adapter.backbone))
    with pytest.raises(AdapterMismatch, match="does not fit"):
        attach(ranker, replace(adapter, tensors=fewer, content=content))
    assert len(ranker.domains) == 3


def test_a_source_domain_belongs_to_the_backbone(make_ranker: MakeRanker) -> None:
    """Its owned part counts in the backbone's hash and is not attached alone; a target's does not count."""
    ranker = make_ranker()
    before = backbone_hash(ranker)
    with torch.no_grad():
        ranker.owned(TARGET).tokens.add_(1)
    assert backbone_hash(ranker) == before
    with pytest.raises(AdapterMismatch, match="part of the backbone"):
        attach(ranker, extract(ranker, 0))
    with torch.no_grad():
        ranker.owned(0).tokens.add_(1)
    assert backbone_hash(ranker) != before


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_pass_over_mixed_domains_equals_a_loop_over_them(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Stacked adapters against each domain's rows alone, several targets among them."""
    ranker = make_ranker(architecture=architecture)
    second = attach(ranker, extract(ranker, TARGET))
    with torch.no_grad():
        ranker.owned(second).tokens.add_(0.5)
    batch = make_batch(40)
    batch = replace(batch, domain=torch.arange(40) % 4)
    # A stored target history belongs to one domain: each row of this batch has its own.
    mixed = ranker.probability(batch, ranker.stack(range(4)))
    for slot in range(4):
        mine = batch.domain == slot
        alone = ranker.probability(batch.rows(mine))
        torch.testing.assert_close(mixed[mine], alone, atol=1e-12, rtol=1e-10)
