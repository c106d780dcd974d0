"""Peak memory of a population's forward passes, measured in a process of their own.

python -m support.peak NETWORK THREADS MEMBERS prints what the measuring test compares, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Convolution, Linear, NetworkGraph, size_of
from support.convolutional import CifarResNet
from support.zoo import as_row, pictures, randomised, torchvision_model


class Network(NamedTuple):
    """What is run: its images' size, how many of them a micro-batch has, how many micro-batches."""

    make: type[CifarResNet] | None  # None: torchvision's ResNet-18
    size: int
    micro_batch: int
    micro_batches: int


NETWORKS = {
    "resnet20": Network(CifarResNet, 32, 64, 12),
    "resnet18": Network(None, 64, 8, 3),
}


def activations(graph: NetworkGraph) -> int:
    """Most bytes that the layers of one micro-batch hold at once, images apart."""
    held: dict[int, int] = {}
    most = 0
    for layer in graph.layers:
        held[layer.writes] = size_of(layer.out_shape, layer.dtype)
        most = max(most, sum(held.values()))
        for register in layer.frees:
            held.pop(register, None)
    return most


def weights(graph: NetworkGraph) -> tuple[int, int]:
    """Bytes of all layers' weights and of the largest layer's."""
    sizes = [
        size_of(layer.weights.shape, layer.dtype)
        for layer in graph.layers
        if isinstance(layer, (Convolution, Linear))
    ]
    return sum(sizes), max(sizes)


def _resident(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def main(name: str, threads: int, members: int) -> None:
    """Measures one network; members share one row, so that they cost nothing themselves."""
    torch.set_num_threads(threads)
    network = NETWORKS[name]
    make = network.make or (lambda: torchvision_model("resnet18"))
    model = randomised(make, network.size)
    layout, row = as_row(model)
    count = network.micro_batch * network.micro_batches
    images = pictures(8, network.size).repeat(count // 8, 1, 1, 1)
    labels = torch.zeros(count, dtype=torch.int64)
    forward = PopulationForward(model, layout, micro_batch=network.micro_batch)
    graph = forward.graph((3, network.size, network.size))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here: proc(5)
    before = _resident("VmRSS")
    forward(row.expand(members, -1), images, labels)
    total, largest = weights(graph)
    found = {
        "peak": _resident("VmHWM") - before,
        "activations": activations(graph),
        "weights": total,
        "largest": largest,
        "images": images.nbytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
