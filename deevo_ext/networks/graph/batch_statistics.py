"""A captured graph whose BatchNorms use the statistics of the batch in place of running ones."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from deevo_ext.networks.graph.export import Capture, NotExportable
from deevo_ext.networks.graph.network_graph import owner_of
from deevo_ext.networks.graph.patterns import NORMS

aten = torch.ops.aten

_TOGETHER = 1024  # values of a channel that are added up in float32


def with_batch_statistics(capture: Capture, statistics: Collection[str]) -> Capture:
    """Returns the same capture, with the BatchNorms that own these statistics in training mode.

    statistics: names of running means and variances. Nothing is written to them. Raises
    NotExportable where one is used by anything else, as by a norm of one's own making.
    """
    owners = {owner_of(name) for name in statistics}
    for node in capture.graph.nodes:
        names: list[Any] = [capture.names.get(parent) for parent in node.all_input_nodes]
        if node.op != "call_function" or not any(n is not None and n in statistics for n in names):
            continue
        if node.target not in NORMS:
            raise NotExportable(f"{node.target} reads running statistics")
    for node in capture.graph.nodes:
        if node.op != "call_function" or node.target not in NORMS:
            continue
        read = [capture.names.get(a) for a in node.args[3:5] if a is not None]
        if not any(name is not None and owner_of(name) in owners for name in read):
            continue
        given: list[Any] = list(node.args)
        legit = node.target is aten._native_batch_norm_legit_no_training.default
        eps = given[6] if legit else given[7]
        several = node.target is not aten.batch_norm.default
        if several and [u.args[1:] for u in node.users if u.target is operator.getitem] != [(0,)]:
            raise NotExportable(f"{node} gives its statistics to others")
        node.target, node.args, node.kwargs = batch_norm, (*given[:3], eps, several), {}
    return capture


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, several: bool
) -> Tensor | tuple[Tensor]:
    """Returns x [N, C, ...] normalised by its own statistics; several: as a tuple.

    On the CPU torch adds up channels-last values one by one in float32, which for 500 images gives
    variances that are wrong in the fifth digit: here they are those of a thousand values at a time,
    put together in float64 (Chan et al. 1983).
    """
    if x.device.type != "cpu":
        y = torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, False)
        return (y,) if several else y
    positions = math.prod(x.shape[2:])
    parts = x.split(max(1, _TOGETHER // max(1, positions)))
    found = [aten.batch_norm_update_stats.default(part, None, None, 0.0) for part in parts]
    means, variances = (torch.stack(list(some)).double() for some in zip(*found, strict=True))
    shares = torch.tensor([len(part) / len(x) for part in parts], dtype=torch.float64)[:, None]
    mean = (shares * means).sum(dim=0)
    variance = (shares * (variances + (means - mean).square())).sum(dim=0)
    y = torch.batch_norm(x, weight, bias, mean.float(), variance.float(), False, 0.0, eps, False)
    return (y,) if several else y
