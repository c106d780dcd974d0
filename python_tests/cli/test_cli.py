"""The command line as a user meets it: demo, replay, errors without tracebacks."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deevo_ext.cli import main
from deevo_ext.cli.demo import options_of
from deevo_ext.data import ImageSet, ImageSets
from deevo_ext.training.trainings import trainings_of
from support.networks import Net, members
from support.recipe_runs import recipe_run, save_checkpoints


def deevo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deevo_ext", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and output of a short demo."""
    folder = tmp_path_factory.mktemp("demo")
    done = deevo("demo", "--generations", "4", "--json", "table.json", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_demo_prints_the_table_and_leaves_the_run_folder(demo: tuple[Path, str]) -> None:
    folder, output = demo
    initial = ("best parent", "initial greedy soup", "classifier refitted", "logit ensemble")
    for name in (*initial, "evolved soup", "evolved and refitted"):
        assert name in output
    assert "95 % paired bootstrap interval" in output
    run = folder / "run"
    assert (run / "evolution.png").read_bytes().startswith(b"\x89PNG")
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 4
    assert len(list((run / "checkpoints").glob("member_*.safetensors"))) == 12
    table = json.loads((folder / "table.json").read_text())
    assert len(table["rows"]) == 11 and sum(row["returned"] for row in table["rows"]) == 1
    for row in table["rows"]:
        assert 0 < row["loss"] < 3 and 0 <= row["top1"] <= 1
        assert row["images"] > 0 and row["forward_passes"] >= 0


@pytest.mark.slow
def test_demo_is_repeatable_and_trains_only_what_is_missing(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = demo
    shutil.copytree(folder / "run" / "checkpoints", tmp_path / "again" / "checkpoints")
    (tmp_path / "again" / "checkpoints" / "member_03.safetensors").unlink()
    done = deevo("demo", "--generations", "4", "--out", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = load_file(folder / "run" / "evolved.safetensors")
    second = load_file(tmp_path / "again" / "evolved.safetensors")
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_the_demos_population_is_as_long_for_any_source_and_needs_no_torchvision() -> None:
    images = torch.zeros(300, 1, 8, 8)
    one = ImageSet(images, torch.arange(300) % 3, "images")
    steps = {}
    for name in ("digits", "clothes"):
        sets = ImageSets(one, one, one, ["0", "1", "2"], one, name=name, mirror=name == "clothes")
        trainings = trainings_of(300, options_of(sets, 5))
        assert trainings.base is not None and len(trainings.members) == 12
        members = trainings.members.values()
        steps[name] = (trainings.base.steps, *{member.steps for member in members})
        assert not any(member.mixup or member.shift for member in members)
        assert any(member.mirror for member in members) == sets.mirror
    assert steps == {"digits": (75, 50), "clothes": (700, 120)}


@pytest.mark.slow
def test_replay_writes_the_same_file_and_every_trial(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    done = deevo("replay", "run", "--out", "w.safetensors", "--trials", "t.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "4 generations replayed (finished)" in done.stdout
    evolved = (folder / "run" / "evolved.safetensors").read_bytes()
    assert (folder / "w.safetensors").read_bytes() == evolved
    header = json.loads((folder / "run" / "journal.jsonl").read_text().splitlines()[0])
    soups = header["population"]["averages"]  # which join the 12 members
    with (folder / "t.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * (12 + len(soups))


def test_replay_of_a_search_of_coefficients_and_of_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    chosen = recipe_run(save_checkpoints(tmp_path / "members"), run).run()

    def replay(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as exit_:
            main(["replay", *map(str, arguments)])
        out, error = capsys.readouterr()
        assert (exit_.value.code == 0) == (error == "")
        return error or out

    said = replay(run, "--out", tmp_path / "w.safetensors")
    assert said.startswith(f"2 rounds replayed (finished): {chosen.name} of round 1, score ")
    assert chosen.digest in said
    evolved = (run / "evolved.safetensors").read_bytes()
    assert (tmp_path / "w.safetensors").read_bytes() == evolved
    assert "virtual/*.csv" in replay(run, "--trials", tmp_path / "t.csv")
    said = replay(run / "recipe.yaml", "--out", tmp_path / "m.safetensors")
    assert "every bit as the recipe's run had it" in said
    merged, ours = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in ours.items())
    assert "give --out, and no --trials" in replay(run / "recipe.yaml")


def test_merge_says_in_one_sentence_what_it_made(tmp_path: Path) -> None:
    for name, state in zip("ab", members(Net, 2), strict=True):
        save_file(state, tmp_path / f"{name}.safetensors")
    recipe = "members: [a.safetensors, b.safetensors]\ncoefficients: [1, 1]\nnormalise: true\n"
    (tmp_path / "r.yaml").write_text(recipe)
    done = deevo("merge", "r.yaml", "--out", "w.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert done.stdout == (
        f"wrote w.safetensors, SHA-256 {digest}: 2 members in 1 block; BatchNorm's statistics are "
        "combined like weights\n"
    )
    Net().load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--data", "cifar"], "cifar"),
        (["replay", "nowhere"], "holds no journal.jsonl"),
        (["merge", "r.yaml", "--out", "w.pth"], "r.yaml: it cannot be read: No such file"),
    ],
)
def test_errors_are_one_line_without_traceback(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = deevo(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = deevo("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "replay", "merge", "info"))
