"""Architectures by name, their transforms against torchvision's and timm's own, and what fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deevo_ext import ImageSet
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.networks.transforms import of_timm, of_torchvision
from deevo_ext.networks.zoo import architecture, check_fit
from support import zoo
from support.convolutional import CifarResNet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    zoo.torchvision()


def of_classes(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(num_classes))


def of_one_size() -> nn.Module:
    return CifarResNet(1, 10)


def of_nothing() -> str:
    return "no module"


def _pictures() -> list[np.ndarray]:
    from skimage import data

    return [
        data.chelsea(),  # 300x451
        data.coffee()[:, :333],  # taller than wide
        data.camera(),  # grey
        data.astronaut()[:100, :120],  # smaller than most crops
        data.rocket(),
    ]


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
def test_torchvisions_transform_is_met_byte_for_byte(name: str) -> None:
    import torchvision
    from PIL import Image
    from torchvision.transforms import functional

    weights = torchvision.models.get_model_weights(name)
    for given in (None, *weights.__members__):
        # Only the transform is of interest here; building every model would take minutes.
        preset = (weights[given] if given else weights.DEFAULT).transforms()
        transform = of_torchvision(preset)
        for picture in _pictures():
            image = Image.fromarray(picture).convert("RGB")
            expected = functional.resize(image, preset.resize_size, preset.interpolation)
            expected = functional.center_crop(expected, preset.crop_size)
            found = transform.apply(picture if picture.ndim == 3 else image)
            np.testing.assert_array_equal(found, np.asarray(expected))
            normal = (found / 255 - transform.mean) / transform.std
            np.testing.assert_allclose(normal.transpose(2, 0, 1), preset(image), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18.a1_in1k", "convnext_atto.d2_in1k", "mobilenetv4_conv_small.e2400_r224_in1k"]
)
def test_timms_transform_is_met_byte_for_byte(name: str) -> None:
    from PIL import Image

    found = architecture(f"timm:{name}")
    import timm

    config = timm.data.resolve_model_data_config(found.model)
    expected = timm.data.create_transform(**config, is_training=False)
    assert found.transform is not None and found.name == f"timm:{name}"
    for picture in _pictures():
        image = Image.fromarray(picture).convert("RGB")
        normal = (found.transform.apply(image) / 255 - found.transform.mean) / found.transform.std
        np.testing.assert_allclose(normal.transpose(2, 0, 1), expected(image), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("mode", ["center", "squash", "border", None])
def test_timms_crop_modes_are_met_byte_for_byte(
    mode: str | None, crop_pct: float, interpolation: str
) -> None:
    import timm
    from PIL import Image

    for size, mean in (((96, 96), MEAN), ((120, 64), (0.5, 0.25, 1.0)), ((97, 150), MEAN)):
        model = nn.Identity()
        model.pretrained_cfg = {  # type: ignore[assignment]
            "input_size": (3, *size),
            "crop_pct": crop_pct,
            "crop_mode": mode,
            "interpolation": interpolation,
            "mean": mean,
            "std": STD,
        }
        found = of_timm(model, "any")
        config = timm.data.resolve_model_data_config(model)
        expected = timm.data.create_transform(**config, is_training=False, normalize=False)
        for picture in _pictures():
            image = Image.fromarray(picture).convert("RGB")
            pixels = found.apply(image)
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected(image).numpy())
            assert pixels.shape[:2] == found.size_of(image.height, image.width) == size
        again = json.loads(json.dumps({**found.__dict__}))
        assert Transform.from_mapping(again, "its own values") == found


def test_pixels_name_what_decides_them() -> None:
    half = ((0.5,) * 3, (0.5,) * 3)
    plain = Transform((9, 9), (8, 8), "bilinear", *half)
    assert plain.pixels() == Transform((9, 9), (8, 8), "bilinear", *half, fill=(0, 0, 0)).pixels()
    others = [
        Transform((9, 9), (8, 8), "bilinear", *half, fit="contain"),
        Transform((9, 9), (8, 8), "bilinear", *half, fit="cover"),
        Transform((9, 9), (8, 8), "bilinear", *half, fill=(9, 0, 0)),
        plain,
    ]
    assert len({json.dumps(transform.pixels()) for transform in others}) == 4
    for wrong in ({"fit": "stretch"}, {"fill": (0, 0)}, {"fill": (0, 0, 256)}):
        with pytest.raises(DeevoError, match="fit \\(bend, cover, contain\\)"):
            Transform((9, 9), (8, 8), "bilinear", *half, **wrong)  # type: ignore[arg-type]
    with pytest.raises(DeevoError, match="fit"):
        Transform(9, (8, 8), "bilinear", *half, fit="contain")


def test_squashing_and_padding_are_torchvisions() -> None:
    from PIL import Image
    from torchvision.transforms import functional

    for resize, crop in (((40, 90), (31, 31)), (None, (301, 452)), (20, (33, 40)), (57, None)):
        transform = Transform(resize, crop, "bicubic", (0.5,) * 3, (0.5,) * 3)
        for picture in _pictures():
            image = expected = Image.fromarray(picture).convert("RGB")
            if resize is not None:
                size = [resize] if isinstance(resize, int) else list(resize)
                expected = functional.resize(
                    image, size, functional.InterpolationMode.BICUBIC, antialias=True
                )
            if crop is not None:
                expected = functional.center_crop(expected, list(crop))
            found = transform.apply(image)
            np.testing.assert_array_equal(found, np.asarray(expected))
            assert found.shape[:2] == transform.size_of(image.height, image.width)
    grey = Transform(None, None, "bilinear", (0.5,), (0.5,))
    assert grey.apply(_pictures()[2]).shape == (512, 512, 1)
    assert np.array_equal(grey.apply(_pictures()[2])[:, :, 0], _pictures()[2])


def test_names_find_their_networks() -> None:
    found = architecture("resnet18", num_classes=7)
    assert found.name == "torchvision:resnet18" and found.num_classes == 7
    assert found.model(torch.zeros(1, 3, 32, 32)).shape == (1, 7) and not found.model.training
    assert architecture("resnet10t").name == "timm:resnet10t"  # torchvision has no such
    assert architecture("timm:resnet18").transform != found.transform
    by_function = architecture(f"{__name__}:of_one_size")
    assert isinstance(by_function.model, CifarResNet) and by_function.transform is None
    with pytest.raises(DeevoError, match=r"--transform FILE.*crop"):
        by_function.needs_transform()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_normalise_do_so_as_torchvisions_with_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    whole = models.get_model(name, aux_logits=True, init_weights=False).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: whole)
    own = models.get_model(name, weights="DEFAULT").eval()
    plain = {"init_weights": False, "aux_logits": False}
    made = architecture(name, model_args=plain)
    made.model.load_state_dict(own.state_dict(), strict=False)
    image = zoo.pictures(1, 96)
    with torch.no_grad():
        assert torch.equal(made.model(image), own(image))
    assert made.arguments["transform_input"] is True  # for whoever makes it again
    told = architecture(name, model_args={**plain, "transform_input": False})
    assert told.arguments["transform_input"] is False


def test_weights_name_their_transform(tmp_path: Path) -> None:
    old = architecture("resnet50", transform="IMAGENET1K_V1").transform
    new = architecture("resnet50").transform
    assert old is not None and new is not None
    assert old.resize == 256 and new.resize == 232 and old.crop == new.crop == (224, 224)
    values = {"resize": 40, "crop": 32, "mean": MEAN, "std": STD}
    (tmp_path / "t.json").write_text(json.dumps(values))
    (tmp_path / "t.toml").write_text(f"resize = 40\ncrop = 32\nmean = {MEAN}\nstd = {STD}\n")
    for name in ("t.json", "t.toml"):
        found = architecture("resnet18", transform=tmp_path / name).transform
        assert found == Transform(40, (32, 32), "bilinear", tuple(MEAN), tuple(STD))


def test_checkpoints_tell_the_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "tuned.pth"
    torch.save({"model": architecture("resnet18", num_classes=7).model.state_dict()}, path)
    found = architecture("resnet18", checkpoint=path)
    assert found.num_classes == 7
    found.model.load_state_dict(torch.load(path)["model"])
    wrapped = {f"model.{n}": t for n, t in found.model.state_dict().items()}
    torch.save({"state_dict": wrapped, "pytorch-lightning_version": "2.5.0"}, path)
    lightning = architecture("resnet18", checkpoint=path)
    assert lightning.num_classes == 7 and lightning.names == "'model.' is taken off the names"


def test_checkpoints_of_another_network_are_refused_by_all_that_differs(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(architecture("resnet34", num_classes=7).model.state_dict(), path)
    with pytest.raises(DeevoError, match=r"unexpected: 'layer1\.2\.conv1\.weight'") as caught:
        architecture("resnet18", checkpoint=path)
    assert "missing" not in str(caught.value) and "classes" not in str(caught.value)
    torch.save(architecture("resnet18", num_classes=7).model.state_dict(), path)
    with pytest.raises(
        DeevoError, match=r"missing: 'layer1\.0\.conv3\.weight'.* shape: "
    ) as caught:
        architecture("resnet50", checkpoint=path)
    assert "classes" not in str(caught.value)
    torch.save(CifarResNet(1, 7).state_dict(), path)  # the factory knows one number of classes
    with pytest.raises(DeevoError, match="it has 7 classes where the model has 10"):
        architecture(f"{__name__}:of_one_size", checkpoint=path)


def test_what_cannot_be_had_is_said(tmp_path: Path) -> None:
    for arch, message in (
        ("torchvision:resnet51", "no classifier 'resnet51'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        ("timm:nonsense", "timm has no model 'nonsense'"),
        ("nonsense", "'nonsense': neither torchvision nor timm"),
        ("no.such.module:make", "cannot import no.such.module"),
        (f"{__name__}:absent", "no function absent"),
        (f"{__name__}:of_nothing", "returned a str"),
    ):
        with pytest.raises(DeevoError, match=message):
            architecture(arch)
    with pytest.raises(DeevoError, match="one of the weights of resnet18: IMAGENET1K_V1"):
        architecture("resnet18", transform="IMAGENET1K_V9")
    for text, message in (
        ("[1]", "holds a list"),
        ("{", "not a readable"),
        ('{"mean": [0.5], "std": [0.5], "size": 3}', "unknown size"),
        ('{"crop": 3}', "without mean, std"),
        ('{"mean": [0.5], "std": [0], "crop": 3}', "transform is"),
        ('{"mean": [0.5], "std": [0.5], "crop": [3]}', "not .height, width"),
        ('{"mean": [0.5], "std": [0.5], "interpolation": "cubic"}', "bicubic"),
        ('{"mean": 0.5, "std": 0.5}', "not iterable"),
    ):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(DeevoError, match=message):
            Transform.from_file(tmp_path / "t.json")


def test_everything_that_does_not_fit_is_in_one_error() -> None:
    images = ImageSet(torch.zeros(5, 3, 32, 32), torch.tensor([0, 1, 2, 9, 3]), "photos")
    good = architecture(f"{__name__}:of_one_size")
    check_fit(good, images, [str(i) for i in range(10)])
    check_fit(good, images, [])  # of a dataset that names no classes
    with pytest.raises(DeevoError, match="10 classes, but the images have 12"):
        check_fit(good, images, [str(i) for i in range(12)])
    small = architecture(f"{__name__}:of_classes", num_classes=4)
    with pytest.raises(DeevoError, match="4 classes, but photos have label 9"):
        check_fit(small, images)
    odd = architecture("resnet18", num_classes=3)
    with pytest.raises(DeevoError, match=r"3x32x32, but the transform gives 3x224x224; .*label 9"):
        check_fit(odd, images)
    grey = ImageSet(torch.zeros(5, 1, 32, 32), images.labels, "grey")
    with pytest.raises(DeevoError, match=r"failed on grey of shape \(1, 32, 32\)"):
        check_fit(good, grey)
