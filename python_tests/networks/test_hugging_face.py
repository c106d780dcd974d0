"""Transforms of Hugging Face folders, against transformers' own image processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.networks.hugging_face import transform_of
from deevo_ext.networks.zoo import architecture
from support import zoo

zoo.torchvision()
transformers = pytest.importorskip("transformers")

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MOBILE = {"do_flip_channel_order": False, "size": 40, "crop_size": 32, "resample": 2}


def write(folder: Path, kind: str, **settings: Any) -> Path:
    said = {"image_processor_type": f"{kind}ImageProcessor", **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": 32}),  # a square, although it is one number
        ("ViT", {"size": {"height": 24, "width": 32}, "resample": 3, **IMAGENET}),
        ("ViT", {"size": 32, "do_normalize": False}),
        ("ViT", {"size": 32, "do_rescale": False, "image_mean": 127.5, "image_std": 127.5}),
        ("DeiT", {"size": 40, "crop_size": 32}),
        ("Beit", {"size": 32}),
        ("Pvt", {"size": 32}),
        ("Segformer", {"size": 32}),
        ("Siglip", {"size": {"height": 32, "width": 32}}),
        ("Bit", {"size": 32, "crop_size": 32}),
        ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": 24}),
        ("MobileNetV1", {"size": 40, "crop_size": 32}),
        ("MobileNetV2", {"size": 40, "crop_size": 32}),
        ("MobileViT", {**MOBILE, "do_normalize": False}),
        ("ConvNext", {"size": 224, "crop_pct": 0.875, "resample": 3, **IMAGENET}),
        ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
        ("ConvNext", {"size": 384}),
        ("EfficientNet", {"size": 32, "include_top": False, **IMAGENET}),
        ("EfficientNet", {"size": 32, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ],
)
@pytest.mark.parametrize("width", [60, 80])
def test_pixels_are_those_of_the_image_processor(
    tmp_path: Path, kind: str, settings: dict[str, Any], width: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, width // 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((width, 60))
    transform = transform_of(write(tmp_path, kind, **settings))
    assert transform is not None
    image = torch.from_numpy(transform.apply(picture).copy()).permute(2, 0, 1)[None]
    normalise = Preprocessing(transform.mean, transform.std).normalise
    mine = normalise(image, torch.device("cpu"))[0]
    # Of two kinds of each, the one that resizes by Pillow, as a Transform does.
    name = f"{kind}ImageProcessor"
    own = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    theirs = own.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    # Float32 rounds a few times; one level of a pixel is 1/255 of what black and white differ by.
    level = 1 / 255 / max(transform.std)
    torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=level / 100)


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("MobileViT", {**MOBILE, "do_flip_channel_order": True}, "do_flip_channel_order is True"),
        ("MobileViT", {"size": 40}, "do_flip_channel_order is True"),  # as transformers has it
        ("ViT", {"size": 32, "resample": 9}, "resample is 9"),
        ("ViT", {"size": 32, "image_mean": [0.5]}, r"image_mean is .0\.5"),
        ("ViT", {"size": {"longest_edge": 32}}, "size is "),
        ("ViT", {"size": {"side": 32}}, "transformers makes no image processor of it"),
        ("Bit", {"size": 32, "do_pad": True}, "do_pad is True"),
        ("ConvNext", {"size": 32, "do_center_crop": True, "crop_size": 32}, "do_center_crop is"),
        ("PoolFormer", {"size": 32}, "image_processor_type is 'PoolFormerImageProcessor'"),
    ],
)
def test_what_no_transform_does_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(DeevoError, match=rf"preprocessor_config\.json: {named}.*--transform FILE"):
        transform_of(write(tmp_path, kind, **settings))


def test_a_folder_may_say_nothing_or_little(tmp_path: Path) -> None:
    assert transform_of(tmp_path) is None
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32}))
    with pytest.raises(DeevoError, match=r"image_processor_type.*--transform FILE"):
        transform_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))  # says the kind
    transform = transform_of(tmp_path)
    assert transform is not None and transform.resize == (32, 32)


def test_a_name_has_the_folder_that_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    config.save_pretrained(tmp_path / "origin")
    assert architecture("hf:~/origin").name == f"hf:{tmp_path}/origin"


def test_a_config_of_half_precision_makes_a_float32_network(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig(hidden_sizes=[8], depths=[1], num_stages=1, num_labels=3)
    halved = transformers.ConvNextForImageClassification(config).half()
    halved.save_pretrained(tmp_path)
    model = architecture(f"hf:{tmp_path}", checkpoint=tmp_path / "model.safetensors").model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert model(torch.randn(2, 3, 16, 16)).logits.shape == (2, 3)
    # The config, which an exported folder has, goes on saying how the weights are kept.
    assert json.loads(model.config.to_json_string())["dtype"] == "float16"
