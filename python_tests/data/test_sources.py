"""Image sets, class-balanced splits, IDX files and the named sources."""

import builtins
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deevo_ext.data import ImageSet, SourceSets, load, sources, split_class_balanced
from deevo_ext.data.arrays import open_idx, read_idx
from deevo_ext.errors import DeevoError


def _set(count: int, classes: int = 5, seed: int = 0) -> ImageSet:
    """Images whose one pixel is their index, with uneven classes."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = torch.from_numpy(generator.integers(0, classes, count) ** 2 // classes)
    return ImageSet(torch.arange(count).float().reshape(-1, 1, 1, 1), labels, "numbered")


def _write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_folder(folder: Path, side: int = 28, suffix: str = "", dot: bool = False) -> None:
    generator = np.random.Generator(np.random.PCG64(3))
    mark = "." if dot else "-"
    for part, count in (("train", 600), ("t10k", 100)):
        images = generator.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        _write_idx(folder / f"{part}-images{mark}idx3-ubyte{suffix}", images)
        _write_idx(folder / f"{part}-labels{mark}idx1-ubyte{suffix}", labels)


def test_image_set_refuses_what_does_not_fit() -> None:
    images, labels = torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)
    assert len(ImageSet(images, labels, "good")) == 3
    bad: list[tuple[torch.Tensor, torch.Tensor, str]] = [
        (images.double(), labels, "float32"),
        (images[0], labels, "float32"),
        (images, labels.int(), "int64"),
        (images, labels[:, None], "int64"),
        (images, labels[:2], "2 labels"),
        (images[:0], labels[:0], "no images"),
        (images / 0, labels, "finite"),
        (images, labels - 1, "negative"),
    ]
    for wrong_images, wrong_labels, message in bad:
        with pytest.raises(DeevoError, match=message):
            ImageSet(wrong_images, wrong_labels, "bad")


def test_subset_takes_the_images_asked_for_in_order() -> None:
    whole = _set(9)
    part = whole.subset([7, 0, 7])
    assert part.images.flatten().tolist() == [7, 0, 7]
    assert part.labels.tolist() == whole.labels[[7, 0, 7]].tolist()
    wrong: list[Any] = [[], [9], [-1], [0.5], torch.ones(9, dtype=torch.bool), [[1]]]
    for indices in wrong:
        with pytest.raises(DeevoError):
            whole.subset(indices)


@pytest.mark.parametrize("seed", range(5))
def test_split_is_disjoint_balanced_and_seeded(seed: int) -> None:
    whole = _set(503, seed=seed)
    sizes = (200, 101, 57)
    parts = split_class_balanced(whole, sizes, seed)
    assert [len(part) for part in parts] == list(sizes)
    taken = torch.cat([part.images.flatten() for part in parts]).tolist()
    assert len(set(taken)) == sum(sizes)
    share = torch.bincount(whole.labels).double() / len(whole)
    for part in parts:
        for piece in (part.labels, part.labels[10:40]):
            counts = torch.bincount(piece, minlength=len(share)).double()
            assert ((counts - share * len(piece)).abs() < 3).all()
        assert (whole.labels[part.images.flatten().long()] == part.labels).all()
    # The same whatever the global generators hold, and without moving them.
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state()
    again = split_class_balanced(whole, sizes, seed)
    assert all(torch.equal(a.images, b.images) for a, b in zip(parts, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    other = split_class_balanced(whole, sizes, seed + 1)
    assert not torch.equal(parts[0].images, other[0].images)


def test_split_refuses_sizes_that_do_not_fit() -> None:
    for sizes in ((), (0, 3), (6, 5)):
        with pytest.raises(DeevoError, match="cannot split"):
            split_class_balanced(_set(10), sizes, 0)
    with pytest.raises(DeevoError, match="seed"):
        split_class_balanced(_set(10), (2,), -1)


@pytest.mark.parametrize("name", ["plain", "packed.gz"])
def test_idx_round_trip(tmp_path: Path, name: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(np.uint8)
    _write_idx(tmp_path / name, array)
    found = read_idx(tmp_path / name, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


def test_damaged_idx_files_are_one_clear_error(tmp_path: Path) -> None:
    good = tmp_path / "good"
    _write_idx(good, np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    content = good.read_bytes()
    packed = gzip.compress(content)
    flipped = bytearray(packed)
    flipped[-6] ^= 1  # within gzip's checksum
    damaged = {
        "empty": b"",
        "short-head": content[:3],
        "short-sizes": content[:9],
        "short-data": content[:-1],
        "long-data": content + b"\0",
        "short-gz": packed[:-12],
        "flipped-gz": bytes(flipped),
        "bad-magic": b"\1" + content[1:],
        "bad-type": content[:2] + b"\x07" + content[3:],
        "no-dimensions": content[:3] + b"\0" + content[4:],
        "huge": content[:4] + b"\xff" * 12 + content[16:],
        "text": b"<html>not found</html>",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DeevoError, match=name):
            read_idx(tmp_path / name, 3)
    with pytest.raises(DeevoError, match="absent"):
        read_idx(tmp_path / "absent", 3)


@pytest.mark.parametrize(
    ("suffix", "dot"), [("", False), (".gz", False), ("", True), (".gz", True)]
)
def test_idx_folder_spellings(tmp_path: Path, suffix: str, dot: bool) -> None:
    _write_folder(tmp_path, 6, suffix, dot)
    pictures = open_idx(tmp_path)
    assert pictures.images.shape == (700, 6, 6) and pictures.labels.shape == (700,)
    assert pictures.parts == {"train": (0, 600), "val": (600, 700)}


def test_idx_folder_names_what_is_wrong(tmp_path: Path) -> None:
    _write_folder(tmp_path, 6)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    for array, message in (
        (np.zeros(99, np.uint8), "100 images.*99 labels"),
        (np.zeros((100, 1), np.uint8), "1 dimensions"),
        (np.zeros(0, np.uint8), "empty"),
    ):
        _write_idx(labels, array)
        with pytest.raises(DeevoError, match=message):
            open_idx(tmp_path)
    labels.unlink()
    with pytest.raises(DeevoError, match=f"{tmp_path}: t10k-labels-idx1-ubyte .* is missing"):
        open_idx(tmp_path)


def _check_sets(sets: SourceSets) -> None:
    train = sets.train.images.double()
    assert abs(float(train.mean())) < 1e-5 and abs(float(train.std()) - 1) < 1e-5
    assert f"{len(sets.test):,} test" in sets.describe()


def test_digits_are_sklearns_split_in_four() -> None:
    from sklearn.datasets import load_digits

    raw, target = load_digits(return_X_y=True)
    sets = load("digits", 1)
    _check_sets(sets)
    assert len(sets.class_names) == 10 and sets.train.images.shape[1:] == (1, 8, 8)
    parts = (sets.train, sets.fitness, sets.validation, sets.test)
    assert sum(len(part) for part in parts) == len(raw) == 1797
    # One scale and shift takes every image back to sklearn's; each is found exactly once.
    pixels = torch.cat([part.images for part in parts]).flatten(1).double()
    low, high = float(pixels.min()), float(pixels.max())
    found = ((pixels - low) / (high - low) * 16).round().numpy()
    labels = torch.cat([part.labels for part in parts]).numpy()
    key = np.lexsort(np.column_stack([found, labels]).T)
    raw_key = np.lexsort(np.column_stack([raw, target]).T)
    np.testing.assert_array_equal(found[key], raw[raw_key])
    np.testing.assert_array_equal(labels[key], target[raw_key])
    again, other = load("digits", 1), load("digits", 2)
    assert torch.equal(again.train.images, sets.train.images)
    assert not torch.equal(other.train.labels, sets.train.labels)


def test_digits_without_sklearn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DeevoError, match=r'pip install "deevo_ext\[demo\]"'):
        load("digits", 0)


def test_a_folder_is_pooled_split_and_normalised_by_train(tmp_path: Path) -> None:
    _write_folder(tmp_path, 28, ".gz")
    sets = load(tmp_path, 0)
    _check_sets(sets)
    assert not sets.mirror and sets.train.images.shape == (400, 1, 14, 14)
    assert [len(sets.fitness), len(sets.validation), len(sets.test)] == [100, 100, 100]
    raw = read_idx(tmp_path / "t10k-images-idx3-ubyte.gz", 3).astype(np.float64) / 255
    pooled = torch.from_numpy(raw.reshape(-1, 14, 2, 14, 2).mean((2, 4))).flatten()
    test = sets.test.images.double().flatten()
    # Normalisation is one line through all pixels: check its fit rather than repeat its numbers.
    slope = float((test[0] - test[1]) / (pooled[0] - pooled[1]))
    torch.testing.assert_close(test, test[0] + slope * (pooled - pooled[0]), atol=1e-4, rtol=0)
    assert torch.equal(sets.test.labels, torch.arange(100) % 10)


def test_fashion_mnist_is_found_or_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(DeevoError, match=r"dataset-fashion-mnist.*--data DIR"):
        load("fashion-mnist", 0)
    with pytest.raises(DeevoError, match="neither"):
        load("no-such-source", 0)
    _write_folder(tmp_path, 28)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    sets = load("fashion-mnist", 0)
    assert sets.mirror and sets.name == "fashion-mnist" and "14x14" in sets.describe()
