"""The loss half way between members tells populations with a common basin from strangers."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deevo_ext as deevo
from deevo_ext.data import ImageSet, load
from deevo_ext.fitness.evaluator import Evaluator, Score
from deevo_ext.networks.small_resnet import SmallResNet
from deevo_ext.runs.basin import BasinReport, Pair, check_basin, require_basin
from deevo_ext.runs.records import SEARCHES
from deevo_ext.training.fine_tune import fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters


def trained(network: SmallResNet, images: ImageSet, seed: int) -> SmallResNet:
    """A copy of the network, trained on."""
    network = copy.deepcopy(network)
    fine_tune(network, images, HyperParameters(seed, steps=60, batch_size=32, learning_rate=0.05))
    return network


@pytest.fixture(scope="module")
def networks() -> dict[str, list]:
    sets = load("digits")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches this small: more would wait for each other
    untrained = [SmallResNet(1, 10, 4, torch.Generator().manual_seed(seed)) for seed in range(4)]
    strangers = [trained(network, sets.train, seed) for seed, network in enumerate(untrained)]
    tuned = [trained(strangers[0], sets.train, 10 + seed) for seed in range(4)]
    torch.set_num_threads(threads)
    return {"strangers": strangers, "tuned": tuned}


def report(networks: list) -> BasinReport:
    states = [network.state_dict() for network in networks]
    population = deevo.Population.from_state_dicts(networks[0], states)
    return check_basin(Evaluator(networks[0], population), load("digits").fitness)


def test_fine_tunings_share_a_basin(networks: dict[str, list]) -> None:
    found = report(networks["tuned"])
    assert found.shared and len(found.pairs) == 6  # every pair of four
    assert len({(pair.first, pair.second) for pair in found.pairs}) == 6


def test_networks_of_other_initialisations_share_none(networks: dict[str, list]) -> None:
    found = report(networks["strangers"])
    assert not found.shared
    assert found.collapsed == 6
    assert "share no basin" in " ".join(found.problems())


def test_midpoints_are_the_average(networks: dict[str, list]) -> None:
    """Against a forward pass of the averaged state dicts."""
    images = load("digits").fitness
    found = report(networks["tuned"])
    pair = found.pairs[0]
    a, b = (networks["tuned"][i].state_dict() for i in (pair.first, pair.second))
    network = type(networks["tuned"][0])(1, 10, 4)
    network.load_state_dict({k: (a[k] + b[k]) / 2 if a[k].is_floating_point() else a[k] for k in a})
    with torch.inference_mode():
        logits = network.eval()(images.images)
    loss = float(torch.nn.functional.cross_entropy(logits.double(), images.labels))
    assert pair.midpoint_loss == pytest.approx(loss, rel=1e-4)
    assert found.guessing == pytest.approx(math.log(10))


def scored(*losses: float, guessing: float = math.log(10)) -> BasinReport:
    members = tuple(Score(loss, math.exp(-loss)) for loss in losses)
    names = tuple(f"m{i}" for i in range(len(losses)))
    return BasinReport(members, 100, (Pair(0, 1, 0.1, 0.1, 0.1),), guessing, names)


def test_members_that_guess_or_lie_far_from_the_others_are_odd() -> None:
    assert scored(0.1, 0.2, 0.5, 1.1).odd == ()
    assert scored(0.1, 0.2, 0.2, 1.3).odd == (3,)  # more than half way from 0.2 to log(10)
    assert scored(7e-4, 7e-4, 11.2, 7e-4).odd == (2,)
    assert scored(math.inf, 0.1).odd == (0,)
    assert scored(2.31, 2.29, 2.4).odd == (0, 1, 2)  # all of them at chance
    assert scored(2.0, 2.1, 2.05).odd == ()  # barely trained, but all alike
    # On images of another kind: too sure, and right more often than not.
    names, pairs = ("a", "b", "c"), (Pair(0, 1, 2.2, 2.5, 2.1),)
    unsure = (Score(2.2, 0.6), Score(2.5, 0.55), Score(1.4, 0.62))
    assert BasinReport(unsure, 100, pairs, math.log(10), names).odd == ()
    (problem,) = scored(*[3.0] * 9, 0.1).problems()
    assert problem.startswith("9 of 10 members") and "m7" in problem and "and 1 more" in problem
    assert "m8" not in problem


def test_a_member_with_its_classes_in_another_order_is_named(networks: dict[str, list]) -> None:
    other = copy.deepcopy(networks["tuned"][1])
    with torch.no_grad():
        for tensor in other.fc.state_dict().values():
            tensor.copy_(tensor.roll(1, 0))
    found = report([*networks["tuned"], other])
    assert found.odd == (4,)
    assert "1 of 5 members" in found.problems()[0] and found.names[4] in found.problems()[0]
    with pytest.raises(deevo.DeevoError, match="order of the classes"):
        require_basin(found)
    untrained = [SmallResNet(1, 10, 4, torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert report(untrained).odd == (0, 1, 2)


def test_the_rule() -> None:
    assert not Pair(0, 1, 1.0, 1.2, 1.29).collapses(2.3)
    assert Pair(0, 1, 1.0, 1.2, 1.32).collapses(2.3)
    assert Pair(0, 1, 1.0, 1.2, math.inf).collapses(2.3)
    assert not Pair(0, 1, 3.0, 3.5, 3.4).collapses(2.3)


@pytest.mark.filterwarnings("error")
def test_evolve_says_or_refuses(networks: dict[str, list], tmp_path: Path) -> None:
    sets = load("digits")
    for i, network in enumerate(networks["strangers"]):
        save_file(network.state_dict(), tmp_path / f"m{i}.safetensors")
    model = networks["strangers"][0]
    few = sets.validation.subset(range(20))

    def evolve(basin: str) -> deevo.Result:
        return deevo.evolve(
            *(model, tmp_path, sets.fitness, few),
            search="weights",
            generations=1,
            images_per_batch=20,
            progress=False,
            basin=basin,
        )

    with pytest.raises(deevo.DeevoError, match="share no basin"):
        evolve("refuse")
    with pytest.warns(UserWarning, match="share no basin"):
        evolve("warn")
    evolve("ignore")
    with pytest.raises(deevo.DeevoError, match="basin is"):
        evolve("sometimes")


def test_sets_that_share_images_are_refused_unless_told(
    networks: dict[str, list], tmp_path: Path
) -> None:
    sets, model = load("digits"), networks["tuned"][0]
    for i, network in enumerate(networks["tuned"]):
        save_file(network.state_dict(), tmp_path / f"m{i}.safetensors")
    fitness, validation = sets.fitness.subset(range(60)), sets.validation.subset(range(40))

    def evolve(search: str, **options: object) -> None:
        class Stop(Exception):
            pass

        def stop(_: object) -> None:
            raise Stop

        values: dict = {"test_images": validation, **options}
        with pytest.raises(Stop):
            deevo.evolve(
                *(model, tmp_path, fitness, validation),
                search=search,
                progress=False,
                preliminaries=stop,
                engine="eager",
                **values,
            )

    for search in SEARCHES:
        with pytest.raises(deevo.DeevoError, match=r"validation images and the test .* share 40"):
            evolve(search)
        with pytest.warns(UserWarning, match="share 40 images"):
            evolve(search, overlap="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evolve("weights", overlap="ignore")
        evolve("weights", test_images=None)
