"""The benchmark suite times no wrong result, and no other package than the installed one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deevo_ext
from support.paths import ROOT, import_from_checkout

import_from_checkout("bench")

pytestmark = pytest.mark.usefixtures("restored_threads")

# Backends whose result is wrong in one bit of the first or the last weight of the last row.
WRONG = """
import contextlib, io, json, sys
import bench
bench.prefer_installed()
import torch
from bench.command import main
from deevo_ext.backends.native import cpu

OUTPUT = {"trials": 12, "commit": 0, "plan": 9, "tell": 6}

def spoilt(operator, position):
    right = getattr(cpu, operator)
    def wrong(*arguments):
        right(*arguments)
        output = arguments[OUTPUT[operator]]
        row = output[-1] if output.dim() == 2 else output
        row.view(torch.int32)[position] ^= 1
    return right, wrong

results = []
for operator, position, case in json.loads(sys.argv[1]):
    right, wrong = spoilt(operator, position)
    setattr(cpu, operator, wrong)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--quick", "--case", case, "--size", "9003", "--dtype", "float32"])
    setattr(cpu, operator, right)
    results.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def test_a_wrong_result_is_not_timed():
    spoilt = [
        ("trials", 0, "trials"),
        ("trials", -1, "trials"),
        ("commit", 0, "commit"),
        ("commit", -1, "commit"),
        ("plan", 0, "plan"),
        ("tell", 0, "tell"),
        ("commit", -1, "generation"),
        ("tell", 0, "generation"),
    ]
    command = [sys.executable, "-c", WRONG, json.dumps(spoilt)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for (operator, position, case), (status, out, err) in zip(
        spoilt, json.loads(result.stdout), strict=True
    ):
        assert status == 1, (operator, position, case, out)
        assert f"wrong result: {case}" in err
        assert not out


def test_networks_and_layers_that_compute_something_else_are_refused(monkeypatch):
    from dataclasses import replace

    from bench import forward, layers, networks, options
    from bench.job import WrongResult

    arguments = ["--quick", "--case", "layers", "--size", "resnet8/conv1", "--seed", "3"]
    (job,) = options.parse(arguments).jobs
    subject = networks.subject_of(replace(job, members=2))
    losses = forward.eager(subject, subject.rows)()
    forward.check(replace(job, members=2), subject, losses)
    wrong = losses.clone()
    wrong[1, -1] += 0.01 * losses.max()
    with pytest.raises(WrongResult, match="losses of resnet8"):
        forward.check(replace(job, members=2), subject, wrong)
    graph, _ = networks.graph_of(job)
    layer = graph.layers[0]
    assert layers.time_layer(job, layer)["median_s"] > 0
    engine = layers.ENGINES[layer.engine]
    bound = engine.bind(layer)
    run = lambda *given: bound.run(*given) * 1.001  # noqa: E731
    monkeypatch.setattr(type(engine), "bind", lambda self, layer: replace(bound, run=run))
    with pytest.raises(WrongResult, match="conv1"):
        layers.time_layer(job, layer)


def test_a_source_tree_without_compiled_code_does_not_hide_the_installed_package(tmp_path):
    tree, site = tmp_path / "tree", tmp_path / "site"
    shutil.copytree(ROOT / "bench", tree / "bench")
    (tree / "deevo_ext").mkdir()
    (tree / "deevo_ext" / "__init__.py").write_text("raise RuntimeError('the source tree')")
    shutil.copytree(Path(deevo_ext.__file__).parent, site / "deevo_ext")
    result = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--case", "plan"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"measures {site / 'deevo_ext'}," in result.stderr
