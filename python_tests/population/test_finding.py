"""Finding checkpoint files: folders, globs, lists, and the folders that trainers leave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deevo_ext.errors import DeevoError
from deevo_ext.population.finding import expand_paths, sha256
from deevo_ext.population.population import Population
from support.networks import ConvNet, members


def test_expand_a_folder(tmp_path: Path) -> None:
    for name in ("b.pth", "a.pt", "c.safetensors", "d.bin", "log.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.pth").mkdir()
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin", "scheduler.pt"):
        (tmp_path / name).touch()  # what the Trainer keeps beside the weights
    for folder in (tmp_path, str(tmp_path)):
        names = [p.name for p in expand_paths(folder)]
        assert names == ["a.pt", "b.pth", "c.safetensors", "d.bin"]


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


def trainer(folder: Path, states: list[dict[str, torch.Tensor]]) -> list[Path]:
    """Folders as Hugging Face's Trainer leaves them; returns the files of the networks."""
    for i, state in enumerate(states):
        own = folder / f"checkpoint-{100 * (i + 1)}"
        own.mkdir(parents=True)
        save_file(state, own / "model.safetensors")
        torch.save({"state": {}, "param_groups": []}, own / "optimizer.pt")
        torch.save(torch.get_rng_state(), own / "rng_state.pth")
        (own / "config.json").write_text("{}")
    return [
        folder / f"checkpoint-{100 * (i + 1)}" / "model.safetensors" for i in range(len(states))
    ]


def sharded(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """One network in two files and an index; returns the index."""
    folder.mkdir(parents=True)
    names = list(state)
    parts = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, folder / file)
    places = {name: file for file, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_folders_of_the_trainer(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    files = trainer(tmp_path / "out", states)
    save_file(states[2], tmp_path / "out" / "model.safetensors")  # the last one once more
    folders = [file.parent for file in files]
    for paths in (tmp_path / "out", f"{tmp_path}/out/checkpoint-*", folders, files):
        assert expand_paths(paths) == files
    assert expand_paths(folders[::-1]) == files[::-1]
    torch.save(states[0], folders[0] / "pytorch_model.bin")  # the same in another format
    assert expand_paths(tmp_path / "out") == files
    population = Population.from_checkpoints(ConvNet(), tmp_path / "out")
    assert population.names[0] == "checkpoint-100/model"
    torch.save(states[0], folders[0] / "best.pth")
    with pytest.raises(DeevoError, match=r"checkpoint-100 holds 2 networks \(best.pth, model"):
        expand_paths(tmp_path / "out")
    with pytest.raises(DeevoError, match="nothing does not exist, or is a folder without"):
        expand_paths([files[0], tmp_path / "nothing"])


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name in ("b/last.ckpt", "a/last.ckpt", "logs/events.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert expand_paths(tmp_path) == [tmp_path / "a/last.ckpt", tmp_path / "b/last.ckpt"]
    (tmp_path / "b/first.ckpt").touch()
    both = [tmp_path / name for name in ("a/last.ckpt", "b/first.ckpt", "b/last.ckpt")]
    for pattern in ("*/*", "**/*.ckpt", "**/*", "**"):
        found = [file for file in expand_paths(f"{tmp_path}/{pattern}") if file.suffix == ".ckpt"]
        assert found == both, pattern
    with pytest.raises(DeevoError, match=r"b holds 2 networks \(first.ckpt, last.ckpt\)"):
        expand_paths(f"{tmp_path}/*")


def test_shards_are_one_network(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    indices = [sharded(tmp_path / "runs" / f"seed{i}", state) for i, state in enumerate(states)]
    for pattern in ("runs", "runs/*", "runs/*/*.safetensors", "runs/*/*.index.json"):
        assert expand_paths(f"{tmp_path}/{pattern}") == indices
    population = Population.from_checkpoints(ConvNet(), tmp_path / "runs")
    assert torch.equal(population.rows, Population.from_state_dicts(ConvNet(), states).rows)
    before = sha256(indices[0])
    shard = indices[0].parent / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert sha256(indices[0]) != before
    shard.unlink()
    with pytest.raises(DeevoError, match=r"its shard model-00002-of-00002\.safetensors is missing"):
        Population.from_checkpoints(ConvNet(), tmp_path / "runs")
    indices[0].write_text("[]")
    with pytest.raises(DeevoError, match="no index of shards"):
        Population.from_checkpoints(ConvNet(), tmp_path / "runs")
