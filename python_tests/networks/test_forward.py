"""PopulationForward: members, micro-batches, threads, precisions, engines and their tables."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import deevo_ext as deevo
from deevo_ext.networks.engines import ENGINES, candidates
from deevo_ext.networks.engines.choose import EngineTable, device_cache
from deevo_ext.networks.execution.cuda_graphs import OFTEN
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Activation, Convolution, Linear, Weights
from deevo_ext.networks.precision import compare_losses
from support.convolutional import CifarResNet
from support.evolution import images, population
from support.networks import Net
from support.zoo import as_row, pictures, randomised

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("engine", ["auto", "fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fitness_depends_on_row_and_images_alone(
    engine: str, dtype: torch.dtype, threads: None
) -> None:
    pop, data = population(5, dtype=dtype), images(70)
    table = EngineTable(CPU)
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        forward = PopulationForward(Net(), pop, engine=engine, micro_batch=32, table=table)
        found.append(forward(pop.rows, data.images, data.labels))
        alone = [forward(row[None], data.images, data.labels) for row in pop.rows]
        assert torch.equal(torch.cat([one.losses for one in alone]), found[-1].losses)
        # An image's loss does not depend on the micro-batch it lies in, nor on the padding.
        part = forward(pop.rows, data.images[32:40], data.labels[32:40])
        assert torch.equal(part.losses, found[-1].losses[:, 32:40])
    assert torch.equal(found[0].losses, found[1].losses)
    assert found[0].losses.shape == (5, 70) and found[0].ranks.dtype == torch.int32


def test_losses_and_ranks_are_the_loaded_models() -> None:
    pop, data = population(4), images(50)
    losses, ranks = PopulationForward(Net(), pop, micro_batch=16)(
        pop.rows, data.images, data.labels
    )
    for i in range(4):
        model = Net().eval()
        model.load_state_dict(pop.state_dict(i))
        with torch.no_grad():
            logits = model(data.images)
        expected = nn.functional.cross_entropy(logits, data.labels, reduction="none")
        assert torch.allclose(losses[i], expected, rtol=0, atol=50 * 2.0**-22)
        order = logits.sort(dim=1, descending=True, stable=True).indices
        assert torch.equal(ranks[i].long(), (order == data.labels[:, None]).int().argmax(dim=1))


@pytest.mark.parametrize("policy", ["inherit", "recalibrate"])
def test_statistics_held_apart(policy: str) -> None:
    pop, data = population(4, batchnorm=policy), images(30)
    forward = PopulationForward(Net(), pop, micro_batch=16)
    found = forward(pop.rows[[0, 0]], data.images, data.labels, pop.statistics[[0, 2]]).losses
    state = pop.state_dict(0)
    for i, member in enumerate((0, 2)):
        other = pop.state_dict(member)
        for name in ("bn.running_mean", "bn.running_var"):
            state[name] = other[name]
        model = Net().eval()
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model(data.images)
        expected = nn.functional.cross_entropy(logits, data.labels, reduction="none")
        assert torch.allclose(found[i], expected, rtol=0, atol=50 * 2.0**-22)
    with pytest.raises(deevo.DeevoError, match="statistics have shape None"):
        forward(pop.rows, data.images, data.labels)


def test_frozen_tensors_come_from_the_population() -> None:
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        pop = population(4, frozen=["conv.*", "bn.running_var"])
    data = images(30)
    forward = PopulationForward(Net(), pop, micro_batch=16)
    model = Net().eval()
    model.load_state_dict(pop.state_dict(3))
    with torch.no_grad():
        expected = model(data.images)
    assert torch.allclose(forward.logits(pop.rows[3], data.images), expected, atol=1e-4)


def test_uint8_images_are_normalised_once() -> None:
    model = randomised(CifarResNet, 32)
    layout, row = as_row(model)
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    forward = PopulationForward(model, layout, micro_batch=4, mean=mean, std=std)
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        expected = model((raw / 255 - m) / s)
    largest = float(expected.abs().max())
    for given in (raw, raw.float() / 255, raw.contiguous(memory_format=torch.channels_last)):
        assert float((forward.logits(row, given) - expected).abs().max()) < 1e-4 * largest
    with pytest.raises(deevo.DeevoError, match="uint8, but there is no normalisation"):
        PopulationForward(model, layout).logits(row, raw)
    with pytest.raises(deevo.DeevoError, match="3 channels, but mean= has 1"):
        PopulationForward(model, layout, mean=(0.5,), std=(0.5,)).logits(row, raw)


def test_the_callers_thread_count_and_rows_are_left_alone() -> None:
    pop, data = population(4), images(40)
    before, rows = torch.get_num_threads(), pop.rows.clone()
    for engine in ("auto", "eager"):
        PopulationForward(Net(), pop, engine=engine)(pop.rows, data.images, data.labels)
    assert torch.get_num_threads() == before and torch.equal(pop.rows, rows)


def test_an_overflow_is_infinite_loss_and_last_rank() -> None:
    pop, data = population(4), images(20)
    rows = pop.rows.clone()
    rows[1] *= 1e25
    for precision in ("float32", "bfloat16"):
        forward = PopulationForward(Net(), pop, precision=precision)
        losses, ranks = forward(rows, data.images, data.labels)
        assert bool((losses[1] == math.inf).all()) and bool((ranks[1] == 3).all())
        assert bool(torch.isfinite(losses[[0, 2, 3]]).all())


ACTIVATIONS = [
    None,
    Activation("relu"),
    Activation("hardtanh", (0.0, 6.0)),
    Activation("silu"),
    Activation("hardswish"),
    Activation("gelu"),
    Activation("gelu", (), "tanh"),
    Activation("sigmoid"),
    Activation("hardsigmoid"),
    Activation("tanh"),
    Activation("leaky_relu", (0.1,)),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_engines_agree(activation: Activation | None, dtype: torch.dtype) -> None:
    """Every engine that claims a layer computes act(conv + bias + residual); linear likewise."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for groups, residual in ((1, False), (4, False), (1, True)):
        if residual and activation not in (None, Activation("relu")):
            continue  # the fuser leaves those apart
        weight, bias = draw(8, 8 // groups, 3, 3) / 8, draw(8)
        x, other = (draw(2, 8, 7, 9).contiguous(memory_format=torch.channels_last) for _ in "xr")
        layer = Convolution(
            "conv",
            (0,),
            1,
            (2, 8, 7, 9),
            (2, 8, 7, 9),
            dtype,
            weights=Weights("w", "b", None, tuple(weight.shape)),
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=groups,
            residual=residual,
            activation=activation,
        )
        exact = nn.functional.conv2d(x.double(), weight.double(), bias.double(), 1, 1, 1, groups)
        _agree(layer, exact + other.double() if residual else exact, x, weight, bias,
               other if residual else None)  # fmt: skip
    weight, bias, x = draw(5, 8) / 3, draw(5), draw(4, 6, 8)
    layer = Linear(
        "fc",
        (0,),
        1,
        (4, 6, 8),
        (4, 6, 5),
        dtype,
        weights=Weights("w", "b", None, (5, 8)),
        activation=activation,
    )
    exact = nn.functional.linear(x.double(), weight.double(), bias.double())
    _agree(layer, exact, x, weight, bias, None)


# Input map, kernel, stride and padding, and whether `positions` claims the layer.
SMALL_MAPS = [
    ((2, 2), (3, 3), (1, 1), (1, 1), True),
    ((4, 4), (3, 3), (2, 2), (1, 1), True),
    ((3, 2), (3, 5), (1, 1), (1, 2), True),
    ((5, 3), (3, 3), (2, 1), (1, 1), True),
    ((3, 3), (7, 7), (2, 2), (3, 3), True),
    ((1, 1), (3, 3), (1, 1), (1, 1), True),
    ((4, 4), (3, 3), (1, 1), (1, 1), False),  # 16 positions
    ((3, 3), (3, 3), (1, 1), (0, 0), False),  # no padding
    ((2, 2), (1, 1), (1, 1), (1, 1), False),  # and 16 positions, 12 of which see padding alone
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "claimed"), SMALL_MAPS)
@pytest.mark.parametrize("residual", [False, True])
def test_engines_agree_on_small_maps(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    claimed: bool,
    residual: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    channels, taps = 8, kernel[0] * kernel[1]
    weight = draw(6, channels, *kernel) / math.sqrt(channels * taps)
    weight = weight.contiguous(memory_format=torch.channels_last)
    x, bias = draw(3, channels, *size).contiguous(memory_format=torch.channels_last), draw(6)
    exact = nn.functional.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    other = draw(*exact.shape).contiguous(memory_format=torch.channels_last) if residual else None
    layer = Convolution(
        "conv",
        (0,),
        1,
        tuple(x.shape),
        tuple(exact.shape),
        dtype,
        weights=Weights("w", "b", None, tuple(weight.shape)),
        stride=stride,
        padding=padding,
        dilation=(1, 1),
        groups=1,
        residual=residual,
        activation=Activation("relu"),
    )
    names = {engine.name for engine in candidates(layer, CPU)}
    if ENGINES["onednn"].why_not(layer, CPU) is None:  # a CPU that multiplies this dtype
        assert ("positions" in names) == claimed
    _agree(layer, exact if other is None else exact + other.double(), x, weight, bias, other)


def _agree(
    layer: Convolution | Linear,
    exact: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
) -> None:
    act, functional = layer.activation, nn.functional
    if act is not None:
        exact = {
            "relu": torch.relu,
            "hardtanh": lambda v: v.clamp(*act.scalars),
            "silu": functional.silu,
            "hardswish": functional.hardswish,
            "gelu": lambda v: functional.gelu(v, approximate=act.approximate),
            "sigmoid": torch.sigmoid,
            "hardsigmoid": functional.hardsigmoid,
            "tanh": torch.tanh,
            "leaky_relu": lambda v: functional.leaky_relu(v, 0.1),
        }[act.name](exact)
    engines = candidates(layer, CPU)
    assert {engine.name for engine in engines} >= {"aten"}
    for engine in engines:
        bound = engine.bind(layer)
        prepared = bound.prepare(weight.to(layer.dtype), bias)
        other = None if residual is None else residual.to(layer.dtype)
        found = bound.run(prepared, x.to(layer.dtype), other)
        # Inputs, weights, bias, residual and result are rounded; |terms| < 4, sums of 72 at most
        # (392 of smaller terms on small maps).
        u = 2.0**-24 * 72 if layer.dtype == torch.float32 else 2.0**-9 * 8
        assert float((found.double() - exact).abs().max()) <= 8 * u, engine.name


def test_a_new_engine_has_layers_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = device_cache(CPU).path
    monkeypatch.setitem(ENGINES, "another", ENGINES["aten"])
    assert device_cache(CPU).path != before


def test_engines_are_timed_once_and_kept(tmp_path: Path) -> None:
    pop, data = population(4), images(20)
    path = tmp_path / "run" / "engines.json"
    first = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    losses = first(pop.rows, data.images, data.labels).losses
    record = json.loads(path.read_text())
    assert record["precision"] == "float32" and len(record["engines"]) == 2
    assert set(record["engines"].values()) <= set(ENGINES)
    assert record["engines"].items() <= device_cache(CPU).engines.items()
    # A run's table wins over what would be chosen now, and is checked.
    record["engines"] = dict.fromkeys(record["engines"], "aten")
    path.write_text(json.dumps(record))
    second = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    again = second(pop.rows, data.images, data.labels).losses
    layers = second.graph((1, 10, 10)).layers
    assert {layer.engine for layer in layers} == {"aten"}
    assert torch.allclose(losses, again, atol=1e-5)
    record["engines"] = dict.fromkeys(record["engines"], "cudnn")
    path.write_text(json.dumps(record))
    third = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    with pytest.raises(deevo.DeevoError, match=r"'cudnn' for layer conv, which cannot serve here"):
        third(pop.rows, data.images, data.labels)
    with pytest.raises(deevo.DeevoError, match="was made for 'float32'"):
        PopulationForward(Net(), pop, precision="bfloat16", table=EngineTable(CPU, path))
    path.write_text("{}")
    with pytest.raises(deevo.DeevoError, match="is no engine table"):
        EngineTable(CPU, path)


def test_a_run_goes_on_with_the_engines_that_it_recorded() -> None:
    pop, data = population(4), images(20)
    first = deevo.Evaluator(Net(), pop, micro_batch=10)
    first.losses(pop.rows, data)
    record = first.engines()
    assert record["precision"] == "float32" and len(record["engines"]) == 2
    other = {**record, "engines": dict.fromkeys(record["engines"], "aten")}
    second = deevo.Evaluator(Net(), pop, micro_batch=10)
    second.use_engines(json.loads(json.dumps(other)))
    second.losses(pop.rows, data)
    assert second.engines() == other
    assert {layer.engine for layer in second.forward.graph((1, 10, 10)).layers} == {"aten"}
    with pytest.warns(UserWarning, match="the run began on abacus and goes on on"):
        second.use_engines({**record, "device": "abacus"})
    assert second.engines()["device"] == "abacus"
    bad = ({}, {**record, "engines": {"fc": 1}}, {**record, "precision": None})
    for damaged in bad:
        with pytest.raises((TypeError, KeyError)):  # which the journal names by its line
            second.use_engines(damaged)


def test_a_cache_of_engines_that_is_no_file_is_begun_anew() -> None:
    path = device_cache(CPU).path
    assert path is not None
    path.unlink(missing_ok=True)
    os.mkfifo(path)  # to read it would never end
    table = device_cache(CPU)
    assert table.engines == {}
    table.save()
    assert path.is_file()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_evaluates_with_threads_of_its_own() -> None:
    pop, data = population(4), images(40)
    forward = PopulationForward(Net(), pop, micro_batch=10)
    losses = forward(pop.rows, data.images, data.labels).losses
    child = os.fork()
    if not child:
        signal.alarm(60)
        again = forward(pop.rows, data.images, data.labels).losses
        os._exit(0 if torch.equal(losses, again) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(losses, forward(pop.rows, data.images, data.labels).losses)


def test_the_precision_report_is_arithmetic() -> None:
    exact = torch.tensor([[1.0, 3.0], [2.0, 3.0], [2.0, 5.0]])
    found = torch.tensor([[1.0, 3.0], [2.0, 3.2], [2.0, 5.0]])
    report = compare_losses("bfloat16", exact, found)
    assert report.differences == pytest.approx((-0.5, -1.0))
    assert report.errors == pytest.approx((-0.1, 0.1), abs=1e-6)
    assert report.ratio == pytest.approx(0.2, abs=1e-6) and report.signs == 1.0 and report.passed
    found[1, 1] = math.inf
    assert not compare_losses("float16", exact, found).passed
    flipped = compare_losses("bfloat16", exact, exact + torch.tensor([[2.0], [0.0], [0.0]]))
    assert not flipped.passed and flipped.signs == 0.5


def test_selection_in_a_precision_that_fails_is_refused_unless_forced() -> None:
    """Convolutions 1e-5 apart are one and the same in bfloat16; members 20 % apart are not."""
    states = [population(4).state_dict(0) for _ in range(4)]
    generator = torch.Generator().manual_seed(0)
    for state in states:
        weight = state["conv.weight"]
        weight.mul_(1 + 1e-5 * torch.randn(weight.shape, generator=generator))
    close = deevo.Population.from_state_dicts(Net(), states)
    data = images(200)
    with pytest.raises(deevo.DeevoError, match="decided by rounding: bfloat16: errors"):
        deevo.ClassificationFitness(deevo.Evaluator(Net(), close, precision="bfloat16"), data)
    forced = deevo.Evaluator(Net(), close, precision="bfloat16", force_precision=True)
    deevo.ClassificationFitness(forced, data)
    far = population(4)
    evaluator = deevo.Evaluator(Net(), far, precision="bfloat16")
    fitness = deevo.ClassificationFitness(evaluator, data)
    exact = deevo.Evaluator(Net(), far)
    for value, row in zip(fitness(far.rows, torch.arange(4), 0), far.rows, strict=True):
        assert value == pytest.approx(exact.score(row, data), rel=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"engine": "tensorrt"}, "engine is 'tensorrt'; expected one of auto"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"precision": "tf32"}, "CUDA devices have"),
        ({"engine": ["auto"]}, r"engine is \['auto'\]"),
        ({"precision": None}, "precision is None"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"micro_batch": "8"}, "micro_batch is '8'"),
        ({"micro_batch": 2.5}, r"micro_batch is 2\.5"),
        ({"micro_batch": True}, "micro_batch is True"),
        ({"mean": (math.nan,), "std": (1.0,)}, "one finite number of each|mean is"),
        ({"mean": (0.5,), "std": (math.inf,)}, "one finite number of each"),
        ({"device": 3.5}, "device is 3.5"),
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(deevo.DeevoError, match=message):
        PopulationForward(Net(), population(4), **options)


def test_bad_operands_are_named() -> None:
    pop, data = population(4), images(20)
    forward = PopulationForward(Net(), pop)
    x, y = data.images, data.labels
    forward(pop.rows, x, y)
    for args, message in (
        ((pop.rows.repeat_interleave(2, dim=1)[:, ::2], x, y), "rows have strides"),
        ((pop.rows[0], x, y), "rows are"),
        ((pop.rows[:, :4], x, y), "rows are"),
        ((pop.rows[:0], x, y), "rows are"),
        ((pop.rows.tolist(), x, y), "rows are a list"),
        ((pop.rows, x.numpy(), y), "images are a ndarray"),
        ((pop.rows, x, y.tolist()), "labels are a list"),
        ((pop.rows, x, y, [0.0]), "statistics are a list"),
        ((pop.rows, x[0], y), "expected \\[N, C, H, W\\]"),
        ((pop.rows, x.long(), y), "expected uint8 or floating"),
        ((pop.rows, x, y[:3]), "labels are"),
        ((pop.rows, x, y.int()), "labels are"),
        ((pop.rows, x, y + 3), "labels 0..2"),
    ):
        with pytest.raises(deevo.DeevoError, match=message):
            forward(*args)
    for smoothing in (1.0, -0.1, math.nan, "0.1", True):
        with pytest.raises(deevo.DeevoError, match="label_smoothing is"):
            forward(pop.rows, x, y, label_smoothing=smoothing)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the interpreter, without a GPU")
def test_our_own_kernel_runs_every_convolution() -> None:
    """A small ResNet's stem, blocks and shortcuts in Triton's interpreter, against eager."""
    model = randomised(lambda: CifarResNet(1), 16)
    layout, row = as_row(model)
    x = pictures(2, 16)
    forward = PopulationForward(model, layout, engine="triton", micro_batch=2)
    with torch.no_grad():
        expected = model(x)
    found = forward.logits(row, x)
    # 7 layers, sums of up to 576 products: 24 roundings of 2^-24 each.
    limit = 4 * math.sqrt(7) * 24 * 2.0**-24 * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= limit
    convolutions = [p for p in forward.graph((3, 16, 16)).layers if isinstance(p, Convolution)]
    assert len(convolutions) == 7 and {p.engine for p in convolutions} == {"triton"}
    depthwise = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6 * 36, 3))
    layout, row = as_row(depthwise.eval())
    with pytest.raises(deevo.DeevoError, match=r"cannot compute layer 0 .*has no groups"):
        PopulationForward(depthwise, layout, engine="triton").logits(row, pictures(2, 8))


@pytest.mark.slow
def test_torch_compile_is_an_engine() -> None:
    pop, data = population(3), images(20)
    found = PopulationForward(Net(), pop, engine="compile", micro_batch=16)(
        pop.rows, data.images, data.labels
    )
    expected = PopulationForward(Net(), pop, engine="eager", micro_batch=16)(
        pop.rows, data.images, data.labels
    )
    assert torch.allclose(found.losses, expected.losses, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16", "bfloat16", "auto"])
def test_on_a_gpu(precision: str) -> None:
    """By CUDA graphs over two staging rows, several members and micro-batches in turn."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = randomised(CifarResNet, 32)
    layout, row = as_row(model)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2 * OFTEN, row.numel(), generator=generator)
    rows = row * (1 + 0.02 * noise)  # so many that the last ones run by graphs
    x, y = pictures(20, 32), torch.arange(20) % 10
    forward = PopulationForward(model, layout, precision=precision, micro_batch=8, device="cuda")
    found = forward(rows.cuda(), x, y)
    exact = PopulationForward(model, layout, precision="float32", micro_batch=8)(rows, x, y)
    limit = {"float32": 1e-3, "tf32": 0.05, "float16": 0.05}.get(forward.precision, 0.4)
    assert float((found.losses - exact.losses).abs().max()) <= limit * float(exact.losses.max())
    again = forward(rows.cuda(), x, y)  # those that were launched kernel by kernel by graphs too
    assert torch.equal(again.losses, found.losses)
    alone = forward(rows[1:2].cuda(), x, y)
    assert torch.equal(alone.losses[0], found.losses[1])
