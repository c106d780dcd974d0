"""Commands on checkpoints of others' making: averages, arguments of networks, folders for timm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import zoo
from support.commands import run
from support.networks import colour_net, members
from support.pictures import write_tree


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_tree(folder / "tree", 60, 60)
    transform = {"resize": 40, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "transform.json").write_text(json.dumps(transform))
    return folder


def test_an_average_and_what_more_there_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "c").mkdir()
    states = members(colour_net, 5)
    for i, state in enumerate(states):
        named = {f"model.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": named, "metric": 50.0 + i}, place / "c" / f"m{i}.pth.tar")
    average, file = ("average", place / "c", "-n", 4), place / "average.safetensors"
    code, out, err = run(
        capsys,
        *(*average, "--output", file, "--data", place / "tree", "--rounds", 1, "--force"),
        *("--arch", "support.networks:colour_net", "--transform", place / "transform.json"),
        *("--out", place / "evolved"),
    )
    assert code == 0, err
    assert "m0.pth.tar" not in out and f"54  {place}/c/m4.pth.tar" in out
    assert "'model.' is taken off the names" in out
    for row in ("best parent", "initial weight average", "initial greedy soup", "evolved recipe"):
        assert row in out
    found = load_file(file)
    mean = sum(state["fc.weight"].double() for state in states[1:]) / 4
    assert torch.allclose(found["model.fc.weight"].double(), mean, atol=1e-6)  # type: ignore[arg-type]
    code, _, err = run(capsys, *average, "--output", file)
    assert code == 1 and "is there already" in err
    code, _, err = run(capsys, *average, "--output", place / "x.pth", "--data", place / "tree")
    assert code == 1 and "--data and --arch go together" in err
    code, out, _ = run(
        capsys, "average", place / "c", "--filter", "m[01]*", "--output", place / "x.pth"
    )
    assert code == 0 and "m1.pth.tar" in out and "m2.pth.tar" not in out


def test_a_network_of_timm_with_arguments_becomes_a_folder_for_timm(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.torchvision()
    import timm

    (place / "vit").mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=4)
    for i in range(3):
        state = {n: t + 0.01 * torch.randn_like(t) for n, t in model.state_dict().items()}
        torch.save({"state_dict": state, "arch": "test_vit"}, place / "vit" / f"m{i}.pth")
    options = ("evolve", "--arch", "timm:test_vit", "--checkpoints", place / "vit")
    options += ("--data", place / "tree", "--force", "--rounds", 1, "--no-progress")
    options += ("--cache", place / "vit.safetensors", "--out", place / "timm", "--blocks", "member")
    code, _, err = run(capsys, *options)
    assert code == 1 and "of another shape: 'pos_embed' [1, 5, 64], not [1, 101, 64]" in err
    assert "--model-arg" in err
    code, out, err = run(capsys, *options, "--model-arg", "img_size=32", "--format", "timm")
    assert code == 0, err
    assert f"{place}/timm/timm/" in out
    loaded = timm.create_model(f"local-dir:{place}/timm/timm", pretrained=True)
    evolved = load_file(place / "timm" / "evolved.safetensors")
    assert all(torch.equal(tensor, evolved[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.pretrained_cfg["input_size"] == (3, 32, 32)
    assert loaded.pretrained_cfg["label_names"] == ["animal", "flower", "person", "thing"]
    card = (place / "timm" / "timm" / "README.md").read_text()
    assert "test images" in card and "local-dir:" in card
    wrong = ("--out", place / "none", "--model-arg", "img_size")
    code, _, err = run(capsys, *options, *wrong)
    assert code == 1 and "model_arg has 'img_size'" in err
    made = ("--arch", "timm:test_vit", "--model-arg", "img_size=32")
    code, out, err = run(capsys, "cache", place / "tree", "--out", place / "c.safetensors", *made)
    assert code == 0 and "3x32x32" in out, err
    code, out, err = run(
        capsys,
        *("populate", *made, "--checkpoint", place / "vit" / "m0.pth", "--members", 2),
        *("--data", place / "c.safetensors", "--out", place / "members", "--workers", 0),
        *("--epochs", 0.2, "--batch-size", 16, "--augment", "none"),
    )
    assert code == 0, err
    member = load_file(place / "members" / "member_01.safetensors")
    assert member["pos_embed"].shape == (1, 5, 64)
    about = json.loads((place / "members" / "population.json").read_text())
    assert '"img_size": 32' in json.dumps(about)
