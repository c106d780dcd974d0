"""What runs say when they go on, are interrupted, and see other images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import deevo_ext as deevo
from deevo_ext.progress import begin_at, progress_bar
from support.evolution import images, population, save_members, sphere
from support.networks import Net


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_begins_where_the_work_does(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress_bar(40, unit="round") as bar:
        begin_at(bar, 30)
        bar.set_postfix_str("gain 0.5", refresh=False)
        bar.update(1)
        assert (bar.n, bar.initial) == (31, 30)  # of which the rate is made, and the time left
        assert bar.format_dict["elapsed"] < 5
    said = capsys.readouterr().err
    assert "31/40" in said and "gain 0.5" in said and "30/40 [" not in said.split("31/40")[1]


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
    assert f" 0/{total} " not in said
    if search == "weights":
        # Every third generation has other images, on which the best one's fitness is another.
        assert " 7/7 " in said and "(on a new batch of images)" in said
        assert "best loss " in said and "member-images/s" in said
    assert f"{unit}s and is at its end; nothing is searched again\n" in run()


def test_without_a_folder_nothing_is_kept_and_an_own_fitness_has_no_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    de = deevo.DifferentialEvolution(population(5), generations=4)
    with pytest.raises(KeyboardInterrupt):
        deevo.Evolution(de, sphere, callbacks=[Interrupts(3)]).run()
    said = capsys.readouterr().err
    assert "interrupted after generation 3: without run_dir= nothing is kept" in said
    assert "/4 [" in said and "best 0." in said and "member-images" not in said
