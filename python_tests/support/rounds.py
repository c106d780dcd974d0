"""Small problems for the search of coefficients: noisy copies of a network that made the labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks.blocks import blocks_of
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.population.population import Population
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.recipe_run import Budget, RecipeRun
from deevo_ext.runs.rounds import RoundSearch
from deevo_ext.runs.validation import Validation
from deevo_ext.search.presets import configure

CLASSES = 4
State = dict[str, Tensor]


class Plain(nn.Module):
    """Three layers without a norm, for 4x4 images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.middle = nn.Linear(24, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.head(torch.relu(self.middle(x)))


class Normed(nn.Module):
    """The same with BatchNorm behind the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn(self.conv(x))).flatten(1))


def teacher(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose logits differ by some units from image to image, in mean by nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory().eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(torch.randn_like(value) * (0.3 if name.endswith("bias") else 0.6))
            noise = torch.randn(2000, 1, 4, 4)
            logits = model(noise)
            model.head.weight *= 1.5 / float(logits.std(dim=0).mean())
            model.head.bias -= model(noise).mean(dim=0)
    return model


def labelled(model: nn.Module, count: int, seed: int, name: str = "images") -> ImageSet:
    """Noise images whose labels are drawn from the network's own probabilities.

    In expectation no network has a lower cross-entropy on them than this one.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 4, 4, generator=generator)
    with torch.no_grad():
        odds = torch.softmax(model(images), dim=1)
    return ImageSet(images, torch.multinomial(odds, 1, generator=generator)[:, 0], name)


def copies(model: nn.Module, count: int, seed: int, spread: float = 0.4) -> list[State]:
    """State dicts around the network, each layer with a noise of its own; their mean is it."""
    generator = torch.Generator().manual_seed(seed)
    centre = {name: value.detach().clone() for name, value in model.state_dict().items()}
    states = [dict(centre) for _ in range(count)]
    for name, value in centre.items():
        if value.is_floating_point() and "running" not in name:
            noise = spread * torch.randn(count, *value.shape, generator=generator)
            noise -= noise.mean(dim=0)
            for state, one in zip(states, noise, strict=True):
                state[name] = value + one
    return states


def off_centre(states: list[State], model: nn.Module) -> list[State]:
    """Makes member m's layer m the network's own: a recipe of them is it, no average is."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in model.state_dict()))
    for m, layer in enumerate(layers):
        for name, value in model.state_dict().items():
            if name.startswith(f"{layer}."):
                states[m][name] = value.detach().clone()
    return states


class Problem:
    """A population, images, and what a run of the search of coefficients is made of."""

    def __init__(
        self,
        factory: Callable[[], nn.Module] = Plain,
        *,
        seed: int = 0,
        members: int = 4,
        images: int = 600,
        spread: float = 0.4,
        centred: bool = False,
        metric: Metric | None = None,
        unit: str = "layer",
        generations: int = 12,
        engine: str | EngineFunction = "eager",
        **population: Any,
    ) -> None:
        self.model = teacher(factory, seed)
        states = copies(self.model, members, seed + 1, spread)
        if not centred:
            off_centre(states, self.model)
        self.images = labelled(self.model, images, seed + 2, "fitness images")
        self.held_out = labelled(self.model, 400, seed + 3, "validation images")
        self.population = Population.from_state_dicts(factory(), states, **population)
        recalibrates = population.get("batchnorm") == "recalibrate"
        self.evaluator = Evaluator(
            factory(),
            self.population,
            engine=engine,
            calibration=self.images.slice(0, min(images, 200)) if recalibrates else None,
        )
        self.blocks = blocks_of(self.evaluator.forward, self.population, (1, 4, 4), unit)
        self.metric = metric or Metric("loss")
        self.seed, self.generations = seed, generations

    def probing(self, **values: Any) -> Probing:
        options = {"eps": 0.3, "chunk": 5, **values}
        return Probing(ProbeForward(self.evaluator), self.blocks.blocks, **options)

    def rounds(self, *, size: int = 200, few: bool = False) -> RoundSearch:
        """Rounds with models of `size` images; few: folds of all choose and test."""
        kind = FewRounds if few else RoundSearch
        return kind(
            probing=self.probing(),
            images=self.images,
            metric=self.metric,
            size=size,
            configuration=configure("sa-shade-tri-ensin", generations=self.generations),
            seed=self.seed,
            fit=len(self.images) if few else size,
            classes=CLASSES,
        )

    def run(
        self,
        run_dir: Path | None = None,
        *,
        budget: Budget | None = None,
        few: bool = False,
        **options: Any,
    ) -> RecipeRun:
        """A run of two rounds, not begun."""
        images = self.images if few else self.held_out
        return RecipeRun(
            self.rounds(few=few),
            Validation(self.evaluator, images, self.metric, by_folds=few),
            budget or Budget(2),
            unit="layer",
            run_dir=run_dir,
            progress=False,
            **options,
        )


GAINS = {"seed": 1, "generations": 4}  # of a problem where round 1 takes a step
TWO_STEPS: dict[
    Callable[[], nn.Module], dict[str, Any]
] = {  # where both rounds do, with few labels
    Plain: {"seed": 2, "images": 300, "spread": 0.6},
    Normed: {"seed": 0, "images": 300, "spread": 0.4},
}
NORMED: dict[str, Any] = {**GAINS, "seed": 3, "spread": 0.3, "batchnorm": "recalibrate"}


def problem(factory: Callable[[], nn.Module] = Plain, **values: Any) -> Problem:
    """A problem where round 1 takes a step, unless values say otherwise."""
    return Problem(factory, **{**(NORMED if factory is Normed else GAINS), **values})
