"""How large the rounds of a run are: the images of a model, by what memory holds, and its dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.differences import DIRECTIONS
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.fitness.metric_checks import first_logits
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.networks.blocks import NetworkBlocks
from deevo_ext.population.allocation import available_bytes
from deevo_ext.runs.few_rounds import FewRounds
from deevo_ext.runs.given import Options
from deevo_ext.runs.records import Header
from deevo_ext.runs.rounds import FEW, RoundSearch
from deevo_ext.search.likeliest import bytes_of_image, likeliest_of
from deevo_ext.search.virtual import GENERATIONS

_LEAST, _MOST, _PER_CLASS = 1000, 6400, 10
_PER_JUDGED_CLASS = 200  # where a metric judges each class by itself
_FEWEST = 10  # images that a model is worth making of
# 16-bit networks blur small differences: their probes go the whole way.
_EPS, _EPS_16_BITS = 0.3, 1.0


def rounds_of(
    evaluator: Evaluator,
    images: LabelledImages,
    metric: Metric,
    blocks: NetworkBlocks,
    options: Options,
    recorded: Header | None,
) -> RoundSearch:
    """Returns how the rounds of a run go.

    The number of a model's images is `images_per_round`; "auto" is 1,000, or 10 a class (200 where
    the metric judges each class by itself) up to 6,400. Slopes are float32 if so many of them fit
    into `memory` bytes, by default a quarter of what can be had, else float16, and the images are
    as many as fit. recorded: the header of a run that goes on, which keeps what fitted when it
    began. Raises DeevoError where `memory` is less than that needs.
    """
    precision = evaluator.forward.precision
    eps = _EPS_16_BITS if precision in ("bfloat16", "float16") else _EPS
    classes = _classes(evaluator, images)
    said, memory = options.fitness.images_per_round, options.evaluation.memory
    a_class = _PER_JUDGED_CLASS if metric.of_classes else _PER_CLASS
    size = min(_MOST, max(_LEAST, a_class * classes)) if said == "auto" else said
    needed = len(images) if len(images) <= FEW else min(size, len(images) // 2)
    likeliest = likeliest_of(classes) if recorded is None else recorded.fitness.get("likeliest")
    directions = max(len(blocks.blocks) * blocks.members, DIRECTIONS)
    bytes_of = functools.partial(bytes_of_image, directions, classes, likeliest)
    if recorded is None:
        fit, dtype = _fitting(needed, bytes_of, evaluator.device, memory)
    else:
        fit = recorded.fitness["images_in_memory"]
        dtype = getattr(torch, recorded.fitness["slopes"])
        least = bytes_of(dtype.itemsize) * min(needed, fit)
        if memory is not None and memory < least:
            raise DeevoError(
                f"memory is {memory:,} bytes, but the rounds of the run that goes on hold the "
                f"slopes of {min(needed, fit):,} images, {least:,} bytes; give at least that, or "
                "begin another run folder"
            )
    probing = Probing(
        ProbeForward(evaluator), blocks.blocks, eps, options.evaluation.chunk, dtype, likeliest
    )
    kind = FewRounds if len(images) <= min(FEW, fit) else RoundSearch
    return kind(
        probing,
        images,
        metric,
        min(size, fit),
        options.configuration(GENERATIONS),
        options.run.seed,
        fit=fit,
        classes=classes,
    )


def _fitting(
    needed: int, bytes_of: Callable[[int], int], device: torch.device, memory: int | None
) -> tuple[int, torch.dtype]:
    """How many images' slopes fit into memory, and their dtype: float32 if all that are needed fit.

    bytes_of: function(bytes of a slope) -> bytes of an image.
    """
    if memory is None:
        sharing = ranks().on_node if device.type == "cpu" else 1
        memory = min(ranks().gather(available_bytes(device) // 4 // sharing))
    for dtype in (torch.float32, torch.float16):
        each = bytes_of(dtype.itemsize)
        fit = memory // each
        if fit >= needed:
            break
    if fit < min(_FEWEST, needed):
        raise DeevoError(
            f"memory is {memory:,} bytes, which hold the slopes of {fit} images; give at least "
            f"{each * _FEWEST:,}, or fewer and larger blocks"
        )
    return fit, dtype


def _classes(evaluator: Evaluator, images: LabelledImages) -> int:
    """How many logits the network has."""
    return first_logits(evaluator, images.slice(0, 1)).shape[1]
