"""Making populations: recipes, fine-tuning, what a kill leaves, and the command itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.cli import main
from deevo_ext.data import CachedImages, Transform, open_cache
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST
from deevo_ext.errors import DeevoError
from deevo_ext.training import finetune
from deevo_ext.training.finetune import State, fine_tune
from deevo_ext.training.mixing import draw_mixing
from deevo_ext.training.populate import PopulationPlan, Progress, plan_population, populate
from deevo_ext.training.recipes import Recipe
from support import zoo
from support.models import small_resnet
from support.pictures import write_fashion

MEAN, STD = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)


class DropNet(nn.Module):
    """Layers that draw random numbers and keep statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def _net() -> DropNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return DropNet()


def _images(count: int = 40) -> CachedImages:
    generator = torch.Generator().manual_seed(5)
    store = torch.randint(0, 256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return CachedImages(store, torch.arange(count) % 3, MEAN, STD, "noise")


def _plan(members: int = 3, **options: object) -> PopulationPlan:
    values = {"epochs": 2.0, "batch_size": 8, "learning_rate": 0.01, "shift": 1, **options}
    return plan_population(40, members, **values)  # type: ignore[arg-type]


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_no_two_recipes_are_alike_and_none_depends_on_how_many() -> None:
    many = plan_population(1000, 30, epochs=1, batch_size=100, learning_rate=0.01, shift=2)
    recipes = list(many.members.values())
    bare = {dataclasses.astuple(dataclasses.replace(recipe, seed=0)) for recipe in recipes}
    assert len(bare) == 30 and len({recipe.seed for recipe in recipes}) == 30
    few = plan_population(1000, 5, epochs=1, batch_size=100, learning_rate=0.01, shift=2)
    assert list(few.members.items()) == list(many.members.items())[:5]
    for field in ("learning_rate", "weight_decay", "label_smoothing", "shift", "mirror", "mixup"):
        assert len({getattr(recipe, field) for recipe in recipes[:12]}) > 1, field
    rates = [recipe.learning_rate for recipe in recipes[:12]]
    assert min(rates) == 0.01 and max(rates) == 0.04
    assert all(recipe.steps == 10 for recipe in recipes)
    other = plan_population(1000, 5, epochs=1, batch_size=100, learning_rate=0.01, seed=1)
    assert {r.seed for r in other.members.values()}.isdisjoint({r.seed for r in recipes})
    for wrong in ({"members": 1}, {"epochs": 0}, {"seed": -1}, {"learning_rate": 0}):
        values = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "members": 3, **wrong}
        with pytest.raises(DeevoError):
            plan_population(100, **values)  # type: ignore[arg-type]


def test_mixup_is_cross_entropy_with_mixed_targets() -> None:
    images = _images(16)
    recipe = Recipe(7, 1, 16, 0.1, momentum=0.0, mixup=0.4, label_smoothing=0.1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    before = [p.detach().clone().double().requires_grad_() for p in network.parameters()]
    fine_tune(network, images, recipe)
    ((_, x, labels),) = finetune._batches(images, recipe, 0, torch.device("cpu"))
    mixing = draw_mixing(recipe, 0, 16, 8, 8)
    share, order = mixing.share, mixing.order
    assert (
        mixing.box is None
        and 0 < share < 1
        and sorted(labels.tolist()) == sorted(images.labels.tolist())
    )
    one_hot = nn.functional.one_hot(labels, 3).double() * 0.9 + 0.1 / 3
    mixed = (share * x + (1 - share) * x[order]).double().flatten(1)
    target = share * one_hot + (1 - share) * one_hot[order]
    logits = mixed @ before[0].T + before[1]
    (-(target * logits.log_softmax(1)).sum(1).mean()).backward()
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert old.grad is not None
        expected = old - recipe.rate(0) * old.grad
        torch.testing.assert_close(parameter.double(), expected, atol=1e-5, rtol=1e-4)


def test_epochs_show_each_image_once_normalised_and_moved_within_bounds() -> None:
    images = _images(40)
    recipe = Recipe(1, 10, 8, 0.1)
    batches = list(finetune._batches(images, recipe, 0, torch.device("cpu")))
    whole = ((images.pixels(0, 40) / 255).double() - 0.4) / 0.3
    for epoch in (batches[:5], batches[5:]):
        seen = torch.cat([x for _, x, _ in epoch]).double()
        distances = torch.cdist(seen.flatten(1), whole.flatten(1))
        assert sorted(distances.argmin(1).tolist()) == list(range(40))
        assert float(distances.min(1).values.max()) < 1e-4
        labels = torch.cat([y for *_, y in epoch])
        assert torch.equal(labels, images.labels[distances.argmin(1)])
    # From the middle, the same batches come.
    rest = list(finetune._batches(images, recipe, 6, torch.device("cpu")))
    assert [step for step, *_ in rest] == [6, 7, 8, 9]
    assert torch.equal(rest[0][1], batches[6][1])


@pytest.mark.parametrize(
    "more", [{}, {"crop": 0.3, "jitter": 0.3, "trivial": True, "erase": 0.5, "cutmix": 1.0}]
)
def test_a_run_goes_on_from_its_state_bit_for_bit(more: dict[str, Any], tmp_path: Path) -> None:
    if more:
        zoo._torchvision()
    recipe = Recipe(7, 20, 8, 0.05, 1e-3, 0.1, shift=1, mirror=True, mixup=0.2, **more)
    expected = _net()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    fine_tune(expected, _images(), recipe)
    assert torch.equal(torch.get_rng_state(), before)
    state = State(tmp_path / "x.state", 0)

    class Killed(Exception):
        pass

    def kill(step: int) -> None:
        if step == 13:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(_net(), _images(), recipe, state=state, on_step=kill)
    steps: list[int] = []
    found = _net()
    fine_tune(found, _images(), recipe, state=state, on_step=steps.append)
    assert steps == list(range(13, 21)) and _same(expected.state_dict(), found.state_dict())
    assert not found.training
    (tmp_path / "x.state").write_bytes(b"torn")
    with pytest.raises(DeevoError, match=r"x\.state: not a whole state.*delete it"):
        fine_tune(_net(), _images(), recipe, state=state)


@pytest.mark.parametrize("snapshots", [False, True])
def test_an_interrupted_population_is_that_of_an_uninterrupted_run(
    snapshots: bool, tmp_path: Path
) -> None:
    plan = _plan(3, snapshots=snapshots, base_epochs=1.0)
    origin = {"arch": "DropNet"}
    paths = populate(_net(), _images(), plan, tmp_path / "a", origin=origin)  # type: ignore[arg-type]
    expected = [load_file(path) for path in paths]
    assert len(expected) == 3 and not _same(expected[0], expected[1])
    assert not list((tmp_path / "a").glob("*.state"))

    class Killed(Exception):
        pass

    totals = set()

    def killer(stop: int) -> Progress:
        def kill(what: str, done: int, total: int) -> None:
            totals.add(total)
            if done == stop:
                raise Killed

        return kill

    for stop in (3, 9, 13, 14, 1000):
        try:
            again = populate(
                _net(),
                _images(),
                plan,
                tmp_path / "b",
                origin=origin,
                save_every=0,
                progress=killer(stop),
            )
        except Killed:
            continue
    assert stop == 1000 and totals == {5 + 10 if snapshots else 5 + 30}
    assert all(_same(a, load_file(path)) for a, path in zip(expected, again, strict=True))
    with pytest.raises(DeevoError, match="another recipe"):
        other = _plan(3, snapshots=snapshots, base_epochs=2.0)
        populate(_net(), _images(), other, tmp_path / "b", origin=origin)  # type: ignore[arg-type]
    with (tmp_path / "b" / "recipes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["member"] for row in rows] == ["member_00", "member_01", "member_02"]
    assert len({row["seed"] for row in rows}) == (1 if snapshots else 3)
    if snapshots:
        assert [int(row["taken_at_step"]) for row in rows] == [7, 8, 10]


def test_a_rate_that_is_too_high_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeevoError, match="--learning-rate"):
        plan = _plan(2, learning_rate=1e30)
        populate(_net(), _images(), plan, tmp_path, origin={})  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.safetensors"))


needs_fashion = pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)


def _deevo(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return str(ended.value.code)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of Fashion-MNIST as PNG, the transform beside it."""
    root = tmp_path_factory.mktemp("fashion")
    write_fashion(root / "tree", 800, 200)
    values = {"resize": 20, "crop": 20, "mean": MEAN, "std": STD}
    (root / "transform.json").write_text(json.dumps(values))
    cache = root / "cache.safetensors"
    options = ("--transform", root / "transform.json", "--workers", 0)
    assert _deevo("cache", root / "tree", "--out", cache, *options) == "0"
    return cache


@needs_fashion
def test_the_command_survives_kill_9_and_makes_a_population_that_knows(
    fashion: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-m", "deevo_ext", "populate"]
    command += ["--arch", "support.models:small_resnet", "--data", str(fashion)]
    command += ["--transform", str(fashion.with_name("transform.json"))]
    command += ["--base-epochs", "4", "--members", "3", "--epochs", "1", "--batch-size", "32"]
    command += ["--learning-rate", "0.01", "--shift", "1", "--save-every", "0", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}

    def run(folder: Path, until: str | None = None) -> None:
        """Runs the command; kills it once a file appears."""
        process = subprocess.Popen([*command, str(folder)], env=environment, stdout=-3, stderr=-3)
        end = time.monotonic() + 300
        while until is not None and not (folder / until).exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        if until is not None:
            process.send_signal(signal.SIGKILL)
        assert process.wait(300) == (0 if until is None else -signal.SIGKILL)

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums depend on the number of threads
    try:
        assert _deevo(*command[4:], tmp_path / "whole") == "0"
    finally:
        torch.set_num_threads(before)
    run(tmp_path / "killed", "member_01.state")
    first = (tmp_path / "killed" / "member_00.safetensors").stat().st_mtime_ns
    run(tmp_path / "killed")
    assert (tmp_path / "killed" / "member_00.safetensors").stat().st_mtime_ns == first
    names = ["base.safetensors", *(f"member_0{i}.safetensors" for i in range(3))]
    for name in names:
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert _same(a, b)
    model = small_resnet()
    pop = deevo.Population.from_checkpoints(model, f"{tmp_path}/killed/member_*.safetensors")
    val = open_cache(fashion).images("val", Transform(20, (20, 20), "bilinear", MEAN, STD))
    scores = deevo.Evaluator(model, pop, engine="fused").scores(
        pop.rows, val, pop.statistics if pop.statistics_layout.dim else None
    )
    # Ten classes: chance is 0.1, and three standard errors of 200 images are 0.06.
    assert pop.size == 3 and all(score.top1 > 0.3 for score in scores)


@needs_fashion
def test_a_checkpoint_of_other_classes_gets_a_new_classifier_or_is_refused(
    fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("populate", "--arch", "support.models:small_resnet", "--data", fashion)
    common += ("--transform", fashion.with_name("transform.json"), "--members", 2)  # type: ignore[assignment]
    common += ("--epochs", 0.05, "--out", tmp_path / "out")  # type: ignore[assignment]
    assert _deevo(*common) == "1"
    assert "no --checkpoint to start from" in capsys.readouterr().err
    seven, ten = tmp_path / "seven.safetensors", tmp_path / "ten.safetensors"
    pretrained = small_resnet(7).state_dict()
    save_file(pretrained, seven)
    save_file(small_resnet(10).state_dict(), ten)
    assert _deevo(*common, "--checkpoint", seven) == "1"
    assert "the data needs [10, 32]; give --base-epochs" in capsys.readouterr().err
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert _deevo(*common, "--checkpoint", tmp_path / "other.safetensors") == "1"
    assert "lacks conv1.weight" in capsys.readouterr().err
    # A rate of next to nothing shows what training begins with.
    slow = ("--base-epochs", 0.05, "--base-learning-rate", 1e-12, "--learning-rate", 1e-12)
    assert _deevo(*common, "--checkpoint", seven, *slow) == "0"
    member = load_file(tmp_path / "out" / "member_00.safetensors")
    torch.testing.assert_close(member["conv1.weight"], pretrained["conv1.weight"])
    assert member["fc.weight"].shape == (10, 32)
    assert _deevo(*common, "--checkpoint", ten) == "1"
    assert "another recipe" in capsys.readouterr().err
    printed = (tmp_path / "out" / "recipes.csv").read_text()
    assert printed.startswith("member,seed,steps,batch_size,learning_rate")
