"""PopulationForward: losses and ranks are the loaded models', whatever is evaluated beside them."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch
from torch import nn

import deevo_ext as deevo
from deevo_ext.networks.engines.choose import EngineTable
from deevo_ext.networks.execution.cuda_graphs import OFTEN
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.graph.network_graph import Convolution
from support.convolutional import CifarResNet
from support.evolution import images, population
from support.networks import Net
from support.zoo import as_row, pictures, randomised

CPU = torch.device("cpu")


@pytest.mark.parametrize("engine", ["auto", "fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fitness_depends_on_row_and_images_alone(
    engine: str, dtype: torch.dtype, restored_threads: None
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


def test_an_overflow_is_infinite_loss_and_last_rank() -> None:
    pop, data = population(4), images(20)
    rows = pop.rows.clone()
    rows[1] *= 1e25
    for precision in ("float32", "bfloat16"):
        forward = PopulationForward(Net(), pop, precision=precision)
        losses, ranks = forward(rows, data.images, data.labels)
        assert bool((losses[1] == math.inf).all()) and bool((ranks[1] == 3).all())
        assert bool(torch.isfinite(losses[[0, 2, 3]]).all())


# The process around it


def test_the_callers_thread_count_and_rows_are_left_alone() -> None:
    pop, data = population(4), images(40)
    before, rows = torch.get_num_threads(), pop.rows.clone()
    for engine in ("auto", "eager"):
        PopulationForward(Net(), pop, engine=engine)(pop.rows, data.images, data.labels)
    assert torch.get_num_threads() == before and torch.equal(pop.rows, rows)


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


# Other ways of computing


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
