"""Trees with links, loops, pipes and hidden names: each real picture once, under its own class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deevo_ext import DeevoError
from deevo_ext.data import Transform, build_cache, open_pictures

PLAIN = Transform(None, None, "bilinear", (0.5,), (0.5,))


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train and val, classes a and b, two pictures each, one of them in a sub-folder."""
    for part in ("train", "val"):
        for value, name in enumerate("ab"):
            picture(tmp_path / "data" / part / name / "0.png", value)
            picture(tmp_path / "data" / part / name / "deep" / "1.png", value)
    return tmp_path / "data"


LINKS = {
    "to itself": ("train/a/me", "."),
    "to its parent": ("train/a/up", ".."),
    "to the root": ("train/a/root", "../.."),
    "to another class": ("train/a/0", "../b"),
    "into another class": ("train/a/0", "../b/deep"),
    "into itself": ("train/a/deep/again", "../deep"),
    "to the other part": ("train/a/val", "../../val/a"),
    "as a class": ("train/c", "a"),
    "to a picture of another class": ("train/a/x.png", "../b/0.png"),
    "to its own picture": ("train/a/x.png", "0.png"),
}


@pytest.mark.parametrize("link", LINKS)
def test_links_to_what_is_there_already_are_named_and_left_out(link: str, tree: Path) -> None:
    before = open_pictures(tree)
    place, target = LINKS[link]
    os.symlink(target, tree / place)
    after = open_pictures(tree)
    assert (after.files, list(after.labels)) == (before.files, list(before.labels))
    assert str(tree / place) in after.problems[0] and "the same as" in after.problems[0]
    out = tree.parent / "c.safetensors"
    with pytest.raises(DeevoError, match="the same as"):
        build_cache(after, out, PLAIN, workers=0, progress=False)


def test_hard_links_are_noticed(tree: Path) -> None:
    """The same file in train and val, of which val has it last."""
    os.link(tree / "train/a/0.png", tree / "val/a/same.png")
    found = open_pictures(tree)
    assert len(found) == 8 and f"{tree / 'val/a/same.png'}: the same as" in found.problems[0]


def test_links_to_pictures_elsewhere_are_followed(tree: Path) -> None:
    elsewhere = tree.parent / "elsewhere"
    for k in range(3):
        picture(elsewhere / f"{k}.png", k)
    picture(tree.parent / "one.png", 7)
    os.symlink(elsewhere, tree / "train/a/more")
    os.symlink(tree.parent / "one.png", tree / "train/b/one.png")
    os.symlink(tree.parent / "d", tree / "train/d")
    picture(tree.parent / "d/0.png", 9)
    found = open_pictures(tree)
    names = [Path(found.name_of(k)).name for k in range(len(found))]
    assert len(found) == 8 + 3 + 1 + 1 and names.count("one.png") == 1
    assert found.class_names == ["a", "b", "d"] and list(found.labels).count(0) == 4 + 3


def test_what_is_no_file_is_named_and_never_opened(tree: Path) -> None:
    os.mkfifo(tree / "train/a/pipe.png")
    os.symlink("pipe.png", tree / "train/a/link.png")
    os.symlink("/nowhere/x.png", tree / "train/a/gone.png")
    os.symlink("/dev/zero", tree / "train/a/zero.png")
    found = open_pictures(tree)
    assert len(found) == 8
    text = "\n".join(found.problems)
    for name in ("pipe", "link", "zero"):
        assert f"{name}.png: no file, but a pipe, socket or device" in text
    assert "gone.png: cannot be read" in text


def test_hidden_names_are_no_pictures(tree: Path) -> None:
    picture(tree / "train/a/.hidden/0.png", 3)
    picture(tree / "train/a/._0.png", 3)
    picture(tree / "train/.c/0.png", 3)
    found = open_pictures(tree)
    assert len(found) == 8 and not found.problems


def test_folders_of_systems_are_no_classes(tree: Path) -> None:
    for name in ("__MACOSX", "@eaDir", "lost+found"):
        picture(tree / "train" / name / "0.png", 3)
        picture(tree / "train/a" / name / "0.png", 3)
    found = open_pictures(tree)
    assert found.class_names == ["a", "b"] and len(found) == 8 and not found.problems


def test_names_need_not_be_utf8(tree: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    root = tree.rename(tree.with_name(odd))
    (root / "train/a/0.png").rename(root / "train/a" / f"{odd}.png")
    for part in ("train", "val"):
        (root / part / "b").rename(root / part / odd)
    found = open_pictures(root)
    assert found.class_names == ["a", odd]
    cache = build_cache(found, root.parent / "c.safetensors", PLAIN, workers=0, progress=False)
    assert cache.class_names == ["a", odd] and cache.description.name == "caf\ufffd"
    again = build_cache(found, root.parent / "c.safetensors", PLAIN, workers=0, progress=False)
    assert torch.equal(again.labels, cache.labels)


def test_a_flat_part_is_refused_before_anything_is_decoded(tree: Path) -> None:
    """In one sentence, however many classes it lacks."""
    for k in range(500):
        picture(tree / "train" / f"class{k}" / "0.png", 1)
    for name in "ab":
        (tree / "val" / name / "0.png").rename(tree / "val" / f"{name}.png")
        (tree / "val" / name / "deep/1.png").unlink()
    with pytest.raises(DeevoError, match="val: no pictures in class folders") as refused:
        open_pictures(tree)
    assert len(str(refused.value)) < 400


def test_a_message_names_fifty_and_counts_the_rest(tree: Path) -> None:
    for k in range(80):
        (tree / "train/a" / f"damaged{k:02}.png").write_text("no picture")
    with pytest.raises(DeevoError, match=r"80 of data cannot .*; and 30 more\. Mend") as error:
        build_cache(open_pictures(tree), tree.parent / "c", PLAIN, workers=0, progress=False)
    assert str(error.value).count("damaged") == 50
