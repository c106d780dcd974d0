"""`deevo evolve` as a user meets it: a tree of pictures, checkpoints, preliminaries, documents."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

import deevo_ext
from deevo_ext.cli import app
from deevo_ext.cli.parameters import keywords_of
from deevo_ext.data.sources import DEBIAN_FASHION_MNIST
from deevo_ext.errors import DeevoError
from deevo_ext.search.pools import POOLS
from deevo_ext.search.presets import configure
from support.commands import run
from support.networks import colour_net, members
from support.paths import child_environment
from support.pictures import write_fashion, write_tree


def command() -> Any:
    group: Any = typer.main.get_command(app())
    return group.commands["evolve"]


OWN = {"arch", "checkpoints", "data", "transform", "cache", "fitness", "validation", "test"}
OWN |= {"split_seed", "class_order", "train_images", "skip_corrupt", "adapt"}  # of the images
OWN |= {"labels", "model_arg", "modules", "form"}  # of the architecture, and of what is written
OWN |= {"config", "resume", "dry_run", "force", "json", "quiet", "tensorboard"}  # how it is run


def test_every_option_is_one_of_evolve_under_its_name_with_its_default() -> None:
    options = {parameter.name: parameter for parameter in command().params}
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(deevo_ext.evolve).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name in ("options", "callbacks", "preliminaries"):
        del keywords[name]
    # Of images the command has the names of folders, or a number.
    renamed = {"calibration_images": "calibration", "old_images": "old"}
    of_runs = {renamed.get(name, name) for name in keywords}
    parameters = {field.name for field in dataclasses.fields(deevo_ext.Configuration)}
    assert options.keys() == of_runs | parameters | OWN
    for name, default in keywords.items():
        if name in ("run_dir", "device", "basin", "blocks") or name in renamed:
            continue  # the command has a folder, takes a GPU, and refuses; its blocks are a list
        shown = {torch.float32: "float32", (): None}.get(default, default)
        assert options[name].default == shown, name
    for name in parameters - keywords.keys():
        assert options[name].default is None, name


def test_the_help_begins_with_an_example_and_the_ten_options_that_people_use(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = run(capsys, "evolve", "--help")
    assert code == 0
    example = out.index("deevo evolve --arch resnet50 --checkpoints 'runs/*.pth' --data")
    headings = re.findall(r"╭─ ([\w ]+?) ─+╮", out)
    assert headings[0] == "Options" and len(headings) == 7
    first = out[example : out.index(headings[1])]
    assert len(re.findall(r"^│ [ *] +--\w", first, re.M)) == 10 + 1  # and --help
    assert "[default: 12]" in first and "greedy soup: Wortsman et al. 2022" in out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evolve")
    write_tree(folder / "tree", 120, 80)
    (folder / "c").mkdir()
    for i, state in enumerate(members(colour_net, 8)):
        wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
        torch.save(wrapped, folder / "c" / f"m{i}.pth")
    transform = {"resize": 24, "crop": 20, "interpolation": "bilinear"}
    transform |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "transform.json").write_text(json.dumps(transform))
    return folder


def arguments(place: Path, out: str, *more: str) -> list[str]:
    options = {
        "arch": "support.networks:colour_net",
        "checkpoints": place / "c" / "*.pth",
        "data": place / "tree",
        "transform": place / "transform.json",
        "cache": place / "pictures.safetensors",
        "out": place / out,
        "search": "weights",
        "images-per-batch": 64,
        "micro-batch": 16,
        "validate-every": 2,
        "racing": 0.1,
        "generations": 4,
        "engine": "eager",
    }
    return [
        "evolve",
        *(f"--{name}={value}" for name, value in options.items()),
        "--no-progress",
        "--force",  # the members are hardly trained
        *more,
    ]


def test_dry_run_stops_after_the_preliminaries(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = arguments(place, "dry", "--dry-run", "--tensorboard", "--time", "1h")
    dry.remove("--generations=4")  # which a time decides
    code, out, err = run(capsys, *dry)
    assert code == 0, err
    for i in range(8):
        assert f"m{i}  top-1" in out
    assert "random pairs" in out and "Memory, host" in out and "member-images/s" in out
    assert not (place / "dry").exists()


def test_from_pictures_to_a_better_network_and_its_documents(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--inject-soups", "--tensorboard", "--f-init", "0.5", "--strategies"]
    more += ["near=target + F*(best - target) + F*(r1 - r2), bin", "--strategies"]
    more += ["trig(r1, r2, r3), none", "--metric", "support.evolution:top2"]
    code, out, err = run(capsys, *arguments(place, "run", *more))
    assert code == 0, err
    assert "initial greedy soup" in out and "> evolved" in out
    folder = place / "run"
    header = json.loads((folder / "journal.jsonl").read_text().splitlines()[0])
    assert header["configuration"]["f_init"] == 0.5
    strategies = header["configuration"]["strategies"]
    assert [s["name"] for s in strategies] == ["near", "trig(r1, r2, r3)"]
    assert header["fitness"]["metric"]["function"] == "support.evolution.top2"
    assert len(list((folder / "tensorboard").iterdir())) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = [event.value for event in events.Scalars("diversity")]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert shown == [pytest.approx(float(row["diversity"])) for row in rows]
    found = torch.load(folder / "evolved.pth", weights_only=True)
    assert all(name.startswith("module.") for name in found["state_dict"])
    for name in ("model_card.md", "report.html", "evolution.png", "table.json"):
        assert (folder / name).stat().st_size > 0
    assert "colour_net" in (folder / "model_card.md").read_text()

    again, trials = str(place / "again.safetensors"), str(place / "trials.csv")
    code, _, err = run(capsys, "replay", str(folder), "--out", again, "--trials", trials)
    assert code == 0, err
    soups = header["population"]["averages"]  # which join the 8 members
    with (place / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * (8 + len(soups))
    assert (place / "again.safetensors").read_bytes() == (
        folder / "evolved.safetensors"
    ).read_bytes()
    code, compared, err = run(capsys, "compare", str(folder), str(folder / "table.json"))
    assert code == 0, err
    table = out.partition("test images:\n\n")[2].partition("\n\n")[0]
    assert compared.count(table) == 2 and "against the best initial one" in compared
    before = (folder / "journal.jsonl").read_bytes()
    longer = ["--dry-run", "--generations", "5"]
    code, _, err = run(capsys, *arguments(place, "run", *more, *longer))
    assert code == 1 and "holds a run already" in err
    assert (folder / "journal.jsonl").read_bytes() == before


def adapting(place: Path, out: str, **options: object) -> list[str]:
    given = {
        "arch": "support.networks:colour_net",
        "checkpoints": place / "c" / "*.pth",
        "transform": place / "transform.json",
        "out": place / out,
        "rounds": 1,
        "micro-batch": 16,
        "engine": "eager",
        **options,
    }
    return ["evolve", *(f"--{name}={value}" for name, value in given.items()), "--force"]


def test_images_of_another_kind_and_nothing_else(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(place / "cached"))
    new, old = place / "tree" / "val", place / "tree" / "train"
    code, out, err = run(capsys, *adapting(place, "new", adapt=new))
    assert code == 0, err
    assert "80 labelled images of the new kind, of which folds choose, no test images" in out
    header = json.loads((place / "new" / "journal.jsonl").read_text().splitlines()[0])
    assert header["validation"]["by_folds"] and "keep" not in header["fitness"]
    card = (place / "new" / "model_card.md").read_text()
    assert "kind trained on" not in card and "## On" not in card
    files = [path.relative_to(new) for path in sorted(new.rglob("*.*"))]
    table = place / "new.csv"  # of the new images alone
    table.write_text("\n".join(["file,label", *(f"{path},{path.parent}" for path in files)]))
    options = {"adapt": new, "labels": table, "old": old, "keep": 0.5}
    code, out, err = run(capsys, *adapting(place, "kept", **options))
    assert code == 0, err
    (said,) = [line for line in out.splitlines() if "images of the kind trained on" in line]
    assert said.startswith("Of 120 images of the kind trained on, the initial greedy soup")
    for name in ("model_card.md", "report.html"):
        text = (place / "kept" / name).read_text()
        assert "On images of the kind trained on" in text and said[:60] in text
    header = json.loads((place / "kept" / "journal.jsonl").read_text().splitlines()[0])
    assert header["fitness"]["keep"] == 0.5
    for options, message in (
        ({"adapt": new, "data": place / "tree"}, "--adapt is all that networks are evolved on"),
        ({"adapt": place / "tree"}, "has the parts train, val; --adapt is for one folder"),
        ({"adapt": new, "keep": 0.5}, "keep is 0.5, but there are no old_images"),
        # Before any images are looked for.
        ({"adapt": new, "old": place / "none", "keep": 1.5}, "keep is 1.5; expected a share"),
        ({"adapt": place / "c"}, ""),
    ):
        code, _, err = run(capsys, *adapting(place, "refused", **options))
        assert code == 1 and message in " ".join(err.split()), err
        assert not (place / "refused").exists()


def test_kill_minus_nine_in_the_middle_loses_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *arguments(place, "straight", "--generations", "12"))
    assert code == 0, err
    argv = arguments(place, "killed", "--generations", "12")
    process = subprocess.Popen(
        [sys.executable, "-m", "deevo_ext", *argv], cwd=place, env=child_environment()
    )
    path = place / "killed" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(path.read_bytes().splitlines()) >= 4:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    before = len(path.read_bytes().splitlines())
    assert 4 <= before < 15  # header, generations 0 to 12, result
    code, _, err = run(capsys, *argv)
    assert code == 0, err
    first, second = (
        load_file(place / name / "evolved.safetensors") for name in ("straight", "killed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--time", "soon"], "seconds is 'soon'"),
        (["--images-per-batch", "many"], "images_per_batch is 'many'"),
        (["--metric", "top3"], "metric is 'top3'"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--strategies", "target"], "strategies is 'target'"),
        (["--racing", "0.9"], "racing is 0.9"),
        (["--checkpoints", "nothing/*.pth"], "no file, folder or glob match"),
        (["--augment", "blur"], "augment is 'blur'"),
    ],
)
def test_bad_options_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    code, _, err = run(capsys, *arguments(place, "bad"), *change)
    assert code == 1 and message in err and len(err.strip().splitlines()) == 1
    assert not (place / "bad").exists()


@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_from_a_folder_of_pictures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """cache, populate, evolve, replay, compare: what a user types, in that order."""
    tree, cache = write_fashion(tmp_path / "tree", 500, 400), str(tmp_path / "p.safetensors")
    transform = {"resize": 20, "crop": 20, "interpolation": "bilinear"}
    transform |= {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}
    (tmp_path / "transform.json").write_text(json.dumps(transform))
    options = ["--transform", str(tmp_path / "transform.json")]
    network = ["--arch", "support.networks:small_resnet", "--data", cache, *options]
    training = ["--members", "6", "--base-epochs", "5", "--epochs", "0.5", "--batch-size", "32"]
    training += ["--augment", "none"]  # the environment may lack torchvision
    evolution = ["--rounds", "2", "--images-per-round", "100"]
    how = ["--micro-batch", "50", "--engine", "eager", "--no-progress"]
    found = ["--checkpoints", str(tmp_path / "c" / "member_*.safetensors")]
    steps = [
        ["cache", str(tree), "--out", cache, *options],
        ["populate", *network, "--out", str(tmp_path / "c"), *training],
        ["evolve", *network, *found, "--out", str(tmp_path / "run"), *evolution, *how],
        ["replay", str(tmp_path / "run"), "--out", str(tmp_path / "again.pth")],
        ["compare", str(tmp_path / "run")],
    ]
    for argv in steps:
        code, out, err = run(capsys, *argv)
        assert code == 0, f"{argv[0]}: {err}"
    assert "initial greedy soup" in out
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    evolved = next(row for row in table["rows"] if row["returned"])
    parent = next(row for row in table["rows"] if row["name"] == "best parent")
    # Ten classes: chance is 0.1. Evolution starts from the members, and validation chooses.
    assert evolved["top1"] > 0.3 and evolved["top1"] > parent["top1"] - 0.1
    first = torch.load(tmp_path / "run" / "evolved.pth", weights_only=True)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_strategies_are_formulas_and_pools_by_name() -> None:
    values = keywords_of({"strategies": ["sade", "near=target + F*(best - target), bin"]})
    configured = configure("paper", **values).strategies
    assert configured[:-1] == POOLS["sade"]()
    assert configured[-1].name == "near"
    with pytest.raises(DeevoError, match="difference"):
        keywords_of({"strategies": ["jade"]})
