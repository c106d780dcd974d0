"""Runs whose networks a user's function evaluates: their statistics, journal and result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deevo_ext.errors import DeevoError
from support.rounds import Normed, Plain, Problem, State


class Rounded:
    """A network whose weights have 8 bits, the largest of each row 127 steps."""

    def __init__(self, module: type[torch.nn.Module], steps: int = 127) -> None:
        self.module, self.steps = module, steps

    def rounded(self, state: State) -> State:
        found = {}
        for name, tensor in state.items():
            if name.endswith("weight") and tensor.dim() > 1:
                step = tensor.abs().flatten(1).amax(dim=1) / self.steps
                step = step.reshape(-1, *[1] * (tensor.dim() - 1))
                tensor = (tensor / step).round() * step
            found[name] = tensor
        return found

    def __call__(self, state: State, images: Tensor) -> Tensor:
        return torch.func.functional_call(
            self.module().eval(), self.rounded(state), (images,), strict=True
        )


def test_what_is_scored_and_returned_is_what_the_function_computes(tmp_path: Path) -> None:
    engine = Rounded(Plain, steps=7)
    problem = Problem(seed=1, generations=4, engine=engine)
    run = problem.run(tmp_path)
    chosen = run.run()
    assert run.state.evolved
    state = load_file(tmp_path / "evolved.safetensors")
    images = problem.held_out
    losses = {
        name: float(torch.nn.functional.cross_entropy(logits, images.labels))
        for name, logits in (
            ("rounded", engine(state, images.images)),
            ("float32", torch.func.functional_call(Plain(), state, (images.images,))),
        )
    }
    assert chosen.score == pytest.approx(losses["rounded"], rel=1e-5)
    assert abs(chosen.score - losses["float32"]) > 1e-3 * chosen.score


def test_a_folder_goes_on_with_the_same_function_only(tmp_path: Path) -> None:
    def start(engine: object) -> object:
        return Problem(seed=1, generations=4, engine=engine).run(tmp_path)  # type: ignore[arg-type]

    engine = Rounded(Plain)
    chosen = start(engine).run()
    calls = 0

    class Counted(Rounded):
        version = 1

        def __call__(self, state: State, images: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return super().__call__(state, images)

    for other, message in (
        (Rounded(Plain, steps=126), "engine is .*Rounded, whose code or version"),
        (Counted(Plain), r"engine\.(function|sha256|version)"),
    ):
        with pytest.raises(DeevoError, match=f"another configuration: .*{message}"):
            start(other).run()
    assert start(Rounded(Plain)).run().digest == chosen.digest
    assert calls == 0


@pytest.mark.parametrize("batchnorm", ["evolve", "recalibrate"])
def test_probes_have_the_statistics_that_scored_networks_have(batchnorm: str) -> None:
    """Re-estimated ones are the moments of the layer's inputs on the calibration images."""
    states: list[State] = []

    def engine(state: State, images: Tensor) -> Tensor:
        if not states or states[-1] is not state:
            states.append(state)
        return torch.func.functional_call(Normed().eval(), state, (images,))

    problem = Problem(Normed, seed=3, spread=0.3, batchnorm=batchnorm, engine=engine)
    forward = problem.probing().forward
    rows = problem.population.rows
    before = problem.evaluator.forward_passes
    forward(rows, problem.images)
    spent = problem.evaluator.forward_passes - before
    if batchnorm == "evolve":
        assert spent == len(rows) * 600
        expected = [problem.population.state_dict(i) for i in range(len(rows))]
        moments = [(s["bn.running_mean"], s["bn.running_var"]) for s in expected]
    else:
        assert spent == len(rows) * (600 + 200)
        x = problem.images.images[:200]
        found = [
            torch.nn.functional.conv2d(x, s["conv.weight"]).double() for s in states[-len(rows) :]
        ]
        moments = [(y.mean(dim=(0, 2, 3)), y.transpose(0, 1).flatten(1).var(dim=1)) for y in found]
    for state, (mean, variance) in zip(states[-len(rows) :], moments, strict=True):
        assert torch.allclose(state["bn.running_mean"].double(), mean.double(), atol=1e-5)
        assert torch.allclose(state["bn.running_var"].double(), variance.double(), rtol=1e-4)
