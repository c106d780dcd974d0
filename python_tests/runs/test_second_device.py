"""Runs whose networks, or whose population too, lie on another device than the images.

Nothing is computed there (`support.second_device`): what is shown is that tensors of both devices
are never mixed, and how often a device is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import deevo_ext as deevo
from deevo_ext.fitness.metrics import Metric
from deevo_ext.fitness.probes import ProbeForward
from deevo_ext.fitness.probing import Probing
from deevo_ext.fitness.resampling import Gain
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.recipes import uniform
from deevo_ext.runs import few_rounds, rounds
from deevo_ext.search.presets import configure
from support.evolution import images, population, save_members
from support.networks import Net
from support.second_device import DEVICE, Reads, second_device


@pytest.fixture
def reads() -> Iterator[Reads]:
    with second_device() as found:
        yield found


def own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="none")


def test_the_device_does_not_mix_with_the_host(reads: Reads) -> None:
    there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
    for mixed in (
        lambda: there + here,
        lambda: here.add_(there),
        lambda: torch.stack([there, here]),
        lambda: there @ here,
        lambda: torch.mm(there[None], here[:, None]),
        lambda: torch.conv2d(there.view(1, 1, 1, 3), here.view(1, 1, 1, 3)),
        lambda: torch.index_select(there, 0, torch.zeros(1, dtype=torch.int64)),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=DEVICE)],
        lambda: torch.equal(there, here),
        lambda: torch.where(there > 0, here, 0.0),
        lambda: there.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()
    assert reads.count == 0
    assert there[torch.zeros(2, dtype=torch.int64)].device == DEVICE  # as a GPU allows
    assert float(there[0]) == 1.0 and there.to("cpu").tolist() == [1.0] * 3 and reads.count == 2


ROUNDS: dict[str, Any] = {"search": "coefficients", "rounds": 1, "images_per_round": 60}
GENERATIONS: dict[str, Any] = {
    "search": "weights",
    "generations": 2,
    "images_per_batch": 60,
    "validate_every": 2,
}
RACE: dict[str, Any] = {"racing": 0.05, "racing_first": 0.25, "augment": "mirror"}


@pytest.mark.parametrize(
    ("where", "options"),
    [
        (DEVICE, {**ROUNDS, "batchnorm": "recalibrate"}),
        (DEVICE, {**ROUNDS, "batchnorm": "evolve", "metric": own}),
        ("cpu", {**ROUNDS, "batchnorm": "recalibrate"}),
        (DEVICE, {**GENERATIONS, "batchnorm": "recalibrate"}),
        (DEVICE, {**GENERATIONS, "batchnorm": "evolve", "sampling": "importance"}),
        (DEVICE, {**GENERATIONS, "batchnorm": "inherit", **RACE}),
        ("cpu", {**GENERATIONS, "batchnorm": "inherit"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_runs_keep_devices_apart(
    reads: Reads, tmp_path: Path, where: torch.device | str, options: dict[str, Any]
) -> None:
    said: list[str] = []
    result = deevo.evolve(
        Net(),
        save_members(tmp_path / "members", 6),
        images(120, 1),
        images(60, 2),
        images(60, 3),
        run_dir=tmp_path / "run",
        device=DEVICE,
        population_device=where,
        engine="fused",
        precision="float32",
        micro_batch=20,
        chunk=4,
        progress=False,
        preliminaries=lambda known: said.append(str(known)),
        **options,
    )
    assert f"The population lies on {where}" in said[0]
    assert result.run.population.rows.device == torch.device(where)
    assert result.run.evaluator is not None
    assert result.run.evaluator.forward.find_graph((1, 10, 10)) is not None
    # What is returned can be loaded where there is no such device.
    assert {tensor.device.type for tensor in result.state_dict.values()} == {"cpu"}
    evolved = torch.load(tmp_path / "run/evolved.pth", weights_only=True)
    assert evolved.keys() == result.state_dict.keys()
    assert reads.count > 0


@pytest.mark.parametrize("batchnorm", ["recalibrate", "evolve"])
@pytest.mark.filterwarnings("ignore")
def test_probes_wait_twice_a_block(reads: Reads, batchnorm: str) -> None:
    pop = population(5, batchnorm=batchnorm)
    evaluator = deevo.Evaluator(
        Net(),
        pop,
        micro_batch=20,
        calibration=images(60),
        device=DEVICE,
        engine="eager",
        precision="float32",
    )
    blocks = Blocks.by_tensor(pop.layout)
    probing = Probing(ProbeForward(evaluator), blocks, 0.3, 8)
    recipe, counts = uniform(len(blocks), 5, range(5)), [reads.count]
    for _ in range(2):
        probing.model(recipe, images(60))
        counts.append(reads.count)
    first, again = counts[1] - counts[0], counts[2] - counts[1]
    assert again <= 2 * len(blocks) + 2
    assert first <= again + 1  # which memory format the module takes is found out once


@pytest.mark.usefixtures("reads")
@pytest.mark.filterwarnings("ignore")
def test_later_rounds_on_few_images_keep_devices_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = Gain(1.0, 0.1)  # nothing is computed there: all gains would be 0
    monkeypatch.setattr(few_rounds, "gain_of", lambda *_: gain)
    monkeypatch.setattr(rounds, "gains_of", lambda _, before, after, labels: [gain] * len(after))
    pop = population(5)
    evaluator = deevo.Evaluator(
        Net(), pop, micro_batch=20, device=DEVICE, engine="eager", precision="float32"
    )
    blocks = Blocks.by_tensor(pop.layout)
    recipe = uniform(len(blocks), 5, range(5))
    search = few_rounds.FewRounds(
        Probing(ProbeForward(evaluator), blocks, 0.3, 8),
        images(60),
        Metric.of("loss"),
        60,
        configure("sa-shade-tri-ensin", generations=2),
        0,
        apart=recipe.repeat(5, 1, 1),
    )
    outcome = search.run(recipe, 2, 1.0)
    assert len(outcome.proposals) == 2 * rounds.WAVES and outcome.folds is not None
