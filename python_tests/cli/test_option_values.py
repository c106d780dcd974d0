"""Values of options: a model's arguments, paths that hold anywhere, pipes to write to."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import save_file

from deevo_ext.cli.config import RUN_FILE, read_options, take_options, write_options
from deevo_ext.cli.parameters import model_args_of
from deevo_ext.files import write_whole
from deevo_ext.population.finding import expand_paths
from support.commands import run
from support.networks import Net, members


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-6", 1e-6), ("-2.5E3", -2500.0), ("0.5", 0.5), ("7", 7), ("true", True)),
        *(("null", None), ("relu", "relu"), ("[1, 2]", [1, 2]), ("1e", "1e"), ("e5", "e5")),
    ],
)
def test_arguments_of_a_model_have_the_values_that_are_meant(text: str, value: Any) -> None:
    found = model_args_of([f"x={text}"])["x"]
    assert found == value and type(found) is type(value)


def test_a_mapping_in_a_file_says_the_same_as_the_command_line() -> None:
    app = typer.Typer()

    @app.command()
    def one(model_arg: list[str] = typer.Option([])) -> None:
        pass

    command = typer.main.get_command(app)
    said = {"drop": 1e-5, "none": None, "flag": True, "text": "relu", "sizes": [1, 2]}
    context = typer.Context(command)
    take_options(context, Path("a.yaml"), {"model_arg": said})
    assert context.default_map is not None
    assert model_args_of(context.default_map["model_arg"]) == said


def test_a_glob_of_a_run_means_the_same_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("g[1]", "g1"):
        (tmp_path / folder / "c").mkdir(parents=True)
        for name, state in zip("ab", members(Net, 2), strict=True):
            save_file(state, tmp_path / folder / "c" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path / "g[1]")
    for given in ("c/*.safetensors", "c", "c/a.safetensors"):
        expected = [Path.cwd() / path for path in expand_paths(given)]
        write_options(tmp_path, {"checkpoints": given})
        said = read_options(tmp_path / RUN_FILE)["checkpoints"]
        assert os.path.isabs(said) and expand_paths(said) == expected


def test_home_is_found_in_files_of_options_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(Net, 2)):
        save_file(state, tmp_path / "c" / f"{i}.safetensors")
    (tmp_path / "a.yaml").write_text(f"output: ~/made.pth\ncheckpoints: [{tmp_path / 'c'}]\n")
    code, _, err = run(capsys, "average", "--config", tmp_path / "a.yaml")
    assert code == 0 and (tmp_path / "made.pth").exists(), err


def test_a_filter_is_of_the_folder_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, count in (("run[1]", 2), ("run1", 3)):
        (tmp_path / folder).mkdir()
        for i, state in enumerate(members(Net, count)):
            save_file(state, tmp_path / folder / f"{i}.safetensors")
    line = ("average", tmp_path / "run[1]", "--filter", "*.safetensors", "--no-sort")
    code, out, _ = run(capsys, *line, "--output", tmp_path / "x.safetensors")
    assert code == 0 and out.count("run[1]/") == 2 and "run1/" not in out


def test_a_module_of_the_runs_folder_goes_before_one_of_the_same_name_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    for folder in ("there", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "which_one.py").write_text(
            f"def net(**_):\n    raise ValueError('it is {folder}')\n"
        )
    (tmp_path / "c.safetensors").touch()
    monkeypatch.chdir(tmp_path / "here")
    images = ("--checkpoints", "../c.safetensors", "--data", "..", "--run-dir", "r")
    line = ("evolve", "--arch", "which_one:net", "--modules", "../there", *images)
    code, _, err = run(capsys, *line)
    assert code == 1 and "it is there" in err


def test_what_reads_a_pipe_gets_what_is_written(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, b"whole")
    reader.join(60)
    assert found == [b"whole"] and pipe.is_fifo()
