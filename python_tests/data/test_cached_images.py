"""Sets of uint8 images that share one store, through every way in which evaluation reads a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import deevo_ext as deevo
from deevo_ext.data import CachedImages, ImageSet, LabelledImages, split_class_balanced
from deevo_ext.errors import DeevoError
from deevo_ext.networks.execution.feed import SLICE_BYTES, slices
from support.evolution import population
from support.networks import Net

CPU = torch.device("cpu")
PARTS = [(0, 10), (10, 20), (20, 25)]
MEAN, STD = (0.4,), (0.25,)


def cached(count: int, seed: int = 0, name: str = "cached") -> CachedImages:
    generator = torch.Generator().manual_seed(seed)
    store = torch.randint(0, 256, (count, 10, 10, 1), generator=generator, dtype=torch.uint8)
    return CachedImages(store, torch.arange(count) % 3, MEAN, STD, name)


def as_floats(images: CachedImages) -> ImageSet:
    """The same images normalised by definition, in float64, then rounded."""
    pixels = images.pixels(0, len(images)).double() / 255
    return ImageSet(((pixels - MEAN[0]) / STD[0]).float(), images.labels, images.name)


def test_a_subset_shares_the_store_and_composes() -> None:
    whole = cached(30)
    part = whole.subset([7, 0, 7, 29]).subset(torch.tensor([3, 0]))
    assert part.all_pixels.data_ptr() == whole.all_pixels.data_ptr()
    assert torch.equal(part.pixels(0, 2), whole.pixels(0, 30)[[29, 7]])
    assert part.labels.tolist() == whole.labels[[29, 7]].tolist()
    for some in (whole, whole.subset(range(30))):
        middle = some.slice(5, 9, "middle")
        assert middle.name == "middle" and middle.image_shape == (1, 10, 10)
        assert torch.equal(middle.pixels(1, 3), whole.pixels(6, 8))
        with pytest.raises(DeevoError, match="do not fit 30"):
            some.slice(5, 31)
    for wrong in ([], [30], [-1], [0.5]):
        with pytest.raises(DeevoError):
            whole.subset(wrong)  # type: ignore[arg-type]
    parts = split_class_balanced(whole, (10, 20), 0)
    taken = torch.cat([part.pixels(0, len(part)) for part in parts]).flatten(1)
    assert len(torch.unique(taken, dim=0)) == 30


def test_a_digest_tells_content_from_where_it_lies() -> None:
    whole = cached(30)
    part = whole.subset([3, 4, 5])
    digests = {whole.digest(), part.digest(), whole.subset([5, 4, 3]).digest()}
    assert part.digest() == whole.slice(3, 6).digest()
    assert part.digest() == part.gathered(whole.all_pixels[3:6].clone()).digest()
    changed = whole.all_pixels[3:6].clone()
    changed[2, 9, 9, 0] ^= 1
    labels = part.labels
    digests.add(CachedImages(changed, labels, MEAN, STD, "changed").digest())
    digests.add(CachedImages(whole.all_pixels[3:6], labels + 1, MEAN, STD, "labels").digest())
    digests.add(CachedImages(whole.all_pixels[3:6], labels, MEAN, (0.5,), "std").digest())
    assert len(digests) == 6


def test_what_does_not_fit_is_refused() -> None:
    store, labels = torch.zeros(3, 2, 2, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    for arguments, message in (
        ((store.float(), labels, MEAN, STD), "uint8"),
        ((store, labels.int(), MEAN, STD), "int64"),
        ((store, labels[:2], MEAN, STD), "2 labels"),
        ((store, labels - 1, MEAN, STD), "negative"),
        ((store, labels, (0.1, 0.2), (1.0, 1.0)), "1 channels"),
        ((store, labels, MEAN, (0.0,)), "std above 0"),
    ):
        with pytest.raises(DeevoError, match=message):
            CachedImages(*arguments, "bad")


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("order", ["stored", "picked", "mapped"])
def test_losses_are_those_of_floats_in_memory(
    engine: str, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = cached(100)
    if order == "picked":
        images = images.subset(torch.randperm(100, generator=torch.Generator().manual_seed(1)))
    elif order == "mapped":
        images.all_pixels.numpy().tofile(tmp_path / "pixels")
        mapped = np.memmap(tmp_path / "pixels", np.uint8, "c", shape=(100, 10, 10, 1))
        store = torch.from_numpy(mapped)
        images = CachedImages(store, images.labels, MEAN, STD, "mapped", in_memory=False)
    pop = population(6)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=16, engine=engine)
    plain = as_floats(images)
    expected = evaluator.losses(pop.rows, plain).losses
    whole = evaluator.losses(pop.rows, images).losses
    # Three micro-batches at a time: 3 * 16 * 100 float32 pixels.
    monkeypatch.setitem(SLICE_BYTES, "cpu", 3 * 16 * 400)
    assert torch.equal(evaluator.losses(pop.rows, images).losses, whole)
    # One multiply-add in float32 instead of float64: some 1e-6 of a pixel, of logits near 1.
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-4)
    logits = evaluator.logits(pop.rows[0], images)
    torch.testing.assert_close(logits, evaluator.logits(pop.rows[0], plain), rtol=0, atol=1e-4)


def test_statistics_are_recalibrated_on_cached_images() -> None:
    images, pop = cached(64), population(6, batchnorm="recalibrate")
    found = []
    for calibration in (images, as_floats(images)):
        evaluator = deevo.Evaluator(Net(), pop, micro_batch=16, calibration=calibration)
        found.append(evaluator.used_statistics(pop.rows[0], None))
    assert found[0] is not None and found[1] is not None
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


class Watched(CachedImages):
    """Counts what is read, and can fail."""

    reads: list[tuple[int, int]]
    fails_at = 10**9

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        self.reads.append((start, stop))
        if start >= self.fails_at:
            raise OSError("disk gone")
        return super().pixels(start, stop)


def _watched(in_memory: bool) -> Watched:
    own = cached(25)
    found = Watched(own.all_pixels, own.labels, MEAN, STD, "watched", in_memory=in_memory)
    found.reads = []
    return found


@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_come_in_order_and_one_ahead(in_memory: bool) -> None:
    images = _watched(in_memory)
    seen = []
    for number, (start, part) in enumerate(slices(images, PARTS, CPU)):
        assert torch.equal(part, images.all_pixels[start : start + 10].permute(0, 3, 1, 2))
        seen.append(start)
        assert len(images.reads) <= number + 2
    assert seen == [0, 10, 20] and images.reads == [(0, 10), (10, 20), (20, 25)]
    images.fails_at = 10
    with pytest.raises(OSError, match="disk gone"):
        list(slices(images, PARTS, CPU))


def test_a_whole_evolution_takes_any_set(tmp_path: Path) -> None:
    """Same run, images in memory or behind an index: scores agree, and so does the table's form."""
    sets = [cached(60, seed, name) for seed, name in enumerate(("fit", "val", "test"))]
    picked: list[LabelledImages] = [s.subset(list(range(60))) for s in sets]
    results = []
    for number, three in enumerate((sets, picked)):
        pop_dir = tmp_path / str(number)
        pop_dir.mkdir()
        for i in range(6):
            torch.save(population(6).state_dict(i), pop_dir / f"m{i}.pth")
        results.append(
            deevo.evolve(
                Net(),
                pop_dir,
                *three,
                search="weights",
                generations=4,
                images_per_batch=24,
                generations_per_batch=2,
                validate_every=2,
                micro_batch=16,
                engine="fused",
                progress=False,
                run_dir=tmp_path / f"run{number}",
            )
        )
    first, second = results
    assert first.comparison is not None and second.comparison is not None
    assert [r.loss for r in first.comparison.networks] == [
        r.loss for r in second.comparison.networks
    ]
    for name, tensor in first.state_dict.items():
        assert torch.equal(tensor, second.state_dict[name])
