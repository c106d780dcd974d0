"""Class maps that checkpoints keep, from `deevo evolve` and `deevo populate` to the labels.

The network knows colours by construction: output k is colour k, and class "k+1" of the folders,
which as text are sorted 1, 10, 11, 12, 2, ...
"""

from __future__ import annotations

import argparse
import colorsys
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.cli import main
from deevo_ext.data import Transform, image_sets
from deevo_ext.data.class_maps import class_map_of
from deevo_ext.errors import DeevoError

CLASSES = 12
NAMES = [str(k + 1) for k in range(CLASSES)]
COLOURS = [colorsys.hsv_to_rgb(k / CLASSES, 0.8, 0.8) for k in range(CLASSES)]


class KnowsColours(nn.Module):
    """Logits are minus the squared distances of an image's mean colour to each class's colour."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def state_dict(member: int) -> dict[str, Tensor]:
    colours = torch.tensor(COLOURS) * (1 + 0.003 * member)
    return {"fc.weight": 200 * colours, "fc.bias": -100 * colours.square().sum(1)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    for part in ("train", "val"):
        for name, colour in zip(NAMES, COLOURS, strict=True):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for k in range(8):
                shade = tuple(round(255 * c) + k - 16 * (part == "val") for c in colour)
                Image.new("RGB", (2, 2), shade).save(tmp_path / "data" / part / name / f"{k}.png")
    (tmp_path / "t.json").write_text(
        '{"resize": 2, "crop": 2, "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}'
    )
    yield tmp_path


def save(place: Path, member: int, **beside: Any) -> None:
    (place / "runs").mkdir(exist_ok=True)
    torch.save({"model": state_dict(member), **beside}, place / "runs" / f"m{member}.pth")


def evolve(place: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    """A dry run, in this process; returns status, output and errors."""
    options = {
        "arch": "cli.test_class_maps:KnowsColours",
        "checkpoints": place / "runs",
        "data": place / "data",
        "transform": place / "t.json",
        "cache": place / "c.safetensors",
        "out": place / "out",
    }
    line = ["evolve", *(f"--{name}={value}" for name, value in options.items()), "--dry-run"]
    with pytest.raises(SystemExit) as end:
        main([*line, "--no-progress", "--engine=eager", *more])
    out, err = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), out, err


def are_right(out: str) -> bool:
    """Whether every member that the preliminaries show gets nearly all right."""
    shown = [float(top1) for top1 in re.findall(r"top-1 ([\d.]+)", out)]
    assert len(shown) == 4
    return min(shown) > 0.95


def test_labels_follow_the_map_that_is_in_the_checkpoints(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for member in range(4):
        save(place, member)
    code, out, err = evolve(place, capsys)
    assert code == 1 and "no better than guessing" in err and not are_right(out)  # as text
    (place / "c.safetensors").unlink()
    for member in range(4):
        save(place, member, class_to_idx={name: k for k, name in enumerate(NAMES)})
    code, out, err = evolve(place, capsys)
    assert code == 0, err
    assert f"12 classes in the order of 'class_to_idx' in {place}/runs/m0.pth" in out
    assert are_right(out)
    # The same cache, and an order that is asked for and contradicts the map.
    code, out, err = evolve(place, capsys, "--class-order=text")
    assert code == 1 and "class order gives '2' the label 4, but by 'class_to_idx' in" in err
    assert evolve(place, capsys, "--class-order=natural")[0] == 0


def test_pictures_of_some_classes_have_the_labels_of_the_network(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        for name in ("1", "2", "5", "12"):
            (place / "data" / part / name).rename(place / f"{part}-{name}")
    for member in range(4):
        save(place, member, meta={"classes": tuple(NAMES)})
    code, out, err = evolve(place, capsys)
    assert code == 0, err
    assert "12 classes in the order of 'classes' in" in out and are_right(out)
    # Both searches go to their end without images of those classes.
    pixels = Transform(2, (2, 2), "bilinear", (0.0,) * 3, (1.0,) * 3)
    sets = image_sets(place / "c.safetensors", pixels, class_order=NAMES)
    for search in ("coefficients", "weights"):
        short: dict[str, Any] = {"rounds": 1} if search == "coefficients" else {"generations": 2}
        result = deevo.evolve(
            KnowsColours(),
            place / "runs",
            sets.fitness,
            sets.validation,
            search=search,
            progress=False,
            engine="eager",
            **short,
        )
        assert result.candidate.score < 0.1
    (place / "data" / "train" / "9").rename(place / "data" / "train" / "nine")
    (place / "c.safetensors").unlink()
    code, _, err = evolve(place, capsys)
    assert code == 1 and "1 classes are not among the 12 of the class order, such as 'nine'" in err
    assert not list(place.glob("c.safetensors*"))  # nothing was decoded


def test_members_with_other_maps_are_refused_before_pictures_are_read(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for member in range(4):
        names = sorted(NAMES) if member == 2 else NAMES
        save(place, member, idx_to_class=dict(enumerate(names)))
    code, _, err = evolve(place, capsys)
    assert code == 1
    assert f"output 1 is class '2' by 'idx_to_class' in {place}/runs/m0.pth, but '10' by" in err
    assert "m2.pth" in err and not list(place.glob("c.safetensors*"))
    pixels = torch.tensor(COLOURS).view(-1, 3, 1, 1).expand(-1, -1, 2, 2).repeat(4, 1, 1, 1)
    images = (pixels.contiguous(), torch.arange(CLASSES).repeat(4))
    with pytest.raises(DeevoError, match=r"output 1 is class '2' by .*m0\.pth.*m2\.pth"):
        deevo.evolve(KnowsColours(), place / "runs", images, basin="refuse", progress=False)


@pytest.mark.parametrize("key", ["label2id", "label_names"])
def test_configs_of_folders_are_compared_where_their_names_are_known(
    key: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {name: k for k, name in enumerate(NAMES)}
    known: Any = numbers if key == "label2id" else NAMES
    for member in range(4):
        folder = place / "runs" / f"m{member}"
        folder.mkdir(parents=True)
        save_file(state_dict(member), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "own", key: known}))
    config = place / "runs" / "m0" / "config.json"
    code, _, err = evolve(place, capsys)
    assert code == 1
    said = f"class order gives '2' the label 4, but by {key!r} in {config} it is output 1 of"
    assert said in err and f"give --class-order {config}" in err and "guessing" not in err
    (place / "c.safetensors").unlink()
    code, out, err = evolve(place, capsys, f"--class-order={config}")
    assert code == 0 and are_right(out), err
    # populate says it, too; other names, as transformers' placeholders, say nothing.
    line = ["populate", "--arch=cli.test_class_maps:KnowsColours", f"--data={place}/data"]
    line += [f"--transform={place}/t.json", f"--cache={place}/p.safetensors", "--members=2"]
    line += ["--epochs=0.1", "--augment=none", "--workers=0", f"--checkpoint={config.parent}"]
    for names, warned in ((NAMES, True), ([f"LABEL_{k}" for k in range(CLASSES)], False)):
        other: Any = {name: k for k, name in enumerate(names)} if key == "label2id" else names
        config.write_text(json.dumps({key: other}))
        with pytest.raises(SystemExit) as end:
            main([*line, f"--out={place}/members{warned}"])
        assert not end.value.code
        assert ("it is output 1 of the network" in capsys.readouterr().err) == warned


def test_a_name_or_a_shape_that_does_not_fit_is_found_before_pictures_are_read(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for member in range(4):
        save(place, member)
    good = state_dict(3)
    for state, message in (
        (
            {name.replace("fc.", "head."): value for name, value in good.items()},
            r"missing: 'fc.weight' .* unexpected: 'head\.",
        ),
        ({**good, "fc.bias": good["fc.bias"][:-1]}, r"another shape: 'fc.bias' \[11\], not \[12\]"),
        ({**good, "fc.bias": good["fc.bias"].long()}, "'fc.bias' has dtype int64"),
    ):
        for suffix in ("pth", "safetensors"):
            path = place / "runs" / f"m3.{suffix}"
            if suffix == "pth":
                torch.save(state, path)
            else:
                save_file(state, path)
            code, _, err = evolve(place, capsys)
            assert code == 1 and re.search(message, err), err
            assert not list(place.glob("c.safetensors*"))
            path.unlink()


def test_populate_follows_the_map_and_hands_it_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(place, 0, class_to_idx={name: k for k, name in enumerate(NAMES)})
    options = {
        "arch": "cli.test_class_maps:KnowsColours",
        "checkpoint": place / "runs" / "m0.pth",
        "data": place / "data",
        "transform": place / "t.json",
        "cache": place / "c.safetensors",
        "out": place / "members",
        "members": 4,
        "epochs": 0.1,
        "batch-size": 16,
        "learning-rate": 1e-5,
        "augment": "none",
    }
    line = ["populate", *(f"--{name}={value}" for name, value in options.items())]
    with pytest.raises(SystemExit) as end:
        main([*line, "--workers=0"])
    assert not end.value.code, capsys.readouterr().err
    found = class_map_of(sorted((place / "members").glob("m*.safetensors")), "refuse")
    assert found is not None and found.names == tuple(NAMES)
    for name, value in load_file(place / "members" / "member_00.safetensors").items():
        torch.testing.assert_close(value, state_dict(0)[name], rtol=0, atol=0.1)
    code, out, err = evolve(place, capsys, f"--checkpoints={place}/members")
    assert code == 0 and are_right(out), err


ARGUMENTS = argparse.Namespace(lr=0.1, class_names=["b", "a"])


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": {"a": 1, "b": 0}},
        {"hyper_parameters": {"data": {"label2id": {"a": 1, "b": 0}}}},
        {"config": {"id2label": {"0": "b", "1": "a"}}},
        {"idx_to_class": {1: "a", 0: "b"}, "classes": 2},
        {"args": ARGUMENTS},
        {"meta": {"CLASSES": ("b", "a"), "classes": [1, 2]}},
    ],
)
def test_maps_of_all_kinds_are_found(tmp_path: Path, beside: dict[str, Any]) -> None:
    torch.save({"model": state_dict(0), **beside}, tmp_path / "m.pth")
    found = class_map_of([tmp_path / "m.pth"], "refuse")
    assert found is not None and found.names == ("b", "a")


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"classes": 10, "class_names": "ab", "categories": ["a", "a"], "CLASSES": [1, 2]},
        {"class_to_idx": {"a": 1, "b": 1}, "label2id": {"a": 0, "b": 2}},
        {"id2label": {"0": "a", "00": "b"}, "idx_to_class": {True: "a", False: "b"}},
        {"class_to_idx": {}, "label2id": {"a": 0}, "id2label": {0: 1, 1: 2}},
        {"a": {"b": {"c": {"classes": ["a", "b"]}}}},  # too deep
        {"class_map": ""},
    ],
)
def test_what_is_no_map_is_left_alone(tmp_path: Path, beside: dict[str, Any]) -> None:
    torch.save({"model": state_dict(0), **beside}, tmp_path / "m.pth")
    assert class_map_of([tmp_path / "m.pth"], "refuse") is None


def test_timms_file_is_read_or_asked_for(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    arguments = argparse.Namespace(class_map=str(listed))
    torch.save({"state_dict": state_dict(0), "args": arguments}, tmp_path / "m.pth")
    with pytest.warns(UserWarning, match=r"class map .*names\.txt, which is not here.*class-order"):
        assert class_map_of([tmp_path / "m.pth"], "refuse") is None
    listed.write_text("b\na\n")
    found = class_map_of([tmp_path / "m.pth"], "refuse")
    assert found is not None and found.names == ("b", "a")


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    files = [tmp_path / "m0.safetensors", tmp_path / "m1.safetensors"]
    save_file(state_dict(0), files[0], {"class_names": json.dumps(["b", "a"]), "note": "{"})
    save_file(state_dict(1), files[1], {"class_names": json.dumps(["a", "b"])})
    found = class_map_of(files[:1], "refuse")
    assert found is not None and found.names == ("b", "a")
    with pytest.raises(DeevoError, match=r"output 0 is class 'b' by .*m0.*, but 'a' by .*m1"):
        class_map_of(files, "refuse")
    with pytest.warns(UserWarning, match="output 0 is class 'b'"):
        assert class_map_of(files, "warn") == found
    assert class_map_of(files, "ignore") == found


def test_orders_that_say_nothing_of_the_maps_classes_are_taken(tmp_path: Path) -> None:
    torch.save({"model": state_dict(0), "classes": ["b", "a"]}, tmp_path / "m.pth")
    found = class_map_of([tmp_path / "m.pth"], "refuse")
    assert found is not None
    found.require_same(["Katze", "Hund"], "refuse")
    for order in ("text", "natural", ["a", "b"], ["b", "c", "a"]):
        with pytest.raises(DeevoError, match="leave out --class-order"):
            found.require_same(order, "refuse")
        with pytest.warns(UserWarning, match="leave out --class-order"):
            found.require_same(order, "warn")


def test_another_number_of_classes_is_found_before_pictures_are_decoded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        (place / "data" / part / "7").rename(place / f"{part}-7")
    for member in range(4):
        save(place, member)
    code, _, err = evolve(place, capsys)
    assert code == 1 and "11 classes (1 .. 9), but the network has 12; where" in err
    more = ["--arch=cli.test_class_maps:KnowsColours", f"--data={place}/data"]
    more += [f"--transform={place}/t.json", f"--out={place}/members"]
    for checkpoint, message in (
        (place / "runs" / "m0.pth", r"11 classes \(1 \.\. 9\), but the network has 12; where"),
        (place / "none.pth", "none.pth does not exist"),
        (place / "t.json", "'.json' is not a checkpoint's"),
    ):
        with pytest.raises(SystemExit) as end:
            main(
                ["populate", *more, f"--checkpoint={checkpoint}", f"--cache={place}/p.safetensors"]
            )
        assert end.value.code == 1
        assert re.search(message, capsys.readouterr().err)
    assert not list(place.glob("*.safetensors*"))
