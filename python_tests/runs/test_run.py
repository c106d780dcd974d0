"""Runs: journal, kill and resume, replay, validation, full disks; `evolve` as a whole."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deevo_ext as deevo
from deevo_ext.fitness.metrics import Metric
from deevo_ext.runs import journal
from deevo_ext.runs.folder import TENSORS
from deevo_ext.runs.recording import read_journal
from deevo_ext.runs.replay import write_candidate, write_trials
from deevo_ext.runs.validation import Validation
from support.evolution import images, population, save_members, sphere, sphere_until
from support.killed import run_killed
from support.networks import Net
from support.paths import child_environment


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder of eight checkpoints of the tiny network."""
    return save_members(tmp_path / "checkpoints", 8)


def run(checkpoints: Path, run_dir: Path | None, **options: object) -> deevo.Result:
    """A short whole run; eager, because the other engines export the network first."""
    values: dict = {
        "generations": 12,
        "images_per_batch": 60,
        "generations_per_batch": 3,
        "validate_every": 4,
        "micro_batch": 32,
        "progress": False,
        "seed": 3,
        "inject_soups": False,
        "engine": "eager",
        **options,
    }
    return deevo.evolve(
        Net(),
        checkpoints,
        images(150, 1),
        images(90, 2),
        images(70, 3, "test"),
        search="weights",
        run_dir=run_dir,
        **values,
    )


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / journal.FILE_NAME).read_text().splitlines()]


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_seconds(records: list[dict]) -> list[dict]:
    """Without what a clock decides: seconds, and the checks of lines that hold them."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "check")} for r in records]


@pytest.mark.parametrize("batchnorm", ["evolve", "inherit", "recalibrate"])
def test_run_folder_replays_to_the_same_bits(
    checkpoints: Path, tmp_path: Path, batchnorm: str
) -> None:
    folder = tmp_path / "run"
    calibration = images(40, 4) if batchnorm == "recalibrate" else None
    options = {"batchnorm": batchnorm, "calibration_images": calibration, "engine": "auto"}
    result = run(checkpoints, folder, **options)
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
    run(checkpoints, tmp_path / "run", images_per_batch=None)
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
    run(checkpoints, tmp_path / "run")
    records = lines(tmp_path / "run")[2:-1]
    assert [r["batch"] for r in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert ["parents" in r for r in records] == [True, False, False] * 4
    assert ["validation" in r for r in records] == [g % 4 == 0 for g in range(1, 13)]


def test_every_prefix_of_the_journal_resumes_to_the_same_run(
    checkpoints: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    options = {"generations": 5, "validate_every": 2, "generations_per_batch": 2, "engine": "auto"}
    result = run(checkpoints, whole, **options)
    text = (whole / journal.FILE_NAME).read_bytes()
    parts = text.splitlines(keepends=True)
    for kept in range(len(parts) + 1):
        folder = tmp_path / f"cut{kept}"
        folder.mkdir()
        torn = parts[kept][: len(parts[kept]) // 2] if kept < len(parts) else b""
        (folder / journal.FILE_NAME).write_bytes(b"".join(parts[:kept]) + torn)
        shutil.copy(whole / TENSORS, folder)
        again = run(checkpoints, folder, **options)
        assert same_weights(again.state_dict, result.state_dict)
        assert without_seconds(lines(folder)[1:]) == without_seconds(lines(whole)[1:])
        assert again.run.forward_passes == result.run.forward_passes
        assert again.comparison is not None and result.comparison is not None
        assert [r.loss for r in again.comparison.networks] == [
            r.loss for r in result.comparison.networks
        ]


KILLED = """
    import os, signal
    from pathlib import Path
    from support.evolution import population, sphere_until
    import deevo_ext as deevo
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)
    evaluate = sphere_until({after}, kill)
    deevo.Evolution(de, evaluate, run_dir={folder!r}, progress=False).run()
"""


def test_kill_minus_nine_at_any_moment_loses_at_most_the_generation_in_flight(
    tmp_path: Path,
) -> None:
    def evolve(name: str) -> None:
        de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
        never = sphere_until(10**9, lambda: None)
        deevo.Evolution(de, never, run_dir=tmp_path / name, progress=False).run()

    evolve("straight")
    whole = 0
    for after in (5, 30, 77):
        folder = str(tmp_path / "killed")
        program = KILLED.format(folder=folder, after=after)
        run_killed(program, tmp_path)
        # 8 evaluations of the parents at first, then 8 a generation, all but the last finished.
        before, whole = whole, len(lines(tmp_path / "killed"))
        first = 8 if before <= 2 else 0
        assert whole == max(before, 2) + max(0, after - 1 - first) // 8
    evolve("killed")
    straight, killed = deevo.replay(tmp_path / "straight"), deevo.replay(tmp_path / "killed")
    assert killed.candidate.digest == straight.candidate.digest
    rows = straight.state.de.population.rows
    assert torch.equal(killed.state.de.population.rows, rows)
    evolved = [tmp_path / name / "evolved.safetensors" for name in ("straight", "killed")]
    assert evolved[0].read_bytes() == evolved[1].read_bytes()
    first_lines, other_lines = (lines(tmp_path / name)[1:] for name in ("straight", "killed"))
    assert without_seconds(first_lines) == without_seconds(other_lines)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"cr_init": 0.5}, "cr_init"),
        ({"images_per_batch": 50}, "images_per_batch"),
        ({"micro_batch": 16}, "micro_batch"),
        ({"validate_every": 5}, "every"),
        ({"batchnorm": "inherit"}, "batchnorm|layout"),
    ],
)
def test_a_run_folder_of_another_configuration_is_refused(
    checkpoints: Path, tmp_path: Path, change: dict, named: str
) -> None:
    folder = tmp_path / "run"
    run(checkpoints, folder, generations=3)
    kept = (folder / journal.FILE_NAME).read_bytes()
    options = {"generations": 3, **change}
    with pytest.raises(deevo.DeevoError, match=f"another configuration: .*({named})"):
        run(checkpoints, folder, **options)
    assert (folder / journal.FILE_NAME).read_bytes() == kept


def test_other_checkpoints_are_refused_by_run_and_replay(checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(checkpoints, folder, generations=3)
    path = checkpoints / "m3.safetensors"
    state = load_file(path)
    state["fc.bias"] = state["fc.bias"] + 1e-3
    save_file(state, path)
    with pytest.raises(deevo.DeevoError, match=r"another configuration: checkpoints\[3\]"):
        run(checkpoints, folder, generations=3)
    with pytest.raises(deevo.DeevoError, match=r"m3\.safetensors has SHA-256"):
        deevo.replay(folder)
    path.unlink()
    with pytest.raises(deevo.DeevoError, match=r"m3\.safetensors is missing"):
        deevo.replay(folder)


def test_moved_checkpoints_are_found_where_they_are_said_to_be(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = run(checkpoints, folder, generations=3)
    moved = checkpoints.rename(tmp_path / "elsewhere")
    assert deevo.replay(folder, moved).candidate.digest == result.candidate.digest


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    straight = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    expected = deevo.Evolution(straight, sphere, run_dir=tmp_path / "a", progress=False).run()
    size = (tmp_path / "a" / journal.FILE_NAME).stat().st_size
    initial = max(path.stat().st_size for path in (tmp_path / "a" / "initial").iterdir())
    limit = max(initial, size // 2) + 100
    assert limit < size
    folder = tmp_path / "b"
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail, as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with pytest.raises(deevo.DeevoError, match=r"cannot write .*free some space"):
            deevo.Evolution(de, sphere, run_dir=folder, progress=False).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    recording = read_journal(folder / journal.FILE_NAME)
    assert recording.whole == (folder / journal.FILE_NAME).stat().st_size
    assert len(recording.generations) > 1
    de = deevo.DifferentialEvolution(population(), generations=20, seed=1)
    assert deevo.Evolution(de, sphere, run_dir=folder, progress=False).run().digest == (
        expected.digest
    )


def test_two_processes_cannot_share_a_run_folder(tmp_path: Path) -> None:
    program = f"""
        import time
        from support.evolution import population, sphere
        import deevo_ext as deevo
        def slow(row):
            print("in", flush=True)
            time.sleep(60)
        de = deevo.DifferentialEvolution(population(), generations=5)
        deevo.Evolution(de, slow, run_dir={str(tmp_path / "run")!r}, progress=False).run()
    """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=child_environment(),
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == b"in\n"
        de = deevo.DifferentialEvolution(population(), generations=5)
        with pytest.raises(deevo.DeevoError, match="in use by another process"):
            deevo.Evolution(de, sphere, run_dir=tmp_path / "run", progress=False).run()
    finally:
        first.kill()
        first.wait()


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


def test_the_candidate_is_the_best_by_validation_and_the_table_is_of_the_test_images(
    checkpoints: Path, tmp_path: Path
) -> None:
    result = run(checkpoints, tmp_path / "run")
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
    result = run(checkpoints, tmp_path / "run", metric="top1", dtype=torch.bfloat16)
    values = map(float.fromhex, lines(tmp_path / "run")[2]["trials"])
    assert all(abs(value * 60 - round(value * 60)) < 1e-9 for value in values)
    assert deevo.replay(tmp_path / "run").candidate.digest == result.candidate.digest
    assert math.isfinite(result.candidate.score)


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
        run(checkpoints, tmp_path / "file", generations=2)
    run(checkpoints, tmp_path / "run", generations=2)
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


def test_resuming_a_finished_run_evaluates_nothing_again(tmp_path: Path) -> None:
    calls: list[float] = []

    def counted(row: torch.Tensor) -> float:
        calls.append(time.time())
        return sphere(row)

    for expected in (8 * 6, 0):
        calls.clear()
        de = deevo.DifferentialEvolution(population(), generations=5, seed=1)
        deevo.Evolution(de, counted, run_dir=tmp_path / "run", progress=False).run()
        assert len(calls) == expected
    assert os.path.getsize(tmp_path / "run" / "evolved.safetensors") > 0


def test_a_run_folder_knows_the_state_dicts_and_the_function_it_began_with(tmp_path: Path) -> None:
    def start(seed: int, evaluate: object) -> deevo.Evolution:
        de = deevo.DifferentialEvolution(population(seed=seed), generations=3)
        return deevo.Evolution(de, evaluate, run_dir=tmp_path / "run", progress=False)  # type: ignore[arg-type]

    def other(row: torch.Tensor) -> float:
        return -sphere(row)

    chosen = start(0, sphere).run()
    evolved = (tmp_path / "run" / "evolved.safetensors").read_bytes()
    with pytest.raises(deevo.DeevoError, match=r"another configuration: checkpoints\[0\]"):
        start(1, sphere).run()
    with pytest.raises(deevo.DeevoError, match=r"another configuration: fitness\.function"):
        start(0, other).run()
    assert (tmp_path / "run" / "evolved.safetensors").read_bytes() == evolved
    assert deevo.replay(tmp_path / "run").candidate.digest == chosen.digest


def test_other_calibration_images_are_another_configuration(
    checkpoints: Path, tmp_path: Path
) -> None:
    options = {"generations": 3, "batchnorm": "recalibrate"}
    run(checkpoints, tmp_path / "run", calibration_images=images(40, 4), **options)
    with pytest.raises(deevo.DeevoError, match="calibration"):
        run(checkpoints, tmp_path / "run", calibration_images=images(40, 5), **options)


def test_an_unfinished_recalibrated_run_cannot_be_written(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = {"generations": 4, "batchnorm": "recalibrate", "calibration_images": images(40, 4)}
    run(checkpoints, folder, **options)
    path = folder / journal.FILE_NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(deevo.DeevoError, match="unfinished"):
        write_candidate(deevo.replay(folder), tmp_path / "out.safetensors")


def test_moved_and_renamed_checkpoints_are_found_by_their_content(
    checkpoints: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = run(checkpoints, folder, generations=3)
    for i, path in enumerate(sorted(checkpoints.iterdir(), reverse=True)):
        (tmp_path / "runs" / f"run{i}").mkdir(parents=True)
        path.rename(tmp_path / "runs" / f"run{i}" / "best.safetensors")
    assert deevo.replay(folder, tmp_path / "runs").candidate.digest == result.candidate.digest
    (tmp_path / "runs" / "run3" / "best.safetensors").unlink()
    with pytest.raises(deevo.DeevoError, match="no file below"):
        deevo.replay(folder, tmp_path / "runs")
