"""The networks that are run: what they are, members a little apart, and images for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from bench.job import Job
from bench.row import Row
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import NetworkGraph, size_of
from deevo_ext.networks.small_resnet import SmallResNet
from deevo_ext.population.layout import Layout

MOST_MICRO_BATCH = {"cpu": 64, "cuda": 256}


BASIC, BOTTLENECK = (3, 3), (1, 3, 1)


class Block(nn.Module):
    """Convolutions, the first 3x3 one of them strided, and a shortcut (arXiv 1512.03385).

    kernels: `BASIC`, or `BOTTLENECK`, whose last convolution is four times as wide.
    """

    def __init__(self, inside: int, width: int, stride: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        outside = 4 * width if kernels == BOTTLENECK else width
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))
        self.last = len(kernels)
        for number, kernel in enumerate(kernels, start=1):
            step, stride = (stride, 1) if kernel == 3 else (1, stride)
            wide = outside if number == self.last else width
            conv = nn.Conv2d(inside, wide, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{number}", conv)
            setattr(self, f"bn{number}", nn.BatchNorm2d(wide))
            inside = wide

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number in range(1, self.last + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.last:
                y = torch.relu(y)
        return torch.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """The ImageNet networks of the same paper: a 7x7 stem, four stages, 1,000 classes."""

    def __init__(self, kernels: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside, stages, wider = 64, [], 4 if kernels == BOTTLENECK else 1
        for stage, depth in enumerate(depths):
            for i in range(depth):
                stages.append(Block(inside, 64 << stage, 2 if i == 0 and stage else 1, kernels))
                inside = (64 << stage) * wider
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inside, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.blocks(x).mean(dim=(2, 3)))


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is padded where the shape changes (option A)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.more = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.more:
            x = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """He et al.'s ResNet-20 for 32x32 images: 16, 32 and 64 channels (arXiv 1512.03385)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks = []
        for inside, outside, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
            blocks.append(PaddedBlock(inside, outside, stride))
            blocks.extend(PaddedBlock(outside, outside, 1) for _ in range(2))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.bn(self.conv(x))))
        return self.fc(x.mean(dim=(2, 3)))


@torch.no_grad()
def randomised(make: Callable[[], nn.Module], size: int, seed: int = 0) -> nn.Module:
    """A network in eval mode whose logits differ from image to image; size: of its images.

    An untrained BatchNorm is the identity: its parameters are drawn, its statistics are those of
    real activations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        model.train()
        model(torch.cat([pictures(2, size), pictures(2, size, seed + 1)]))
    return model.eval()


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Images float32 [N, 3, size, size] of different texture, colour and contrast."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for i in range(count):
        coarse = torch.randn(1, 3, 4 + 3 * i, 4 + 3 * i, generator=generator)
        smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
        noise = torch.randn(1, 3, size, size, generator=generator)
        colour = torch.randn(1, 3, 1, 1, generator=generator)
        images.append((1 + i) * smooth / 2 + 0.3 * noise + colour)
    return torch.cat(images)


@dataclass(frozen=True)
class Network:
    """size: of its square images; batch: images by type of device."""

    make: Callable[[], nn.Module]
    size: int
    batch: dict[str, int]


NETWORKS = {
    "resnet8": Network(lambda: SmallResNet(3, 10), 32, {"cpu": 256, "cuda": 256}),
    "resnet20": Network(CifarResNet, 32, {"cpu": 256, "cuda": 256}),
    "resnet18": Network(lambda: ResNet(BASIC, (2, 2, 2, 2)), 64, {"cpu": 64, "cuda": 256}),
    "resnet50": Network(lambda: ResNet(BOTTLENECK, (3, 4, 6, 3)), 224, {"cpu": 8, "cuda": 256}),
}


@dataclass
class Subject:
    """Networks of one architecture, and images.

    rows [K, D] of members 1 % apart; images float32 [N, 3, H, W]; labels int64 [N], what the
    network in the middle of the members says.
    """

    name: str
    model: nn.Module
    layout: Layout
    rows: Tensor
    images: Tensor
    labels: Tensor
    micro_batch: int

    def forward(self, engine: str, precision: str) -> PopulationForward:
        """Makes the forward passes of these networks."""
        return PopulationForward(
            self.model,
            self.layout,
            engine=engine,
            precision=precision,
            micro_batch=self.micro_batch,
            device=self.rows.device,
        )


def batch_of(job: Job) -> int:
    """How many images a job has."""
    return job.batch or (16 if job.quick else NETWORKS[_name(job)].batch[job.device])


def subject_of(job: Job, count: int | None = None, apart: float = 0.01) -> Subject:
    """What a job runs, on its device; count: how many images."""
    network = NETWORKS[_name(job)]
    model = randomised(network.make, network.size, job.seed)
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    layout = Layout.build(state, nonneg=[n for n in state if n.endswith("running_var")])
    rows = torch.zeros(job.members, layout.stride)
    draw = torch.Generator().manual_seed(job.seed)
    for row in rows:
        layout.flatten(state, row)
        row.mul_(1 + apart * torch.randn(row.shape, generator=draw))
    count = count or batch_of(job)
    model, rows = model.to(job.device), rows.to(job.device)
    samples = pictures(8, network.size, job.seed).to(job.device)
    noise = torch.Generator(job.device).manual_seed(job.seed)
    images = torch.empty(count, *samples.shape[1:], device=job.device).normal_(generator=noise)
    images.mul_(0.3).add_(samples.repeat(-(-count // 8), 1, 1, 1)[:count])
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(dim=1) for part in images.split(64)])
    micro_batch = min(count, MOST_MICRO_BATCH[job.device])
    return Subject(_name(job), model, layout, rows, images, labels, micro_batch)


def _name(job: Job) -> str:
    return job.size.partition("/")[0]


@dataclass(frozen=True)
class Work:
    """What the network graph needs for an image: FLOP, bytes moved; and a member's floor of memory.

    floor: weights staged twice, the largest layer's input and output for one micro-batch.
    """

    flops: float
    bytes: float
    floor: int
    dim: int

    def complete(self, job: Job, row: Row) -> Row:
        """A row of a network's scores with these, for as many images as its members have seen."""
        images = job.members * job.batch
        seen = images * row.get("image_share", 1.0)
        return {
            **row,
            "flops": round(seen * self.flops),
            "bytes": round(seen * self.bytes),
            "d": self.dim,
            "batch": job.batch,
            "member_images_per_s": images / row["median_s"],
        }


def graph_of(job: Job, engine: str = "auto") -> tuple[NetworkGraph, Subject]:
    """The graph of a job's network, its engines chosen by timing, and a member with images."""
    subject = subject_of(replace(job, members=1))
    return subject.forward(engine, job.dtype_name).graph(tuple(subject.images.shape[1:])), subject


def work_of(job: Job) -> Work:
    """What a job's network needs, by its network graph."""
    micro_batch = min(batch_of(job), MOST_MICRO_BATCH[job.device])
    alike = replace(job, case="layers", backend="fused", members=1, isa="", seed=0)
    return _work(replace(alike, batch=micro_batch, repetitions=5, budget_s=1.0))


@cache
def _work(job: Job) -> Work:
    graph, subject = graph_of(job, "fused")
    both = [
        size_of(layer.in_shape, graph.dtype) + size_of(layer.out_shape, graph.dtype)
        for layer in graph.layers
    ]
    moved = sum(layer.bytes for layer in graph.layers)
    floor = max(both) + 2 * subject.layout.dim * graph.dtype.itemsize
    return Work(graph.flops / job.batch, moved / job.batch, floor, subject.layout.dim)
