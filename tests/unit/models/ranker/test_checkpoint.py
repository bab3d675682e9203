"""Artifacts on disk: whole or not there, and never other than what was published."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.batch import Batch
from models.ranker.adapters import AdapterMismatch, adapter_config, backbone_hash, extract
from models.ranker.checkpoint import (
    CorruptCheckpoint,
    load,
    load_adapter,
    load_backbone,
    load_into,
    save,
    save_adapter,
    save_backbone,
)
from models.ranker.network import Ranker

MakeBatch = Callable[..., Batch]
MakeRanker = Callable[..., Ranker]
TARGET = 2
NAMED = {"name": "live-rooms", "level": "adapter"}


@pytest.mark.parametrize("architecture", ["dacdr", "dacdr+lcn"])
def test_a_published_domain_answers_as_it_did(
    architecture: str, tmp_path: Path, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Backbone and adapter to disk and back: bit-equal scores of source and target rows."""
    ranker, batch = make_ranker(architecture=architecture).float(), make_batch(30)
    batch = batch.to("cpu")
    backbone = save_backbone(ranker, tmp_path / "backbone")
    save_adapter(ranker, TARGET, tmp_path / "adapter", **NAMED)
    loaded = load_backbone(tmp_path / "backbone")
    assert backbone == backbone_hash(ranker) == backbone_hash(loaded)
    assert not loaded.training
    assert load_into(loaded, tmp_path / "adapter", backbone=backbone) == TARGET
    with torch.no_grad():
        assert torch.equal(loaded(batch), ranker(batch))


def test_an_adapter_keeps_its_identity(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """Its content hash is the same in memory, on disk and back."""
    ranker = make_ranker()
    content = save_adapter(ranker, TARGET, tmp_path / "adapter", **NAMED)
    assert content == extract(ranker, TARGET, **NAMED).content == load_adapter(tmp_path / "adapter").content


def test_equal_weights_of_two_domains_are_two_adapters(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """Surfaces over one catalogue start from the same weights, and so do the levels of one domain."""
    ranker = make_ranker()
    owners = [("feed", "zero_shot"), ("search", "zero_shot"), ("feed", "adapter")]
    made = {
        save_adapter(ranker, TARGET, tmp_path / f"{name}-{level}", name=name, level=level) for name, level in owners
    }
    assert len(made) == len(owners)
    for name, level in owners:
        assert load_into(ranker, tmp_path / f"{name}-{level}") > TARGET
        assert load_adapter(tmp_path / f"{name}-{level}").name == name


def test_an_adapter_that_names_no_domain_still_loads(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """Artifacts that were published before the name counted keep their hash."""
    ranker = make_ranker()
    old = extract(ranker, TARGET)
    save(tmp_path / "old", old.tensors, adapter_config(old.config, old.backbone))
    assert load_adapter(tmp_path / "old").content == old.content
    assert load_into(ranker, tmp_path / "old") == TARGET + 1


def test_an_adapter_loads_on_no_other_backbone(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """The mismatch is found at loading."""
    ranker = make_ranker()
    save_adapter(ranker, TARGET, tmp_path / "adapter", **NAMED)
    with torch.no_grad():
        ranker.embeddings.free_token.add_(1)
    with pytest.raises(AdapterMismatch, match="trained on backbone"):
        load_into(ranker, tmp_path / "adapter")


def test_publishing_twice_is_harmless_and_never_overwrites(tmp_path: Path) -> None:
    """The same content again changes nothing; other content is refused."""
    first = save(tmp_path / "a", {"x": torch.ones(2)}, {"width": 3})
    assert save(tmp_path / "a", {"x": torch.ones(2)}, {"width": 3}) == first
    with pytest.raises(FileExistsError, match="another artifact"):
        save(tmp_path / "a", {"x": torch.zeros(2)}, {"width": 3})
    assert torch.equal(load(tmp_path / "a")[0]["x"], torch.ones(2))


def test_a_failed_publication_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks before the rename, neither the folder nor a draft of it stays."""

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("models.ranker.checkpoint.os.rename", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "a", {"x": torch.ones(2)}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path) -> None:
    """RowGroups and transposes come back as what they showed."""
    base = torch.arange(6.0).view(2, 3)
    save(tmp_path / "a", {"base": base, "turned": base.t(), "row": base[0]}, {})
    tensors, _ = load(tmp_path / "a")
    assert torch.equal(tensors["turned"], base.t())
    assert torch.equal(tensors["row"], base[0])


def test_a_config_comes_back_as_json_knows_it(tmp_path: Path) -> None:
    """Tuples become lists before hashing, so the hash holds after reading."""
    save(tmp_path / "a", {"x": torch.ones(1)}, {"sizes": (1, 2)})
    assert load(tmp_path / "a")[1] == {"sizes": [1, 2]}


def damage_bytes(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-3])


def edit_config(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["config"]["width"] = 9
    (folder / "config.json").write_text(json.dumps(document))


def of_the_future(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["format"] = 99
    (folder / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_bytes, "model.safetensors"),
        (truncate, "model.safetensors"),
        (edit_config, "model.safetensors"),
        (of_the_future, "format 99"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
    ],
)
def test_damage_is_found_and_the_file_named(damage: Callable[[Path], object], named: str, tmp_path: Path) -> None:
    """One flipped bit, a cut, an edit, a missing or unreadable file."""
    save(tmp_path / "a", {"x": torch.ones(8)}, {"width": 3})
    damage(tmp_path / "a")
    with pytest.raises(CorruptCheckpoint, match=named) as fault:
        load(tmp_path / "a")
    assert fault.value.path.parent == tmp_path / "a"


def test_a_backbone_is_not_an_adapter(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """Each loader says what it found instead."""
    ranker = make_ranker()
    save_backbone(ranker, tmp_path / "backbone")
    save_adapter(ranker, TARGET, tmp_path / "adapter", **NAMED)
    with pytest.raises(CorruptCheckpoint, match="describes 'backbone', not an adapter"):
        load_adapter(tmp_path / "backbone")
    with pytest.raises(CorruptCheckpoint, match="describes 'adapter', not a backbone"):
        load_backbone(tmp_path / "adapter")


def test_tensors_that_do_not_make_the_ranker_are_told(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """A well-hashed artifact whose config asks for other tensors."""
    from models.ranker.adapters import backbone_config, backbone_tensors

    ranker = make_ranker()
    config = backbone_config(ranker)
    config["ranker"]["width"] = 16
    save(tmp_path / "backbone", backbone_tensors(ranker), config)
    with pytest.raises(CorruptCheckpoint, match="do not make a ranker"):
        load_backbone(tmp_path / "backbone")


def test_nothing_is_pickled(tmp_path: Path, make_ranker: MakeRanker) -> None:
    """The folder holds tensors and JSON alone."""
    save_backbone(make_ranker(), tmp_path / "backbone")
    assert sorted(file.name for file in (tmp_path / "backbone").iterdir()) == ["config.json", "model.safetensors"]
    for file in (Path(__file__).parents[4] / "models").rglob("*.py"):
        assert "import pickle" not in file.read_text(encoding="utf-8")
