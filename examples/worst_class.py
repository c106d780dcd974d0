"""Evolves a network for the class that it knows least, a score without a gradient.

Eight small networks tell coats, pullovers and shirts apart worse than anything else. What is asked
for here is the accuracy of the worst class, so the search gives up a little of the others'.

    python examples/worst_class.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

import deevo_ext as deevo
from deevo_ext.data import ImageSet
from small_population import small_population

FITNESS, VALIDATION, TEST = 4000, 2000, 5000


def main(folder: Path) -> None:
    """Evolves, and prints what each class gained or lost."""
    started = time.perf_counter()
    sets, model, paths = small_population(folder)
    fitness, validation, test = (
        images.slice(0, min(size, len(images)))
        for images, size in (
            (sets.fitness, FITNESS),
            (sets.validation, VALIDATION),
            (sets.test, TEST),
        )
    )
    trained = time.perf_counter()
    result = deevo.evolve(
        model,
        paths,
        fitness,
        validation,
        test,
        metric="worst-class",
        rounds=1,
        images_per_round=1000,
        micro_batch=500,
    )
    assert result.comparison is not None
    print(result.comparison.format())
    before = result.run.state.initial["soup"].state_dict(result.run.population)
    shares = [per_class(model, state, test) for state in (before, result.state_dict)]
    print(f"\nRight on {len(test):,} test images of {sets.name}, class by class:")
    for name, *both in zip(sets.class_names, *shares, strict=True):
        print(f"{name:12} soup {both[0]:.1%}  evolved {both[1]:.1%}")
    worst = [min(one) for one in shares]
    print(
        f"Worst class: {worst[0]:.1%} -> {worst[1]:.1%} by the {result.candidate.name}\n"
        f"{time.perf_counter() - started:.0f} s, {trained - started:.0f} of them for the members"
    )


def per_class(
    model: torch.nn.Module, state: dict[str, torch.Tensor], images: ImageSet
) -> list[float]:
    """Returns the share of right images of each class."""
    model.load_state_dict(state)
    with torch.no_grad():
        logits = torch.cat([model.eval()(part) for part in images.images.split(500)])
    right = (logits.argmax(dim=1) == images.labels).double()
    return [float(right[images.labels == c].mean()) for c in range(logits.shape[1])]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
