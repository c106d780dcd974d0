"""The benchmark suite: that its rows are complete and that it times no wrong result."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deevo_ext
from deevo_ext import backends
from deevo_ext.tables import ChoiceColumn
from support.operators import random_weights, same_bits

ROOT = Path(__file__).resolve().parents[1]
COMMON = {
    "case", "backend", "device", "dtype", "size", "np", "d", "threads", "instruction_set", "ratio",
    "note", "torch", "cpu", "commit", "date", "load_average",
}  # fmt: skip
TIMES = {
    "median_s", "p20_s", "p80_s", "bytes", "limit_s", "copy_bytes_per_s", "repetitions",
}  # fmt: skip
MEMORY = {"peaks", "peak_bytes", "floor_bytes", "limit_bytes", "chunk"}


def bench(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def rows_of(tmp_path: Path, *arguments: object) -> list[dict]:
    result = bench("--quick", "--threads", 2, *arguments, "--json", tmp_path / "rows.json")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(result.stdout.splitlines()) == 1 + len(rows)
    return rows


def test_rows_of_the_operators(tmp_path):
    cases = "trials,commit,tell,plan,generation,step"
    rows = rows_of(tmp_path, "--case", cases, "--size", "20001,resnet8", "--np", 9)
    assert len(rows) == 4 * 2 * 3 + 2  # plan and tell have neither size nor dtype
    for row in rows:
        assert set(row) == COMMON | TIMES
        assert row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert row["limit_s"] > 0
        assert row["ratio"] == pytest.approx(row["median_s"] / row["limit_s"])
        assert row["copy_bytes_per_s"] == pytest.approx(row["bytes"] / row["limit_s"])
        assert (row["np"], row["backend"], row["device"]) == (9, "cpu", "cpu")
        assert row["note"] or row["case"] == "trials"
    assert {row["d"] for row in rows} == {0, 20_001, 78_042}


def test_traffic_is_what_the_operators_cannot_do_without(tmp_path):
    rows = rows_of(tmp_path, "--case", "trials,commit,generation", "--size", 6400, "--np", 12)
    for row in rows:
        one = 6400 * {"float32": 4, "bfloat16": 2, "float16": 2}[row["dtype"]]
        expected = {"trials": 12 + 12, "commit": 12 + 4, "generation": 24 + 16}
        assert row["bytes"] == expected[row["case"]] * one


def test_rows_of_evaluations(tmp_path):
    rows = rows_of(
        tmp_path, "--case", "fold,fold_trials,head", "--size", 20_001, "--np", 9, "--dtype",
        "float32,float16",
    )  # fmt: skip
    assert [row["case"] for row in rows] == [
        c for c in ("fold", "fold_trials", "head") for _ in "ab"
    ]
    for row in rows:
        assert row["median_s"] > 0 and row["ratio"] > 0
        itemsize = {"float32": 4, "float16": 2}[row["dtype"]]
        if row["case"] == "head":
            assert row["bytes"] == 64 * 49 * 2048 * itemsize
            continue
        # Two convolutions of 32 channels and their BatchNorms fit 20,001 weights.
        written = 8 * (2 * 9 * 32 * 32 * itemsize + 2 * 32 * 4)
        read = (8 if row["case"] == "fold" else 9) * 20_001 * itemsize
        assert row["bytes"] == read + written


def test_rows_of_the_memory_case(tmp_path):
    rows = rows_of(
        tmp_path, "--case", "memory", "--size", 10_000, "--np", 6, "--chunk", 4, "--dtype",
        "bfloat16",
    )  # fmt: skip
    assert len(rows) == 1
    row = rows[0]
    assert set(row) == COMMON | MEMORY
    assert row["floor_bytes"] == (6 + 4) * 10_048 * 2  # rows start at multiples of 64 weights
    assert row["limit_bytes"] == row["floor_bytes"] + 64 * 2**20
    assert row["ratio"] == pytest.approx(row["peak_bytes"] / row["limit_bytes"])
    assert row["peak_bytes"] == max(row["peaks"]) > row["floor_bytes"]


def test_the_reference_backend_and_markdown(tmp_path):
    out = tmp_path / "table.md"
    rows = rows_of(
        tmp_path, "--case", "commit", "--backend", "reference", "--size", 501, "--markdown", out
    )
    assert {row["instruction_set"] for row in rows} == {"torch"}
    lines = out.read_text().splitlines()
    assert len(lines) == 2 + len(rows)
    assert all(re.fullmatch(r"\|.*\|", line) for line in lines)


def test_errors_name_what_is_wrong():
    for arguments, named in (
        (("--case", "trails"), "trails"),
        (("--size", "resnet19"), "resnet19"),
    ):
        result = bench(*arguments)
        assert result.returncode == 2
        assert named in result.stderr


# Backends whose result is wrong in one bit of the first or the last weight of the last row.
WRONG = """
import contextlib, io, json, sys
import bench
bench.prefer_installed()
import torch
import deevo_ext.backends.cpu as cpu
from bench.command import main

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


# Peers and the GPU


def test_peers_make_the_same_trials_where_crossover_takes_everything(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench import gpu

    w = random_weights(6, 500, archive_rows=0, nonneg=0)
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    out = torch.zeros_like(w.population)
    gpu.peer("torch", w.population, w.choices, w.coefficients, out)()
    with backends.use("reference"):
        assert same_bits(out, w.trials())
    w.choices[:, ChoiceColumn.THRESHOLD] = 0
    gpu.peer("torch", w.population, w.choices, w.coefficients, out)()
    assert same_bits(out, w.population)


def test_cases_that_are_measured_by_name_alone(tmp_path):
    rows = rows_of(
        tmp_path, "--case", "plan+tell,trials-six,graph", "--np", 9, "--dtype", "float32"
    )
    assert [row["case"] for row in rows] == ["plan+tell", "trials-six"]  # the CPU has no graphs


@pytest.mark.gpu
def test_rows_of_a_gpu(tmp_path):
    cases = "trials,commit,tell,plan,plan+tell,trials-six,graph"
    rows = rows_of(tmp_path, "--case", cases, "--np", 9, "--backend", "cuda,triton,torch")
    assert {row["backend"] for row in rows} == {"cuda", "triton", "torch"}
    for row in rows:
        assert set(row) == COMMON | TIMES | {"gpu", "driver", "torch_cuda", "cuda"}
        assert row["device"] == "cuda" and row["gpu"]


# bench/gpu.sh

FAKE_SMI = """#!/bin/sh
case "$*" in
  *name*) echo "NVIDIA Some GPU" ;;
  *driver_version*) echo "580.1" ;;
  *compute_cap*) echo "9.0" ;;
esac
"""
# Plays the Python that gpu.sh runs: notes what it is asked for; only summaries are made for real.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *summary.py*) exec {python} "$@" ;;
esac
echo "$FORCE_CUDA $TORCH_CUDA_ARCH_LIST $DEEVO_REQUIRE_GPU: $*" >> {calls}
case "$*" in
  *"not gpu"*) exit 3 ;;
esac
"""


@pytest.fixture
def fakes(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    python = FAKE_PYTHON.format(python=sys.executable, calls=tmp_path / "calls")
    for name, text in (("nvidia-smi", FAKE_SMI), ("fake-python", python)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return tools


def gpu_sh(tools: Path, *arguments: object) -> subprocess.CompletedProcess:
    path = f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"
    environment = {**os.environ, "PATH": path, "PYTHON": str(tools / "fake-python")}
    command = ["bash", str(ROOT / "bench/gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_gpu_sh_runs_its_verbs_and_sums_up(tmp_path, fakes):
    out = tmp_path / "out"
    result = gpu_sh(fakes, f"{out}/")
    assert result.returncode == 1  # the tests that do not need a GPU fail here
    steps = json.loads((out / "summary.json").read_text())["steps"]
    outcomes = {name: step["outcome"] for name, step in steps.items()}
    assert outcomes["build/install"] == outcomes["test/gpu"] == "passed"
    assert outcomes["test/others"] == "failed with status 3"
    for tool in ("memcheck", "racecheck"):
        assert outcomes[f"sanitize/{tool}"] == "not run: compute-sanitizer is not on PATH"
    assert {n for n in outcomes if n.startswith("bench/")} == {
        f"bench/{name}" for name in ("tables", "weights", "graph", "six", "torch")
    }
    for step in steps.values():
        assert (step["gpu"], step["driver"]) == ("NVIDIA Some GPU", "580.1")
        assert step["commit"] and step["torch"]
    calls = (tmp_path / "calls").read_text().splitlines()
    (install,) = [call for call in calls if "pip install" in call]
    assert install.startswith("1 9.0 ")
    assert all(" 1: -P -m pytest" in call for call in calls if "-m pytest" in call)


def test_gpu_sh_sums_up_a_sanitizer_that_refuses_or_finds_something(tmp_path, fakes):
    tool = fakes / "compute-sanitizer"
    for text, status, outcome in (
        ("Error: Device not supported", 1, "not run: the tool refuses this machine"),
        ("ERROR SUMMARY: 3 errors; 4 passed", 99, "failed with status 99"),
        ("ERROR SUMMARY: 0 errors; 4 passed", 0, "passed"),
    ):
        tool.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
        tool.chmod(0o755)
        gpu_sh(fakes, "sanitize", tmp_path)
        steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
        assert steps["sanitize/memcheck"]["outcome"].startswith(outcome)


def test_gpu_sh_without_a_gpu_or_with_a_wrong_verb(tmp_path, fakes):
    assert gpu_sh(fakes, "fly").returncode == 2
    (fakes / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    result = gpu_sh(fakes, "build", tmp_path)
    assert result.returncode == 1
    assert "finds no GPU" in result.stderr
