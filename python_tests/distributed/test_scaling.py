"""What ranks send is what the table says, and does not depend on the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deevo_ext.distributed import slices
from deevo_ext.distributed.scaling import NETWORKS, Sizes, of_generation, of_round, table
from support.paths import ROOT
from support.rank_models import traffic_of_a_round
from support.rank_runs import traffic_of_a_generation
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


def test_a_generation_receives_what_is_said() -> None:
    found = on_ranks(2, traffic_of_a_generation)
    said = of_generation(found[0][0], 2).received
    received = [one for _, one in found]
    assert 0.5 * said <= max(received) <= said, received


@pytest.mark.parametrize("shared", [False, True])
def test_a_round_receives_what_is_said(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if shared:
        monkeypatch.setattr(slices, "WORTH", 1)
        monkeypatch.setattr(slices, "NUMBERS", 1)
    found = on_ranks(2, traffic_of_a_round, shared)
    said = of_round(found[0][0], 2, on_gpu=False).received
    received = [one for _, one in found]
    assert 0.5 * said <= max(received) <= said, received


def test_ranks_hold_their_part_of_a_model_that_is_large() -> None:
    sizes = Sizes(0, 0, 10, 12, 6400)
    alone = of_round(sizes, 1).memory
    for on_gpu in (False, True):
        assert of_round(sizes, 1, on_gpu=on_gpu).memory == alone
    assert of_round(sizes, 4).memory == alone  # of a GPU it is small
    kept = 4 * 6400 * 10
    assert of_round(sizes, 4, on_gpu=False).memory - kept == (alone - kept) // 4
