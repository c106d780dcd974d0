"""The sets of a run on a user's own data, and where their pixels are put."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.data import CachedImages
from deevo_ext.data.cache import build_cache
from deevo_ext.data.opening import open_pictures
from deevo_ext.data.sets import ImageSets, image_sets, validation_size
from deevo_ext.data.transform import Transform
from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.placement import Placement, choose_place, copied
from support.evolution import population
from support.networks import Net
from support.pictures import write_tree

SMALL = Transform(10, (10, 10), "bilinear", (0.4,), (0.3,))
QUIET = {"workers": 0, "progress": False}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("pictures") / "tree", 120, 90)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path / "caches"))


def _sets(tree: Path, **options: object) -> ImageSets:
    return image_sets(tree, SMALL, **{**QUIET, **options})  # type: ignore[arg-type]


def _keys(*sets: object) -> list[bytes]:
    found = []
    for images in sets:
        assert isinstance(images, CachedImages)
        found += [image.numpy().tobytes() for image in images.pixels(0, len(images))]
    return found


def test_the_rule_gives_imagenet_its_sizes_and_leaves_two_sets_always() -> None:
    assert validation_size(50_000) == 10_000 and validation_size(10**6) == 10_000
    assert validation_size(10_000) == 2_000 and validation_size(3_000) == 1_000
    for images in range(2, 20_000, 7):
        size = validation_size(images)
        assert 0 < size <= images // 2 and size <= 10_000


def test_a_tree_becomes_three_disjoint_balanced_seeded_sets(tree: Path, tmp_path: Path) -> None:
    sets = _sets(tree)
    assert [len(s) for s in (sets.fitness, sets.validation, sets.test)] == [120, 45, 45]
    assert "120 fitness, 45 validation, 45 test images, 1x10x10, 4 classes" in sets.describe()
    cache = build_cache(open_pictures(tree), tmp_path / "c", SMALL, **QUIET)  # type: ignore[arg-type]
    train, val = cache.images("train", SMALL), cache.images("val", SMALL)
    assert sorted(_keys(sets.fitness)) == sorted(_keys(train))
    assert sorted(_keys(sets.validation, sets.test)) == sorted(_keys(val))
    for images, whole in ((sets.fitness, train), (sets.validation, val), (sets.test, val)):
        share = torch.bincount(whole.labels).double() / len(whole)
        for own in (images.labels, images.labels[5:30]):
            counts = torch.bincount(own, minlength=len(share)).double()
            assert ((counts - share * len(own)).abs() < 3).all()
    again, other = _sets(tree), _sets(tree, seed=1)
    assert again.test.digest() == sets.test.digest() != other.test.digest()
    # Fewer train images, balanced; val is whole.
    few, fewer = _sets(tree, train_images=30), _sets(tree, train_images=30, seed=1)
    assert few.fitness.digest() != fewer.fitness.digest()
    assert torch.equal(torch.bincount(few.fitness.labels), torch.bincount(train.labels) // 4)
    assert set(_keys(few.fitness)) < set(_keys(train)) and len(few.validation) == 45


def test_each_set_can_be_given_instead(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write_tree(own, 40, 20, side=80)
    cache = tmp_path / "own.safetensors"
    build_cache(open_pictures(own), cache, SMALL, **QUIET)  # type: ignore[arg-type]
    usual = _sets(tree)
    sets = _sets(tree, validation=cache, test=own / "train")
    assert [len(s) for s in (sets.fitness, sets.validation, sets.test)] == [120, 20, 40]
    assert sets.fitness.digest() == usual.fitness.digest()
    alone = image_sets(
        None, SMALL, fitness=usual.fitness, validation=usual.validation, test=cache, **QUIET
    )  # type: ignore[arg-type]
    assert len(alone.test) == 20
    halved = _sets(tree / "train")
    assert [len(s) for s in (halved.fitness, halved.validation, halved.test)] == [60, 30, 30]
    assert len(set(_keys(halved.fitness, halved.validation, halved.test))) == len(
        set(_keys(usual.fitness))
    )
    with pytest.raises(DeevoError, match="in no class folder"):
        _sets(tree, test=own / "train" / "thing")
    with pytest.raises(DeevoError, match="data is missing"):
        image_sets(None, SMALL, fitness=cache)
    (own / "train" / "thing").rename(own / "train" / "thang")
    with (
        pytest.warns(UserWarning, match="is made anew"),
        pytest.raises(DeevoError, match="other classes"),
    ):
        _sets(tree, test=own / "train")
    (own / "val" / "thing").rename(own / "val" / "thang")
    with pytest.raises(DeevoError, match="other classes"):
        _sets(tree, test=own)


class Forbidden(CachedImages):
    """Raises when its pixels are read."""

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        raise AssertionError(f"{self.name} was read")

    def subset(self, indices: object, name: str | None = None) -> CachedImages:
        raise AssertionError(f"{self.name} was read")


def test_fitness_reads_neither_validation_nor_test(tree: Path) -> None:
    usual = _sets(tree)

    def forbidden(images: object) -> Forbidden:
        assert isinstance(images, CachedImages)
        labels, size = images.labels, len(images)
        return Forbidden(
            images.all_pixels[:size],
            labels,
            images.mean,
            images.std,
            images.name,
            digests=images.digests,
        )

    val, test = forbidden(usual.validation), forbidden(usual.fitness)
    # Labels of four classes; the network has three.
    three = usual.fitness.subset(torch.nonzero(usual.fitness.labels < 3).flatten())
    sets = _sets(tree, fitness=three, validation=val, test=test)
    pop = population(8)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=16, engine="fused")
    fitness = deevo.ClassificationFitness(evaluator, sets.fitness, images_per_batch=40)
    de = deevo.DifferentialEvolution(pop, generations=5, seed=0)
    deevo.Evolution(de, fitness, progress=False).run()
    with pytest.raises(AssertionError, match="was read"):
        evaluator.score(pop.rows[0], sets.validation)


def test_pixels_go_where_there_is_room() -> None:
    gib = 1 << 30
    assert choose_place(10 * gib, 70 * gib, 80 * gib, 100 * gib) == "device"
    assert choose_place(60 * gib, 70 * gib, 80 * gib, 200 * gib) == "pinned"
    assert choose_place(60 * gib, 70 * gib, 80 * gib, 100 * gib) == "mapped"
    assert choose_place(1, 1 * gib, 80 * gib, 0) == "mapped"


def test_copies_are_the_same_images(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deevo_ext.networks.execution import placement

    images = _sets(tree).validation
    assert isinstance(images, CachedImages)
    assert Placement(torch.device("cpu")).of(images) is images
    monkeypatch.setattr(placement, "_COPIED", 7 * 100)  # seven images at a time
    for device in (None, torch.device("cpu")):
        moved = copied(images, device)
        assert moved.digest() == images.digest() and moved.in_memory
        assert torch.equal(moved.pixels(0, 45), images.pixels(0, 45))
        assert moved.all_pixels.data_ptr() != images.all_pixels.data_ptr()


def test_a_test_folder_beside_train_and_val_is_the_test_set(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", 40, 20)
    write_tree(tmp_path / "other", 12, 8, side=80)
    (tmp_path / "other" / "train").rename(tree / "test")
    sets = _sets(tree)
    assert [len(s) for s in (sets.fitness, sets.validation, sets.test)] == [40, 20, 12]
    alone = _sets(tree / "test")
    assert sorted(_keys(sets.test)) == sorted(_keys(alone.fitness, alone.validation, alone.test))
    (tree / "val").rename(tmp_path / "val")  # without val, test is divided as val is
    sets = _sets(tree)
    assert [len(s) for s in (sets.fitness, sets.validation, sets.test)] == [40, 6, 6]
    (tree / "test").rename(tmp_path / "test")
    (tmp_path / "val").rename(tree / "val")
    (tree / "test").mkdir()  # and what has no classes is none
    with pytest.warns(UserWarning, match="test: left out, as it has no class folders"):
        sets = _sets(tree)
    assert [len(s) for s in (sets.fitness, sets.validation, sets.test)] == [40, 10, 10]
