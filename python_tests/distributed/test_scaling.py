"""What ranks send is what the table says, and does not depend on the weights."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch

from deevo_ext.distributed import scaling, slices
from deevo_ext.distributed.scaling import NETWORKS, Sizes, of_generation, of_round, table
from deevo_ext.fitness import probing, refit
from deevo_ext.networks.forward import PopulationForward
from deevo_ext.runs import rounds
from deevo_ext.search import cross_entropy, held_out, likeliest, virtual
from support.paths import ROOT
from support.rank_models import traffic_of_a_round
from support.rank_runs import traffic_of_a_generation
from support.ranks import on_ranks
from support.zoo import torchvision_model


def test_the_page_has_the_table() -> None:
    assert table() in (ROOT / "docs/distributed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ResNet-18", "resnet18"),
        ("ResNet-50", "resnet50"),
        ("ResNet-152", "resnet152"),
        ("ViT-L/16", "vit_l_16"),
    ],
)
def test_networks_are_torchvisions(name: str, model: str) -> None:
    with torch.device("meta"):
        network = torchvision_model(model)
    weights = sum(one.numel() for one in network.parameters())
    statistics = sum(one.numel() for one in network.buffers() if one.is_floating_point())
    # The stem and the classifier come to the residual blocks.
    kinds = ("BasicBlock", "Bottleneck", "EncoderBlock")
    blocks = 2 + sum(type(one).__name__ in kinds for one in network.modules())
    assert NETWORKS[name] == (weights, statistics, blocks)


def test_numbers_of_later_packages_are_theirs() -> None:
    repeated = {
        "_RIDGES": len(held_out.RIDGES),
        "_LENGTHS": len(held_out.LENGTHS),
        "_FOLDS": refit.FOLDS,
        "_WAVES": rounds.WAVES,
        "_PROPOSALS": rounds.PROPOSALS,
        "_TESTS": rounds._TESTS,
        "_TOGETHER": probing._TOGETHER,
        "_MANY": cross_entropy.MANY,
        "_CANDIDATES": virtual.INDIVIDUALS,
        "_GENERATIONS": virtual.GENERATIONS,
        "_ALL": likeliest.ALL,
        "_KEPT": likeliest.LIKELIEST + 1,
        "_DRAWN": likeliest.DRAWN,
    }
    assert {name: getattr(scaling, name) for name in repeated} == repeated
    default = inspect.signature(PopulationForward).parameters["micro_batch"].default
    assert Sizes.micro_batch == default


@pytest.mark.parametrize("classes", [likeliest.ALL, likeliest.ALL + 1])
def test_a_model_takes_what_is_said(classes: int) -> None:
    """Of all classes, or of likely ones alone."""
    sizes = Sizes(0, 0, classes, 3, 7, blocks=2)
    kept = likeliest.likeliest_of(classes)
    of_image = likeliest.bytes_of_image(6, classes, kept, 4)
    of_logits = 0 if kept else 4 * classes  # the former counts them where slopes are few
    assert of_round(sizes, 1).memory == 7 * (of_image + of_logits)


def test_nothing_is_received_alone_and_weights_are_never_sent() -> None:
    sizes = Sizes(1000, 100, 10, 8, 256)
    for of in (of_generation, of_round):
        assert of(sizes, 1).received == 0
        assert of(replace(sizes, weights=10**9), 16).received == of(sizes, 16).received > 0
        assert of(replace(sizes, weights=10**9), 16).memory > of(sizes, 16).memory


def test_a_generation_receives_what_is_said() -> None:
    found = on_ranks(2, traffic_of_a_generation)
    said = of_generation(found[0][0], 2).received
    received = [one for _, one in found]
    assert 0.5 * said <= max(received) <= said, received


@pytest.mark.parametrize(("shared", "many"), [(False, False), (True, False), (True, True)])
def test_a_round_receives_what_is_said(
    shared: bool, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:
        monkeypatch.setattr(slices, "WORTH", 1)
        monkeypatch.setattr(slices, "NUMBERS", 1)
    (sizes, *_, products), *others = found = on_ranks(2, traffic_of_a_round, shared, many)
    assert (products > 0) == many and not any(one for *_, one in others)  # rank 0 solves
    if many:
        monkeypatch.setattr(scaling, "_MANY", 1)
        monkeypatch.setattr(scaling, "_PRODUCTS", products / scaling._STEPS)
    said = of_round(sizes, 2, on_gpu=False).received
    received = [one for _, one, _ in found]
    assert 0.5 * said <= max(received) <= said, received


def test_ranks_hold_their_part_of_a_model_that_is_large() -> None:
    sizes = Sizes(0, 0, 10, 12, 6400)
    alone = of_round(sizes, 1).memory
    for on_gpu in (False, True):
        assert of_round(sizes, 1, on_gpu=on_gpu).memory == alone
    assert of_round(sizes, 4).memory == alone  # of a GPU it is small
    kept = 4 * 6400 * 10
    assert of_round(sizes, 4, on_gpu=False).memory - kept == (alone - kept) // 4
