"""Searches of coefficients small enough to be run by every test that wants one."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.population.population import Population
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.old_images import Keep
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.replay import write_candidate
from deevo_ext.runs.rounds import FEW, RoundSearch
from deevo_ext.runs.state import Candidate
from deevo_ext.runs.validation import Validation
from deevo_ext.search.optimizer import Callback
from deevo_ext.search.presets import configure
from support.evolution import images
from support.networks import Net, members
from support.populations import assert_equal


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
    keep: float = 0.0,
    engine: str = "eager",
) -> RecipeRun:
    """A run on `count` images of noise, not begun yet; above 2,000 a round divides them."""
    model = factory()
    population = Population.from_checkpoints(model, checkpoints, dtype=dtype, batchnorm=batchnorm)
    fitness = images(count, 1, "fitness images")
    evaluator = Evaluator(
        model, population, micro_batch=32, calibration=fitness.slice(0, 100), engine=engine
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
        keep=Keep(keep, images(150, 3, "old images")) if keep else None,
    )


def assert_all_give_the_same_bits(folder: Path, returned: Candidate) -> None:
    """The folder's network, its replay and the merge of its recipe are the returned candidate."""
    replayed = deevo.replay(folder)
    assert replayed.finished and replayed.candidate.record() == returned.record()
    assert torch.equal(replayed.candidate.row, returned.row)
    write_candidate(replayed, folder / "again.safetensors")
    evolved = folder / "evolved.safetensors"
    assert (folder / "again.safetensors").read_bytes() == evolved.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = deevo.merge(folder / "recipe.yaml", folder / "merged.safetensors")
    assert made.as_recorded is True
    merged, ours = load_file(made.path), load_file(evolved)
    assert_equal({tensor: merged[tensor] for tensor in ours}, ours)
