"""A small population, images and a function for it to be evolved on, and a short run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

import deevo_ext as deevo
from deevo_ext import Population
from deevo_ext.data.images import ImageSet
from support.networks import Net, members


def save_members(folder: Path, count: int) -> Path:
    """A new folder, which is returned, with `members(Net, count)` as m0.safetensors, ... in it."""
    folder.mkdir()
    for i, state in enumerate(members(Net, count)):
        save_file(state, folder / f"m{i}.safetensors")
    return folder


def population(count: int = 8, seed: int = 0, **options: object) -> Population:
    """A population of tiny networks."""
    return Population.from_state_dicts(Net(), members(Net, count, seed), **options)


def images(count: int, seed: int = 0, name: str = "images") -> ImageSet:
    """Noise images whose class is a fixed function of their content."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(count, 1, 10, 10, generator=generator)
    labels = (data.mean(dim=(1, 2, 3)) * 30).round().long() % 3
    return ImageSet(data, labels, name)


def sphere(row: torch.Tensor) -> float:
    """Mean square distance to 0.3."""
    return float((row.double() - 0.3).square().mean())


def sphere_until(count: int, then: Callable[[], None]) -> Callable[[torch.Tensor], float]:
    """`sphere`, whose call number `count` does something else first."""
    calls = 0

    def evaluate(row: torch.Tensor) -> float:
        nonlocal calls
        calls += 1
        if calls == count:
            then()
        return sphere(row)

    evaluate.version = 1  # type: ignore[attr-defined]  # whatever it does besides
    return evaluate


def top2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 where the true class is not among the first two."""
    return 1.0 - (logits.topk(2).indices == labels[:, None]).any(dim=1).float()


def short_run(checkpoints: Path, run_dir: Path | None, **options: object) -> deevo.Result:
    """A short whole run; eager, because the other engines export the network first."""
    values: dict = {
        "generations": 12,
        "images_per_batch": 60,
        "generations_per_batch": 3,
        "validate_every": 4,
        "micro_batch": 32,
        "progress": False,
        "seed": 3,
        "inject_soups": False,
        "engine": "eager",
        **options,
    }
    return deevo.evolve(
        Net(),
        checkpoints,
        images(150, 1),
        images(90, 2),
        images(70, 3, "test"),
        search="weights",
        run_dir=run_dir,
        **values,
    )


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts have the same names and values."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
