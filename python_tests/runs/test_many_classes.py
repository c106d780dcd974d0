"""Whole runs on networks of many classes: what models keep, what memory holds, what is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.fitness.differences import DIRECTIONS
from deevo_ext.runs.recipe_run import RecipeRun


def network(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, classes))


def written(folder: Path, classes: int) -> tuple[list[Path], nn.Module]:
    """Checkpoints of three networks around one, and that one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(classes)
        paths = []
        for m in range(3):
            state = {
                name: value + 0.5 * value.std() * torch.randn_like(value)
                for name, value in model.state_dict().items()
            }
            paths.append(folder / f"member_{m}.pth")
            torch.save(state, paths[-1])
    return paths, model


def images(model: nn.Module, count: int, seed: int, name: str) -> ImageSet:
    pixels = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels: Tensor = model(pixels).argmax(dim=1)
    return ImageSet(pixels, labels, name)


def header(folder: Path) -> dict[str, object]:
    line = (folder / "journal.jsonl").read_text().splitlines()[0]
    return dict(json.loads(line)["fitness"])


@pytest.mark.parametrize(("classes", "likeliest"), [(100, None), (400, 20)])
def test_memory_holds_more_images_where_classes_are_many(
    tmp_path: Path, classes: int, likeliest: int | None
) -> None:
    paths, model = written(tmp_path, classes)
    run_dir = tmp_path / "run"
    # There are fewer directions along blocks than differences of a round, which are to fit, too: so
    # many times 32 float16 slopes, and z0, or 100 of them, an image.
    each = DIRECTIONS * 32 * 2 + 4 * 400 if likeliest else DIRECTIONS * 100 * 2
    options = {
        "fitness_images": images(model, 2400, 1, "fitness images"),
        "validation_images": images(model, 300, 2, "validation images"),
        "rounds": 1,
        "images_per_round": 1000,
        "memory": 700 * each,
        "basin": "ignore",
        "engine": "eager",
        "run_dir": run_dir,
        "progress": False,
    }
    with pytest.warns(UserWarning, match="the fitness images have none of") as said_once:
        result = deevo.evolve(model, paths, **options)
    assert len([one for one in said_once if "have none of" in str(one.message)]) == 1
    assert isinstance(result.run, RecipeRun)
    said = header(run_dir)
    assert said.get("likeliest") == likeliest
    assert (said["images_in_memory"], said["slopes"]) == (700, "float16")
    assert result.run.rounds.sizes()[0] == 700
    # A run that is done is read, and asks for nothing.
    with pytest.warns(UserWarning, match="the fitness images have none of"):
        again = deevo.evolve(model, paths, **options)
    assert isinstance(again.run, RecipeRun)
    assert again.run.rounds.probing.likeliest == likeliest
    assert torch.equal(again.candidate.row, result.candidate.row)
