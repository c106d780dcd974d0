"""Racing: the sequential test's error, and runs that drop losing trials early."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import deevo_ext as deevo
from deevo_ext.fitness.racing import Look, Racing, t_quantile
from deevo_ext.fitness.scoring import Scoring
from deevo_ext.runs import journal
from support.evolution import images, population, save_members
from support.networks import Net, members


def test_quantiles_are_student_ts() -> None:
    from scipy.stats import t

    for freedom in (63, 127, 1000, 10**6):
        for probability in (0.9, 0.99, 0.998, 0.9999):
            found = t_quantile(probability, freedom)
            assert abs(found - t.ppf(probability, freedom)) < 1e-5
            assert abs(t_quantile(probability, 27) - t.ppf(probability, 27)) < 1e-4


@pytest.mark.parametrize("size", [100, 4096, 10_000, 50_000])
@pytest.mark.parametrize("micro_batch", [1, 64, 250])
def test_looks_grow_by_root_two_and_fall_on_micro_batches(size: int, micro_batch: int) -> None:
    looks = Racing(0.01).looks(size, micro_batch)
    assert looks[-1] == size and looks == sorted(set(looks))
    for look in looks[:-1]:
        assert look % micro_batch == 0 and look >= 32
    shares = [2.0 ** -(k / 2) for k in range(10, 0, -1)]
    assert len(looks) <= len(shares) + 1
    for share in shares:  # the first whole micro-batch, of at least 32 images, from there on
        next_look = next(look for look in looks if look >= share * size)
        assert next_look < max(share * size, 32 * 2**0.5) + micro_batch or next_look == size
    assert Racing(0.01, first=1.0).looks(size, micro_batch) == [size]


def drops(differences: np.ndarray, parents: np.ndarray, error: float) -> np.ndarray:
    """Images seen of each of these races [R, N] when its trial is dropped; N: it was not."""
    racing, size = Racing(error), differences.shape[1]
    looks = racing.looks(size, 32)
    known = torch.from_numpy(parents)
    found = [Look(racing, known, end, len(looks) - 1) for end in looks[:-1]]
    ends = []
    for d in torch.from_numpy(differences):
        lost = (
            end
            for end, look in zip(looks, found, strict=False)
            if look.loses(known[0, :end] + d[:end], known[0, :end])
        )
        ends.append(next(lost, size))
    return np.array(ends)


@pytest.mark.parametrize("error", [0.02, 0.2])
@pytest.mark.parametrize("shape", ["normal", "laplace"])
@pytest.mark.parametrize("members", [1, 6])
def test_a_trial_that_would_win_is_dropped_at_the_stated_rate_at_most(
    error: float, shape: str, members: int
) -> None:
    generator = np.random.default_rng(5)
    races, size = 800, 2048
    parents = generator.exponential(size=(members, size))
    d = getattr(generator, shape)(size=(races, size))
    d = d + generator.normal(size=(races, members)) @ parents
    # The hardest case: winners, but by next to nothing.
    d = d - d.mean(axis=1, keepdims=True) - 1e-9
    rate = float((drops(d, parents, error) < size).mean())
    # Three standard deviations of the observed rate above the promise.
    assert rate <= error + 3 * math.sqrt(error * (1 - error) / races)
    # The union bound over five looks that see each other's images is loose, but not idle.
    assert rate > error / 5
    # Whoever wins clearly is never dropped, whoever loses clearly is so at once.
    assert (drops(d[:100] - 0.8, parents, error) == size).all()
    assert (drops(d[:100] + 2.5, parents, error) == 64).all()


def test_parents_explain_what_trials_made_from_them_do() -> None:
    generator = np.random.default_rng(2)
    parents = torch.from_numpy(generator.exponential(size=(5, 4096)))
    # A mixture of parents but for noise of a hundredth: 128 images tell its mean that exactly.
    weights = torch.tensor([-1.0, 0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    noise = 0.01 * torch.from_numpy(generator.normal(size=4096))
    d = weights @ parents + noise
    look = Look(Racing(0.01), parents, 128, 5)
    predicted, error = look.predict(d[:128].numpy())
    assert look.rank == 5
    assert error == pytest.approx(0.01 / math.sqrt(128), rel=0.3)
    assert abs(predicted - float(d.mean())) < 5 * error
    plain = float(d[:128].std() / math.sqrt(128))
    assert error < plain / 30
    # Equal parents say one thing, once; few images say nothing about many parents.
    assert Look(Racing(0.01), parents[:1].expand(4, -1), 128, 5).rank == 1
    assert Look(Racing(0.01), parents, 32, 5).rank == 0


def test_scores_that_are_not_finite_settle_it() -> None:
    trial, parent = torch.full((640,), 1.0), torch.full((640,), 2.0)
    look = Look(Racing(0.01), torch.stack([trial, parent]), 64, 5)
    trial, parent = trial[:64], parent[:64]
    assert not look.loses(trial, parent) and not look.loses(parent, parent)
    for value in (math.inf, math.nan):
        broken = trial.clone()
        broken[3] = value
        assert look.loses(broken, parent)
        assert not look.loses(parent, broken)
        known = torch.stack([torch.rand(640), torch.full((640,), value)])
        assert Look(Racing(0.01), known, 64, 5).rank == 1


def run(run_dir: Path | None, **options: object) -> deevo.Result:
    values: dict = {
        "generations": 6,
        "images_per_batch": 256,
        "generations_per_batch": 3,
        "validate_every": 3,
        "micro_batch": 16,
        "racing": 0.05,
        "progress": False,
        "engine": "eager",
        "seed": 3,
        **options,
    }
    folder = Path(values.pop("folder"))
    sets = images(600, 1), images(90, 2), images(70, 3, "test")
    return deevo.evolve(Net(), folder, *sets, search="weights", run_dir=run_dir, **values)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return save_members(tmp_path / "checkpoints", 8)


def records(folder: Path) -> list[dict]:
    lines = (folder / journal.FILE_NAME).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("batchnorm", "metric", "error"),
    [
        ("evolve", "loss", 0.05),
        ("inherit", "loss", 0.05),
        ("recalibrate", "loss", 0.05),
        ("evolve", "top1", 0.05),
    ],
)
def test_survivors_have_their_full_fitness_and_losers_have_lost(
    batchnorm: str, metric: str, error: float
) -> None:
    pop, data = population(8, batchnorm=batchnorm), images(700, 1)
    # Contrast that varies, and labels that the members agree with more or less.
    shown = data.images * torch.linspace(0.1, 8.0, 700)[
        torch.randperm(700, generator=torch.Generator().manual_seed(0))
    ].view(-1, 1, 1, 1)
    with torch.no_grad():
        logits = torch.func.functional_call(Net().eval(), pop.state_dict(0), (shown,))
    data = deevo.ImageSet(shown, (logits - logits.mean(dim=0)).argmax(dim=1), "labelled")
    calibration = images(40, 4)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32, calibration=calibration, engine="eager")
    racing = Racing(error)
    raced = deevo.ClassificationFitness(evaluator, data, metric=metric, racing=racing)
    order = raced.indices(0)[0]
    assert order is not None and sorted(order.tolist()) == list(range(700))
    full = deevo.ClassificationFitness(evaluator, data.subset(order), metric=metric)
    de = deevo.DifferentialEvolution(pop, generations=4, seed=3)
    scoring = Scoring(de, raced, 3)
    everyone = torch.arange(8)
    parents = scoring.parents(0)
    assert parents == full(pop.rows, everyone, 0)
    de.tell(parents)
    looks, dropped = raced.looks(0), 0
    for _ in range(4):
        values, race = scoring.trials(0)
        assert race is not None and race.of == 700
        rows = de.pending.rows(everyone)  # type: ignore[union-attr]
        exact = full(rows, everyone, 0)
        statistics = full.statistics(rows, everyone)
        trial = full.part(rows, 0, 0, statistics)
        parent = full.part(pop.rows, 0, 0, full.statistics(pop.rows, everyone))
        for m, (value, seen) in enumerate(zip(values, race.images, strict=True)):
            lost = [
                end
                for end in looks[:-1]
                if Look(racing, parent, end, len(looks) - 1).loses(trial[m, :end], parent[m, :end])
            ]
            assert seen == (lost[0] if lost else 700)
            assert value == (math.inf if lost else exact[m])
            dropped += bool(lost)
        generation = de.tell(values)
        assert generation is not None
        scoring.settle(generation)
    assert 0 < dropped < 32


def test_a_trial_that_is_its_parent_is_dropped_at_the_first_look() -> None:
    same = members(Net, 1)[0]
    states = [same, *(dict(same) for _ in range(7))]
    states[7] = members(Net, 1, seed=9)[0]  # one that differs, so that there is a population
    pop, data = deevo.Population.from_state_dicts(Net(), states), images(700, 1)
    evaluator = deevo.Evaluator(Net(), pop, micro_batch=32, engine="eager")
    raced = deevo.ClassificationFitness(evaluator, data, racing=Racing(1e-12))
    mix = [("among the first", "target + F*(r1 - r2)", "none")]
    de = deevo.DifferentialEvolution(pop, generations=3, seed=3, strategies=mix)
    scoring = Scoring(de, raced, 8)
    de.ask_parents()
    de.tell(scoring.parents(0))
    values, race = scoring.trials(0)
    rows = de.pending.rows(torch.arange(8))  # type: ignore[union-attr]
    equal = [torch.equal(row, parent) for row, parent in zip(rows, pop.rows, strict=True)]
    assert 0 < sum(equal) < 8 and race is not None
    for own, value, seen in zip(equal, values, race.images, strict=True):
        if own:
            assert seen == raced.looks(0)[0] and value == math.inf
        else:
            assert seen == 700 or value == math.inf


def without_time(record: dict) -> dict:
    """Without seconds, and the check of a line that holds them."""
    return {k: v for k, v in record.items() if k not in ("seconds", "check")}


def test_a_race_depends_on_no_chunk(checkpoints: Path, tmp_path: Path) -> None:
    found = []
    for chunk in (3, 8):
        folder = tmp_path / f"run{chunk}"
        run(folder, folder=checkpoints, chunk=chunk)
        found.append([without_time(r) for r in records(folder)[1:]])
    assert found[0] == found[1]


def test_every_prefix_of_a_race_resumes_to_the_same_run(checkpoints: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    result = run(whole, folder=checkpoints)
    parts = (whole / journal.FILE_NAME).read_bytes().splitlines(keepends=True)
    images_seen = [r["racing"]["images"] for r in records(whole)[2:-1]]
    assert any(0 < n < 256 for row in images_seen for n in row)
    for kept in (1, 3, 5, len(parts) - 1):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        (folder / journal.FILE_NAME).write_bytes(b"".join(parts[:kept]))
        again = run(folder, folder=checkpoints)
        for record, expected in zip(records(folder)[1:], records(whole)[1:], strict=True):
            assert without_time(record) == without_time(expected)
        assert again.candidate.digest == result.candidate.digest
        assert again.run.forward_passes == result.run.forward_passes
    assert deevo.replay(whole).candidate.digest == result.candidate.digest


def test_savings_are_in_metrics_and_header(checkpoints: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", folder=checkpoints, inject_soups=False)
    header, *lines = records(tmp_path / "run")
    assert header["fitness"]["racing"] == {"error": 0.05, "first": 1 / 32}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    passes = 0
    for record, row in zip(lines[1:-1], metrics, strict=True):
        race = record["racing"]
        assert float(row["racing/images"]) == sum(race["images"]) / (8 * 256)
        lost = [n < 256 for n in race["images"]]
        assert float(row["racing/dropped"]) == sum(lost)
        infinite = [value == "inf" for value in record["trials"]]
        assert infinite == lost and float(row["non_finite"]) == 0
        passes = sum(race["images"]) + (8 * 256 if "parents" in record else 0)
        if "validation" not in record:
            assert record["forward_passes"] == passes
    with pytest.raises(deevo.DeevoError, match=r"only in the journal|racing"):
        run(tmp_path / "run", folder=checkpoints, racing=None)
    with pytest.raises(deevo.DeevoError, match=r"racing is 0\.7"):
        run(None, folder=checkpoints, racing=0.7)
    with pytest.raises(deevo.DeevoError, match="racing_first is 0"):
        run(None, folder=checkpoints, racing_first=0.0)
