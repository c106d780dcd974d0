"""Networks of 4 bits: the engine, training through its rounding, and what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.training import few_labels
from support.experiments import make_small
from support.paths import import_from_checkout

pytest.importorskip("onnxruntime", reason="onnxruntime has no wheel for this Python yet")
import_from_checkout("experiments")

from experiments import csv_files, quantised, reports  # noqa: E402
from experiments.networks import ARCHITECTURES  # noqa: E402
from experiments.populations import SETTINGS  # noqa: E402


def drawn(architecture: str) -> nn.Module:
    """A network none of whose tensors is at its initial value, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    network = ARCHITECTURES[architecture](1, 10, 8, generator).eval()
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1:
            noise = 0.3 * torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.8 + noise if "var" in name else noise + tensor)
        elif name == "fc.weight":
            tensor.mul_(30)  # it begins near 0
    return network


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_an_engine_made_of_an_untrained_network_computes_any(
    architecture: str, tmp_path: Path
) -> None:
    """In 8 bits it is the module but for rounding; untrained, tensors of the module are equal."""
    images = torch.randn(100, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    engine = quantised.engine_of(ARCHITECTURES[architecture](1, 10, 8), images, tmp_path, "QInt8")
    network = drawn(architecture)
    with torch.inference_mode():
        exact = network(images)
    found = torch.from_numpy(engine(network.state_dict(), images))
    # 7 to 10 layers, whose weights and inputs are off by a 200th of their greatest at most.
    assert far(found, exact) < 0.05 * far(exact, torch.zeros(()))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_training_sees_what_onnxruntime_computes(architecture: str, tmp_path: Path) -> None:
    import onnx

    images = torch.randn(100, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    network = drawn(architecture)
    seen = quantised.rounded(network)
    with torch.inference_mode():
        exact, trained = network(images), seen(images)
    engine = quantised.engine_of(network, images, tmp_path)
    deployed = torch.from_numpy(engine(network.state_dict(), images))
    # Weights are the same; activations are cut off there where the float32 network's end.
    assert far(trained, deployed) < 0.5 * far(exact, deployed)
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("float32"))
        for tensor in onnx.load(tmp_path / "quantised.onnx").graph.initializer
    }
    layers = [name for name, one in seen.named_modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
    assert len(layers) >= 7
    for name in layers:
        integers = stored[f"{name}.weight_quantized"]
        assert float(integers.min()) >= -8 and float(integers.max()) <= 7
        step = stored[f"{name}.weight_scale"]
        assert torch.allclose(seen.get_submodule(name).weight, integers * step, atol=1e-7)
    plain = quantised.unrounded(seen)
    with torch.inference_mode():
        assert torch.allclose(plain(images), exact, atol=1e-4)


def test_the_gradient_goes_through_rounding() -> None:
    weight = torch.tensor([1.5, 0.02, -0.94, 0.44], requires_grad=True)
    rounded = quantised.Rounded()(weight)
    assert torch.allclose(rounded, torch.tensor([1.4, 0.0, -1.0, 0.4]))  # in steps of 0.2
    (rounded * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_quantised_networks_are_compared_on_the_same_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(few_labels, "LENGTHS", (10,))
    for name, value in {"LABELS": 100, "CALIBRATION": 50, "TEST": 100, "PASSES": 5000}.items():
        monkeypatch.setattr(quantised, name, value)
    records = tmp_path / "records"
    csv_files.save(records, quantised.compare(tmp_path, SETTINGS["vgg-wide"], 0))
    lines = csv_files.read(records, "quantised")
    for search in quantised.SEARCHES:
        run = [line for line in lines if line["search"] == search]
        (back,) = (line for line in run if line["returned"])
        assert back["score"] == min(line["score"] for line in run) and back["forward_passes"] > 0
    beside = {line["network"]: line for line in lines if line["search"] is None}
    assert list(beside) == [quantised.EIGHT_BITS, quantised.TRAINED, quantised.AWARE]
    soup = next(line for line in lines if line["network"] == "initial greedy soup")
    eight = beside[quantised.EIGHT_BITS]["loss"]
    assert abs(eight - soup["float_loss"]) < abs(soup["loss"] - soup["float_loss"])
    reports.write(records, tmp_path)
    tables = (tmp_path / "evidence-tables.md").read_text()
    assert f"| trained by Adam, rounded | 1 | {beside[quantised.AWARE]['loss']:.4f} |" in tables
