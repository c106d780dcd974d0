"""Evolved weights come back under the names, prefixes and wrappers of their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import deevo_ext as deevo
from deevo_ext.errors import DeevoError
from deevo_ext.runs.replay import write_candidate
from support.evolution import images
from support.networks import Net, members


def plain(state: dict[str, torch.Tensor]) -> Any:
    return state


def parallel(state: dict[str, torch.Tensor]) -> Any:
    """As a training script saves it, beside what belongs to that training alone."""
    model = nn.DataParallel(Net())
    model.module.load_state_dict(state)
    return {"epoch": 3, "state_dict": model.state_dict(), "optimizer": {"lr": torch.tensor(0.1)}}


def nested(state: dict[str, torch.Tensor]) -> Any:
    return {"model": {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}}}


def averaged(state: dict[str, torch.Tensor]) -> Any:
    model = AveragedModel(Net())
    model.module.load_state_dict(state)
    model.n_averaged += 7
    return {"model_ema": model.state_dict()}


def run(paths: Path, folder: Path) -> deevo.Result:
    return deevo.evolve(
        Net(),
        paths,
        images(80, 1),
        images(40, 2),
        search="weights",
        run_dir=folder,
        generations=2,
        micro_batch=40,
        progress=False,
        engine="eager",
    )


@pytest.mark.parametrize("wrap", [plain, parallel, nested, averaged])
def test_pth_comes_back_as_it_was_wrapped(tmp_path: Path, wrap: Any) -> None:
    (tmp_path / "c").mkdir()
    states = members(Net, 6)
    for i, state in enumerate(states):
        torch.save(wrap(state), tmp_path / "c" / f"m{i}.pth")
    result = run(tmp_path / "c", tmp_path / "run")
    expected = wrap(result.state_dict)
    pickled = torch.load(tmp_path / "run" / "evolved.pth", weights_only=True)

    def compare(a: Any, b: Any) -> None:
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) and a.dtype == b.dtype
            return
        keys = [k for k in a if k not in ("epoch", "optimizer")]
        assert set(b) == set(keys)
        for key in keys:
            compare(a[key], b[key])

    compare(expected, pickled)
    # The same file is a checkpoint of the same kind: it can be evolved further.
    again = deevo.Population.from_checkpoints(
        Net(), [tmp_path / "run" / "evolved.pth", tmp_path / "c" / "m1.pth"]
    )
    for name, tensor in again.state_dict(0).items():
        assert torch.equal(tensor, result.state_dict[name]), name
    flat = expected
    while not isinstance(next(iter(flat.values())), torch.Tensor):
        flat = flat[next(k for k in flat if k not in ("epoch", "optimizer"))]
    saved = load_file(tmp_path / "run" / "evolved.safetensors")
    assert saved.keys() == flat.keys() and all(torch.equal(saved[k], flat[k]) for k in flat)
    replayed = deevo.replay(tmp_path / "run")
    for suffix in (".safetensors", ".pth"):
        write_candidate(replayed, tmp_path / f"again{suffix}")
    again_bytes = (tmp_path / "again.safetensors").read_bytes()
    assert again_bytes == (tmp_path / "run" / "evolved.safetensors").read_bytes()
    compare(expected, torch.load(tmp_path / "again.pth", weights_only=True))


def test_safetensors_with_prefixes_keep_them(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(Net, 6)):
        save_file(
            {f"module.{name}": tensor for name, tensor in state.items()},
            tmp_path / "c" / f"m{i}.safetensors",
        )
    result = run(tmp_path / "c", tmp_path / "run")
    model = nn.DataParallel(Net())
    model.load_state_dict(load_file(tmp_path / "run" / "evolved.safetensors"))
    model.load_state_dict(torch.load(tmp_path / "run" / "evolved.pth", weights_only=True))
    assert torch.equal(model.module.fc.weight, result.state_dict["fc.weight"])


def test_what_only_the_files_have_may_share_memory(tmp_path: Path) -> None:
    """As a student's checkpoint that has its teacher in it, whose decoder is its embedding."""
    (tmp_path / "c").mkdir()
    teacher = torch.arange(6.0)
    for i, state in enumerate(members(Net, 6)):
        beside = {"teacher.embed": teacher, "teacher.head": teacher}
        student = {f"student.{name}": tensor for name, tensor in state.items()}
        torch.save({**student, **beside}, tmp_path / "c" / f"m{i}.pth")
    result = run(tmp_path / "c", tmp_path / "run")
    for found in (
        load_file(tmp_path / "run" / "evolved.safetensors"),
        torch.load(tmp_path / "run" / "evolved.pth", weights_only=True),
    ):
        assert torch.equal(found["teacher.embed"], teacher)
        assert torch.equal(found["teacher.head"], teacher)
        assert torch.equal(found["student.fc.weight"], result.state_dict["fc.weight"])


def test_what_cannot_be_written_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c").mkdir()
    for i, state in enumerate(members(Net, 6)):
        angles = {"teacher.angles": torch.ones(2, dtype=torch.complex128)}
        torch.save({**state, **angles}, tmp_path / "c" / f"m{i}.pth")
    monkeypatch.setattr("deevo_ext.runs.run.Evolution.advance", lambda *_: pytest.fail("searched"))
    with pytest.raises(DeevoError, match=r"'teacher\.angles' \(complex128\) cannot be written"):
        run(tmp_path / "c", tmp_path / "run")
