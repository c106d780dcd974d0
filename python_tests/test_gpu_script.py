"""bench/gpu.sh, rehearsed against programs that only note how they were called."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from support.paths import ROOT, import_from_checkout

import_from_checkout("bench")

FAKE_SMI = """#!/bin/sh
case "$*" in
  *name*) echo "NVIDIA Some GPU" ;;
  *driver_version*) echo "580.1" ;;
  *compute_cap*) echo "9.0" ;;
esac
"""
# Plays the Python that gpu.sh runs: notes what it is asked for; only summaries are made for real.
# A step takes as long as the file SECONDS_<a word of its command> says.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *summary.py*) exec {python} "$@" ;;
esac
echo "$FORCE_CUDA $TORCH_CUDA_ARCH_LIST $DEEVO_REQUIRE_GPU: $*" >> {folder}/calls
for file in {folder}/seconds_*; do
  case "$*" in
    *"${{file#*seconds_}}"*) sleep "$(cat "$file")" ;;
  esac
done
case "$*" in
  *"gpu and smoke"*) exit 3 ;;
esac
"""
TOOLS = ("compute-sanitizer", "ncu")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    python = FAKE_PYTHON.format(python=sys.executable, folder=tmp_path)
    for name, text in (("nvidia-smi", FAKE_SMI), ("fake-python", python)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return tools


def gpu_sh(tools: Path, *arguments: object) -> subprocess.CompletedProcess:
    path = f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"
    variables = {"PATH": path, "PYTHON": str(tools / "fake-python"), "DEEVO_COMMIT": "abc123"}
    variables["FASHION_MNIST"] = str(tools / "data")
    command = ["bash", str(ROOT / "bench/gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def table() -> list[list[str]]:
    """Call, name, seconds and command of each step, in order."""
    command = ["bash", str(ROOT / "bench/gpu.sh"), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(None, 3) for line in listed.splitlines()]


def steps_of(call: int) -> list[str]:
    """The names of a call's steps."""
    return [name for of, name, _, _ in table() if of == str(call)]


def summary_of(out: Path) -> tuple[dict, dict[str, str]]:
    """The machine and the outcomes by step."""
    summary = json.loads((out / "summary.json").read_text())
    return summary["machine"], {name: s["outcome"] for name, s in summary["steps"].items()}


def test_gpu_sh_runs_its_table_and_sums_up(tmp_path: Path, fakes: Path) -> None:
    out = tmp_path / "out"
    result = gpu_sh(fakes, f"{out}/")
    assert result.returncode == 1  # the smoke tests fail here
    machine, outcomes = summary_of(out)
    assert (machine["gpu"], machine["driver"], machine["commit"]) == (
        "NVIDIA Some GPU",
        "580.1",
        "abc123",
    )
    assert machine["torch"]
    assert set(outcomes) == set(steps_of(1))
    assert outcomes.pop("smoke") == "failed with status 3"
    assert outcomes.pop("memcheck") == "not run: the tool is not on PATH"
    assert set(outcomes.values()) == {"passed"}
    assert gpu_sh(fakes, "--call", 2, out).returncode == 0
    data = fakes / "data"
    assert summary_of(out)[1]["evolve"] == f"not run: Fashion-MNIST is not in the folder {data}"
    assert set(summary_of(out)[1]) == {*steps_of(1), *steps_of(2)}
    # What comes back from a lent machine is a few files.
    assert sorted(path.name for path in out.iterdir()) == ["results.tgz", "summary.json"]
    with tarfile.open(out / "results.tgz") as archive:
        logs = {f"results/{name}.log" for name in (*steps_of(1), *steps_of(2))}
        assert logs <= set(archive.getnames())
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "1 9.0 1: setup.py build_ext --inplace" in calls
    tests = [call for call in calls if "-m pytest" in call]
    assert len(tests) == 2
    for call in tests:
        assert " 1: -P -m pytest" in call and "python_tests/backends/test_cuda.py" in call
    check_rows_of(calls)


def check_rows_of(calls: list[str]) -> None:
    """Every line that measures is one that the suite takes, and asks for rows on the GPU alone."""
    from bench import options

    asked = [call.partition(" -m bench ")[2].split() for call in calls if " -m bench " in call]
    assert len(asked) == 11
    for arguments in asked:
        jobs = options.parse(arguments).jobs
        assert jobs and {job.device for job in jobs} == {"cuda"}


def test_gpu_sh_evolves_real_data_where_they_are(tmp_path: Path, fakes: Path) -> None:
    (fakes / "data").mkdir()
    (fakes / "data/train-images-idx3-ubyte.gz").touch()
    gpu_sh(fakes, "--call", 2, "--seconds", 200, tmp_path / "out")
    assert summary_of(tmp_path / "out")[1]["evolve"] == "passed"
    [call] = [c for c in (tmp_path / "calls").read_text().splitlines() if "bench.fashion" in c]
    arguments = call.partition("-m bench.fashion ")[2].split()
    # It ends by itself within what the step may take.
    assert arguments[:2] == ["--device", "cuda"] and 180 <= int(arguments[3]) <= 190
    assert arguments[4] == str(fakes / "data")


def test_gpu_sh_begins_nothing_after_its_seconds(tmp_path: Path, fakes: Path) -> None:
    """A step that would outlive them is stopped, and later ones say that they were not begun."""
    (tmp_path / "seconds_setup.py").write_text("100")
    started = time.perf_counter()
    gpu_sh(fakes, "--seconds", 2, tmp_path)
    assert time.perf_counter() - started < 90  # on a busy machine
    _, outcomes = summary_of(tmp_path)
    assert outcomes.pop("build") == "stopped after 2 s"
    assert outcomes and all(o == "not begun: the 2 s were over" for o in outcomes.values())
    assert {"results.tgz", "summary.json"} <= {path.name for path in tmp_path.iterdir()}


def test_gpu_sh_has_steps_that_fit_its_calls() -> None:
    """Fifteen minutes of a lent machine: its start, and both calls by what their steps may take."""
    rows = table()
    names = [name for _, name, _, _ in rows]
    assert len(set(names)) == len(names)
    for call, most in (("1", 480), ("2", 410)):
        in_turn = [int(s) for c, _, s, command in rows if c == call and command[0] != "&"]
        assert sum(in_turn) <= most


def test_gpu_sh_sums_up_a_tool_that_refuses_or_finds_something(tmp_path: Path, fakes: Path) -> None:
    for text, status, outcome in (
        ("Error: Device not supported", 1, "not run: the tool refuses this machine"),
        ("ERROR SUMMARY: 3 errors; 4 passed", 99, "failed with status 99"),
        ("ERROR SUMMARY: 0 errors; 4 passed", 0, "passed"),
    ):
        for name in TOOLS:
            (fakes / name).write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
            (fakes / name).chmod(0o755)
        gpu_sh(fakes, "--call", 2, tmp_path)
        _, outcomes = summary_of(tmp_path)
        assert outcomes["racecheck"] == outcomes["ncu"] == outcome


def test_gpu_sh_without_a_gpu_or_with_a_wrong_option(tmp_path: Path, fakes: Path) -> None:
    for wrong in (["--fly"], ["--call", "3"], ["--seconds", "soon"]):
        assert gpu_sh(fakes, *wrong).returncode == 2
    (fakes / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    result = gpu_sh(fakes, tmp_path)
    assert result.returncode == 1
    assert "finds no GPU" in result.stderr


def test_gpu_sh_rehearsed_with_steps_that_take_their_time(tmp_path: Path, fakes: Path) -> None:
    """Every step takes a second: what fits is run, in the table's order, and what is beside it too.

    Steps that are beside others cost nothing of the time; the one that the end meets is stopped.
    """
    (tmp_path / "seconds_-").write_text("1")  # of each command, since all have options
    gpu_sh(fakes, "--seconds", 5, tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())["steps"]
    in_turn = [name for call, name, _, command in table() if call == "1" and command[0] != "&"]
    outcomes = [summary[name]["outcome"] for name in in_turn]
    begun = [outcome for outcome in outcomes if not outcome.startswith("not begun")]
    assert 1 <= len(begun) <= 5 and begun[0] == "passed"
    assert all(o == "not begun: the 5 s were over" for o in outcomes[len(begun) :])
    assert summary["convolutions"]["outcome"] == "passed"
    assert sum(summary[name]["seconds"] for name in in_turn) <= 6


def test_gpu_sh_that_is_killed_leaves_what_was_measured(tmp_path: Path, fakes: Path) -> None:
    (tmp_path / "seconds_copy,matmul").write_text("60")
    path = f"{fakes}{os.pathsep}/usr/bin{os.pathsep}/bin"
    variables = {"PATH": path, "PYTHON": str(fakes / "fake-python"), "DEEVO_COMMIT": "abc123"}
    command = ["bash", str(ROOT / "bench/gpu.sh"), str(tmp_path / "out")]
    script = subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        calls = tmp_path / "calls"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            calls.exists() and "copy,matmul" in calls.read_text()
        ):
            time.sleep(0.1)
    finally:
        os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    _, outcomes = summary_of(tmp_path / "out")
    assert {"build", "smoke", "bits"} <= set(outcomes) and "limits" not in outcomes
    with tarfile.open(tmp_path / "out/results.tgz") as archive:
        assert {"results/build.log", "results/bits.log"} <= set(archive.getnames())


@pytest.mark.slow
def test_gpu_sh_asks_for_tests_that_there_are(tmp_path: Path, fakes: Path) -> None:
    """What its steps select, of all tests, is neither nothing nor everything."""
    sanitizer = fakes / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\nwhile [ "$1" != -P ]; do shift; done\nexec fake-python "$@"\n')
    sanitizer.chmod(0o755)
    gpu_sh(fakes, tmp_path / "out")
    calls = (tmp_path / "calls").read_text().splitlines()
    found = {}
    for call in calls:
        arguments = call.partition(" -m pytest ")[2]
        if arguments:
            files = re.findall(r"python_tests/\S+\.py", arguments)
            chosen = re.search(r"-([mk]) (.*?)(?: -n 12.*)?$", arguments)
            assert chosen is not None
            command = [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", *files]
            options = [f"-{chosen[1]}", chosen[2]]
            text = subprocess.run(
                [*command, *options], capture_output=True, text=True, cwd=ROOT
            ).stdout
            counts = re.search(r"(\d+)/(\d+) tests collected", text)
            assert counts is not None, text[-500:]
            found[chosen[2]] = int(counts[1])
    assert len(found) == 3, list(found)
    smoke, others, sanitized = (
        next(n for k, n in found.items() if part in k)
        for part in ("gpu and smoke", "not smoke", "some_members")
    )
    assert 10 <= smoke <= 80 and others > 100 and 3 <= sanitized <= 12
