"""bench/fashion.py: the step of bench/gpu.sh that trains and evolves networks on real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deevo_ext.data.images import ImageSet
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST
from support.paths import import_from_checkout

import_from_checkout("bench")

ROWS = {"best parent", "initial weight average", "initial greedy soup", "logit ensemble"}


def test_blur_keeps_the_sum_and_spreads_alike_in_all_directions() -> None:
    from bench.fashion import blurred

    images = torch.full((2, 1, 9, 9), 3.0)
    images[1] = 0.0
    images[1, 0, 4, 4] = 1.0
    soft = blurred(ImageSet(images, torch.zeros(2, dtype=torch.int64), "pictures")).images
    torch.testing.assert_close(soft[0], images[0])
    torch.testing.assert_close(soft[1].sum(), torch.tensor(1.0))
    torch.testing.assert_close(soft[1], soft[1].mT.flip(-1))
    # The variance of weights exp(-k^2 / 2) on -2..2.
    across = soft[1, 0].sum(dim=0) @ (torch.arange(9.0) - 4) ** 2
    assert abs(float(across) - 0.93) < 0.01


def test_schedule_fits_its_seconds_and_never_exceeds_what_is_useful() -> None:
    from bench.fashion import FULL, schedule

    for rate in (0.5, 5.0, 20.0):
        trainings = schedule(rate, 100.0, 40_000, FULL)
        assert len(trainings.members) == 12 and trainings.base is not None
        assert trainings.steps <= 100.0 * rate + 13  # each is rounded, and has one step at least
    assert schedule(1e6, 100.0, 40_000, FULL).steps <= (12 + 12 * 2) * 40_000 / 512


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_fashion_trains_and_evolves_by_both_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import fashion

    some = (("blurred", "coefficients"), ("clean", "weights"), ("clean", "telepathy"))
    monkeypatch.setattr(fashion, "SEARCHES", some)
    out = tmp_path / "fashion"
    assert fashion.main(["--quick", "--seconds", "500", str(DEBIAN_FASHION_MNIST), str(out)]) == 1
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["training"]["members"] == 3 and record["training"]["images_per_s"] > 0
    assert len(record["searches"]) == 3
    # What fails is said, beside what was found.
    assert record["searches"][2]["outcome"].startswith("failed: search is 'telepathy'")
    for one, (images, search) in zip(record["searches"][:2], some[:2], strict=True):
        assert (one["images"], one["search"], one["outcome"]) == (images, search, "passed")
        rows = {row["name"]: row for row in one["comparison"]["rows"]}
        assert rows.keys() > ROWS
        assert all(0 < row["top1"] <= 1 and row["loss"] > 0 for row in rows.values())
        assert one["member_images_per_s"] > 0 and one["forward_passes"] > 0
        assert all(seconds > 0 for seconds in one["seconds_per_round"])
    assert record["searches"][1]["seconds_per_round"]
    assert "| best parent |" in out.with_suffix(".md").read_text()


def test_fashion_begins_no_search_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import fashion

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 1, 8, 8, generator=generator)
    labels = torch.arange(64) % 10
    sets = {name: ImageSet(pixels, labels, name) for name in (*fashion.PARTS, "test")}
    monkeypatch.setattr(fashion, "images_of", lambda folder, scale: sets)
    out = tmp_path / "fashion"
    assert fashion.main(["--quick", "--seconds", "0", "nowhere", str(out)]) == 1
    record = json.loads(out.with_suffix(".json").read_text())
    assert {one["outcome"] for one in record["searches"]} == {"not begun: no time was left"}
