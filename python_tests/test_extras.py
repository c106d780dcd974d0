"""Optional packages beside a torch that they were not built for, and functions given by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deevo_ext import DeevoError, extras
from deevo_ext.networks.zoo import architecture
from support.paths import child_environment

# A package that registers for operators as torchvision does, where its library cannot be loaded.
OF_ANOTHER_BUILD = """
import torch


@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)


@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)


__version__ = "0.99"
"""
IMPORTING = """
import torch
from deevo_ext.extras import import_extra

assert import_extra("torchvision").__version__ == "0.99"
assert import_extra("later").nms(torch.zeros(1, 4), torch.zeros(1), 0.5).shape == (0,)
"""


def run_here(folder: Path, code: str) -> str:
    """Runs code in an empty process, in a folder that comes before the installed packages."""
    paths = os.pathsep.join([str(folder), child_environment()["PYTHONPATH"]])
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return child.stderr


def test_torchvision_of_another_build_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(OF_ANOTHER_BUILD)
    (tmp_path / "later.py").write_text("import torchvision\n\nnms = torchvision.nms\n")
    assert run_here(tmp_path, IMPORTING) == ""
    plain = run_here(tmp_path, "import torchvision")
    assert "operator torchvision::nms does not exist" in plain


def test_what_cannot_be_mended_names_the_index(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled with another CUDA')")
    said = run_here(tmp_path, "from deevo_ext.extras import import_extra as i; i('torchvision')")
    assert "DeevoError: torchvision cannot be imported beside torch" in said
    assert f"--index-url {extras.torch_index()} " in said


@pytest.mark.parametrize("cuda, build", [(None, "cpu"), ("12.8", "cu128"), ("13.0", "cu130")])
def test_the_index_is_that_of_torchs_build(
    cuda: str | None, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert extras.torch_index() == f"https://download.pytorch.org/whl/{build}"


def test_functions_are_found_by_name_here_and_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extras.import_named("torch.nn.functional:cross_entropy", "metric")
    assert found is torch.nn.functional.cross_entropy
    (tmp_path / "of_mine.py").write_text(
        "import torch\n\n\ndef make():\n    return torch.nn.Flatten()\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.chdir(tmp_path)
    assert isinstance(architecture("of_mine:make").model, torch.nn.Flatten)
    for name, said in (
        ("no.such.module:f", "cannot import no.such.module"),
        ("torch:nothing_here", "torch has no function nothing_here"),
    ):
        with pytest.raises(DeevoError, match=f"metric is '{name}', which cannot be had: {said}"):
            extras.import_named(name, "metric")
