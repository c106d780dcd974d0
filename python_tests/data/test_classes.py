"""In which order class folders become labels, against torchvision's and timm's own readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from deevo_ext.data.cache import build_cache
from deevo_ext.data.classes import ORDERS, class_order_of, require_order
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.sets import image_sets, open_data
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from support import zoo

SMALL = Transform(4, (4, 4), "bilinear", (0.4,) * 3, (0.3,) * 3)
QUIET = {"workers": 0, "progress": False}
NAMES = ["1", "2", "10", "B2", "a10", "a2"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for k, name in enumerate(NAMES):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            for n in range(4):
                colour = (40 * k, 60 * n, 255 * (part == "val"))
                Image.new("RGB", (4, 4), colour).save(tmp_path / "tree" / part / name / f"{n}.png")
    return tmp_path / "tree"


def test_orders_are_those_of_the_libraries(tree: Path) -> None:
    zoo.torchvision()
    from timm.data.readers.reader_image_folder import find_images_and_targets
    from torchvision.datasets import ImageFolder

    _, numbers = find_images_and_targets(str(tree / "train"))
    natural = sorted(numbers, key=numbers.__getitem__)
    assert natural == ["1", "2", "10", "a2", "a10", "B2"]
    assert open_pictures(tree, "natural").class_names == natural
    assert open_pictures(tree).class_names == ImageFolder(tree / "train").classes != natural
    assert class_order_of("auto", "timm:vit_tiny") == "natural"
    assert class_order_of("auto", "torchvision:resnet18") == "text"


def test_named_classes_may_be_more_than_there_are_folders(tree: Path, tmp_path: Path) -> None:
    names = ["none", *reversed(NAMES), "another"]
    sets = image_sets(tree, SMALL, class_order=names, cache=tmp_path / "c.safetensors", **QUIET)  # type: ignore[arg-type]
    assert sets.class_names == names
    for images in (sets.fitness, sets.validation, sets.test):
        red = images.pixels(0, len(images))[:, 0, 0, 0]  # 40 times the number in NAMES
        assert [names[n] for n in images.labels] == [NAMES[n // 40] for n in red.tolist()]
    with pytest.raises(DeevoError, match=r"1 classes are not among the 5 .* '2'"):
        open_pictures(tree, [name for name in NAMES if name != "2"])
    with pytest.raises(DeevoError, match="'1' twice"):
        open_pictures(tree, ["1", *NAMES])


def test_a_cache_in_another_order_is_refused(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    build_cache(open_pictures(tree), file, SMALL, **QUIET)  # type: ignore[arg-type]
    open_data(file, SMALL)
    for order in ("natural", NAMES):
        with pytest.raises(DeevoError, match=r"label 1 is class '10', .* '2'"):
            open_data(file, SMALL, class_order=order)
    natural = tmp_path / "natural.safetensors"
    build_cache(open_pictures(tree, "natural"), natural, SMALL, **QUIET)  # type: ignore[arg-type]
    open_data(natural, SMALL, class_order="natural")
    with pytest.raises(DeevoError, match=r"label 1 is class '2', .* '10'"):
        open_data(natural, SMALL, class_order="text")
    caches = {open_data(tree, SMALL, class_order=o, **QUIET).path for o in ("text", "natural")}  # type: ignore[arg-type]
    assert len(caches) == 2


def test_numbers_and_orders_of_their_own_are_taken_as_they_are() -> None:
    for order in ORDERS:
        require_order([str(n) for n in range(12)], order, "numbers")
        require_order(["frog", "cat2", "cat10", "dog"], order, "neither")
        require_order([], order, "none")


def test_orders_are_read_from_files(tmp_path: Path) -> None:
    text, table = tmp_path / "names.txt", tmp_path / "names.json"
    text.write_text("b\nhigh heel\r\n\na\n")
    assert class_order_of(str(text), "") == ["b", "high heel", "a"]
    table.write_text(json.dumps({"a": 1, "b": 0}))
    assert class_order_of(str(table), "") == ["b", "a"]
    table.write_text(json.dumps(["b", "a"]))
    assert class_order_of(str(table), "") == ["b", "a"]
    for content in (
        '{"a": 1}',
        '{"a": true, "b": 0}',
        "[1]",
        '["b", " ", "a"]',
        "{",
        "[" * 10**5,
        "3",
    ):
        table.write_text(content)
        with pytest.raises(DeevoError, match=r"names\.json"):
            class_order_of(str(table), "")
    text.write_bytes(b"\xff")
    with pytest.raises(DeevoError, match=r"names\.txt"):
        class_order_of(str(text), "")
    with pytest.raises(DeevoError, match="class order is 'alphabetical'"):
        class_order_of("alphabetical", "")
