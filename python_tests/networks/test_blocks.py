"""Blocks by layer and module: from the network graph, from module paths, and their table."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deevo_ext import DeevoError, Population
from deevo_ext.networks.blocks import NetworkBlocks, blocks_of
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.networks.small_vgg import SmallVGG
from support.convolutional import Body, NormFirst, Standardised
from support.networks import members, small_resnet
from support.zoo import shallow, timm_model, torchvision_densenet, torchvision_model

CIFAR, SMALL = (3, 32, 32), (3, 12, 12)
Groups = dict[str, set[str]]


def found(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    unit: str | list[str],
    count: int = 2,
    **options: object,
) -> NetworkBlocks:
    model = make().eval()
    population = Population.from_state_dicts(model, members(lambda: model, count), **options)
    forward = PopulationForward(model, population, engine="fused", micro_batch=2)
    return blocks_of(forward, population, shape, unit)


def groups(blocks: NetworkBlocks) -> Groups:
    return {
        name: set(tensors)
        for name, tensors in zip(blocks.blocks.names, blocks.blocks.tensors, strict=True)
    }


def floating(model: nn.Module) -> set[str]:
    return {n for n, tensor in model.state_dict().items() if tensor.is_floating_point()}


class Joined(nn.Module):
    """Two outputs that become one, behind layers whose activations are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.grow1 = nn.Conv2d(4, 2, 3, padding=1)
        self.grow2 = nn.Conv2d(6, 2, 3, padding=1)
        self.one, self.other = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.grow1(x))
        z = self.grow2(torch.cat([x, y], dim=1))
        x = torch.cat([x, y, z], dim=1).mean(dim=(2, 3))
        return torch.cat([self.one(x), self.other(x)], dim=1)


class Tied(nn.Module):
    """A weight that two linear layers share, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x.mean(dim=(2, 3)))))))


class Auxiliary(Body):
    """A second head that only training uses, and a scale that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"main": nn.Linear(8, 5), "aux": nn.Linear(8, 5)})
        self.scale = nn.Parameter(torch.ones(3))
        del self.conv2, self.bn2, self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.heads["main"](x.mean(dim=(2, 3)))


class DependsOnValues(Body):
    """Served unfused."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn(self.conv(x))))
        return self.tail(x if float(x.sum()) > 0 else -x)


@pytest.mark.parametrize(
    "make, shape, layers, modules",
    [
        (lambda: SmallVGG(1, 10), (1, 14, 14), 7, 7),
        (small_resnet, CIFAR, 10, 5),
        (lambda: torchvision_model("resnet18"), CIFAR, 21, 10),
        (lambda: torchvision_model("resnet50"), CIFAR, 54, 18),
        # Stem, attention and perceptron of two blocks, head; four linear layers a block.
        (lambda: shallow(timm_model("vit_tiny_patch16_224")), (3, 224, 224), 10, 6),
        # Stem, four dense blocks of 2, 3, 2 and 2 layers, three transitions, classifier.
        (torchvision_densenet, CIFAR, 23, 9),
        (Joined, SMALL, 5, 3),
    ],
    ids=["vgg", "resnet8", "resnet18", "resnet50", "vit", "densenet", "joined"],
)
def test_how_many(
    make: Callable[[], nn.Module], shape: tuple[int, ...], layers: int, modules: int
) -> None:
    model = make().eval()
    population = Population.from_state_dicts(model, members(lambda: model, 2))
    forward = PopulationForward(model, population, engine="fused", micro_batch=2)
    fine, coarse = (blocks_of(forward, population, shape, u) for u in ("layer", "module"))
    assert (len(fine.blocks), len(coarse.blocks)) == (layers, modules)
    products = (nn.Conv2d, nn.Linear)
    weights = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, products)}
    for blocks in (fine, coarse):
        assert set().union(*blocks.blocks.tensors) == floating(model)
        assert sum(map(len, blocks.blocks.tensors)) == len(floating(model))
        assert blocks.flops is not None and sum(blocks.flops) == pytest.approx(1.0)
    assert all(len(weights & set(tensors)) == 1 for tensors in fine.blocks.tensors)
    for tensors in fine.blocks.tensors:  # a layer lies in one module
        assert sum(set(tensors) <= set(whole) for whole in coarse.blocks.tensors) == 1


def test_modules_of_a_residual_network_are_its_blocks() -> None:
    model = small_resnet()
    blocks = groups(found(small_resnet, CIFAR, "module"))
    assert list(blocks) == ["conv1", "layer1.0", "layer2.0", "layer3.0", "fc"]
    for name, tensors in blocks.items():
        stem = ("bn1.",) if name == "conv1" else ()
        expected = {n for n in floating(model) if n.startswith((f"{name}.", *stem))}
        assert tensors == expected


def test_a_layer_has_its_norm_with_the_statistics() -> None:
    blocks = groups(found(small_resnet, CIFAR, "layer"))
    norm = {f"layer2.0.bn1.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    assert blocks["layer2.0.conv1"] == {"layer2.0.conv1.weight", *norm}
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        apart = groups(found(small_resnet, CIFAR, "layer", batchnorm="recalibrate", frozen="fc.*"))
    assert "fc" not in apart
    assert apart["layer2.0.conv1"] == {n for n in blocks["layer2.0.conv1"] if "running" not in n}


def test_norms_that_are_not_folded_and_weights_made_of_weights() -> None:
    blocks = groups(found(NormFirst, SMALL, "layer"))
    # conv's result is read by the sum, too: bn comes before conv2.
    assert {"bn.weight", "bn.running_var", "conv2.weight"} <= blocks["conv2"]
    assert blocks["conv"] == {"conv.weight"}
    assert "conv.weight" in groups(found(Standardised, SMALL, "layer"))["conv"]
    vit = groups(found(lambda: shallow(timm_model("vit_tiny_patch16_224")), (3, 224, 224), "layer"))
    assert {"cls_token", "pos_embed"} < vit["patch_embed.proj"]
    assert {"blocks.0.norm2.weight", "blocks.0.mlp.fc1.weight"} < vit["blocks.0.mlp.fc1"]
    assert {"norm.weight", "norm.bias"} < vit["head"]


def test_names_are_short_and_tell_blocks_apart() -> None:
    blocks = found(Joined, SMALL, "module").blocks.names
    assert blocks == ("stem", "grow1..grow2", "one..other")
    vit = found(lambda: shallow(timm_model("vit_tiny_patch16_224")), (3, 224, 224), "module")
    assert vit.blocks.names[1:3] == ("blocks.0.attn", "blocks.0.mlp")


def test_a_tensor_of_two_layers_joins_their_blocks() -> None:
    for unit in ("layer", "module"):
        blocks = groups(found(Tied, SMALL, unit))
        assert blocks == {
            "first": {"first.weight", "first.bias", "third.bias"},
            "second": {"second.weight"},
        }


def test_tensors_that_the_graph_does_not_use_go_to_their_neighbours() -> None:
    for unit in ("layer", "module"):
        blocks = groups(found(Auxiliary, SMALL, unit))
        assert list(blocks) == ["conv", "heads.main"]
        assert {"heads.aux.weight", "heads.aux.bias"} < blocks["heads.main"]
        assert "scale" in blocks["conv"]  # first in the state dict, as conv.weight is second
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        left = groups(found(Auxiliary, SMALL, "layer", frozen=["conv.*", "bn.*", "heads.main.*"]))
    assert list(map(len, left.values())) == [3]


def test_without_a_graph_module_paths_stand_in() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_resnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (1.0 if float(x.sum()) > 0 else 2.0)

    with pytest.warns(UserWarning, match="served unfused"):
        fine = found(Wrapped, CIFAR, "layer")
    layers = groups(found(small_resnet, CIFAR, "layer"))
    assert groups(fine) == {
        f"net.{name}": {f"net.{n}" for n in tensors} for name, tensors in layers.items()
    }
    assert "10 blocks by layer, from module paths" in str(fine)
    assert {line.split()[-1] for line in str(fine).splitlines()[1:-1]} == {"-"}
    with pytest.warns(UserWarning, match="served unfused"):
        coarse = found(Wrapped, CIFAR, "module")
    names = ("net.conv1", "net.layer1.0", "net.layer2.0", "net.layer3.0", "net.fc")
    assert coarse.blocks.names == names and "by module, from module paths" in str(coarse)
    with pytest.warns(UserWarning, match="served unfused"):
        chain = groups(found(DependsOnValues, SMALL, "module"))
    assert {name: len(tensors) for name, tensors in chain.items()} == {
        "conv": 5,
        "conv2": 4,
        "fc": 2,
    }


def test_auto_takes_modules_where_layers_have_too_many_directions() -> None:
    model = small_resnet(2)
    for count, unit in ((31, "layer"), (32, "module")):  # 10 layers: 300 and 310 directions
        blocks = found(lambda: model, CIFAR, "auto", count)
        assert blocks.unit == unit and blocks.members == count
    assert blocks.directions == 5 * 31


def test_the_table_has_shares_and_the_price() -> None:
    blocks = found(lambda: SmallVGG(1, 10, width=4), (1, 8, 8), "layer", 3)
    lines = str(blocks).splitlines()
    assert lines[0].split() == ["block", "tensors", "weights", "FLOPs"]
    # Channels, and pixels of a side, of the six convolutions; the classifier reads 16 values.
    sizes = [(1, 4, 8), (4, 4, 8), (4, 8, 4), (8, 8, 4), (8, 16, 2), (16, 16, 2)]
    weights = [9 * i * o + o for i, o, _ in sizes] + [16 * 10 + 10]
    flops = [9 * i * o * side**2 for i, o, side in sizes] + [16 * 10]
    for line, w, f in zip(lines[1:-1], weights, flops, strict=True):
        shares = (f"{w / sum(weights):.1%}", f"{f / sum(flops):.1%}")
        assert tuple(line.split()[1:]) == ("2", *shares)
    assert lines[-1] == (
        "7 blocks by layer, from the network graph; 3 members: 14 directions, a probe each "
        "(2 a block)"
    )


def test_other_units() -> None:
    tensors = found(small_resnet, CIFAR, "tensor")
    assert all(names == (name,) for name, names in groups_in_order(tensors))
    (whole,) = groups(found(small_resnet, CIFAR, "member")).values()
    assert whole == floating(small_resnet())
    chosen = found(small_resnet, CIFAR, ["layer?.*", "*"])
    assert chosen.unit == "patterns" and chosen.blocks.names == ("layer?.*", "*")
    assert chosen.flops is not None and sum(chosen.flops) == pytest.approx(1.0)
    one = str(found(small_resnet, CIFAR, "member", 4)).splitlines()
    assert one[1].split() == ["network", "47", "100.0%", "100.0%"]
    assert one[2].startswith("1 block by member; 4 members: 3 directions")


def groups_in_order(blocks: NetworkBlocks) -> list[tuple[str, tuple[str, ...]]]:
    return list(zip(blocks.blocks.names, blocks.blocks.tensors, strict=True))


def test_bad_units_are_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for unit in ("layers", "stem.*", []):
            with pytest.raises(DeevoError, match="expected one of auto, layer, module, tensor"):
                found(small_resnet, CIFAR, unit)
        with pytest.raises(DeevoError, match=r"pattern 'stem\.\*' matches no tensor"):
            found(small_resnet, CIFAR, ["stem.*", "*"])
