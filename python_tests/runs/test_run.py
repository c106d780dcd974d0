"""`evolve` in a search of weights as a whole: what is scored, chosen, returned and written."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import deevo_ext as deevo
from deevo_ext.fitness.metrics import Metric
from deevo_ext.runs.replay import write_candidate, write_trials
from deevo_ext.runs.validation import Validation
from support.evolution import images, population, same_weights, short_run, sphere
from support.journals import lines
from support.networks import Net


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit", "recalibrate"])
def test_run_folder_replays_to_the_same_bits(
    checkpoints: Path, tmp_path: Path, batchnorm: str
) -> None:
    folder = tmp_path / "run"
    calibration = images(40, 4) if batchnorm == "recalibrate" else None
    options = {"batchnorm": batchnorm, "calibration_images": calibration, "engine": "auto"}
    result = short_run(checkpoints, folder, **options)
    saved = load_file(folder / "evolved.safetensors")
    assert same_weights(saved, result.state_dict)
    Net().load_state_dict(saved)

    replayed = deevo.replay(folder)
    assert replayed.finished and len(replayed.generations) == 12
    out = tmp_path / "again.safetensors"
    write_candidate(replayed, out)
    assert out.read_bytes() == (folder / "evolved.safetensors").read_bytes()

    assert write_trials(replayed, tmp_path / "trials.csv") == 12 * 8
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["generation"]) for row in rows] == [g for g in range(1, 13) for _ in range(8)]
    with (folder / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    for g, m in enumerate(metrics, start=1):
        won = sum(int(row["accepted"]) for row in rows if int(row["generation"]) == g)
        assert won == pytest.approx(8 * float(m["success_rate"]))
        assert float(m["diversity"]) > 0


def test_fitness_values_are_those_of_the_model_loaded_from_its_state_dict(
    checkpoints: Path, tmp_path: Path
) -> None:
    short_run(checkpoints, tmp_path / "run", images_per_batch=None)
    record = lines(tmp_path / "run")[2]
    fitness = [float.fromhex(text) for text in record["parents"]]
    data = images(150, 1)
    for path, value in zip(sorted(checkpoints.iterdir()), fitness, strict=True):
        model = Net().eval()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(data.images).double(), data.labels)
        # float32 logits of a few units: an absolute error of some 2^-22 each, averaged.
        assert value == pytest.approx(float(loss), abs=1e-5)


def test_parents_are_scored_again_exactly_when_the_batch_changes(
    checkpoints: Path, tmp_path: Path
) -> None:
    short_run(checkpoints, tmp_path / "run")
    records = lines(tmp_path / "run")[2:-1]
    assert [r["batch"] for r in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert ["parents" in r for r in records] == [True, False, False] * 4
    assert ["validation" in r for r in records] == [g % 4 == 0 for g in range(1, 13)]


def test_the_candidate_is_the_best_by_validation_and_the_table_is_of_the_test_images(
    checkpoints: Path, tmp_path: Path
) -> None:
    result = short_run(checkpoints, tmp_path / "run")
    considered = {
        kind: [
            float.fromhex(r["validation"][kind]["score"])
            for r in lines(tmp_path / "run")[2:]
            if "validation" in r
        ]
        for kind in ("member", "mean", "soup")
    }
    state = result.run.state
    for kind, losses in considered.items():
        assert state.evolved[kind].score == min(losses)
    everyone = [*state.initial.values(), *state.evolved.values(), *state.treated]
    assert result.candidate.score == min(candidate.score for candidate in everyone)
    soups = zip(considered["soup"], considered["member"], strict=True)
    assert all(soup <= member for soup, member in soups)  # it starts from the best member

    comparison = result.comparison
    assert comparison is not None
    by_name = {row.name: row for row in comparison.networks}
    assert list(by_name) == [
        "best parent",
        "initial weight average",
        "initial greedy soup",
        "statistics re-estimated",
        "classifier refitted",
        "logit ensemble",
        "evolved member",
        "evolved mean",
        "evolved soup",
        "evolved, statistics re-estimated",
        "evolved and refitted",
    ]
    model = Net().eval()
    model.load_state_dict(result.state_dict)
    test = images(70, 3)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            model(test.images), test.labels, reduction="none"
        )
        correct = model(test.images).argmax(dim=1) == test.labels
    returned = next(row for row in comparison.networks if row.returned)
    assert returned.loss == pytest.approx(float(losses.double().mean()), abs=1e-5)
    assert returned.top1 == pytest.approx(float(correct.double().mean()))
    assert returned.images == 70 and by_name["logit ensemble"].inference == 8
    soup = by_name["initial greedy soup"]
    assert (soup.gained, soup.lost) == (0, 0)
    for row in comparison.networks:
        assert (row.gained - row.lost) / 70 == pytest.approx(row.top1 - soup.top1)
    first = lines(tmp_path / "run")[1]["validation"]
    for kind in ("member", "mean", "soup"):
        assert state.initial[kind].score == float.fromhex(first[kind]["score"])
    # 8 parents on 60 images per batch (4 batches), 8 trials on 60 images in 12 generations, and
    # at generations 0, 4, 8, 12 the members, the mean and 7 soups on 90 images.
    assert by_name["evolved soup"].forward_passes == 60 * 8 * (4 + 12) + 4 * 90 * (8 + 1 + 7)
    assert by_name["initial greedy soup"].forward_passes == 90 * (8 + 7)
    # Statistics or features of 150 images, and 90 for validation.
    assert by_name["statistics re-estimated"].forward_passes == 90 * (8 + 7) + 240
    assert by_name["classifier refitted"].forward_passes == 90 * (8 + 7) + 2 * 240
    assert by_name["evolved and refitted"].forward_passes == (
        by_name["evolved soup"].forward_passes + 2 * 240
    )


def test_top1_metric_and_bfloat16_population_run(checkpoints: Path, tmp_path: Path) -> None:
    result = short_run(checkpoints, tmp_path / "run", metric="top1", dtype=torch.bfloat16)
    values = map(float.fromhex, lines(tmp_path / "run")[2]["trials"])
    assert all(abs(value * 60 - round(value * 60)) < 1e-9 for value in values)
    assert deevo.replay(tmp_path / "run").candidate.digest == result.candidate.digest
    assert math.isfinite(result.candidate.score)


# What cannot be


def test_evolution_refuses_a_used_optimizer_and_what_cannot_be(tmp_path: Path) -> None:
    de = deevo.DifferentialEvolution(population())
    de.ask()
    de.tell([1.0] * 8)
    with pytest.raises(deevo.DeevoError, match="used already"):
        deevo.Evolution(de, sphere)
    de.ask()
    de.tell([0.5] * 8)
    again = deevo.DifferentialEvolution(de.population)
    with pytest.raises(deevo.DeevoError, match="used already"):
        deevo.Evolution(again, sphere)
    other = deevo.Evaluator(Net(), population())
    with pytest.raises(deevo.DeevoError, match="another population"):
        deevo.Evolution(
            deevo.DifferentialEvolution(population()),
            deevo.ClassificationFitness(other, images(10)),
        )
    once = deevo.Evolution(
        deevo.DifferentialEvolution(population(), generations=2), sphere, progress=False
    )
    once.run()
    with pytest.raises(deevo.DeevoError, match="used already"):
        once.run()
    fresh = deevo.DifferentialEvolution(population())
    with pytest.raises(deevo.DeevoError, match="chunk is 0"):
        deevo.Evolution(fresh, sphere, chunk=0)
    with pytest.raises(deevo.DeevoError, match="validate_every is 0"):
        Validation(other, images(10), Metric("loss"), every=0)
    with pytest.raises(deevo.DeevoError, match=r"holds no journal\.jsonl"):
        deevo.replay(tmp_path)


def test_a_population_without_finite_fitness_and_bad_places_are_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    de = deevo.DifferentialEvolution(population())
    with pytest.raises(deevo.DeevoError, match="no member of the population has a finite fitness"):
        deevo.Evolution(de, lambda row: math.nan, progress=False).run()
    de = deevo.DifferentialEvolution(population())
    with pytest.raises(deevo.DeevoError, match=r"fitness of member 0 or its trial is -inf"):
        deevo.Evolution(de, lambda row: -math.inf, progress=False).run()
    (tmp_path / "file").write_text("")
    with pytest.raises(deevo.DeevoError, match=r"run_dir .* cannot be the folder"):
        short_run(checkpoints, tmp_path / "file", generations=2)
    short_run(checkpoints, tmp_path / "run", generations=2)
    with pytest.raises(deevo.DeevoError, match=r"ends in \.safetensors or \.pth"):
        write_candidate(deevo.replay(tmp_path / "run"), tmp_path / "out.bin")


def test_a_run_catches_a_fitness_function_that_leaves_the_model_in_train_mode() -> None:
    pop, model, data = population(), Net().train(), images(20)

    def trains(row: torch.Tensor) -> float:
        torch.func.functional_call(model, pop.views(row), (data.images,))
        return sphere(row)

    de = deevo.DifferentialEvolution(pop)
    with pytest.raises(deevo.DeevoError, match=r"call model\.eval\(\)"):
        deevo.Evolution(de, trains, progress=False).run()
