"""What documents say of a network's use: code that loads it, and the images that it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deevo_ext.data.cached import CachedImages
from deevo_ext.data.transform import Transform
from deevo_ext.networks.zoo import architecture
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.naming import Naming
from deevo_ext.population.saved_names import with_saved_names
from deevo_ext.reports.loading import images_text, loading_code, pictures_text
from support import zoo
from support.evolution import images, save_members
from support.networks import Net


@pytest.mark.parametrize("prefix", ["", "student."])
@pytest.mark.parametrize(
    "arch",
    [
        "support.networks:Net",
        "torchvision:shufflenet_v2_x0_5",
        "timm:test_resnet",
    ],
)
def test_the_code_loads_the_network(arch: str, prefix: str, tmp_path: Path) -> None:
    network = architecture(arch, num_classes=None if arch.startswith("support") else 4, seed=3)
    state = network.model.state_dict()
    file = tmp_path / """a "new" one\\nearly's.safetensors"""
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in state.items()}, file)
    naming = Naming.of_file(file, NameOptions(), state.keys())
    names: dict = {}
    exec(loading_code(file, naming, network), names)
    loaded = names["model"]
    assert not loaded.training and type(loaded) is type(network.model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_network_without_a_name_and_names_of_another_kind(tmp_path: Path) -> None:
    file = save_members(tmp_path / "c", 1) / "m0.safetensors"
    state = load_file(file)
    code = loading_code(file, Naming.of_file(file, NameOptions(), state.keys()), None)
    names: dict = {}
    exec(code.replace("...", "Net()"), {"Net": Net} | names, names)
    model = names["model"].state_dict()
    assert all(torch.equal(tensor, model[name]) for name, tensor in state.items())
    others = Naming({name: f"{i}" for i, name in enumerate(state)}, {}, ())
    assert "# The file's names are the checkpoints'" in loading_code(file, others, None)
    more = Naming({name: name for name in state}, {"n_averaged": torch.ones(1)}, ())
    assert "load_state_dict(state, strict=False)" in loading_code(file, more, None)
    # Names that are not the model's must not pass for tensors that it does not have.
    others = Naming(others.names, {"n_averaged": torch.ones(1)}, ())
    assert "load_state_dict(state)" in loading_code(file, others, None)


def test_the_code_makes_a_network_of_transformers_as_it_was_made(tmp_path: Path) -> None:
    zoo.torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTConfig(
        **sizes, intermediate_size=32, image_size=16, patch_size=8
    ).save_pretrained(tmp_path / 'my "new" origin')
    arguments = {"hidden_act": "relu", "layer_norm_eps": 0.5}
    network = architecture(f'hf:{tmp_path}/my "new" origin', num_classes=3, model_args=arguments)
    state, file = network.model.state_dict(), tmp_path / "evolved.safetensors"
    save_file(state, file)
    names: dict = {}
    exec(loading_code(file, Naming.of_file(file, NameOptions(), state.keys()), network), names)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(names["model"](images).logits, network.model(images).logits)


def test_the_code_takes_files_under_the_names_that_transformers_saves(tmp_path: Path) -> None:
    zoo.torchvision()
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=32, image_size=16, patch_size=8)
    given = transformers.ViTForImageClassification(config).eval()
    given.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    network = architecture(f"hf:{tmp_path}", checkpoint=file)
    model = network.model
    naming = Naming.of_file(file, with_saved_names(NameOptions(), model), model.state_dict().keys())
    names: dict = {}
    exec(loading_code(file, naming, network), names)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(names["model"](images).logits, given(images).logits)
    assert not names["model"].training


def test_size_and_normalisation_are_said() -> None:
    floats = images_text(images(4), None)
    assert floats == "Images are 1 x 10 x 10 (channels, height, width), as the run was given them."
    pixels = torch.zeros(2, 5, 6, 3, dtype=torch.uint8)
    cached = CachedImages(pixels, torch.arange(2), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "cached")
    said = images_text(cached, None)
    assert "Images are 3 x 5 x 6" in said and "mean [0.1, 0.2, 0.3], deviation [0.4, 0.5" in said
    transform = Transform(40, (32, 30), "bicubic", (0.5,), (0.25,))
    assert images_text(cached, transform) == "Images are 3 x 5 x 6. " + pictures_text(transform)
    assert pictures_text(transform) == (
        "Pictures are resized to 40 (shorter side, bicubic), cropped to 32 x 30, normalised: mean "
        "[0.5], deviation [0.25] of values in 0..1."
    )
    bent = Transform((40, 36), (32, 30), "bicubic", (0.5,), (0.25,))
    assert "Pictures are resized to 40 x 36 (bicubic), cropped" in pictures_text(bent)
    for fit, how in (("cover", "to cover"), ("contain", "to be contained in")):
        framed = replace(bent, fit=fit, fill=(9,), exif=True)
        assert pictures_text(framed).startswith(
            f"Pictures are turned as their EXIF orientation says, resized {how} 40 x 36 (bicubic), "
            "cropped to 32 x 30 (what is missing is [9]), normalised"
        )
    assert images_text(None, None) == ""
