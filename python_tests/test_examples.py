"""The examples run, each in under a minute, and print what they gained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT, child_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the members lie, which are trained once."""
    return tmp_path_factory.mktemp("examples")


def printed(name: str, folder: Path) -> str:
    """What an example prints, run in a folder of its own."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(folder)]
    done = subprocess.run(
        command, check=False, cwd=folder, env=child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_blurred(folder: Path) -> None:
    text = printed("blurred", folder)
    points = [float(found) for found in re.findall(r": ([+-]\d+\.\d) points\. Of", text)]
    assert len(points) == 2 and min(points) > 2  # 7 and more on clothes
    before, after, kept_before, kept_after = losses(text)
    assert after < kept_after < before == kept_before
    lost = [
        float(found) for found in re.findall(r"right \(loss \S+\), the network.* \((\S+)\):", text)
    ]
    assert len(lost) == 2 and lost[1] < lost[0]


def test_worst_class(folder: Path) -> None:
    text = printed("worst_class", folder)
    gain = re.search(r"Worst class: (\S+)% -> (\S+)% by the", text)
    assert gain is not None and float(gain[2]) > float(gain[1])
    per_class = re.findall(r"soup (\S+)%  evolved (\S+)%", text)
    assert len(per_class) == 10
    for i in range(2):
        assert float(gain[i + 1]) == min(float(shares[i]) for shares in per_class)
