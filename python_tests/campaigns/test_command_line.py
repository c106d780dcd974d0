"""Every option of every command with values that it should not have: one line, no traceback."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from campaigns.outcomes import Outcomes, some
from deevo_ext.cli import app, main
from support.networks import members
from support.recipe_runs import PlainNet

VALUES = [
    *("", " ", ":", "::", "banana", "nan", "inf", "-inf", "-1", "0", "1", "1e400", "1.5"),
    *(
        "9" * 20,
        f"-{'9' * 20}",
        "9" * 400,
        "builtins:exit",
        "os:_",
        "json:loads",
        "a\nb",
        "x" * 300,
    ),
    *("[", "{}", "1h1h", "ü", "--", "*", "..", "/dev/null", "/proc/self/mem", "~", "\udcff"),
]
COMMANDS = ["evolve", "populate", "average", "cache", "replay", "merge", "compare", "info", "demo"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("DEEVO_DEBUG", raising=False)
    (tmp_path / "runs").mkdir()
    for i, state in enumerate(members(PlainNet, 3)):
        save_file(state, tmp_path / "runs" / f"m{i}.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.json").write_text(
        '{"resize": 8, "crop": 8, "interpolation": "bilinear", "mean": [0.5], "std": [0.5]}'
    )
    return tmp_path


def usual(command: str) -> dict[str, str]:
    """Options with which a command fails at its data, or for no reason but the value tried."""
    network = {"--arch": "support.recipe_runs:PlainNet", "--data": "empty", "--transform": "t.json"}
    return {
        "evolve": {**network, "--checkpoints": "runs", "--out": "out", "--device": "cpu"},
        "populate": {**network, "--out": "out", "--base-epochs": "1"},
        "average": {"": "runs", "--output": "m.pth", "--out": "out"},
        "cache": {"": "empty", "--out": "c.safetensors", "--transform": "t.json"},
        "replay": {"": "empty"},
        "merge": {"": "t.json", "--out": "m.pth"},
        "compare": {"": "empty"},
        "info": {},
        "demo": {"--data": "empty"},
    }[command]


def cases(command: str) -> Iterator[tuple[str, str]]:
    parameters = typer.main.get_command(app()).commands[command].params  # type: ignore[attr-defined]
    names = [p.opts[0] if p.opts[0].startswith("-") else "" for p in parameters]
    yield from itertools.product(names, VALUES)


def ended(arguments: list[str]) -> tuple[object, str]:
    """The exit status of a command, and what it wrote as errors; anything else is raised."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            main(arguments)
    except SystemExit as left:
        return left.code or 0, err.getvalue()
    return 0, err.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_ends_in_one_line(place: Path, command: str) -> None:
    assert sorted(typer.main.get_command(app()).commands, key=COMMANDS.index) == COMMANDS  # type: ignore[attr-defined]
    outcomes = Outcomes(f"command lines of {command}")
    threads = torch.get_num_threads()
    for name, value in some(list(cases(command)), 30):
        options = {**usual(command), name: value}
        line = [command, *itertools.chain(*([n, v] if n else [v] for n, v in options.items()))]
        shown = f"{name or 'argument'} {value[:40]!a}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                status, err = ended(line)
            except BaseException as error:
                outcomes.fail(f"{shown}: {type(error).__name__}: {str(error)[:120]}")
                continue
        lines = [line for line in err.splitlines() if line.strip()]
        if status == 1 and re.search(r"error: \w+: .*DEEVO_DEBUG", err):
            outcomes.fail(f"{shown}: {err.strip()[:200]}")
        elif "Traceback" in err or (status == 1 and not lines[-1].startswith("error: ")):
            outcomes.fail(f"{shown}: status {status}: {err.strip()[:200]}")
        elif status not in (0, 1, 2):
            outcomes.fail(f"{shown}: status {status}")
        else:
            outcomes.counts[{0: "results", 1: "refusals", 2: "usage errors"}[status]] += 1  # type: ignore[index]
    torch.set_num_threads(threads)
    outcomes.check()
