"""A camera out of focus: 100 labelled images of the new kind, and the networks that there are.

The members were trained on sharp images. Folds of the 100 blurred ones drive and judge everything;
sharp images only say what is lost on them, and half of the way back is a network for both.

    python examples/blurred.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import deevo_ext as deevo
from deevo_ext.runs.old_images import what_was_lost
from small_population import small_population

LABELLED, TEST, OLD = 100, 2000, 1000


def blurred(images: deevo.ImageSet) -> deevo.ImageSet:
    """Returns the images behind a Gaussian blur of one pixel's standard deviation."""
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 2)
    kernel = (line[:, None] * line)[None, None] / line.sum() ** 2
    around = torch.nn.functional.pad(images.images, (2, 2, 2, 2), mode="replicate")
    return replace(images, images=torch.nn.functional.conv2d(around, kernel))


def main(folder: Path) -> None:
    """Evolves on blurred images, with nothing kept and with half, and prints what was gained."""
    started = time.perf_counter()
    sets, model, paths = small_population(folder)
    labelled = blurred(sets.fitness.slice(0, LABELLED))
    test = blurred(sets.test.slice(0, min(TEST, len(sets.test))))
    old = sets.validation.slice(0, min(OLD, len(sets.validation)))
    trained = time.perf_counter()
    for keep in (0.0, 0.5):
        result = deevo.evolve(model, paths, labelled, None, test, old_images=old, keep=keep)
        assert result.comparison is not None and result.old is not None
        lines = {line.name: line for line in result.comparison.networks}
        before, after = lines["initial greedy soup"], lines[result.candidate.name]
        print(
            f"keep={keep}: on {len(test):,} blurred images the {before.name} has "
            f"loss {before.loss:.4f} and {before.top1:.1%} right, the {after.name} "
            f"loss {after.loss:.4f} and {after.top1:.1%}: "
            f"{100 * (after.top1 - before.top1):+.1f} points. {what_was_lost(result.old)}"
        )
    ended = time.perf_counter()
    print(f"{ended - started:.0f} s, {trained - started:.0f} of them for the members")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
