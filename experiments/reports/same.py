"""Recipes on the images that the members were trained on: every population, and what they add."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from deevo_ext.runs.state import SOUP
from deevo_ext.text import markdown_table

from ..csv_files import Line, read
from ..populations import SETTINGS
from ..variants import DEFAULT, RECIPE, RECIPES
from .figures import (
    Run,
    Runs,
    better,
    beyond,
    counts,
    evolved,
    load,
    median,
    middle_beyond,
    p_value,
    save,
)

REFITTED, EVOLVED, BOTH = "classifier refitted", "evolved recipe", "evolved and refitted"
EARLY = (200_000, 400_000)
"""Passes after which it is asked how much of the gain is there, the initial networks' included."""
PICTURE = "evidence-rounds.png"


def chapter(records: Path, docs: Path) -> list[str]:
    """The chapter's Markdown; it draws its picture."""
    every = {name: load(records, name) for name in SETTINGS}
    every = {name: runs for name, runs in every.items() if RECIPE in runs}
    rounds = read(records, "rounds")
    if not every:
        return []
    parts = ["## Same images", "", _summary(every, rounds), ""]
    for name, variants in every.items():
        parts += [f"### {name}", "", _networks(variants[RECIPE]), ""]
        ours = [line for line in rounds if line["setting"] == name]
        parts += [_populations(variants[RECIPE], of_variant(ours, RECIPE)), ""]
        if others := [_members(variants, what) for what in RECIPES if what in variants][1:]:
            parts += [
                "Of more or fewer members, against the refit of their own soup:",
                "",
                *others,
                "",
            ]
    _plot(every, rounds, docs / PICTURE)
    return [*parts, f"![Validation loss by forward passes]({PICTURE})"]


def of_variant(rounds: list[Line], variant: str) -> list[Line]:
    """The rounds of one variant's runs."""
    return [line for line in rounds if line["variant"] == variant]


def returned(run: Run) -> Line:
    """What the run returned: the least validation loss of all, initial networks included."""
    scored = [line for line in run.values() if line["validation_loss"] is not None]
    return min(scored, key=lambda line: line["validation_loss"])


def _summary(every: dict[str, dict[str, Runs]], rounds: list[Line]) -> str:
    header = ("setting", "n", "refitted", "evolved", "evolved and refitted", "returned",
              "weights evolved", "returned - refitted", "better / equal / worse", "p",
              "share of the evolved gain on validation after 0.2 / 0.4 M passes",
              "passes", "CPU s")  # fmt: skip
    lines = []
    for name, variants in every.items():
        runs = variants[RECIPE]
        middles = [
            middle_beyond([(run[what], run[SOUP]) for run in runs.values() if what in run])
            for what in (REFITTED, EVOLVED, BOTH)
        ]
        back = [(returned(run), run[SOUP]) for run in runs.values()]
        weights = [(evolved(run), run[SOUP]) for run in variants.get(DEFAULT, {}).values()]
        differences = [
            returned(run)["loss"] - run[REFITTED]["loss"] for run in runs.values()
        ]  # fmt: skip
        ours = of_variant([line for line in rounds if line["setting"] == name], RECIPE)
        courses = [
            _course(run, [one for one in ours if one["population"] == population])
            for population, run in runs.items()
        ]
        shares = [
            [_early(course, at) for course in courses if course[-1][1] > 0]  # none may have gained
            for at in EARLY
        ]
        ended = [evolved(run) for run in runs.values()]
        lines.append(
            (
                name,
                str(len(runs)),
                *middles,
                middle_beyond(back),
                middle_beyond(weights),
                f"{statistics.median(differences):+.4f}",
                counts(differences),
                p_value(better(differences)),
                " / ".join(f"{statistics.median(share):.0%}" for share in shares if share),
                f"{median(ended, 'forward_passes'):,.0f}",
                f"{median(ended, 'seconds'):.0f}",
            )
        )
    return markdown_table(header, lines)


def _course(run: Run, rounds: list[Line]) -> list[tuple[int, float]]:
    """Passes spent, the initial networks' included, and what validation had gained by then."""
    start = run[SOUP]
    passes, course = start["forward_passes"], [(start["forward_passes"], 0.0)]
    for line in rounds:
        passes += line["forward_passes"]
        gain = course[-1][1]
        if line["validation_loss"] is not None:
            gain = max(gain, start["validation_loss"] - line["validation_loss"])
        course.append((passes, gain))
    return course


def _early(course: list[tuple[int, float]], at: int) -> float:
    """The share of a recipe's gain on validation that was there after so many passes."""
    return max(gain for passes, gain in course if passes <= at) / course[-1][1]


def _networks(runs: Runs) -> str:
    """Medians of every network of the comparison."""
    header = ("network", "in runs", "test loss", "top-1", "inference", "passes to find it")
    every = list(runs.values())
    names = dict.fromkeys(name for run in every for name in run)
    lines = []
    for name in names:
        found = [run[name] for run in every if name in run]
        lines.append(
            (
                name,
                str(len(found)),
                f"{median(found, 'loss'):.4f}",
                f"{median(found, 'top1'):.4f}",
                f"x{found[0]['inference']}",
                f"{median(found, 'forward_passes'):,.0f}",
            )
        )
    return markdown_table(header, lines)


def _populations(runs: Runs, rounds: list[Line]) -> str:
    """All populations: what evolution and refit add to the soup."""
    header = ("population", "greedy soup", REFITTED, EVOLVED, BOTH, "returned",
              "passes in rounds", "steps / rounds", "steps of DE")  # fmt: skip
    lines = []
    for population, run in runs.items():
        ours = [line for line in rounds if line["population"] == population]
        taken = [line for line in ours if line["accepted"]]
        lines.append(
            (
                str(population),
                f"{run[SOUP]['loss']:.4f} / {run[SOUP]['top1']:.2%}",
                *(beyond(run.get(name), run[SOUP]) for name in (REFITTED, EVOLVED, BOTH)),
                returned(run)["network"],
                f"{sum(line['forward_passes'] for line in ours):,}",
                f"{len(taken)} / {len(ours)}",
                str(sum(line["by_de"] for line in taken)),
            )
        )
    return markdown_table(header, lines)


def _members(variants: dict[str, Runs], what: str) -> str:
    """One line on runs with more or fewer members, beside twelve of the same seeds."""
    runs = {seed: run for seed, run in variants[what].items() if seed in variants[RECIPE]}
    whole = variants[RECIPE]
    few, all_ = (
        [returned(some[seed])["loss"] - some[seed][REFITTED]["loss"] for seed in runs]
        for some in (runs, whole)
    )
    losses = [returned(runs[s])["loss"] - returned(whole[s])["loss"] for s in runs]
    return (
        f"- `{what}` (n = {len(runs)}): returned less refitted "
        f"{statistics.median(few):+.4f}, with twelve members {statistics.median(all_):+.4f}; "
        f"loss against that with twelve {statistics.median(losses):+.4f}."
    )


def _plot(every: dict[str, dict[str, Runs]], rounds: list[Line], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = math.ceil(len(every) / 2)
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    for place, (name, variants) in enumerate(every.items(), start=1):
        axis = figure.add_subplot(rows, 2, place)
        ours = of_variant([line for line in rounds if line["setting"] == name], RECIPE)
        for population, run in variants[RECIPE].items():
            course = _course(run, [one for one in ours if one["population"] == population])
            passes, gains = zip(*course, strict=True)
            axis.step(passes, gains, where="post", color="C0", alpha=0.6)
            axis.plot([run[REFITTED]["forward_passes"]], [
                run[SOUP]["validation_loss"] - run[REFITTED]["validation_loss"]
            ], ".", color="C1")  # fmt: skip
            axis.plot([evolved(run)["forward_passes"]], [
                run[SOUP]["validation_loss"] - returned(run)["validation_loss"]
            ], "*", color="C2")  # fmt: skip
        axis.set_title(f"{name}: recipes; refit alone (dots), returned (stars)", fontsize="small")
    figure.supxlabel("forward passes")
    figure.supylabel("validation loss below the greedy soup's")
    save(figure, path)
