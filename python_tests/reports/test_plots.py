"""Pictures: what is drawn in them, by texts and numbers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from deevo_ext.fitness.metrics import Metric
from deevo_ext.reports.pictures import plot_changes, plot_recipe
from deevo_ext.reports.plots import (
    axis_label,
    fitness_label,
    plot_rounds,
    plot_run,
    success_rates,
)


def generations(count: int, *, wins: tuple[int, ...] = (0, 2, 5)) -> list[dict[str, float]]:
    """Metrics of generations 1, 2, ...: strategy a wins in turn, b is never tried."""
    history = []
    for generation, win in zip(range(1, count + 1), itertools.cycle(wins), strict=False):
        m = dict.fromkeys(("mean_fitness", "best_fitness", "diversity"), 1.0 / generation)
        m |= dict.fromkeys((f"validation/{k}" for k in ("member", "mean", "soup")), math.nan)
        m |= {"generation": float(generation), "batch": float((generation - 1) // 10)}
        m |= {"best_parent_fitness": 2.0 / generation, "mean_parent_fitness": 3.0 / generation}
        m |= {"strategy/a/trials": 5.0, "strategy/a/successes": float(win)}
        m |= {"strategy/b/trials": 0.0, "strategy/b/successes": 0.0}
        history.append(m)
    return history


def lines(axes: Axes) -> dict[str, list[float]]:
    """The heights of named lines."""
    named = (line for line in axes.get_lines() if not str(line.get_label()).startswith("_"))
    return {str(line.get_label()): list(line.get_ydata()) for line in named}


def boxes(figure: Figure, texts: list[Text]) -> list[Bbox]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [text.get_window_extent(renderer) for text in texts if text.get_text()]


def check_apart(found: list[Bbox]) -> None:
    for one, other in itertools.combinations(found, 2):
        assert not one.overlaps(other)


def test_success_rates() -> None:
    history = generations(25)
    assert success_rates(history, "a")[:3] == [0.0, 0.2, pytest.approx(7 / 15)]
    assert success_rates(history, "a")[12] == pytest.approx(sum([0, 2, 5] * 3 + [0]) / 50, abs=0.1)
    assert all(math.isnan(rate) for rate in success_rates(history, "b"))


def test_a_run(tmp_path: Path) -> None:
    history = generations(25)
    history[9]["validation/soup"] = 0.5
    baselines = {"best parent": 0.7, "initial greedy soup": 0.6, "classifier refitted": 0.7}
    measures = ("top-1 (share)\nmore is better", "fitness: 1 - top-1")
    figure = plot_run(history, baselines, ["a", "b"], measures, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    top, fitness, middle, bottom = figure.axes
    assert lines(top) == {
        "evolved soup": [0.6, 0.5],  # from generation 0 on
        "best parent, classifier refitted: 0.7": [0.7, 0.7],
        "initial greedy soup: 0.6": [0.6, 0.6],
    }
    assert list(top.get_lines()[0].get_xdata()) == [0, 10]
    assert "validation top-1 (share)" in top.get_ylabel() and "1 - top-1" in fitness.get_ylabel()
    # Batches of ten generations: each curve begins with what the parents come to on that batch.
    (best,) = (line for line in fitness.get_lines() if "best member" in str(line.get_label()))
    drawn = dict(zip(best.get_xdata(), best.get_ydata(), strict=True))
    parts = [[*range(11)], [*range(10, 21)], [*range(20, 26)]]
    assert [x for x in best.get_xdata() if not math.isnan(x)] == [*itertools.chain(*parts)]
    assert drawn[0] == 2.0 and drawn[25] == 1 / 25
    ys = list(best.get_ydata())
    for start in (10, 20):
        before, after = (i for i, x in enumerate(best.get_xdata()) if x == start)
        assert ys[before] == 1 / start and ys[after] == 2 / (start + 1)
        assert math.isnan(ys[after - 1])  # no line leads from one batch to the next
    for axes in figure.axes:
        marks = {line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"}
        assert marks == {10, 20}
    assert "new batch of images" in [text.get_text() for text in fitness.get_legend().get_texts()]
    assert lines(middle)["a"] == success_rates(history, "a")
    assert list(bottom.get_lines()[0].get_xdata()) == list(range(1, 26))


def test_a_run_without_validation_and_of_one_batch(tmp_path: Path) -> None:
    figure = plot_run(generations(9), {}, ["a"], ("", "fitness"), tmp_path / "run.png")
    fitness, *_ = figure.axes
    assert len(figure.axes) == 3 and not figure.legends
    assert len(fitness.get_lines()) == 2 and len(fitness.get_legend().get_texts()) == 2


@pytest.mark.parametrize("long", [False, True])
def test_legends_are_inside_the_picture(long: bool, tmp_path: Path) -> None:
    names = [f"evolved, statistics re-estimated {'x' * 60 * long}{i}" for i in range(4)]
    start = {"round": 0, "forward_passes": 0, "validation": 0.5, "virtual": [generations(3)]}
    baselines = {name: 0.5 for name in names} | {"b": 0.4}
    for figure in (
        plot_rounds([start], baselines, ["a"], "loss", tmp_path / "rounds.png"),
        plot_run(generations(3), baselines, ["a"], ("loss", "fitness"), tmp_path / "run.png"),
    ):
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        width, height = figure.get_size_inches() * figure.dpi
        assert box.x0 >= 0 and box.x1 <= width and box.y1 <= height
        assert box.y0 >= figure.axes[0].get_window_extent().y1
        assert all(axes.get_window_extent().height > 50 for axes in figure.axes)


@pytest.mark.parametrize(
    "metric, axis, fitness",
    [
        ("loss", "loss (nats)\nless is better", "fitness: loss\nless is better"),
        ("top1", "top-1 (share)\nmore is better", "fitness: 1 - top-1\nless is better"),
        (
            torch.nn.functional.mse_loss,
            "mse_loss\nless is better",
            "fitness: mse_loss\nless is better",
        ),
        (None, "fitness\nless is better", "fitness\nless is better"),
    ],
)
def test_axes_say_unit_and_direction(metric: Any, axis: str, fitness: str) -> None:
    known = None if metric is None else Metric.of(metric)
    assert axis_label(known) == axis and fitness_label(known) == fitness


def test_rounds(tmp_path: Path) -> None:
    first, second, third = generations(30), generations(20, wins=(1,)), generations(10, wins=(4,))
    rounds: list[dict[str, Any]] = [
        {"round": 0, "forward_passes": 1000, "validation": 0.5, "virtual": []},
        {"round": 1, "forward_passes": 3000, "validation": 0.4, "virtual": [first]},
        {"round": 2, "forward_passes": 5000, "validation": 0.3, "virtual": [second, third]},
    ]
    baselines = {"best parent": 0.6, "greedy soup": 0.5123456}
    figure = plot_rounds(rounds, baselines, ["a", "b"], "loss (nats)", tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").read_bytes().startswith(b"\x89PNG")
    top, middle, bottom = figure.axes
    (evolved, parent, soup) = top.get_lines()
    assert list(evolved.get_xdata()) == [1000, 3000, 5000]
    assert list(evolved.get_ydata()) == [0.5, 0.4, 0.3]
    assert [text.get_text() for text in top.texts] == ["0", "1", "2"]
    assert set(parent.get_ydata()) == {0.6} and set(soup.get_ydata()) == {0.5123456}
    (legend,) = figure.legends
    assert top.get_ylabel() == "validation loss (nats)"
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["evolved, by round", "best parent: 0.6", "greedy soup: 0.5123"]
    # Rates of an evolution are its own: the next one begins with what its first generation gave.
    rates = lines(middle)["a"]
    assert rates == [*success_rates(first, "a"), *[0.2] * 20, *[0.8] * 10]
    diversity = bottom.get_lines()[0]
    assert list(diversity.get_ydata()) == [m["diversity"] for m in first + second + third]
    marks = {line.get_xdata()[0] for line in bottom.get_lines()[1:]}
    assert marks == {0.5, 30.5, 60.5}
    assert [text.get_text().strip() for text in bottom.texts] == ["round 1", "round 2"]
    check_apart(boxes(figure, bottom.texts))


def test_many_rounds_and_none_yet(tmp_path: Path) -> None:
    rounds = [
        {"round": i, "forward_passes": 10**5 * i, "validation": 1 / i, "virtual": [generations(9)]}
        for i in range(1, 30)
    ]
    figure = plot_rounds(rounds, {}, ["a"], "loss", tmp_path / "many.png")
    labels = [text.get_text().strip() for text in figure.axes[2].texts]
    assert labels == [f"round {i}" for i in range(1, 30, 6)]
    check_apart(boxes(figure, figure.axes[2].texts))
    check_apart(boxes(figure, figure.axes[0].get_xticklabels()))
    start = {"round": 0, "forward_passes": 0, "validation": 0.5, "virtual": []}
    assert (
        not plot_rounds([start], {"soup": 0.5}, ["a"], "loss", tmp_path / "start.png").axes[2].texts
    )


@pytest.mark.parametrize("blocks, members", [(7, 2), (18, 12), (54, 24), (1, 5)])
def test_a_recipe(blocks: int, members: int, tmp_path: Path) -> None:
    recipe = torch.randn(blocks, members, generator=torch.Generator().manual_seed(0)) * 0.3
    recipe[0, 0], recipe[-1, -1], recipe[0, 1] = 1.0, -12.34, 0.001
    names = [f"layer{i // 8}.{i % 8}.downsample.{i % 2}" for i in range(blocks)]
    files = [f"lr0.05-seed{i}" for i in range(members)]
    figure = plot_recipe(recipe, names, files, tmp_path / "recipe.png")
    assert (tmp_path / "recipe.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    (image,) = axes.images
    assert np.array_equal(image.get_array(), recipe.double().numpy())
    assert image.get_clim() == pytest.approx((-12.34, 12.34))
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert [text.get_text() for text in axes.get_xticklabels()] == files
    texts = np.array([text.get_text() for text in axes.texts]).reshape(blocks, members)
    assert texts[0, 0] == "1.00" and texts[0, 1] == "0" and texts[-1, -1] == "-12"
    for text, value in zip(texts.ravel(), recipe.ravel(), strict=True):
        assert float(text) == pytest.approx(float(value), abs=0.005 if abs(value) < 10 else 0.5)
    ticks = [*axes.get_yticklabels(), *axes.get_xticklabels()]
    check_apart(boxes(figure, ticks))
    cell = axes.get_window_extent()
    for box in boxes(figure, axes.texts):
        assert box.width < cell.width / members and box.height < cell.height / blocks
    for box in boxes(figure, ticks):
        assert min(box.x0, box.y0) > -2  # pixels; the picture has other ones than the figure


def test_a_recipe_of_very_many_blocks(tmp_path: Path) -> None:
    recipe = torch.full((400, 6), 1 / 6)
    names = [f"features.{i}.weight" for i in range(400)]
    figure = plot_recipe(recipe, names, list("abcdef"), tmp_path / "recipe.png")
    axes = figure.axes[0]
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert shown == names[::3] and not axes.texts
    check_apart(boxes(figure, axes.get_yticklabels()))


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_changes(count: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(300, 1, 5, 9, generator=generator)
    labels = torch.randint(0, 3, (300,), generator=generator)
    before = torch.randint(0, 3, (300,), generator=generator)
    places = torch.randperm(300, generator=generator)[:count].sort().values
    after = before.clone()
    after[places] = (after[places] + 1) % 3
    names = ("best parent", "evolved and refitted")
    figure = plot_changes(images, labels, before, after, names, tmp_path / "changes.png")
    assert (tmp_path / "changes.png").read_bytes().startswith(b"\x89PNG")
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == min(count, 30)
    for axes, place in zip(drawn, places.tolist(), strict=False):
        assert np.array_equal(axes.images[0].get_array(), images[place, 0].numpy())
        label, first, second = (int(values[place]) for values in (labels, before, after))
        assert axes.get_title() == f"{label}: {first} \N{RIGHTWARDS ARROW} {second}"
        green = axes.title.get_color() == "tab:green"
        assert green == (label == second) and (axes.title.get_color() == "tab:red") == (
            label == first
        )
    mended = sum(int(after[place]) == int(labels[place]) for place in places)
    spoilt = sum(int(before[place]) == int(labels[place]) for place in places)
    said = f"of 300 images {mended} mended, {spoilt} spoilt, {count - mended - spoilt} wrong"
    assert said in figure.get_suptitle()
    check_apart(boxes(figure, [axes.title for axes in drawn]))
