"""Searches of coefficients small enough to be run by every test that wants one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.population.population import Population
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.rounds import FEW, RoundSearch
from deevo_ext.runs.validation import Validation
from deevo_ext.search.configuration import configure
from deevo_ext.search.optimizer import Callback
from support.evolution import images
from support.networks import Net, members


class PlainNet(nn.Module):
    """`Net` without BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def save_checkpoints(folder: Path, factory: type[nn.Module] = Net, count: int = 4) -> Path:
    """A new folder, which is returned, with members of an architecture as m0.safetensors, ..."""
    folder.mkdir()
    for i, state in enumerate(members(factory, count)):
        save_file(state, folder / f"m{i}.safetensors")
    return folder


def recipe_run(
    checkpoints: Path,
    run_dir: Path | None,
    factory: type[nn.Module] = Net,
    *,
    dtype: torch.dtype = torch.float32,
    batchnorm: str = "recalibrate",
    rounds: int = 2,
    count: int = 300,
    by_folds: bool = False,
    metric: str = "loss",
    callbacks: tuple[Callback, ...] = (),
) -> RecipeRun:
    """A run on `count` images of noise, not begun yet; above 2,000 a round divides them."""
    model = factory()
    population = Population.from_checkpoints(model, checkpoints, dtype=dtype, batchnorm=batchnorm)
    fitness = images(count, 1, "fitness images")
    evaluator = Evaluator(
        model, population, micro_batch=32, calibration=fitness.slice(0, 100), engine="eager"
    )
    found = blocks_of(evaluator.forward, population, fitness.image_shape, "layer")
    kind = FewRounds if count <= FEW else RoundSearch
    search = kind(
        Probing(ProbeForward(evaluator), found.blocks, 0.3, 4),
        fitness,
        Metric.of(metric),
        500,
        configure("sa-shade-tri-ensin", generations=12),
        0,
    )
    validated = fitness if by_folds else images(200, 2, "validation images")
    validation = Validation(evaluator, validated, Metric.of(metric), by_folds=by_folds)
    return RecipeRun(
        search,
        validation,
        Budget(rounds),
        unit=found.unit,
        run_dir=run_dir,
        progress=False,
        callbacks=callbacks,
    )
