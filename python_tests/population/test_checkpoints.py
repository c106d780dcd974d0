"""Reading checkpoint files: formats, wrappers, prefixes, paths, damaged files."""

from __future__ import annotations

import argparse
import collections
import hashlib
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
from deevo_ext.population.checkpoints import expand_paths, load_checkpoint, sha256, strip_prefixes
from deevo_ext.population.population import Population
from support.networks import ConvNet, members

STATE = members(ConvNet, 1)[0]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def saved(folder: Path, value: Any, name: str = "one.pth", **kwargs: Any) -> Path:
    torch.save(value, folder / name, **kwargs)
    return folder / name


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_torch_files(tmp_path: Path, suffix: str) -> None:
    assert equal(load_checkpoint(saved(tmp_path, STATE, f"one{suffix}")), STATE)


def test_the_format_before_zip(tmp_path: Path) -> None:
    path = saved(tmp_path, STATE, _use_new_zipfile_serialization=False)
    assert equal(load_checkpoint(path), STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "one.safetensors")
    state = load_checkpoint(tmp_path / "one.safetensors")
    assert equal({n: state[n] for n in STATE}, STATE) and len(state) == len(STATE)


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": nn.Parameter(torch.ones(2))})
    assert not load_checkpoint(path)["w"].requires_grad


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_ema"])
def test_each_wrapper_is_opened(tmp_path: Path, key: str) -> None:
    args = argparse.Namespace(lr=0.1, layers=[1, 2])
    extra = {"epoch": 3, "args": args, "optimizer": {"state": {0: torch.zeros(2)}}}
    extra["lr_scheduler"] = {"milestones": collections.Counter([3])}
    assert equal(load_checkpoint(saved(tmp_path, {**extra, key: STATE})), STATE)


def test_order_of_preference_and_the_chosen_key(tmp_path: Path) -> None:
    order = ["state_dict", "model", "model_state_dict", "model_ema"]
    wrapped = {key: {"w": torch.tensor(float(i))} for i, key in enumerate(order)}
    for i, key in enumerate(order):
        # Later in the file comes first in preference, so the file's order cannot be what counts.
        content = {k: wrapped[k] for k in reversed(order[i:])}
        assert load_checkpoint(saved(tmp_path, content))["w"] == i
        path = saved(tmp_path, {k: wrapped[k] for k in order})
        assert load_checkpoint(path, checkpoint_key=key)["w"] == i


def test_nested_wrappers(tmp_path: Path) -> None:
    path = saved(tmp_path, {"ema": {"state_dict": STATE, "decay": 0.9}, "model": {"w": STATE}})
    assert equal(load_checkpoint(path, checkpoint_key="ema"), STATE)


def test_an_absent_key_lists_the_available_ones(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "epoch": 3})
    with pytest.raises(DeevoError, match=r"one\.pth.*'ema'.*'model' \(dict\), 'epoch' \(int\)"):
        load_checkpoint(path, checkpoint_key="ema")
    with pytest.raises(DeevoError, match="is a state dict itself"):
        load_checkpoint(saved(tmp_path, STATE), checkpoint_key="ema")


@pytest.mark.parametrize("content", [{"weights": {}, "epoch": 3}, {}, [1, 2], torch.zeros(3)])
def test_no_state_dict_inside(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DeevoError, match=r"one\.pth: no state dict.*checkpoint_key="):
        load_checkpoint(saved(tmp_path, content))


def test_a_chosen_key_without_state_dict(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "args": {"lr": 0.1}})
    with pytest.raises(DeevoError, match=r"under checkpoint_key 'args'.*'lr'"):
        load_checkpoint(path, checkpoint_key="args")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_prefixes_that_all_names_carry(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path, {"model": {prefix + name: t for name, t in STATE.items()}})
    assert equal(load_checkpoint(path), STATE)
    assert equal(load_checkpoint(path, expected=STATE), STATE)


def test_a_prefix_that_is_the_models_own_stays() -> None:
    prefixed = {f"module.{name}": tensor for name, tensor in STATE.items()}
    assert equal(strip_prefixes(prefixed, prefixed), prefixed)
    twice = {f"module.{name}": tensor for name, tensor in prefixed.items()}
    assert equal(strip_prefixes(twice, prefixed), prefixed)


def test_prefixes_that_some_names_carry() -> None:
    some = {f"module.{n}" if n.startswith("bn") else n: t for n, t in STATE.items()}
    assert equal(strip_prefixes(some), some)
    assert equal(strip_prefixes(some, STATE), STATE)
    inner = {n.replace("bn1.", "bn1._orig_mod."): t for n, t in STATE.items()}
    assert equal(strip_prefixes(inner, STATE), STATE)
    foreign = {**some, "module.other": torch.zeros(1)}  # the remainder does not match
    assert equal(strip_prefixes(foreign, STATE), foreign)
    colliding = {"module.w": torch.zeros(1), "w": torch.ones(1), "module.v": torch.zeros(1)}
    assert equal(strip_prefixes(colliding, ["w", "v"]), colliding)


def test_averaged_model_loses_its_counter() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(ConvNet()).state_dict()
    assert "n_averaged" in averaged
    assert list(strip_prefixes(averaged)) == list(STATE)
    assert list(strip_prefixes(averaged, STATE)) == list(STATE)
    prefixed = {"n_averaged": torch.zeros(1), "w": torch.zeros(1)}
    assert equal(strip_prefixes(prefixed), prefixed)


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
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["one.pth", "one.safetensors"])
def test_garbage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"404 not found. " * 20)
    with pytest.raises(DeevoError, match=f"{name}: cannot be read") as caught:
        load_checkpoint(tmp_path / name)
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
            load_checkpoint(tmp_path / name)


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


def test_pickled_models_are_not_loaded(tmp_path: Path) -> None:
    message = r"one\.pth: holds pickled objects.*state_dict\(\).*GLOBAL torch.nn.modules.linear"
    with pytest.raises(DeevoError, match=message):
        load_checkpoint(saved(tmp_path, nn.Linear(2, 2)))


def test_namespace_is_allowed_for_the_reading_only(tmp_path: Path) -> None:
    load_checkpoint(saved(tmp_path, {"model": STATE, "args": argparse.Namespace(a=1)}))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_missing_files_and_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(DeevoError, match=r"gone\.pth does not exist"):
        load_checkpoint(tmp_path / "gone.pth")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DeevoError, match=r"notes\.txt: suffix '\.txt'.*\.safetensors, \.pth"):
        load_checkpoint(tmp_path / "notes.txt")


def test_expand_a_folder(tmp_path: Path) -> None:
    for name in ("b.pth", "a.pt", "c.safetensors", "d.bin", "log.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.pth").mkdir()
    for folder in (tmp_path, str(tmp_path)):
        assert [p.name for p in expand_paths(folder)] == ["a.pt", "b.pth", "c.safetensors"]


def test_expand_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    with pytest.raises(DeevoError, match=rf"folder {tmp_path} .*\.safetensors, \.pth, \.pt"):
        expand_paths(tmp_path)


def test_expand_a_glob_a_file_and_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("e2.pth", "e1.pth", "e3.bin", "odd[1].pth"):
        (tmp_path / name).touch()
    (tmp_path / "e4.pth").mkdir()
    assert [p.name for p in expand_paths(f"{tmp_path}/e*.pth")] == ["e1.pth", "e2.pth"]
    assert [p.name for p in expand_paths(tmp_path / "odd[1].pth")] == ["odd[1].pth"]
    listed = [tmp_path / "e3.bin", str(tmp_path / "e1.pth")]
    assert expand_paths(listed) == [tmp_path / "e3.bin", tmp_path / "e1.pth"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_paths(["~/e1.pth"]) == expand_paths("~/e1.pth") == [tmp_path / "e1.pth"]
    with pytest.raises(DeevoError, match=r"x\*\.pth"):
        expand_paths(f"{tmp_path}/x*.pth")
    with pytest.raises(DeevoError, match=r"gone\.pth does not exist"):
        expand_paths([tmp_path / "e1.pth", tmp_path / "gone.pth"])
    with pytest.raises(DeevoError, match="list of checkpoints is empty"):
        expand_paths([])


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9001
    (tmp_path / "x").write_bytes(content)
    assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_flipped_bit_is_found_by_its_sum(tmp_path: Path) -> None:
    """Anywhere in a tensor; torch itself does not look."""
    path = saved(tmp_path, STATE)
    assert equal(load_checkpoint(path), STATE)
    content = bytearray(path.read_bytes())
    place = content.index(STATE["conv1.weight"].numpy().tobytes())
    content[place + 5] ^= 4
    path.write_bytes(content)
    with pytest.raises(DeevoError, match=r"one\.pth: cannot be read.*Bad CRC-32"):
        load_checkpoint(path)


def test_files_without_sums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, STATE)
    finally:
        torch.serialization.set_crc32_options(before)
    assert equal(load_checkpoint(path), STATE)


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epoch": 3}
    loop["model"] = {"state_dict": loop}
    with pytest.raises(DeevoError, match=r"one\.pth: .* holds itself"):
        load_checkpoint(saved(tmp_path, loop))


def test_which_of_two_weights_is_taken_is_said(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    path = saved(tmp_path, {"model": STATE, "model_ema": other})
    with pytest.warns(UserWarning, match=r"'model' and 'model_ema'; 'model' is taken"):
        assert equal(load_checkpoint(path), STATE)
    assert equal(load_checkpoint(path, checkpoint_key="model_ema"), other)
