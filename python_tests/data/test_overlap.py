"""Sets that share images are refused or said, whatever holds them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from deevo_ext.data.images import ImageSet
from deevo_ext.data.overlap import check_overlap
from deevo_ext.data.sets import image_sets
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from support.evolution import images as noise
from support.pictures import write_tree

SMALL = Transform(10, (10, 10), "bilinear", (0.4,), (0.3,))


@pytest.mark.parametrize(("shared", "refused"), [(0, False), (9, False), (10, True), (20, True)])
def test_half_of_the_smaller_set_is_refused(shared: int, refused: bool) -> None:
    whole = noise(100)
    images, labels = whole.images, whole.labels
    one = ImageSet(images[:60], labels[:60], "one")
    start = 60 - shared
    other = ImageSet(images[start : start + 20], labels[start : start + 20], "other")
    sets = {"fitness": one, "test": other}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_overlap(sets, "ignore")
        if not shared:
            check_overlap(sets, "refuse")
            return
    message = f"fitness images and the test images share {shared} images"
    with pytest.warns(UserWarning, match=message):
        check_overlap(sets, "warn")
    if refused:
        with pytest.raises(DeevoError, match=message):
            check_overlap(sets, "refuse")
    else:
        with pytest.warns(UserWarning, match=message):
            check_overlap(sets, "refuse")


def test_the_same_pixels_with_another_label_are_other_images() -> None:
    one = noise(10)
    other = ImageSet(one.images, (one.labels + 1) % 3, "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_overlap({"fitness": one, "test": other}, "refuse")


def test_a_val_that_copies_train_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path / "caches"))
    tree = write_tree(tmp_path / "tree", 40, 4)
    shutil.rmtree(tree / "val")
    shutil.copytree(tree / "train", tree / "val")
    sets = image_sets(tree, SMALL, workers=0, progress=False)
    with pytest.raises(DeevoError, match="fitness images and the validation images share 20"):
        check_overlap({"fitness": sets.fitness, "validation": sets.validation}, "refuse")
