"""Reading checkpoint files: formats, wrappers, prefixes, paths, damaged files."""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.checkpoints import unwrap
from deevo_ext.population.population import Population
from support.networks import ConvNet, members

STATE = members(ConvNet, 1)[0]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def load(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict with the file's own names."""
    return unwrap(read_wrapped(path), key, path)[0]


def saved(folder: Path, value: Any, name: str = "one.pth", **kwargs: Any) -> Path:
    torch.save(value, folder / name, **kwargs)
    return folder / name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_torch_files(tmp_path: Path, suffix: str) -> None:
    assert equal(load(saved(tmp_path, STATE, f"one{suffix}")), STATE)


def test_the_format_before_zip(tmp_path: Path) -> None:
    path = saved(tmp_path, STATE, _use_new_zipfile_serialization=False)
    assert equal(load(path), STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "one.safetensors")
    state = load(tmp_path / "one.safetensors")
    assert equal({n: state[n] for n in STATE}, STATE) and len(state) == len(STATE)


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": nn.Parameter(torch.ones(2))})
    assert not load(path)["w"].requires_grad


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "net", "weights"])
def test_each_wrapper_is_opened(tmp_path: Path, key: str) -> None:
    args = argparse.Namespace(lr=0.1, layers=[1, 2])
    extra = {"epoch": 3, "args": args, "optimizer": {"state": {0: torch.zeros(2)}}}
    extra["lr_scheduler"] = {"milestones": collections.Counter([3])}
    assert equal(load(saved(tmp_path, {**extra, key: STATE})), STATE)


def test_order_of_preference_and_the_chosen_key(tmp_path: Path) -> None:
    order = ["state_dict", "model", "model_state_dict", "model_ema"]
    wrapped = {key: {"w": torch.tensor(float(i))} for i, key in enumerate(order)}
    for i, key in enumerate(order):
        # Later in the file comes first in preference, so the file's order cannot be what counts.
        content = {k: wrapped[k] for k in reversed(order[i:])}
        assert load(saved(tmp_path, content))["w"] == i
        path = saved(tmp_path, {k: wrapped[k] for k in order})
        assert load(path, key)["w"] == i


def test_nested_wrappers(tmp_path: Path) -> None:
    path = saved(tmp_path, {"ema": {"state_dict": STATE, "decay": 0.9}, "model": {"w": STATE}})
    assert equal(load(path, key="ema"), STATE)


def test_an_absent_key_lists_the_available_ones(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "epoch": 3})
    with pytest.raises(DeevoError, match=r"one\.pth.*'ema'.*'model' \(dict\), 'epoch' \(int\)"):
        load(path, key="ema")
    with pytest.raises(DeevoError, match="is a state dict itself"):
        load(saved(tmp_path, STATE), key="ema")


@pytest.mark.parametrize("content", [{"weights": {}, "epoch": 3}, {}, [1, 2], torch.zeros(3)])
def test_no_state_dict_inside(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DeevoError, match=r"one\.pth: no state dict.*key="):
        load(saved(tmp_path, content))


def test_a_chosen_key_without_state_dict(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "args": {"lr": 0.1}})
    with pytest.raises(DeevoError, match=r"under checkpoint_key 'args'.*'lr'"):
        load(path, key="args")


@pytest.mark.parametrize("keep", [2, 9, 300, 0.5, 0.99])
@pytest.mark.parametrize("name", ["one.pth", "one.safetensors"])
def test_truncated_files(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(DeevoError, match=rf"{name}: cannot be read; .*truncated.*again"):
        load(path)


@pytest.mark.parametrize("name", ["one.pth", "one.safetensors"])
def test_garbage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(DeevoError, match=f"{name}: cannot be read") as caught:
        load(tmp_path / name)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["one.pth", "one.safetensors"])
def test_what_lies_in_a_files_place_is_named(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 102502400\n"
    for content, message in (
        (pointer, "a pointer of Git LFS, .* git lfs pull"),
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "a web page, .* download the file"),
        (b"<html>404 not found</html>" * 20, "a web page"),
        (b"", "an empty file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DeevoError, match=f"{name}: {message}"):
            load(tmp_path / name)


def test_tensors_that_are_not_plain_are_named(tmp_path: Path) -> None:
    program = """
        import torch, torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        weight = distribute_tensor(torch.rand(3, 4), mesh, [Shard(0)])
        torch.save({"weight": weight, "bias": torch.rand(3)}, "d.pth")
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "e.pth")
    read = """
        import deevo_ext, torch
        if {imported}:
            import torch.distributed.tensor
        try:
            deevo_ext.Population.from_checkpoints(torch.nn.Linear(4, 3), ["e.pth", "d.pth"])
        except deevo_ext.DeevoError as error:
            print(error)
        """
    for imported in (False, True):
        script = textwrap.dedent(read.format(imported=imported))
        done = subprocess.run(
            [sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True, text=True
        )
        assert re.match(r"d\.pth: .* no plain tensors; .* full_tensor\(\)", done.stdout)
    state = {"weight": torch.eye(3, 4).to_sparse(), "bias": torch.rand(3)}
    with pytest.raises(DeevoError, match=r"member1: 'weight' .* no plain tensors"):
        Population.from_state_dicts(nn.Linear(4, 3), [nn.Linear(4, 3).state_dict(), state])


def test_missing_files_and_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(DeevoError, match=r"gone\.pth does not exist"):
        load(tmp_path / "gone.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DeevoError, match=r"notes\.txt: suffix '\.txt'.*\.safetensors, \.pth"):
        load(tmp_path / "notes.txt")


def test_a_flipped_bit_is_found_by_its_sum(tmp_path: Path) -> None:
    """Anywhere in a tensor; torch itself does not look."""
    path = saved(tmp_path, STATE)
    assert equal(load(path), STATE)
    content = bytearray(path.read_bytes())
    place = content.index(STATE["conv1.weight"].numpy().tobytes())
    content[place + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(DeevoError, match=r"one\.pth: cannot be read.*Bad CRC-32"):
        load(path)


def test_files_without_sums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, STATE)
    finally:
        torch.serialization.set_crc32_options(before)
    assert equal(load(path), STATE)


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epoch": 3}
    loop["model"] = {"state_dict": loop}
    with pytest.raises(DeevoError, match=r"one\.pth: .* holds itself"):
        load(saved(tmp_path, loop))


def test_which_of_two_weights_is_taken_is_said(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    path = saved(tmp_path, {"model": STATE, "model_ema": other})
    with pytest.warns(UserWarning, match=r"'model' and 'model_ema'; 'model' is taken"):
        assert equal(load(path), STATE)
    assert equal(load(path, key="model_ema"), other)
