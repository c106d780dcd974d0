"""Progress: bars on terminals, plain lines elsewhere, and what runs say when they go on or stop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import deevo_ext as deevo
from deevo_ext import progress
from deevo_ext.progress import Progress
from support.evolution import images, population, save_members, sphere
from support.networks import Net


def test_off_a_terminal_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress(40, "round") as bar:
        bar.begin(30)
        for i in range(10):
            now += 1.0
            bar.step(f"gain {i}")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "round 31 of 40, 1 s: gain 0",
        "round 36 of 40, 6 s: gain 5",
        "round 40 of 40, 10 s: gain 9",
    ]
    with Progress(1, "round", shown=False) as bar:
        bar.begin()
        bar.step()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_begins_where_the_work_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(40, "round") as bar:
        bar.begin(30)
        bar.step("gain 0.5")
    bars = capsys.readouterr().err.split("\r")
    assert "30/40" in bars[1] and "31/40" in bars[-1] and "gain 0.5" in bars[-1]


class Interrupts:
    """A callback that interrupts the run once, in a generation or round."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, metrics: dict[str, float]) -> None:
        if metrics.get("generation", metrics.get("round")) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("search", ["weights", "coefficients"])
def test_an_interrupt_and_a_resume_say_what_is_kept_and_from_where_it_goes_on(
    search: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints, folder = save_members(tmp_path / "c", 5), tmp_path / "run"
    options = {"generations": 7, "images_per_batch": 60, "inject_soups": False}
    if search == "coefficients":
        options = {"rounds": 3}

    def run(*callbacks: deevo.Callback) -> str:
        deevo.evolve(
            Net(),
            checkpoints,
            images(150, 1),
            images(90, 2) if search == "weights" else None,
            search=search,
            basin="ignore",
            batchnorm="evolve",
            micro_batch=32,
            engine="eager",
            run_dir=folder,
            callbacks=callbacks,
            **options,
        )
        return capsys.readouterr().err

    with pytest.raises(KeyboardInterrupt):
        run(Interrupts(1))
    said = capsys.readouterr().err
    unit = "generation" if search == "weights" else "round"
    assert f"interrupted after {unit} 1: all up to it is safe in {folder}, and the same" in said
    said = run()
    total = options.get("generations", options.get("rounds"))
    assert f"{folder} holds 1 of {total} {unit}s; the run goes on from there\n" in said
    assert f"{unit} 1 of" not in said and f"{unit} 2 of {total}, " in said
    if search == "weights":
        # Every third generation has other images, on which the best one's fitness is another.
        assert "generation 7 of 7" in said and "(on a new batch of images)" in said
        assert "member-images/s" in said
    assert f"{unit}s; nothing is searched again\n" in run()


def test_without_a_folder_nothing_is_kept_and_an_own_fitness_has_no_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    de = deevo.DifferentialEvolution(population(5), generations=4)
    with pytest.raises(KeyboardInterrupt):
        deevo.Evolution(de, sphere, callbacks=[Interrupts(3)]).run()
    said = capsys.readouterr().err
    assert "interrupted after generation 3: without run_dir= nothing is kept" in said
    assert "generation 1 of 4, 0 s: best " in said and "member-images" not in said
