"""Folders for timm and Hugging Face, loaded by what they are written for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.networks.zoo import Architecture, architecture
from deevo_ext.population.finding import expand_paths
from deevo_ext.population.population import Population
from deevo_ext.reports.model_folder import README, check_format, write_model_folder
from support import zoo

HALF = (0.5, 0.25, 0.125)
NAMES = ["cat", "dog", "horse"]
TRANSFORMS = [
    None,
    Transform(72, (64, 64), "bilinear", HALF, HALF),
    Transform(65, (64, 64), "bicubic", HALF, HALF),
    Transform((72, 81), (64, 72), "bicubic", HALF, HALF, fit="cover"),
    Transform((64, 64), (64, 64), "bicubic", HALF, HALF),
    Transform((72, 72), (64, 64), "bilinear", HALF, HALF, fit="contain", fill=(128, 64, 32)),
]
UNSAYABLE = [
    Transform((72, 90), (64, 72), "bicubic", HALF, HALF, fit="cover"),
    Transform(72, (64, 70), "bicubic", HALF, HALF),
    Transform(None, (64, 64), "bicubic", HALF, HALF),
    Transform(None, None, "bicubic", HALF, HALF),
    Transform((72, 72), (64, 64), "bilinear", HALF, HALF, fit="contain", fill=(0, 0, 0)),
]


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card that shows a picture."""
    (tmp_path / "curve.png").write_bytes(b"a picture")
    path = tmp_path / "model_card.md"
    path.write_text("![Scores by round](curve.png)\n\nWhat it is.\n")
    return path


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    zoo.torchvision()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_loads_it(name: str, transform: Transform | None, tmp_path: Path, card: Path) -> None:
    import timm
    from PIL import Image

    arguments = {"img_size": 64} if name == "test_vit" else {"drop_rate": 0.2}
    network = architecture(
        f"timm:{name}", num_classes=3, model_args=arguments, transform=transform, seed=1
    )
    if name == "test_vit" and transform is not None and transform.crop != (64, 64):
        pytest.skip("a network of one image size")
    write_model_folder(tmp_path / "out", network, network.model.state_dict(), NAMES, card)
    model = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
    images = torch.randn(2, 3, *network.needs_transform().size_of(300, 300))
    assert torch.equal(model(images), network.model(images))
    assert model.pretrained_cfg["label_names"] == NAMES and model.num_classes == 3
    data = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**data, is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    chosen = network.needs_transform()
    own = (chosen.apply(pixels) / 255 - chosen.mean) / chosen.std
    np.testing.assert_allclose(own.transpose(2, 0, 1), expected(Image.fromarray(pixels)), atol=1e-5)

    again = architecture(f"hf:{tmp_path}/out")  # and so does this package
    assert again.name == f"timm:local-dir:{tmp_path}/out" and again.num_classes is None
    assert again.transform == dataclasses.replace(chosen, fill=chosen.fill)
    [file] = expand_paths([tmp_path / "out"])
    population = Population.from_state_dicts(
        again.model, [network.model.state_dict(), again.model.state_dict()]
    )
    assert file.name == "model.safetensors" and population.size == 2


def test_the_card_has_front_matter_and_says_how_to_load(tmp_path: Path, card: Path) -> None:
    network = architecture("timm:test_resnet", num_classes=3)
    write_model_folder(tmp_path / "out", network, network.model.state_dict(), NAMES, card)
    text = (tmp_path / "out" / README).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in body
    assert ".from_pretrained(" in body and body.rstrip().endswith("What it is.")
    assert "![Scores by round](curve.png)" in body
    assert (tmp_path / "out" / "curve.png").read_bytes() == b"a picture"


def of(name: str, transform: Transform | None = None) -> Architecture:
    return Architecture(name, nn.Identity(), 3, transform)


def test_formats_that_a_network_cannot_have_are_refused() -> None:
    for transform in TRANSFORMS[1:]:
        check_format("timm", of("timm:resnet18", transform))
        check_format("hf", of("timm:resnet18", transform))
    check_format("checkpoint", of("my.module:make"))
    check_format("hf", of("hf:runs/checkpoint-100"))
    for form, name in (
        ("timm", "torchvision:resnet18"),
        ("hf", "my.module:make"),
        ("timm", "hf:runs/checkpoint-100"),
        ("onnx", "timm:resnet18"),
    ):
        with pytest.raises(DeevoError, match=f"format is '{form}'"):
            check_format(form, of(name))
    for transform in UNSAYABLE:
        with pytest.raises(DeevoError, match="timm's config has no words for"):
            check_format("timm", of("timm:resnet18", transform))


def test_transformers_loads_it(tmp_path: Path, card: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = architecture("timm:test_resnet", num_classes=3)
    write_model_folder(tmp_path / "out", network, network.model.state_dict(), NAMES, card)
    model = transformers.AutoModelForImageClassification.from_pretrained(f"{tmp_path}/out").eval()
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(model(images).logits, network.model(images))
    assert [model.config.id2label[i] for i in range(3)] == NAMES


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_folder_of_transformers_comes_back(kind: str, tmp_path: Path, card: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    if kind == "vit":  # whose saved names are not the model's
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 32, "image_size": 40, "patch_size": 8}
    config = transformers.AutoConfig.for_model(kind, **sizes, num_labels=3)
    make = transformers.AutoModelForImageClassification
    models = [make.from_config(config) for _ in range(2)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / "runs" / f"checkpoint-{i}")
    first = tmp_path / "runs" / "checkpoint-0"
    transformers.ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(first)
    file = expand_paths(tmp_path / "runs")[0]
    network = architecture(f"hf:{first}", checkpoint=file)
    population = Population.from_checkpoints(network.model, tmp_path / "runs")
    state = population.state_dict(1)
    write_model_folder(tmp_path / "hf", network, state, NAMES, card)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(loaded(images).logits, models[1].eval()(images).logits)
    assert loaded.config.id2label[2] == "horse"


@pytest.mark.parametrize("names", [NAMES, []])
def test_transformers_loads_what_was_scored(names: list[str], tmp_path: Path, card: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **sizes, intermediate_size=32, image_size=16, patch_size=8, num_labels=5
    )
    config.save_pretrained(tmp_path / "origin")
    arguments = {"hidden_act": "relu", "layer_norm_eps": 0.5}
    network = architecture(f"hf:{tmp_path}/origin", num_classes=3, model_args=arguments)
    write_model_folder(tmp_path / "out", network, network.model.state_dict(), names, card)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images).logits, network.model(images).logits)
    assert [*model.config.id2label.values()] == (names or [f"LABEL_{i}" for i in range(3)])
    assert "`ViTForImageClassification`, 3 classes." in (tmp_path / "out" / README).read_text()


def test_an_image_processor_that_does_other_than_the_transform_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size, name = {"height": 40, "width": 40}, f"hf:{tmp_path}"
    check_format("hf", of(name, TRANSFORMS[1]))  # nothing is said that is not so
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path)
    same = Transform((40, 40), None, "bilinear", (0.5,) * 3, (0.5,) * 3)
    check_format("hf", of(name, same))
    for other in (dataclasses.replace(same, std=HALF), dataclasses.replace(same, crop=(36, 36))):
        with pytest.raises(DeevoError, match=r"format is 'hf'.*preprocessor_config\.json.* does "):
            check_format("hf", of(name, other))
        check_format("checkpoint", of(name, other))
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(DeevoError, match=r"cannot be compared.*do_flip_channel_order is True"):
        check_format("hf", of(name, same))
