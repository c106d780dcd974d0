"""The options of `evolve`, in groups, each with what it is, its default and what it may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from deevo_ext.errors import DeevoError
from deevo_ext.fitness.augmentation import Augmentation
from deevo_ext.fitness.metrics import Metric, Scores
from deevo_ext.fitness.racing import Racing
from deevo_ext.networks.execution.user_engine import EngineFunction
from deevo_ext.options import check_options, documented, option
from deevo_ext.population.inventory import POLICIES
from deevo_ext.runs.records import SEARCHES
from deevo_ext.search.presets import PRESETS

ACTIONS = ("warn", "refuse", "ignore")
"""What may be done about members that guess or share no basin, and images that sets share."""


@documented()
@dataclass(frozen=True)
class MemberOptions:
    """How checkpoints become members."""

    dtype: torch.dtype = option(
        torch.float32, "the dtype of the rows: float32, bfloat16 or float16"
    )
    frozen: str | Sequence[str] = option(
        (), 'patterns of names of tensors that are not evolved, as "fc.*"'
    )
    batchnorm: str | None = option(
        None,
        'what becomes of BatchNorm statistics: "recalibrate" (the default of a search of '
        'coefficients), "evolve" (that of weights) or "inherit" (for weights only)',
        choices=POLICIES,
    )
    checkpoint_key: str | None = option(None, "the key under which each file holds the weights")
    prefix: str | None = option(
        None,
        'what stands before the names of tensors in each file, as "student."; by default it is '
        "found",
    )
    key_map: Mapping[str, str] | None = option(
        None,
        'names in the files and the model\'s, as "head.weight" and "fc.weight", or beginnings of '
        'names, as "encoder." and "backbone."',
    )
    ignore: str | Sequence[str] = option(
        (), 'patterns of names in the files that are left out, as "criterion.*"'
    )
    population_device: torch.device | str | None = option(
        None,
        "where the population lies and is evolved. By default that is `device` if the rows, the "
        "copies that are evaluated and the linear model fit there, else the CPU, from which rows "
        "go to `device` by chunks",
    )


@documented()
@dataclass(frozen=True)
class FitnessOptions:
    """What fitness is: the images, and how networks are scored on them."""

    metric: str | Scores | Metric = option(
        "loss",
        'what fitness and validation go by: "loss", "top1", "top5", "worst-class" (the share of '
        'right images of the class where it is least), "macro-f1", a classification metric of '
        "torchmetrics, a function of (logits, labels) that gives a score an image or one of the "
        "whole set, of which less is better, or a `Metric`",
    )
    metric_name: str | None = option(
        None,
        "a name for a metric that is a function, in place of its own name and the hash of its "
        "code: it says which version of the function a run folder was made with",
    )
    keep: float = option(
        0.0,
        "the share of the network that the search begins with that is kept in what it returns: "
        "coefficients between those of the first recipe and of the one that validation chose, "
        "statistics between those of old and of calibration images",
        search="coefficients",
    )
    images_per_round: int | Literal["auto"] = option(
        "auto",
        'the number of fitness images of a round\'s linear model. "auto" is 1,000, or 10 a class, '
        "up to 6,400. Up to 2,000 fitness images are all used, with folds",
        least=10,
        search="coefficients",
    )
    images_per_batch: int | Literal["auto"] | None = option(
        "auto",
        "the number of fitness images per generation. A new class-balanced batch is drawn every "
        '`generations_per_batch` generations, and all parents are scored again. "auto" is 4,096, '
        "but at most half of the images. None is all of them in every generation, which a "
        "population over-fits sooner",
        search="weights",
    )
    generations_per_batch: int = option(
        3, "the number of generations until the next batch is drawn", search="weights"
    )
    sampling: str = option(
        "stratified",
        'how batches are drawn. "stratified" draws every image of a class alike, "importance" '
        "those more often that the first members are unsure of",
        search="weights",
    )
    augment: str | None = option(
        None,
        'what is done to the images of each batch: "mirror", "shift:PIXELS", "crop:SHARE", or '
        "several with commas between",
        search="weights",
    )
    label_smoothing: float = option(
        0.0,
        "the label smoothing of the loss that is the fitness",
        "Szegedy et al. 2016",
        search="weights",
    )
    racing: float | None = option(
        None,
        "an error rate. Trials are compared with their parent on a first share of the images and "
        "then on more and more of them, and are dropped once they lose. A trial that would win is "
        "lost at this rate. By default all trials are evaluated on all images",
        search="weights",
    )
    racing_first: float = option(
        1 / 32, "the share of the images that a race's first look waits for", search="weights"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 <= self.keep < 1:
            raise DeevoError(
                f"keep is {self.keep!r}; expected a share from 0 (nothing of the network that the "
                "search begins with) up to less than 1 (all of it)"
            )
        of = Metric.of(self.metric, self.label_smoothing, name=self.metric_name)
        if self.racing is not None and of.of_whole_sets:
            raise DeevoError(
                f"racing is {self.racing!r}, but metric {of.name} is one of a whole set: races "
                "drop trials by the scores of the first images; leave racing out"
            )
        if self.augment is not None:
            Augmentation.parse(self.augment)
        if self.racing is not None:
            Racing(self.racing, self.racing_first)
        self._require_used("racing_first", self.racing is not None, "racing")
        batches = self.images_per_batch is not None
        self._require_used("generations_per_batch", batches, "a number of images_per_batch")

    def _require_used(self, name: str, used: bool, by: str) -> None:
        """Raises DeevoError for an option that was given without the one that makes use of it."""
        default = next(part.default for part in fields(self) if part.name == name)
        if not used and getattr(self, name) != default:
            raise DeevoError(
                f"{name} is {getattr(self, name)!r}, which nothing uses without {by}; give that, "
                f"or leave {name} out"
            )


@documented()
@dataclass(frozen=True)
class EvaluationOptions:
    """Where and how networks are evaluated."""

    device: torch.device | str = option("cpu", "where networks are evaluated")
    precision: str = option(
        "auto",
        'the precision of forward passes: "auto", "float32", "tf32", "bfloat16" or "float16"',
    )
    force_precision: bool = option(
        False, "whether to evolve in a precision even if its check failed"
    )
    engine: str | EngineFunction = option(
        "auto",
        'what computes the forward passes: "auto", "fused", "triton", "compile", "eager" or a '
        "function of a network's state dict and images, as `deevo.PopulationForward` calls it",
    )
    micro_batch: int = option(64, "the number of images per forward pass", least=1)
    chunk: int = option(8, "the number of rows evaluated together", least=1)
    memory: int | None = option(
        None,
        "the bytes for the linear model, by default a quarter of what can be had",
        least=1,
        search="coefficients",
    )

    def __post_init__(self) -> None:
        check_options(self)


@documented()
@dataclass(frozen=True)
class RunOptions:
    """What is searched, for how long, and what is kept and shown of it."""

    search: str | None = option(
        None,
        'what is evolved, "coefficients" (of a recipe, the default) or "weights"; preset="paper" '
        "implies weights",
        choices=SEARCHES,
    )
    rounds: int = option(
        12,
        "the number of rounds of a search of coefficients, at most; it ends by itself where "
        "nothing is gained",
        least=1,
        search="coefficients",
    )
    passes: int | None = option(
        None,
        "a number of forward passes beyond which no round of a search of coefficients begins, nor "
        "one that would go beyond if it took as many as the round before",
        least=1,
        search="coefficients",
    )
    generations: int | None = option(
        None,
        "the length of a search of weights, in generations, by default 100 or what `seconds` "
        "decides",
        least=1,
        search="weights",
    )
    seconds: float | None = option(
        None,
        "a time for evaluation. A search of coefficients begins no round after it; where a search "
        "of weights begins, it decides the number of generations by a calibration, in place of "
        "`generations`, and a run folder keeps that number until it is given `generations`",
        least=1e-9,
    )
    blocks: str | Sequence[str] = option(
        "auto",
        'what a recipe weighs together: "layer" (with its norm), "module" (a residual block, the '
        'stem, the classifier), "tensor", "member" (the whole network), patterns of tensors\' '
        'names, or "auto", layers as long as they are few',
        search="coefficients",
    )
    inject_soups: bool | None = option(
        None,
        "whether the population's average and its greedy soup, built on the validation images, "
        "become members of a search of weights, too. They do by default, unless the preset is "
        '"paper"',
        "greedy soup: Wortsman et al. 2022",
        search="weights",
    )
    validate_every: int = option(
        10, "the number of generations from one validation to the next", search="weights"
    )
    patience: int | None = option(
        None,
        "the number of validations in a row without a better evolved network after which a search "
        "of weights ends. By default it goes on to its last generation",
        "early stopping: Prechelt 1998",
        least=1,
        search="weights",
    )
    seed: int = option(0, "the seed of the evolution and of the fitness batches", least=0)
    preset: str = option(
        "sa-shade-tri-ensin",
        'the parameters to begin with, "sa-shade-tri-ensin", "paper", "shade" or "l-shade"',
        choices=PRESETS,
    )
    run_dir: str | Path | None = option(
        None, "the folder that makes the run resumable, and replayable on any device"
    )
    basin: str = option(
        "warn",
        "what is done about members that are no better than guessing, or far from the others, and "
        'about those whose midpoints are much worse than they are: "warn", "refuse" or "ignore". '
        "The check evaluates each member and up to 8 midpoints on up to 1,000 fitness images "
        "where a run begins, and not where it goes on. "
        "Checkpoints whose own class maps differ are treated alike",
        choices=ACTIONS,
    )
    overlap: str = option(
        "refuse",
        'what is done about fitness, validation and test images that share images: "refuse" sets '
        'of which one shares half of its images or more, and warn of less, "warn" or "ignore"',
        choices=ACTIONS,
    )
    progress: bool = option(True, "whether to show a progress bar")

    def __post_init__(self) -> None:
        check_options(self)
