"""Checkpoints that transformers writes, whose names are not always those of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deevo_ext import Population
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import architecture
from deevo_ext.population.naming import Naming
from deevo_ext.population.saved_names import saved_names
from support import zoo
from support.evolution import same_weights as same

zoo.torchvision()
transformers = pytest.importorskip("transformers")

_PLAIN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
_PLAIN |= {"patch_size": 8, "intermediate_size": 32}
_STAGES = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "window_size": 2}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("vit", _PLAIN),
        ("vit_msn", _PLAIN),
        ("beit", _PLAIN),
        ("dinov2", _PLAIN),
        ("swin", {**_STAGES, "image_size": 16, "patch_size": 2}),
        ("segformer", {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 2, 2]}),
        ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    ],
)
def test_files_that_transformers_writes_fit_its_models(
    kind: str, sizes: dict[str, Any], tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(kind, **sizes, num_labels=3)
    make = transformers.AutoModelForImageClassification
    models = [make.from_config(config) for _ in range(2)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / f"{i}")
        torch.save(model.state_dict(), tmp_path / f"{i}.pth")
    saved = [tmp_path / f"{i}" / "model.safetensors" for i in range(2)]
    network = architecture(f"hf:{tmp_path}/0", checkpoint=saved[0]).model
    renamed = load_file(saved[0]).keys() != network.state_dict().keys()
    assert renamed == (kind != "resnet") == bool(saved_names(network))
    with torch.device("meta"):
        unmade = make.from_config(config)
    assert saved_names(unmade) == saved_names(network)
    for files in (saved, [saved[0], tmp_path / "1.pth"], sorted(tmp_path.glob("*.pth"))):
        population = Population.from_checkpoints(network, files)
        for i, model in enumerate(models):
            assert same(population.state_dict(i), model.state_dict())
    for states in ([load_file(file) for file in saved], [model.state_dict() for model in models]):
        population = Population.from_state_dicts(network, states)
        assert same(population.state_dict(1), models[1].state_dict())
    # What comes back is under the first file's names.
    population = Population.from_checkpoints(network, saved)
    named = Naming.of_population(population).named(population.state_dict(1))
    assert same(named, load_file(saved[1]))


@pytest.mark.parametrize("failure", [RuntimeError(), AttributeError("of an older class")])
def test_names_are_the_models_own_where_it_cannot_be_saved(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**_PLAIN))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    model.save_pretrained(tmp_path)

    def cannot(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", cannot)
    arch = f"hf:{tmp_path}"
    assert not architecture(arch, checkpoint=tmp_path / "own.pth").names
    with pytest.raises(DeevoError, match=r"missing: .*decide the model$"):
        architecture(arch, checkpoint=tmp_path / "model.safetensors")


def test_every_rank_is_told_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**_PLAIN))
    alone, before = saved_names(model), set(vars(model))
    mixin = pytest.importorskip("transformers.distributed.mixin")
    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    assert alone and saved_names(model) == alone
    assert set(vars(model)) == before


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**_PLAIN))
    model.save_pretrained(tmp_path)
    file, wider = tmp_path / "model.safetensors", {"intermediate_size": 64}
    with pytest.raises(DeevoError, match=r"of another shape: .*decide the model$"):
        architecture(f"hf:{tmp_path}", checkpoint=file, model_args=wider)
