"""The small residual network of experiments and benchmarks."""

from __future__ import annotations

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.networks.small_resnet import SmallResNet


def test_network_has_torchvisions_names_and_the_documented_size() -> None:
    network = SmallResNet(1, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 77_754
    names = set(network.state_dict())
    for stem in ("conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.0", "fc"):
        assert f"{stem}.weight" in names
    for stem in ("bn1", "layer1.0.bn2", "layer3.0.downsample.1"):
        assert f"{stem}.running_var" in names
    assert "layer1.0.downsample.0.weight" not in names
    for shape in ((2, 1, 14, 14), (2, 1, 8, 8), (2, 1, 5, 7)):
        assert network(torch.zeros(shape)).shape == (2, 10)
    assert SmallResNet(3, 7, width=8)(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    with pytest.raises(DeevoError, match="positive"):
        SmallResNet(1, 10, width=0)


def test_network_is_drawn_from_its_own_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        SmallResNet(1, 10, 4, torch.Generator().manual_seed(seed)).conv1.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second) and not torch.equal(first, other)
