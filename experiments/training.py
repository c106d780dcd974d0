"""Training on labels as somebody careful would do it: the yardstick that has gradients."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from deevo_ext.data.images import ImageSet
from deevo_ext.training.few_labels import Trained, train_on_labels

from .bounds import differentiable


def careful(network: nn.Module, images: ImageSet, seed: int, lengths: Sequence[int]) -> Trained:
    """Returns what Adam makes of a network on labelled images; the network is left as it is.

    Learning rate and number of steps are chosen on a fifth of the images. With BatchNorm it is done
    twice, with the batches' statistics and with the network's own, re-estimated on these images
    before, and the same fifth chooses. lengths: the numbers of steps that are tried.
    """
    ways = [network]
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        ways.append(differentiable(copy.deepcopy(network)))
    trained = [train_on_labels(way, images, seed, lengths=lengths) for way in ways]
    best = min(trained, key=lambda one: one.loss)
    return replace(best, images=sum(one.images for one in trained))
