"""The command line as a user meets it: demo, replay, errors without tracebacks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deevo_ext.cli.demo as module
import deevo_ext.cli.replay as replay_command
from deevo_ext.cli import main
from deevo_ext.cli.demo import setting_of
from deevo_ext.data import ImageSet, SourceSets, load
from deevo_ext.data.sources import DIGITS_SIZES
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
    """The folder and output of a demo that is short in everything."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    return folder, short_demo(folder)


def short_demo(folder: Path) -> str:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(module, "setting_of", short_setting)
        with pytest.raises(SystemExit, match="0"):
            main(["demo", "--out", str(folder), "--seed", "3"])
    return said.getvalue()


def short_setting(sets: SourceSets, seed: int) -> module.Setting:
    whole = setting_of(sets, seed)
    training = replace(whole.population, members=3, epochs=0.3, learning_rate=0.005)
    return module.Setting(width=4, noise=0.3, labels=100, population=training)


@pytest.mark.slow
def test_the_demo_prints_its_table_and_leaves_its_pictures(demo: tuple[Path, str]) -> None:
    folder, output = demo
    assert len(output.splitlines()) <= 40
    table = json.loads((folder / "table.json").read_text())
    names = [row["name"] for row in table["rows"]]
    for name in ("best parent", "initial greedy soup", "classifier refitted", "logit ensemble"):
        assert name in names and name in output
    assert names[-1] == module.TRAINED and table["verdict"] in output
    assert sum(row["returned"] for row in table["rows"]) == 1 and not table["rows"][-1]["returned"]
    assert {row["images"] for row in table["rows"]} == {DIGITS_SIZES[-1]}
    for row in table["rows"]:
        assert 0 < row["loss"] < 5 and 0 <= row["top1"] <= 1
    for picture in (module.CHANGES, "recipe.png", "evolution.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    for path in ("recipe.yaml", "evolved.safetensors", "report.html", "journal.jsonl"):
        assert str(folder / path) in output and (folder / path).exists()
    members = folder / "checkpoints"
    assert len(list(members.glob("member_*.safetensors"))) == 3


@pytest.mark.slow
def test_the_yardstick_begins_at_the_soup_and_is_measured_against_it(
    demo: tuple[Path, str],
) -> None:
    rows = json.loads((demo[0] / "table.json").read_text())["rows"]
    by_name = {row["name"]: row for row in rows}
    soup, trained = by_name["initial greedy soup"], by_name[module.TRAINED]
    right = [round(row["top1"] * row["images"]) for row in (soup, trained)]
    assert trained["gained"] - trained["lost"] == right[1] - right[0]
    assert trained["forward_passes"] > 3 * 150 * 32 and soup["gained"] == soup["lost"] == 0


@pytest.mark.slow
def test_the_demo_is_repeatable_and_trains_only_what_is_missing(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    folder, output = demo
    shutil.copytree(folder / "checkpoints", tmp_path / "again" / "checkpoints")
    missing = tmp_path / "again" / "checkpoints" / "member_01.safetensors"
    missing.unlink()
    kept = (tmp_path / "again" / "checkpoints" / "member_00.safetensors").stat().st_mtime_ns
    again = short_demo(tmp_path / "again")
    assert (
        missing.exists() and missing.with_name("member_00.safetensors").stat().st_mtime_ns == kept
    )
    one, two = (path / "evolved.safetensors" for path in (folder, tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    first, second = (
        [{**row, "seconds": 0} for row in json.loads((path / "table.json").read_text())["rows"]]
        for path in (folder, tmp_path / "again")
    )
    assert first == second and len(again.splitlines()) == len(output.splitlines())


def test_noise_stays_in_range_and_is_drawn_by_seed_and_index() -> None:
    sets = load("digits", 0)
    black, white = float(sets.train.images.min()), float(sets.train.images.max())
    noise = 0.2
    one, same, other, further = (
        module.noisy(sets.test, sets.train, noise, seed, index)
        for seed, index in ((0, 1), (0, 1), (1, 1), (0, 2))
    )
    assert torch.equal(one.images, same.images) and torch.equal(one.labels, sets.test.labels)
    assert not torch.equal(one.images, other.images) and not torch.equal(one.images, further.images)
    assert black <= float(one.images.min()) and float(one.images.max()) <= white
    # Where black and white are five deviations away nothing was cut: normal noise as it was.
    mild = module.noisy(sets.test, sets.train, 0.05, 0, 1)
    shares = (sets.test.images - black) / (white - black)
    drawn = ((mild.images - sets.test.images) / (white - black))[(shares > 0.25) & (shares < 0.75)]
    n = drawn.numel()
    assert n > 5_000
    # Five standard errors of a mean, 0.05 / sqrt(n), and of a deviation, 0.05 / sqrt(2 n).
    assert abs(float(drawn.mean())) < 5 * 0.05 / n**0.5
    assert abs(float(drawn.std()) - 0.05) < 5 * 0.05 / (2 * n) ** 0.5


def test_the_demos_population_is_as_long_for_any_source_and_needs_no_torchvision() -> None:
    images = torch.zeros(300, 1, 8, 8)
    one = ImageSet(images, torch.arange(300) % 3, "images")
    for name in ("digits", "clothes"):
        sets = SourceSets(one, one, one, ["0", "1", "2"], one, name, mirror=name == "clothes")
        trainings = trainings_of(300, setting_of(sets, 5).population)
        assert trainings.base is not None and len(trainings.members) == 8
        members = trainings.members.values()
        assert (trainings.base.steps, *{member.steps for member in members}) == (800, 60)
        assert not any(member.mixup or member.shift for member in members)
        assert any(member.mirror for member in members) == sets.mirror


def test_replay_of_a_search_of_coefficients_and_of_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    made = f"{chosen.name} of round {chosen.generation}"
    assert said.startswith(f"2 rounds replayed (finished): {made}, score ")
    assert chosen.digest in said
    evolved = (run / "evolved.safetensors").read_bytes()
    assert (tmp_path / "w.safetensors").read_bytes() == evolved
    assert "virtual/*.csv" in replay(run, "--trials", tmp_path / "t.csv")
    said = replay(run / "recipe.yaml", "--out", tmp_path / "m.safetensors")
    assert "every bit as the recipe's run had it" in said
    merged, ours = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(merged[name], tensor) for name, tensor in ours.items())
    assert "give --out, and no --trials" in replay(run / "recipe.yaml")
    member = next((tmp_path / "members").glob("*.safetensors"))
    before = member.read_bytes()
    assert "is a part of what it is made from" in replay(run, "--out", member)
    assert member.read_bytes() == before

    def begun(*_: object) -> None:
        raise AssertionError("replayed before it was known where the result goes")

    monkeypatch.setattr(replay_command, "run_again", begun)
    for option, name in (("--out", "none/w.pth"), ("--trials", "none/t.csv")):
        assert "there is no folder" in replay(run, option, tmp_path / name)
    assert "expected a name that ends in" in replay(run, "--out", tmp_path / "w.bin")


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
