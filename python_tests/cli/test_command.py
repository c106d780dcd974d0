"""What every command has: options from a file, --json, --quiet, --version, words to complete."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file

import deevo_ext
from deevo_ext.cli import app
from deevo_ext.cli.command import speaking
from deevo_ext.cli.parameters import time_of
from deevo_ext.errors import DeevoError
from deevo_ext.training.trainings import PopulationOptions
from support.commands import run, write_place
from support.networks import Net, members
from support.paths import child_environment

_EVOLVED = "run/evolved.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in: a tree of pictures, checkpoints, a transform and a file of options."""
    folder = write_place(tmp_path_factory.mktemp("command"), 60, 4)
    options = {
        "arch": "own_module:net",
        "checkpoints": "c/*.safetensors",
        "data": "tree",
        "transform": "t.json",
        "cache": "pictures.safetensors",
        "rounds": 1,
        "micro-batch": 16,
        "engine": "eager",
        "force": True,
        "progress": False,
        "frozen": "fc.bias",
        "memory": "1GiB",
        "f_init": 0.4,
    }
    (folder / "own_module.py").write_text("from support.networks import colour_net as net\n")
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    return folder


def test_a_run_from_a_file_goes_on_from_its_folder_alone_anywhere(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found_in = [folder for folder in sys.path if folder]  # where own_module is not
    monkeypatch.setattr(sys, "path", list(found_in))
    start = ("evolve", "--config", "options.yaml", "--run-dir", "run", "--rounds", 2)
    code, out, err = run(capsys, *start, "--json", "result.json", "--seed", "3")
    assert code == 0, err
    header = json.loads((place / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert header["fitness"]["rounds"] == 2 and header["seed"] == 3  # the flags go before
    assert header["configuration"]["f_init"] == 0.4
    first, evolved = (load_file(place / each) for each in ("c/m0.safetensors", _EVOLVED))
    assert torch.equal(first["fc.bias"], evolved["fc.bias"])  # which is frozen
    result = json.loads((place / "result.json").read_text())
    assert result["network"] == _EVOLVED
    names = [row["name"] for row in result["comparison"]["rows"]]
    assert "best parent" in names and result["name"] in names
    said = yaml.safe_load((place / "run" / "run.yaml").read_text())
    assert said["checkpoints"] == f"{place}/c/*.safetensors" and said["data"] == f"{place}/tree"
    assert said["transform"] == f"{place}/t.json" and said["memory"] == "1GiB"
    assert (said["rounds"], said["seed"], said["chunk"]) == (2, 3, 8)
    assert not said.keys() & {"config", "json", "resume", "dry_run", "device", "progress"}

    path = place / "run" / "run.yaml"
    before = path.read_bytes()
    path.unlink()  # as of a run that went on with other options, which were not kept
    code, _, err = run(capsys, *start, "--seed", "3")
    assert code == 0 and path.read_bytes() == before, err

    # A kill right after the journal's beginning, in another folder, and the run folder moved.
    moved = place / "elsewhere" / "moved"
    shutil.copytree(place / "run", moved)
    lines = (moved / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (moved / "journal.jsonl").write_bytes(b"".join(lines[:2]))
    (moved / "evolved.safetensors").unlink()
    monkeypatch.chdir(moved.parent)
    monkeypatch.setattr(sys, "path", list(found_in))
    monkeypatch.delitem(sys.modules, "own_module")
    code, out, err = run(capsys, "evolve", "--resume", "moved")
    assert code == 0, err
    assert "moved/evolved.safetensors" in out
    one, two = (load_file(each / "evolved.safetensors") for each in (place / "run", moved))
    assert all(torch.equal(one[name], two[name]) for name in one)
    # Flags that contradict the run are refused, as ever.
    code, _, err = run(capsys, "evolve", "--resume", "moved", "--seed", "4")
    assert code == 1 and "holds a run of another configuration: seed" in err
    code, _, err = run(capsys, "evolve", "--resume", place / "c")
    assert code == 1 and "holds no run.yaml" in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "config: b.yaml", "a.yaml: config is taken from the command line alone"),
        ("a.yaml", "round: 3", "a.yaml: there is no option 'round'; the nearest is 'rounds'"),
        (
            "a.toml",
            "micro_bach = 3",
            "there is no option 'micro_bach'; the nearest is 'micro_batch'",
        ),
        ("a.yaml", "rounds: [1, 2]", "rounds is [1, 2]; expected one value"),
        ("a.yaml", "- rounds", "expected lines NAME: VALUE"),
        ("a.yaml", "rounds: {", "config a.yaml cannot be read"),
        ("a.toml", "rounds: 3", "config a.toml cannot be read"),
        ("b.yaml", None, "config b.yaml cannot be read"),
    ],
)
def test_what_a_file_of_options_may_not_say(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(place)
    if text is not None:
        (place / name).write_text(text)
    code, _, err = run(capsys, "evolve", "--config", name)
    assert code == 1 and message in err and len(err.splitlines()) == 1


def test_a_result_is_json_on_stdout_alone_or_in_a_file(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for name, state in zip("ab", members(Net, 2), strict=True):
        save_file(state, place / f"{name}.safetensors")
    (place / "r.yaml").write_text(
        "members: [a.safetensors, b.safetensors]\ncoefficients: [1, 1]\nnormalise: true\n"
    )
    code, out, err = run(capsys, "merge", "r.yaml", "--out", "w.safetensors", "--json", "-")
    assert code == 0 and err.startswith("wrote w.safetensors")
    assert json.loads(out)["members"] == 2 and json.loads(out)["path"] == "w.safetensors"
    code, out, err = run(capsys, "average", "c", "--output", "m.pth", "--json", "m.json", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert len(json.loads((place / "m.json").read_text())["files"]) == 4
    code, _, err = run(capsys, "merge", "r.yaml", "--out", "x.pth", "--json", "none/x.json")
    assert code == 1 and "there is no folder none" in err
    code, _, err = run(capsys, "merge", "r.yaml", "--out", "x.pth", "--json", ".")
    assert code == 1 and "json is ., a folder" in err and not (place / "x.pth").exists()
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"deevo_ext {deevo_ext.__version__}\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("30m", 1800.0), ("8h", 28800.0)),
        *(("1h30m", 5400.0), ("1h 30m", 5400.0), ("1.5d", 129600.0)),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert time_of(text) == seconds


@pytest.mark.parametrize("text", ["h", "-1h", "0s", "eight", "1h30", ""])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(DeevoError, match="seconds is"):
        time_of(text)


def test_what_is_said_goes_through_logging(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("deevo_ext")
    before = (list(log.handlers), log.level, warnings.showwarning)
    for quiet, apart, expected in (
        (False, False, ("told\n", "warning: two lines\nwarning: beware\n")),
        (False, True, ("", "told\nwarning: two lines\nwarning: beware\n")),
        (True, False, ("", "warning: two lines\nwarning: beware\n")),
    ):
        with warnings.catch_warnings(), speaking(quiet, apart):
            warnings.simplefilter("always")
            log.info("%s", "told")
            log.warning("%s", "two\n  lines")
            warnings.warn("beware", stacklevel=1)
        assert capsys.readouterr() == expected
    assert (list(log.handlers), log.level, warnings.showwarning) == before


def test_populate_has_the_options_of_its_dataclass_with_their_defaults() -> None:
    group: Any = typer.main.get_command(app())
    options = {option.name: option.default for option in group.commands["populate"].params}
    fields = {field.name: field.default for field in dataclasses.fields(PopulationOptions)}
    del fields["augmentations"]  # which --augment says
    assert {name: options[name] for name in fields} == fields


def test_a_shell_completes_words_of_an_option(tmp_path: Path) -> None:
    environment = {
        "_DEEVO_COMPLETE": "complete_bash",
        "COMP_WORDS": "deevo evolve --search ",
        "COMP_CWORD": "3",
    }
    code = "import sys; sys.argv = ['deevo']; from deevo_ext.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=child_environment(**environment),
    )
    assert sorted(done.stdout.split()) == ["coefficients", "weights"], done.stderr
    assert os.listdir(tmp_path) == []
