"""The experiments: populations, learned soups, statistics, and the committed tables."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from typer.testing import CliRunner

from deevo_ext.runs import virtual_files
from deevo_ext.training.fine_tune import fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters
from support.experiments import make_small
from support.paths import ROOT, import_from_checkout

import_from_checkout("experiments")

from experiments import __main__ as commands  # noqa: E402
from experiments import (  # noqa: E402
    bounds,
    csv_files,
    policies,
    populations,
    racing,
    recipes,
    reports,
    runs,
)
from experiments.networks import ARCHITECTURES  # noqa: E402
from experiments.populations import MEMBERS, SETTINGS, trainings  # noqa: E402
from experiments.reports import figures, same, why  # noqa: E402
from experiments.variants import VARIANTS  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    from deevo_ext.data import load

    return load("digits")


def members(architecture: str, digits, count: int = 4) -> list[dict[str, torch.Tensor]]:
    factory = ARCHITECTURES[architecture]
    network = factory(1, 10, 4, torch.Generator().manual_seed(0))
    first = HyperParameters(seed=0, steps=60, batch_size=32, learning_rate=0.05)
    fine_tune(network, digits.train, first)
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    states = []
    for i in range(count):
        network.load_state_dict(base)
        own = HyperParameters(seed=i + 1, steps=20, batch_size=32, learning_rate=0.03 * (i + 1))
        fine_tune(network, digits.train, own)
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return states


def loss(network: torch.nn.Module, state: dict[str, torch.Tensor], images) -> float:
    with torch.inference_mode():
        logits = functional_call(network.eval(), state, (images.images,))
    return float(F.cross_entropy(logits.double(), images.labels))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_learned_soups_bound_the_soup_they_begin_from(
    architecture: str, digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "TUNING", replace(bounds.TUNING, steps=40))
    images = digits.fitness.subset(range(300))
    states = members(architecture, digits)
    factory = ARCHITECTURES[architecture]
    soup = {
        name: (states[0][name] + states[2][name]) / 2
        for name, tensor in states[0].items()
        if tensor.is_floating_point()
    }
    losses = {"soup": loss(factory(1, 10, 4), soup, images)}
    for by_tensor in (False, True):
        found = bounds.learned_soup(factory(1, 10, 4), states, [0, 2], images, by_tensor)
        losses[str(by_tensor)] = loss(factory(1, 10, 4), found, images)
        if not by_tensor:  # an affine combination: fitted coefficients, 1 in sum, give it again
            stack = torch.stack([state["fc.weight"].flatten() for state in states]).double()
            differences = (stack[1:] - stack[0]).T
            target = (found["fc.weight"].flatten().double() - stack[0])[:, None]
            solution = torch.linalg.lstsq(differences, target).solution
            assert torch.allclose(differences @ solution, target, atol=1e-5)
    tuned = bounds.tuned_soup(factory(1, 10, 4), states, [0, 2], images)
    assert loss(factory(1, 10, 4), tuned, images) < losses["soup"]
    assert losses["False"] < losses["soup"]
    assert losses["True"] < losses["soup"]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_members_have_hyper_parameters_of_their_own(name: str, digits) -> None:
    population = trainings(SETTINGS[name], digits, 3)
    assert population.base is not None
    tuned = list(population.members.values())
    assert len(tuned) == MEMBERS == len({run.seed for run in [population.base, *tuned]}) - 1
    assert len({(r.learning_rate, r.weight_decay, r.label_smoothing) for r in tuned}) == MEMBERS
    other = trainings(SETTINGS[name], digits, 4).base
    assert other is not None and other.seed != population.base.seed


def test_a_population_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(populations, "SOURCE", "digits")
    monkeypatch.setattr(populations, "_STEPS", {"wide": 2})
    monkeypatch.setattr(populations, "_SHORT", (1, 2))
    setting = SETTINGS["vgg-wide"]
    paths = populations.make(tmp_path, setting, 3)
    contents = {path: path.read_bytes() for path in paths}
    assert len(paths) == MEMBERS == len(set(contents.values()))
    stamps = [path.stat().st_mtime_ns for path in paths]
    assert populations.make(tmp_path, setting, 3) == paths
    assert [path.stat().st_mtime_ns for path in paths] == stamps
    other = populations.make(tmp_path, setting, 4)
    assert set(contents.values()).isdisjoint(path.read_bytes() for path in other)
    more = populations.make(tmp_path, setting, 3, count=MEMBERS + 2)
    assert [path.read_bytes() for path in more[:MEMBERS]] == list(contents.values())
    assert len(more) == MEMBERS + 2 and populations.make(tmp_path, setting, 3) == paths


def test_the_rank_test_is_one_sided() -> None:
    """Twelve differences of one sign: the exact p is 2 ** -12; of the other sign, near 1."""
    down = [-0.01 * (i + 1) for i in range(12)]
    assert figures.better(down) == pytest.approx(2**-12)
    assert figures.better([-d for d in down]) == pytest.approx(1.0)
    assert figures.better(down[:4]) is None


def test_every_variant_is_a_configuration() -> None:
    from deevo_ext.search.presets import configure

    evolve_only = {
        *("search", "preset", "inject_soups", "metric", "validate_every", "passes"),
        *("images_per_batch", "generations_per_batch"),
    }
    for variant in VARIANTS.values():
        changes = {k: v for k, v in variant.options.items() if k not in evolve_only}
        configure(variant.options.get("preset", "sa-shade-tri-ensin"), **changes)


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path: Path) -> None:
    reports.write(ROOT / "experiments" / "records", tmp_path)
    tables = "evidence-tables.md"
    assert (tmp_path / tables).read_text() == (ROOT / "docs" / tables).read_text()


def test_lines_are_read_as_written_and_a_run_replaces_its_own(tmp_path: Path) -> None:
    """Numbers keep their bits and kinds; lines of other runs stay, those of the same run go."""
    first = [
        {"variant": "b", "population": 1, "network": "x, y", "loss": 0.1 + 0.2, "low": None},
        {"variant": "b", "population": 1, "network": "z", "loss": 1e-300, "low": -0.0},
    ]
    other = [{"variant": "a", "population": 10, "network": "z", "loss": float("inf"), "low": 3}]
    csv_files.save(tmp_path, {"some": first})
    csv_files.save(tmp_path, {"some": other})
    assert csv_files.read(tmp_path, "some") == [*other, *first]
    assert str(csv_files.read(tmp_path, "some")[2]["low"]) == "-0.0"
    csv_files.save(tmp_path, {"some": [first[1] | {"more": "words"}]})
    lines = csv_files.read(tmp_path, "some")
    assert [line["network"] for line in lines] == ["z", "z"]
    assert [line["more"] for line in lines] == [None, "words"]
    assert csv_files.read(tmp_path, "none") == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.mark.usefixtures("small")
def test_runs_give_the_lines_that_the_report_reads(tmp_path: Path) -> None:
    records, setting = tmp_path / "records", SETTINGS["vgg-wide"]
    for what in ("paper", "default", "random-soups", "learned-member"):
        csv_files.save(records, runs.run(tmp_path, setting, 0, what))
    reports.write(records, tmp_path)
    tables = (tmp_path / "evidence-tables.md").read_text()
    assert re.search(r"^\| default \| 1 \| [+-]\d\.\d{4} \|", tables, re.M)
    assert "`learned-member` (n = 1)" in tables and "on fitness" in tables
    kept = figures.load(records, "vgg-wide")["default"][0]
    assert len(csv_files.read(records, "curves")) == 2 * 3
    initial = kept["initial greedy soup"]
    scored = [line for line in kept.values() if line["validation_loss"] is not None]
    best = min(
        (line for line in scored if not line["network"].startswith("evolved")),
        key=lambda line: line["validation_loss"],
    )
    assert figures.evolved(kept)["difference"] == pytest.approx(
        figures.evolved(kept)["loss"] - best["loss"], abs=1e-6
    )
    assert initial["validation_loss"] > 0 and initial["fitness_loss"] is None
    # A finished run whose lines were lost is found again in its folder.
    csv_files.save(records, runs.run(tmp_path, setting, 0, "default"))
    again = figures.load(records, "vgg-wide")["default"][0]
    for line in (*kept.values(), *again.values()):
        line.pop("seconds")
    assert again == kept


@pytest.mark.usefixtures("small")
def test_a_search_of_coefficients_is_recorded_with_its_rounds(tmp_path: Path) -> None:
    records, setting = tmp_path / "records", SETTINGS["vgg-wide"]
    csv_files.save(records, runs.run(tmp_path, setting, 0, "coefficients"))
    run = figures.load(records, "vgg-wide")["coefficients"][0]
    rounds = csv_files.read(records, "rounds")
    assert [line["round"] for line in rounds] == list(range(1, len(rounds) + 1))
    taken = sum(line["accepted"] for line in rounds)
    assert ("evolved recipe" in run) == (taken > 0)
    soup, refitted = run["initial greedy soup"], run["classifier refitted"]
    coefficients = csv_files.read(records, "recipes")
    for block in {line["block"] for line in coefficients}:
        of_block = [line["coefficient"] for line in coefficients if line["block"] == block]
        assert len(of_block) == 4 and sum(of_block) == pytest.approx(1.0, abs=1e-4)
    reports.write(records, tmp_path)
    tables = (tmp_path / "evidence-tables.md").read_text()
    (line,) = re.findall(r"^\| 0 \| .*$", tables, re.M)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2].split(" / ")[0] == f"{refitted['loss'] - soup['loss']:+.4f}"
    assert cells[-2] == f"{taken} / {len(rounds)}"
    assert cells[5] == same.returned(run)["network"]
    for picture in (same.PICTURE, why.HEAT_MAP):
        assert (tmp_path / picture).exists()


def test_virtual_generations_are_summed_by_tens(tmp_path: Path) -> None:
    """Two evolutions of 20 generations; diversity is halved from one line to the next."""
    names = ("one/1", "two")
    evolution = [
        {
            "evolution": float(e),
            "generation": float(g),
            "diversity": (4.0 + e) * (1.0 if g <= 10 else 0.5),
            **{f"strategy/{name}/trials": float(2 + i) for i, name in enumerate(names)},
            **{f"strategy/{name}/successes": float(g > 10) for name in names},
        }
        for e in range(2)
        for g in range(1, 21)
    ]
    (tmp_path / "virtual").mkdir()
    virtual_files.write(tmp_path, 1, evolution)
    first, second = recipes.generations(tmp_path, 2)  # round 2 had none
    expected = {"trials of one/1": 40, "trials of two": 60}
    assert first == expected | {
        "generation": 10,
        "diversity": 1.0,
        "successes of one/1": 0,
        "successes of two": 0,
    }
    assert second == expected | {
        "generation": 20,
        "diversity": 0.5,
        "successes of one/1": 20,
        "successes of two": 20,
    }


@pytest.mark.usefixtures("small")
def test_racing_and_policies_are_measured(tmp_path: Path) -> None:
    records, setting = tmp_path / "records", SETTINGS["resnet-wide"]
    csv_files.save(records, racing.measure(tmp_path, setting, 0, generations=2, error=0.01))
    for name in ("batchnorm=recalibrate", "fixed images"):
        csv_files.save(records, policies.measure(tmp_path, setting, 0, name))
    committed = ROOT / "experiments" / "records"
    for name, count in (("racing", 1), ("policies", 2)):
        lines = csv_files.read(records, name)
        assert len(lines) == count
        assert list(lines[0]) == list(csv_files.read(committed, name)[0])
    (raced,) = csv_files.read(records, "racing")
    assert 0 < raced["share"] <= 1 and raced["decisions"] == 8
    recalibrated, fixed = csv_files.read(records, "policies")
    assert recalibrated["trials_loss"] <= recalibrated["worst_trial_loss"]
    assert fixed["parents_loss"] is None and fixed["forward_passes"] > 0


def test_what_is_recorded_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only runs without lines become jobs, and each one's lines are in the file when it ends."""
    monkeypatch.setattr(commands, "RECORDS", tmp_path)
    line = {"variant": "paper", "population": 0, "network": "x", "loss": 1.0}
    csv_files.save(tmp_path, {"vgg-wide": [line]})
    asked: list[list] = []
    monkeypatch.setattr(commands, "_all", lambda jobs, processes: asked.append(jobs))
    options = ["--setting", "vgg-wide", "--variant", "paper", "--seeds", "0-1"]
    assert CliRunner().invoke(commands.app, ["run", *options]).exit_code == 0
    ((job,),) = asked
    assert job.args[2:] == (1, "paper")
    assert CliRunner().invoke(commands.app, ["run", "--variant", "fly"]).exit_code == 2
    monkeypatch.undo()
    monkeypatch.setattr(commands, "RECORDS", tmp_path)
    commands._all([partial(dict, {"vgg-wide": [line | {"population": 1}]})], 1)
    two, three = (partial(dict, {"vgg-wide": [line | {"population": n}]}) for n in (2, 3))
    jobs = [partial(int, "none"), two, *[partial(time.sleep, 0.2)] * 8, three]
    with pytest.raises(ValueError, match="none"):
        commands._all(jobs, 1)
    assert [row["population"] for row in csv_files.read(tmp_path, "vgg-wide")] == [0, 1, 2]
