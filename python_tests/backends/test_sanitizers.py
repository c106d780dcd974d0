"""The CPU operators under the compiler's sanitizers: memory, undefined behaviour, data races.

python_tests/support/operators_driver.cpp runs them, with every instruction set of this machine, on
memory that ends where it must, against a plain loop over weights.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.paths import ROOT

DRIVER = ROOT / "python_tests" / "support" / "operators_driver.cpp"
SOURCES = ("commit", "loops", "loops_avx2", "loops_avx512", "loops_baseline", "plan_tell", "trials")


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or os.environ.get("CC") or "g++")


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def build(sanitizer: str, sources: list[Path], work: Path) -> Path:
    """An executable of these sources; skips where the compiler has no such sanitizer."""
    command = [*compiler(), f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    (work / "empty.cpp").write_text("int main() {}\n")
    probe = run([*command, "empty.cpp", "-o", "empty"], work)
    if probe.returncode != 0:
        pytest.skip(f"{compiler()[0]} has no -fsanitize={sanitizer}: {probe.stderr.strip()[-200:]}")
    command += ["-std=c++17", "-O0", "-g", "-ffp-contract=off", "-fno-math-errno"]
    command += ["-I", str(ROOT / "csrc" / "include"), "-I", str(ROOT / "csrc")]

    def compile_(source: Path) -> Path:
        result = run([*command, "-c", str(source), "-o", f"{source.stem}.o"], work)
        assert result.returncode == 0, result.stderr
        return work / f"{source.stem}.o"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = [str(path) for path in pool.map(compile_, sources)]
    linked = run([*command, *objects, "-pthread", "-lstdc++", "-o", "driver"], work)
    assert linked.returncode == 0, linked.stderr
    return work / "driver"


def execute(driver: Path) -> subprocess.CompletedProcess[str]:
    """With addresses that are not randomised where that can be had: TSan's shadow needs it."""
    setarch = shutil.which("setarch")
    fixed = [setarch, "-R"] if setarch else []
    if fixed and run([*fixed, "true"], driver.parent).returncode != 0:
        fixed = []
    return run([*fixed, str(driver)], driver.parent)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_operators_run_clean(sanitizer: str, tmp_path: Path) -> None:
    sources = [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in SOURCES]
    result = execute(build(sanitizer, [*sources, DRIVER], tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "baseline: 62 cases" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "body", "complaint"),
    [
        ("address,undefined", "int* x = new int[3]; return x[argc + 2];", "heap-buffer-overflow"),
        (
            "address,undefined",
            "volatile int x = 0x7FFFFFFF; x = x + argc; return 0;",
            "signed integer overflow",
        ),
        ("thread", "int x = 0; std::thread t([&] { ++x; }); ++x; t.join();", "data race"),
    ],
)
def test_sanitizers_are_in_force(sanitizer: str, body: str, complaint: str, tmp_path: Path) -> None:
    source = tmp_path / "fault.cpp"
    source.write_text(f"#include <thread>\nint main(int argc, char**) {{ (void)argc; {body} }}\n")
    result = execute(build(sanitizer, [source], tmp_path))
    assert result.returncode != 0
    assert complaint in result.stderr
