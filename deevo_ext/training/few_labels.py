"""Training on a few labels: the yardstick for searches that need no gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from deevo_ext.data.images import split_class_balanced
from deevo_ext.data.labelled import LabelledImages
from deevo_ext.networks.execution import modules
from deevo_ext.networks.execution.preprocessing import Preprocessing
from deevo_ext.training.fine_tune import fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters, derived_seed

RATES = (3e-4, 1e-3, 3e-3)
"""The learning rates that are tried."""
LENGTHS = (100, 300)
"""The numbers of steps that are tried; the rate falls to zero over each."""
_BATCH_SIZE = 32
_BATCH = 64  # images of a forward pass: activations of 500 leave the caches
_SPLIT = 1  # what a seed is derived for


@dataclass(frozen=True)
class Trained:
    """What `train_on_labels` returns.

    network: in eval mode. learning_rate, steps: those that did best on the images left out; no step
    where no training was better than none. loss: on these images. images: those put through
    networks for it, all trainings and looks included, save two that try memory formats before each;
    those of a step went back through it, too.
    """

    network: nn.Module
    learning_rate: float
    steps: int
    loss: float
    images: int


def train_on_labels(
    network: nn.Module,
    images: LabelledImages,
    seed: int,
    rates: Sequence[float] = RATES,
    lengths: Sequence[int] = LENGTHS,
) -> Trained:
    """Returns a copy of the network after training by Adam on labelled images; it is left as it is.

    Each rate and length is tried on four fifths of the images, class-balanced; the loss on the
    fifth chooses. With these the network is trained from its start again, on all images. So nothing
    but the labels decides. Rates fall to zero: few images at a constant rate end in noise.

    network: float32, on the device it is to be trained on. images: few enough for memory. seed: of
    the split and the batches, 0 or more. rates, lengths: those that are tried, lengths in steps.
    Raises DeevoError as `fine_tune` does.
    """
    fifth = max(1, len(images) // 5)
    learned, unseen = split_class_balanced(
        images, (len(images) - fifth, fifth), derived_seed(seed, _SPLIT)
    )
    passes = 0

    def trained(rate: float, steps: int, on: LabelledImages) -> nn.Module:
        nonlocal passes
        one = copy.deepcopy(network)
        hyper = HyperParameters(seed, steps, _BATCH_SIZE, rate, anneal=1.0, optimizer="adamw")
        fine_tune(one, on, hyper, workers=0)
        passes += steps * min(_BATCH_SIZE, len(on))
        return one

    def loss(of: nn.Module) -> float:
        nonlocal passes
        passes += fifth
        return float(F.cross_entropy(logits_of(of, unseen), unseen.labels))

    best = (loss(copy.deepcopy(network)), rates[0], 0)
    for rate in rates:
        for steps in lengths:
            best = min(best, (loss(trained(rate, steps, learned)), rate, steps))
    least, rate, steps = best
    final = trained(rate, steps, images) if steps else copy.deepcopy(network).eval()
    return Trained(final, rate, steps, least, passes)


def logits_of(network: nn.Module, images: LabelledImages) -> torch.Tensor:
    """Returns logits float32 [N, classes]; the network is put into eval mode."""
    device = next(network.parameters()).device
    normalise = Preprocessing(images.mean, images.std).normalise
    copies, parts = modules.Modules(network.eval(), 1), []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            pixels = images.pixels(start, min(start + _BATCH, len(images)))
            with copies.take(normalise(pixels, device)) as (module, own):
                parts.append(modules.logits_of(module, own, images.name))
    return torch.cat(parts).float().to(images.labels.device)
