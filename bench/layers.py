"""The case `layers`: each convolution and linear layer, held to its roofline.

One micro-batch of one member on one torch thread, as a graph's workers run it. A layer's input is
warm, as it is behind the layer before it. FLOP and bytes are the network graph's: input, residual
or shortcut's input, weights and output once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bench import measure
from bench.job import Job, check_close
from bench.networks import graph_of
from bench.row import Row
from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.engines.base import activate
from deevo_ext.networks.graph.network_graph import Convolution, Linear

# As a graph's own check, of rounding alone: 2^-24, 2^-11 and 2^-8 over sums of thousands.
_DEVIATION = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}


def run_job(job: Job) -> list[Row]:
    """A row for each layer that differs from those before it, or for the one that is named."""
    graph, subject = graph_of(job)
    named = job.size.partition("/")[2]
    rows, seen = [], set()
    for layer in graph.layers:
        if not isinstance(layer, (Convolution, Linear)):
            continue
        if (named and layer.name != named) or layer.signature in seen:
            continue
        seen.add(layer.signature)
        row = time_layer(job, layer)
        rows.append({"size": f"{subject.name}/{layer.name}", "batch": subject.micro_batch, **row})
    return rows


def time_layer(job: Job, layer: Convolution | Linear) -> Row:
    """Checks and times a layer in the hands of its engine."""
    draw = torch.Generator(job.device).manual_seed(job.seed)

    def random(shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=draw, device=job.device).to(layer.dtype)
        if len(shape) == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    shortcut = layer.shortcut if isinstance(layer, Convolution) else None
    weights = [random(w.shape) for w in (layer.weights, *([shortcut.weights] if shortcut else []))]
    for weight in weights:
        weight /= weight[0].numel() ** 0.5
    bias = torch.randn(layer.weights.shape[0], generator=draw, device=job.device)
    x, second = random(layer.in_shape), None
    if isinstance(layer, Convolution) and layer.residual:
        second = random(layer.out_shape)
    elif shortcut is not None:
        second = random(shortcut.in_shape)
    bound = ENGINES[layer.engine].bind(layer)
    run = partial(bound.run, bound.prepare(weights[0], bias, *weights[1:]), x, second)
    with torch.no_grad():
        some = slice(0, 2)
        expected = _exact(layer, weights, bias, x[some], None if second is None else second[some])
        what = f"layers: {layer.name} by {layer.engine}"
        check_close(what, run()[some].double(), expected, _DEVIATION[job.dtype_name])
        effort = replace(job.effort(), budget_s=job.budget_s / 6)
        times, _ = measure.interleaved(run, effort=effort)
    shapes = " to ".join("x".join(map(str, shape)) for shape in (layer.in_shape, layer.out_shape))
    added = "" if second is None else " + shortcut" if shortcut else " + residual"
    return {
        **measure.summary(times),
        "flops": layer.flops,
        "bytes": layer.bytes,
        "d": sum(weight.numel() for weight in weights),
        **measure.how(job.device),
        "note": f"{layer.operation}{added}, {shapes}, {layer.engine}",
    }


def _exact(
    layer: Convolution | Linear,
    weights: list[Tensor],
    bias: Tensor,
    x: Tensor,
    second: Tensor | None,
) -> Tensor:
    """A layer's output by torch in float64."""
    inputs = (x.double(), weights[0].double(), bias.double())
    if isinstance(layer, Linear):
        output = torch.nn.functional.linear(*inputs)
    else:
        output = torch.nn.functional.conv2d(
            *inputs, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        if layer.shortcut is not None and second is not None:
            stride = layer.shortcut.stride
            second = torch.nn.functional.conv2d(second.double(), weights[1].double(), None, stride)
    if second is not None:
        output = output + second.double()
    function = activate(layer.activation)
    return output if function is None else function(output)
