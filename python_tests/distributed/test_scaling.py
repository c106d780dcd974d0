"""What ranks send is what the table says, and does not depend on the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deevo_ext.distributed.scaling import NETWORKS, Sizes, of_generation, of_round, table
from support.paths import ROOT
from support.rank_runs import traffic_of_a_generation, traffic_of_a_round
from support.ranks import on_ranks
from support.zoo import torchvision


def test_the_page_has_the_table() -> None:
    assert table() in (ROOT / "docs/distributed.md").read_text(encoding="utf-8")


def test_networks_have_as_many_weights() -> None:
    for name, model in (
        ("ResNet-18", "resnet18"),
        ("ResNet-152", "resnet152"),
        ("ViT-L/16", "vit_l_16"),
    ):
        weights = torchvision().models.get_model_weights(model)["DEFAULT"]
        assert NETWORKS[name][0] == weights.meta["num_params"]


def test_nothing_is_received_alone_and_weights_are_never_sent() -> None:
    sizes = Sizes(1000, 100, 10, 8, 256)
    for of in (of_generation, of_round):
        assert of(sizes, 1).received == 0
        assert of(replace(sizes, weights=10**9), 16).received == of(sizes, 16).received > 0
        assert of(replace(sizes, weights=10**9), 16).memory > of(sizes, 16).memory


@pytest.mark.parametrize("of", [of_generation, of_round])
def test_ranks_receive_what_is_said(of: object) -> None:
    measure = traffic_of_a_generation if of is of_generation else traffic_of_a_round
    found = on_ranks(2, measure)
    said = of(found[0][0], 2).received  # type: ignore[operator]
    received = [one for _, one in found]
    assert 0.5 * said <= max(received) <= said, received
