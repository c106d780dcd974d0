"""engine="triton": whole networks of several members in our own kernels, against eager float64.

Without a GPU the kernels run in Triton's interpreter, in float32 and float16.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import deevo_ext as deevo
from deevo_ext.backends import native
from deevo_ext.networks.batched import runner as batched_runner
from deevo_ext.networks.batched.runner import BatchedRunner
from deevo_ext.networks.engines.choose import EngineTable
from deevo_ext.networks.execution.cuda_graphs import OFTEN
from deevo_ext.networks.execution.workers import Workers
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Convolution
from support.convolutional import CifarResNet, ResNet
from support.convolutions import DEVICE
from support.exact import MEAN, STD, bound_of, logits_of, rows_of
from support.networks import Tail, Unexportable, pooled
from support.zoo import as_row, randomised, torchvision_model

INTERPRETED = pytest.mark.skipif(DEVICE == "cuda", reason="runs in the interpreter, without a GPU")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "basic": (lambda: ResNet(False), 13),
    "bottleneck": (lambda: ResNet(True), 13),
    "ResNet-18": (lambda: ResNet(False, (16, 16, 16, 48), (2, 2, 2, 2)), 17),
    "CIFAR ResNet": (lambda: CifarResNet(1), 8),
}


def raw_images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (count, 3, 5, 5), generator=generator).float()
    smooth = functional.interpolate(coarse, size, mode="bilinear")
    noise = torch.randint(-20, 21, smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255).to(torch.uint8)


def against_eager(name: str, precision: str, device: str) -> PopulationForward:
    make, size = NETWORKS[name]
    model = randomised(make, size)
    layout, row = as_row(model)
    rows, raw, labels = rows_of(row, 3), raw_images(3, size), torch.tensor([0, 3, 6])
    forward = PopulationForward(
        model, layout, engine="triton", precision=precision, micro_batch=2, mean=MEAN, std=STD,
        device=device,
    )  # fmt: skip
    given = rows.to(device)
    losses, ranks = forward(given, raw, labels)
    logits = torch.stack([logits_of(model, layout, row, raw) for row in rows])
    expected = torch.stack([functional.cross_entropy(z, labels, reduction="none") for z in logits])
    bound = bound_of(model, logits, precision)
    error = float((losses - expected).abs().max())
    assert error <= bound, (error, bound)
    assert float((expected[0] - expected[1]).abs().max()) > 2 * bound, "nothing would be shown"
    own = logits.gather(2, labels.expand(3, 3)[..., None])
    surely, perhaps = (logits > own + bound).sum(2), (logits >= own - bound).sum(2) - 1
    assert bool(((ranks >= surely) & (ranks <= perhaps)).all())
    shown = forward.logits(given[1], raw)
    assert float((shown - logits[1]).abs().max()) <= bound / 2
    # Alone, or in other company, on another micro-batch: the same bits.
    alone = forward(given[2:], raw[2:], labels[2:])
    assert torch.equal(alone.losses, losses[2:, 2:]) and torch.equal(alone.ranks, ranks[2:, 2:])
    company = forward(given[[2, 0]], raw[:2], labels[:2])
    assert torch.equal(company.losses, losses[[2, 0], :2])
    for _ in range(2 * OFTEN if device == "cuda" else 0):  # by graphs at last
        assert torch.equal(forward(given, raw, labels).losses, losses)
    return forward


@INTERPRETED
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((n, "float32") for n in NETWORKS), *((n, "float16") for n in ("basic", "bottleneck"))],
)
def test_networks(name: str, precision: str) -> None:
    forward = against_eager(name, precision, "cpu")
    size = NETWORKS[name][1]
    found = [p for p in forward.graph((3, size, size)).layers if isinstance(p, Convolution)]
    assert {p.engine for p in found} == {"triton"}


@INTERPRETED
@pytest.mark.parametrize(("name", "shortcuts"), [("resnet18", 3), ("resnet34", 3), ("resnet50", 4)])
def test_torchvisions_resnets_are_taken_whole(name: str, shortcuts: int) -> None:
    """Network graphs at full width; their kernels are too slow to interpret."""
    model = torchvision_model(name)
    layout, _ = as_row(model)
    graph = PopulationForward(model, layout, engine="triton", micro_batch=2).graph((3, 64, 64))
    found = Counter(p.engine if p.engine[:3] != "in " else "in" for p in graph.layers)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    # Shortcuts are parts of their blocks' last layers, mean pool and flattening of the head.
    assert found == {"triton": convolutions - shortcuts + 1, "in": 2, "deevo.head": 1}
    merged = [p.name for p in graph.layers if isinstance(p, Convolution) and p.shortcut]
    assert len(merged) == shortcuts


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_a_gpu(name: str, precision: str) -> None:
    against_eager(name, precision, "cuda")


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@INTERPRETED
def test_no_aten_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three members of a chunk: one fold, one head a micro-batch, and else only copies."""
    monkeypatch.setattr(Workers, "run", lambda self, tasks: [task() for task in tasks])
    fold, folds = native.cpu.fold, []
    monkeypatch.setattr(native.cpu, "fold", lambda *given: (folds.append(given), fold(*given)))
    model = randomised(lambda: ResNet(False), 9)
    layout, row = as_row(model)
    raw, labels = raw_images(3, 9), torch.tensor([0, 3, 6])
    found = {}
    for engine in ("triton", "eager"):
        forward = PopulationForward(
            model, layout, engine=engine, micro_batch=2, mean=MEAN, std=STD, precision="float32"
        )
        rows = rows_of(row, 3)
        forward(rows, raw, labels)  # the graph is made and checked
        folds.clear()
        with Calls() as calls:
            forward(rows, raw, labels)
        found[engine] = calls.count | {"fold": len(folds)}
    layers = ("conv", "pool", "mm", "linear", "batch_norm", "relu", "mean", "matmul")
    assert any("convolution" in name or "conv2d" in name for name in found["eager"])
    assert not [name for name in found["triton"] if any(part in name for part in layers)]
    assert found["triton"]["fold"] == 1 and found["triton"]["deevo::head"] == 2


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_statistics_apart_and_frozen_layers(dtype: torch.dtype) -> None:
    """Members share the classifier and a convolution; rows may be in 16 bits."""
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(ResNet(False).state_dict())
    for state in states:
        for name in state:
            if name.startswith(("classifier", "blocks.1.layers.0.0")):
                state[name] = states[0][name]
            elif state[name].is_floating_point():
                state[name] = state[name].to(dtype).float()
    model = ResNet(False)
    pop = deevo.Population.from_state_dicts(
        model, states, batchnorm="inherit", frozen=["classifier.*", "blocks.1.layers.0.0.*"]
    )
    images, labels = torch.randn(2, 3, 9, 9), torch.tensor([1, 5])
    forward = PopulationForward(model, pop, engine="triton", micro_batch=2, precision="float32")
    losses = forward(pop.rows.to(dtype), images, labels, pop.statistics).losses
    for i in range(3):
        model.load_state_dict(states[i])
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(images.double())
        expected = functional.cross_entropy(logits, labels, reduction="none")
        bound = bound_of(model, logits, "float32")
        assert float((losses[i] - expected).abs().max()) <= bound
    other = forward(pop.rows[:1].to(dtype), images, labels, pop.statistics[1:2]).losses
    assert not torch.equal(other[0], losses[0])


@INTERPRETED
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_overflow_is_the_members_own(precision: str) -> None:
    model = randomised(lambda: ResNet(False), 9)
    layout, row = as_row(model)
    rows = rows_of(row, 3)
    layout.views(rows[1])["blocks.0.layers.0.1.weight"].mul_(
        1e6 if precision == "float16" else 1e38
    )
    rows[2, layout.entries[0].offset] = math.nan
    forward = PopulationForward(model, layout, engine="triton", precision=precision, micro_batch=2)
    losses, ranks = forward(rows, torch.randn(2, 3, 9, 9), torch.tensor([1, 5]))
    assert bool((losses[1:] == math.inf).all()) and bool((ranks[1:] == 7).all())
    assert bool(losses[0].isfinite().all()) and bool((ranks[0] < 7).all())


@INTERPRETED
def test_chunks_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on where chunks end; one member that needs more has it."""
    model = randomised(lambda: ResNet(False), 9)
    layout, row = as_row(model)
    rows, raw, labels = rows_of(row, 3), raw_images(2, 9), torch.tensor([0, 3])
    # Largest: the stem's output (5x5x16) and the pool's (3x3x16) of both images, in 4 bytes; then
    # the folded weights and vectors.
    live = 4 * 2 * 16 * (5 * 5 + 3 * 3)

    def forward() -> PopulationForward:
        return PopulationForward(
            model, layout, engine="triton", micro_batch=2, mean=MEAN, std=STD, precision="float32"
        )

    runner = forward()._built((3, 9, 9), torch.float32).runner
    assert isinstance(runner, BatchedRunner)
    each = live + runner.stager.staged_bytes
    assert runner.chunk == batched_runner.CHUNK_BYTES // each
    for limit, chunk in ((2 * each + 1, 2), (each // 2, 1)):
        monkeypatch.setattr(batched_runner, "CHUNK_BYTES", limit)
        limited = forward()
        runner = limited._built((3, 9, 9), torch.float32).runner
        assert isinstance(runner, BatchedRunner) and runner.chunk == chunk
        found = limited(rows, raw, labels)
        alone = limited(rows[2:], raw, labels).losses
        assert torch.equal(found.losses[2:], alone)
    with pytest.raises(deevo.DeevoError, match=r"have label 7, but the model has 7 classes"):
        forward()(rows, raw, torch.tensor([0, 7]))


REFUSED = {
    "groups": (Tail(nn.Conv2d(8, 8, 3, groups=8), *pooled()), r"layer after\.0 .*has no groups"),
    "activation": (Tail(nn.SiLU(), *pooled()), r"layer conv .*has ReLU, not silu"),
    "flat positions": (
        Tail(nn.Flatten(), nn.Linear(288, 3)),
        r"layer after\.1 \(linear\): it reads",
    ),
    "hidden layer": (Tail(*pooled(), nn.ReLU(), nn.Linear(3, 3)), r"layer after\.4 .*it reads"),
    "end": (Tail(*pooled(), nn.ReLU()), r"layer after\.2 .*without an activation"),
    "operator": (Tail(nn.Softmax(1), *pooled()), r"layer softmax .*no kernel for it"),
    "pool": (
        Tail(nn.MaxPool2d(3, 2, ceil_mode=True), *pooled()),
        r"layer max_pool2d .*no ceil_mode",
    ),
    "images": (Tail(*pooled(), images=nn.MaxPool2d(2)), r"layer max_pool2d .*reads the images"),
    "no graph": (Unexportable(), r"cannot run Unexportable, which has no graph: torch.export"),
}


@INTERPRETED
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_takes_is_named(name: str) -> None:
    model, message = REFUSED[name]
    layout, row = as_row(model.eval())
    forward = PopulationForward(model, layout, engine="triton", micro_batch=2)
    with pytest.raises(deevo.DeevoError, match=message):
        forward(row[None], torch.zeros(2, 3, 6, 6), torch.tensor([0, 1]))


@INTERPRETED
def test_pools_and_ends_of_other_kinds() -> None:
    """Mean pools inside and at the end, 1x1 features, dropout, tails without a bias."""
    ends = {
        "mean": (nn.AvgPool2d(2, ceil_mode=False), nn.Conv2d(8, 16, 3, bias=False), nn.AvgPool2d(1),
                 nn.Flatten(), nn.Dropout(), nn.Linear(16, 3, bias=False)),
        "whole": (nn.ReLU(), nn.AvgPool2d(6), nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)),
    }  # fmt: skip
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 6, 6), torch.tensor([0, 2])
    for layers in ends.values():
        model = Tail(*layers).eval()
        layout, row = as_row(model)
        forward = PopulationForward(model, layout, engine="triton", micro_batch=2)
        losses = forward(row[None], images, labels).losses[0]
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(images.double())
        expected = functional.cross_entropy(logits, labels, reduction="none")
        assert float((losses - expected).abs().max()) <= bound_of(model, logits, "float32")


@INTERPRETED
def test_without_the_interpreter_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    layout, row = as_row(ResNet(False))
    forward = PopulationForward(
        ResNet(False), layout, engine="triton", table=EngineTable(torch.device("cpu"))
    )
    with pytest.raises(deevo.DeevoError, match="Triton kernels run on CUDA"):
        forward.logits(row, torch.zeros(1, 3, 18, 18))
