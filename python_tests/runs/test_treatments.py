"""Initial and treated candidates: which is returned, what it is compared with, how it replays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deevo_ext as deevo
from deevo_ext.fitness.statistics import Used
from deevo_ext.runs import journal
from deevo_ext.runs.contenders import compare, contenders_of
from deevo_ext.runs.folder import TENSORS
from deevo_ext.runs.replay import write_candidate
from support.evolution import images, top2
from support.networks import Net, members


def run(checkpoints: Path, run_dir: Path, **options: object) -> deevo.Result:
    """A short whole run, on images whose class a refit learns a little of."""
    values: dict = {
        "generations": 2,
        "images_per_batch": 60,
        "validate_every": 1,
        "micro_batch": 32,
        "progress": False,
        "engine": "eager",
        **options,
    }
    test = images(70, 3, "test")
    return deevo.evolve(
        Net(),
        checkpoints,
        images(300, 1),
        images(90, 2),
        test,
        search="weights",
        run_dir=run_dir,
        **values,
    )


def scores(result: deevo.Result, *, initial: bool) -> dict[str, float]:
    state = result.run.state
    everyone = [*state.initial.values(), *state.evolved.values(), *state.treated]
    return {one.name: one.score for one in everyone if (one.generation == 0) == initial}


class Frozen(nn.Module):
    """Statistics that training leaves alone, as in torchvision's FrozenBatchNorm2d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = self.running_mean[:, None, None], self.running_var[:, None, None]
        return (x - mean) / (variance + 1e-5).sqrt()


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, track_running_stats=True)


@pytest.mark.parametrize("kind", [Frozen, instance_norm])
@pytest.mark.parametrize("search", ["weights", "coefficients"])
def test_statistics_of_other_norms_are_combined_and_never_reestimated(
    kind: Callable[[int], nn.Module], search: str, tmp_path: Path
) -> None:
    def network() -> nn.Module:
        layers = [nn.Conv2d(1, 4, 3), kind(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)]
        return nn.Sequential(*layers, nn.BatchNorm1d(3))

    for i, state in enumerate(members(network, 5)):
        save_file(state, tmp_path / f"m{i}.safetensors")
    sets, test = (images(60, 1), images(60, 2)), images(60, 3)
    length = {"generations": 2} if search == "weights" else {"rounds": 1}
    options: dict = {"search": search, "progress": False, "engine": "eager", **length}
    with pytest.raises(deevo.DeevoError, match=r"layer '1' .* only BatchNorm's .*'1\.running_\*'"):
        deevo.evolve(network(), tmp_path, *sets, test, batchnorm="recalibrate", **options)
    for given in ({"batchnorm": "evolve"}, {"batchnorm": "recalibrate", "frozen": "1.running_*"}):
        result = deevo.evolve(network(), tmp_path, *sets, test, **given, **options)
        with torch.no_grad():
            logits = result.model()(test.images)
        loss = float(nn.functional.cross_entropy(logits, test.labels))
        assert result.comparison is not None
        [returned] = [one for one in result.comparison.networks if one.returned]
        assert loss == pytest.approx(returned.loss, rel=1e-4)  # float32 sums of 256 products
        named = [one.name for one in result.comparison.networks]
        assert not any("re-estimated" in name for name in named)


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit", "recalibrate"])
def test_the_best_by_validation_is_returned_and_replays(
    checkpoints: Path, tmp_path: Path, batchnorm: str
) -> None:
    options: dict = {"batchnorm": batchnorm}
    if batchnorm == "recalibrate":
        options["calibration_images"] = images(40, 4)
    returned = set()
    for generations in (1, 12):
        folder = tmp_path / f"run{generations}"
        result = run(checkpoints, folder, generations=generations, **options)
        initial, evolved = scores(result, initial=True), scores(result, initial=False)
        best = min(initial, key=initial.__getitem__), min(evolved, key=evolved.__getitem__)
        candidate, comparison = result.candidate, result.comparison
        assert comparison is not None
        assert candidate.score == min(initial[best[0]], evolved[best[1]])
        returned.add(candidate.generation > 0)
        assert comparison.evolved == best[1] and comparison.rival.name == best[0]
        assert comparison.parent.name == "best parent"
        [line] = [network for network in comparison.networks if network.returned]
        assert line.name == candidate.name in best
        if candidate.generation == 0:
            assert f"Validation chose the {best[0]}, which is returned" in comparison.verdict
            assert f"the {best[0]} scored {initial[best[0]]:.5g}" in comparison.note

        replayed = deevo.replay(folder)
        assert replayed.finished and replayed.candidate.name == candidate.name
        assert torch.equal(replayed.candidate.row, candidate.row)
        write_candidate(replayed, tmp_path / "again.safetensors")
        files = folder / "evolved.safetensors", tmp_path / "again.safetensors"
        written, again = (load_file(path) for path in files)
        assert written.keys() == again.keys() == result.state_dict.keys()
        for name, tensor in result.state_dict.items():
            assert torch.equal(written[name], tensor) and torch.equal(again[name], tensor), name
        resumed = run(checkpoints, folder, generations=generations, **options)
        assert resumed.candidate.digest == candidate.digest
        assert resumed.comparison is not None
        assert resumed.comparison.verdict == comparison.verdict
    assert False in returned  # an initial network won once


def test_every_candidate_can_be_the_chosen_one(checkpoints: Path, tmp_path: Path) -> None:
    state = run(checkpoints, tmp_path / "run").run.state
    for group in (state.initial, state.evolved):
        for kind, candidate in group.items():
            group[kind] = dataclasses.replace(candidate, score=1e9)
            assert state.chosen().name != candidate.name
            group[kind] = dataclasses.replace(candidate, score=-1.0)
            assert state.chosen().name == candidate.name
            group[kind] = candidate
    assert len(state.treated) == 4
    for i, candidate in enumerate(state.treated):
        state.treated[i] = dataclasses.replace(candidate, score=-1.0)
        assert state.chosen().name == candidate.name
        state.treated[i] = candidate
    # Of equals the evolved one is taken.
    for group in (state.initial, state.evolved):
        group["soup"] = dataclasses.replace(group["soup"], score=-1.0)
    assert state.chosen().name == "evolved soup"


def test_differences_are_those_of_the_networks_that_validation_chose(
    checkpoints: Path, tmp_path: Path
) -> None:
    """Which contender is measured against which, by scores that are set here."""
    result = run(checkpoints, tmp_path / "run", metric=top2)
    run_, test = result.run, images(70, 3, "test")
    evaluator, validation = run_.evaluator, run_.validation
    assert evaluator is not None and validation is not None and run_.chosen is not None
    contenders = contenders_of(run_, run_.chosen)
    set_scores = {"initial weight average": 0.1, "evolved mean": 0.2}
    chosen = [dataclasses.replace(one, score=set_scores.get(one.name, 5.0)) for one in contenders]
    comparison = compare(evaluator, chosen, test, validation.metric)
    assert comparison.evolved == "evolved mean"
    assert comparison.rival.name == "initial weight average"
    measured = {}
    for one in contenders:
        used = None if one.statistics is None else Used(one.statistics)
        measured[one.name] = top2(evaluator.logits(one.row, test, used), test.labels).double()
    ours = measured["evolved mean"]
    for difference in (comparison.rival, comparison.parent):
        expected = float((ours - measured[difference.name]).mean())
        assert difference.mean == pytest.approx(expected, abs=1e-12)
        low, high = difference.interval
        assert low <= expected <= high
    by_name = {network.name: network for network in comparison.networks}
    for name, values in measured.items():
        assert by_name[name].metric == pytest.approx(float(values.mean()))
    assert "top2" in comparison.header and ": top2 0." in comparison.verdict


def test_the_returned_tensors_are_asked_for_by_their_sha256(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = run(checkpoints, folder)
    assert result.candidate.treatment == "classifier"
    tensors = load_file(folder / TENSORS)
    assert {"fc.weight", "fc.bias"} <= tensors.keys()
    assert all(torch.equal(result.state_dict[name], tensor) for name, tensor in tensors.items())
    last = json.loads((folder / journal.FILE_NAME).read_text().splitlines()[-1])["returned"]
    assert last["treatment"] == "classifier" and len(last["tensors_sha256"]) == 64
    save_file({**tensors, "fc.bias": tensors["fc.bias"] + 1}, folder / TENSORS)
    with pytest.raises(deevo.DeevoError, match=rf"{TENSORS} has SHA-256"):
        deevo.replay(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(deevo.DeevoError, match=rf"{TENSORS} is missing"):
        deevo.replay(folder)


def test_a_network_without_a_classifier_to_refit_says_so(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="fixed tensors differ"):
        result = run(checkpoints, tmp_path / "run", frozen="fc.*")
    comparison = result.comparison
    assert comparison is not None
    assert "No refit: fc.weight is not evolved" in comparison.note
    names = [network.name for network in comparison.networks]
    assert "statistics re-estimated" in names and "classifier refitted" not in names
