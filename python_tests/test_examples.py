"""The examples run, each in under a minute, and show what they gained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT, child_environment

pytestmark = pytest.mark.slow
EXAMPLES = ROOT / "examples"
LINES = """
import json
lines = {line.name: [line.loss, line.top1] for line in RESULT.comparison.networks}
print(json.dumps([RESULT.candidate.name, lines, MORE]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the members lie, which are trained once, and where examples write."""
    return tmp_path_factory.mktemp("examples")


def printed(name: str, folder: Path) -> str:
    """What an example prints, run in a folder of its own.

    torchvision, which frameworks import, lacks two operators beside a CPU-only torch.
    """
    run = "import runpy, sys; from support.zoo import torchvision; torchvision(); "
    run += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, str(EXAMPLES / f"{name}.py"), str(folder)]
    environment = child_environment(HF_HUB_OFFLINE="1")
    environment["PYTHONPATH"] += os.pathsep + str(EXAMPLES)  # where a script is, Python looks
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def executed(name: str, folder: Path, last: str) -> Any:
    """Executes a notebook and one cell more; returns the JSON value that this one prints."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # a diff shows what was meant
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    environment = child_environment(TMPDIR=str(folder), IPYTHONDIR=str(folder / "ipython"))
    environment["PYTHONPATH"] += os.pathsep + str(EXAMPLES)
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute(env=environment)
    return json.loads(notebook.cells[-1].outputs[-1]["text"])


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r" loss (\d+\.\d+)", text)]


def test_onnx_int8(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime has no wheel for this Python yet")
    text = printed("onnx_int8", folder)
    full, quantised, evolved = losses(text)
    assert quantised > full and evolved < quantised
    back = re.search(r"took back (\S+)\.", text)
    assert back is not None and float(back[1]) == pytest.approx(quantised - evolved, abs=2e-4)
    assert (folder / "quantised.onnx").stat().st_size > 0


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_callbacks_of_trainers(framework: str, folder: Path) -> None:
    if find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    name = {"lightning": "lightning_snapshots", "transformers": "trainer_snapshots"}[framework]
    last, evolved = losses(printed(name, folder))
    assert evolved < last
    source = (EXAMPLES / f"{name}.py").read_text()
    [callback] = re.findall(r"class Evolve.*?\n\n\n", source, re.DOTALL)
    code = [line for line in callback.splitlines() if line.strip() and '"""' not in line]
    assert len(code) < 15


def test_blurred(folder: Path) -> None:
    lost = "[(line.top1, line.name) for one in (result, both) for line in one.old.networks"
    lost += " if line.returned or line.name == 'initial greedy soup']"
    last = LINES.replace("RESULT", "result").replace("MORE", f"[float(right), {lost}]")
    name, lines, (right, old) = executed("blurred", folder, last)
    assert right == pytest.approx(lines[name][1], abs=1e-3)
    assert lines[name][1] > lines["initial greedy soup"][1] + 0.02
    assert lines[name][0] < lines["initial greedy soup"][0]
    [soup, all_the_way, _, half_way] = [top1 for top1, _ in old]
    assert all_the_way < half_way and soup - half_way < 0.02


def test_own_metric(folder: Path) -> None:
    costs = (
        "[result.comparison.metric, [line.metric for line in result.comparison.networks], least]"
    )
    last = LINES.replace("RESULT", "result").replace("MORE", costs)
    name, lines, (metric, costs_of, least) = executed("own_metric", folder, last)
    assert metric.endswith(".cost")
    by_name = dict(zip(lines, costs_of, strict=True))
    assert by_name[name] < by_name["initial greedy soup"]
    assert least == sorted(least, reverse=True) and least[-1] < least[0]


def test_command_line(folder: Path) -> None:
    last = "print(json.dumps([str(folder), done.stdout]))"
    run, shown = executed("command_line", folder, last)
    assert "> evolved" in shown
    for name in ("evolved.safetensors", "report.html", "recipe.yaml", "model_card.md"):
        assert (Path(run) / "evolved" / name).stat().st_size > 0


def test_recipe(folder: Path) -> None:
    more = "[again.as_recorded, edited.as_recorded, *(loss(load_file(one.path)) "
    more += "for one in (again, edited)), table.sum(dim=1).tolist()]"
    last = LINES.replace("RESULT", "result").replace("MORE", more)
    name, lines, (first, second, again, edited, sums) = executed("recipe", folder, last)
    assert (first, second) == (True, False)
    assert again == pytest.approx(lines[name][0], abs=1e-4) and edited != again
    assert sums == pytest.approx([1.0] * len(sums), abs=1e-5)
