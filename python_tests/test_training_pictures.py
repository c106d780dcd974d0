"""Augmentation of training pictures against torchvision's transforms and the papers' formulas."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.training import pictures
from deevo_ext.training.augment import erase
from deevo_ext.training.mixing import draw_mixing
from deevo_ext.training.pictures import change_pictures, draw_crop, trivial_operation
from deevo_ext.training.recipes import Choices, Recipe
from support import zoo


@pytest.fixture
def v2() -> Any:
    zoo._torchvision()
    from torchvision.transforms import v2

    return v2


def _noise(count: int = 6, channels: int = 3, height: int = 40, width: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", pictures.OPERATIONS)
def test_trivial_augment_is_torchvisions(name: str, v2: Any) -> None:
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert list(space) == list(pictures.OPERATIONS)
    magnitudes, signed = space[name]
    values = magnitudes(31, 40, 56)
    (image,) = _noise(1)
    for index in range(31):
        for negative in {False, signed}:
            value = 0.0 if values is None else float(values[index]) * (-1 if negative else 1)
            expected = v2.TrivialAugmentWide()._apply_image_or_video_transform(
                image, name, value, v2.InterpolationMode.NEAREST, {torch.Tensor: None}
            )
            found = trivial_operation(v2.functional, image, name, index, negative)
            assert torch.equal(found, expected), (index, negative)


def test_crops_are_drawn_as_torchvisions() -> None:
    generator = _seeded()
    shares, ratios = [], []
    for _ in range(3000):
        tries = torch.rand(20, 2, generator=generator, dtype=torch.float64).tolist()
        place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        top, left, h, w = draw_crop(0.3, 200, 200, tries, place)
        assert top >= 0 and left >= 0 and top + h <= 200 and left + w <= 200
        shares.append(h * w / 200**2)
        ratios.append(w / h)
    # Sides are whole numbers of pixels: a share is off by half a pixel on each of two sides.
    assert 0.3 - 0.01 < min(shares) < 0.32 and max(shares) > 0.95
    assert min(ratios) > 0.75 * 0.98 and max(ratios) < 4 / 3 * 1.02
    # Small shares always fit, whatever their proportions: there, they are uniform.
    low = sum(0.3 <= s < 0.4 for s in shares) / sum(0.3 <= s < 0.5 for s in shares)
    assert abs(low - 0.5) < 4 * (0.25 / 800) ** 0.5
    assert draw_crop(0.3, 40, 400, [[0.9, 0.5]], [0.0, 0.0]) == (0, 0, 40, 400)


def test_crop_and_jitter_are_the_named_operations_on_each_image(v2: Any) -> None:
    images = _noise()
    found = change_pictures(images, 0.3, 0.0, False, _seeded())
    again = change_pictures(images, 0.3, 0.0, False, _seeded())
    assert torch.equal(found, again) and found.dtype == torch.uint8 and found.shape == images.shape
    assert not torch.equal(found, change_pictures(images, 0.3, 0.0, False, _seeded(4)))
    # Constant pictures stay: nothing comes in from outside, and colours are not touched.
    flat = torch.full_like(images, 77)
    assert torch.equal(change_pictures(flat, 0.3, 0.0, False, _seeded()), flat)
    # Grey of one value changes by brightness alone; contrast and saturation keep it.
    values = change_pictures(flat, 0.0, 0.2, False, _seeded()).flatten(1).float()
    assert torch.equal(values.min(1).values, values.max(1).values)
    factors = values[:, 0] / 77
    # Brightness rounds to whole values.
    assert factors.min() >= 0.8 - 1 / 77 and factors.max() <= 1.2 + 1 / 77
    assert len(factors.unique()) > 3
    grey = change_pictures(_noise(channels=1), 0.5, 0.2, True, _seeded())
    assert grey.shape == (6, 1, 40, 56)


def test_pictures_in_front_do_not_change_for_those_behind(v2: Any) -> None:
    images = _noise()
    other = images.clone()
    other[0] = 255 - other[0]
    a = change_pictures(images, 0.4, 0.3, True, _seeded())
    b = change_pictures(other, 0.4, 0.3, True, _seeded())
    assert torch.equal(a[1:], b[1:]) and not torch.equal(a[0], b[0])


def test_what_cannot_be_done_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _noise()
    assert change_pictures(images.float(), 0, 0, False, _seeded()).dtype == torch.float32
    with pytest.raises(DeevoError, match="uint8 images, as a cache"):
        change_pictures(images.float(), 0.3, 0, False, _seeded())
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    with pytest.raises(DeevoError, match=r'pip install "deevo_ext\[imagenet\]"; or leave'):
        change_pictures(images, 0.3, 0, False, _seeded())


def test_erasing_overwrites_one_rectangle_of_some_images() -> None:
    images = torch.full((2000, 2, 24, 32), 9, dtype=torch.uint8)
    found = erase(images, 0.4, (1, 2), _seeded())
    gone = found != images
    assert torch.equal(gone[:, 0], gone[:, 1]) and bool((images == 9).all())
    assert set(found[:, 0].unique().tolist()) == {1, 9}
    erased = gone[:, 0].flatten(1).any(1)
    # Four standard errors of 2,000 draws.
    assert abs(float(erased.float().mean()) - 0.4) < 4 * (0.24 / 2000) ** 0.5
    for image in gone[erased, 0]:
        rows, columns = image.any(1), image.any(0)
        assert int(image.sum()) == int(rows.sum()) * int(columns.sum())  # full: a rectangle
        assert int(torch.diff(rows.int()).abs().sum()) <= 2  # and in one piece
    shares = gone[erased, 0].float().mean((1, 2))
    # Sides of an area drawn are rounded to pixels; a side longer than the image is cut.
    assert shares.max() < 1 / 3 + 0.04 and shares.min() > 0.005
    assert torch.equal(erase(images, 0.0, (1, 2), _seeded()), images)


def test_cutmix_replaces_a_box_and_labels_go_by_its_area() -> None:
    recipe = Recipe(5, 100, 8, 0.1, cutmix=1.0)
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 20, 30)
    shares = []
    for step in range(300):
        mixing = draw_mixing(recipe, step, 8, 20, 30)
        assert mixing.box is not None
        mixed = mixing(images)
        other = mixed != images
        moved = mixing.order != torch.arange(8)
        assert bool((mixed[other] == images[mixing.order][other]).all())
        if mixing.share < 1 and bool(moved.any()):
            left = 1 - other[moved].float().mean((1, 2, 3))
            assert torch.allclose(left, torch.tensor(mixing.share), atol=1e-6)
        shares.append(mixing.share)
    assert min(shares) < 0.2 and max(shares) > 0.95
    both = Recipe(5, 100, 8, 0.1, cutmix=1.0, mixup=0.2)
    boxes = [draw_mixing(both, step, 8, 20, 30).box is None for step in range(400)]
    assert abs(sum(boxes) / 400 - 0.5) < 4 * (0.25 / 400) ** 0.5
    assert draw_mixing(Recipe(5, 100, 8, 0.1), 0, 8, 20, 30).share == 1


def test_choices_are_read_and_drawn_by_rows() -> None:
    text = "crop:0.35, jitter:0.2,erase:0.1,cutmix:1,trivial"
    choices = Choices.parse(text)
    assert choices == Choices(0.0, 0.35, 0.2, True, 0.1, 1.0)
    rows = [choices.of_row(row) for row in range(12)]
    assert not any(rows[0].values())
    assert all(any(row[name] for row in rows) for name in ("crop", "jitter", "erase", "cutmix"))
    assert any(row["trivial"] for row in rows)
    assert Choices.parse("none") == Choices(0.0)
    assert Choices.for_images(1, 28, 28) == Choices() == Choices.parse("mixup:0.1")
    assert Choices.for_images(3, 224, 224).crop > 0
    for wrong in ("rotate", "crop", "crop:2", "erase:-1", "jitter:x", "", "none,crop:0.5"):
        with pytest.raises(DeevoError, match="augment is"):
            Choices.parse(wrong)
