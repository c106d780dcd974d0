"""One run of one variant on one population, and the lines that are kept of it."""

from __future__ import annotations

import math
import time
from pathlib import Path

import deevo_ext as deevo
from deevo_ext.data import ImageSet
from deevo_ext.runs.given import Keywords

from . import cases, recipes
from .cases import Case, case_of
from .csv_files import Line, Lines
from .fitted import fitted
from .populations import Setting
from .variants import PLOTTED, RATED, RECIPES, VARIANTS

NETWORKS = "networks"
"""The name of a run's lines that go into its setting's file."""
# The metrics of a round that are kept, and their names; which of them are whole numbers.
_WHOLE = ("round", "by_channel", "accepted", "by_de", "left_out", "forward_passes")
_OF_A_ROUND = {
    **{name: name for name in ("round", "by_channel", "accepted", "by_de", "left_out")},
    **{name: name for name in ("radius", "length")},
    **{name: name for name in ("predicted_gain", "gain", "standard_error")},
    "validation/recipe": "validation_loss",
    "round_passes": "forward_passes",
    "seconds": "seconds",
}


def run(root: Path, setting: Setting, seed: int, what: str) -> Lines:
    """Runs a variant, peer or bound on a population and returns its lines of the records."""
    members = VARIANTS[what].members if what in VARIANTS else None
    case = case_of(root, setting, seed, members=members)
    about = {"variant": what, "population": seed}
    lines = _evolved(case, what) if what in VARIANTS else {NETWORKS: fitted(case, what)}
    return {
        setting.name: [{**about, **line} for line in lines.pop(NETWORKS)],
        **{
            name: [{"setting": setting.name, **about, **line} for line in some]
            for name, some in lines.items()
            if some
        },
    }


def evolve(
    case: Case, name: str, options: Keywords, calibration: ImageSet | None = None
) -> deevo.Result:
    """Runs `deevo.evolve` on a population; a run of this name that was cut off goes on."""
    common: Keywords = {
        "run_dir": case.folder / "runs" / name,
        "search": "weights",
        "seed": case.seed,
        "basin": "ignore",
        "progress": False,
    }
    return deevo.evolve(
        case.network,
        case.paths,
        case.sets.fitness,
        case.validation,
        case.sets.test,
        calibration_images=calibration,
        **(common | options),
    )


def _evolved(case: Case, name: str) -> Lines:
    """Evolves the population by a variant; returns lines of its networks, generations and rounds.

    Each network has its test loss, its top-1 and what it took; the candidates of validation also
    have their loss there. The best evolved one counts as returned whatever the run returned, and
    has its difference to the best initial one; where nothing was evolved, what was returned counts.
    Generations are kept of the variants that the plots show.
    """
    options: Keywords = {
        "micro_batch": cases.MICRO_BATCH,
        "precision": "float32",
        "chunk": len(case.paths) + 2,
    }
    if name not in RECIPES:
        options |= {
            "generations": cases.GENERATIONS,
            "images_per_batch": cases.IMAGES_PER_BATCH,
            "generations_per_batch": cases.GENERATIONS_PER_BATCH,
            "validate_every": cases.VALIDATE_EVERY,
        }
    began = time.process_time()
    result = evolve(case, name, options | VARIANTS[name].options)
    seconds = round(time.process_time() - began, 1)
    comparison = result.comparison
    assert comparison is not None
    state, networks = result.run.state, []
    candidates = [*state.initial.values(), *state.evolved.values(), *state.treated]
    by_name = {candidate.name: candidate for candidate in candidates}
    for network in comparison.networks:
        candidate, is_best = by_name.get(network.name), network.name == comparison.evolved
        rival = comparison.rival if is_best else None
        counts = network.returned if comparison.evolved is None else is_best
        networks.append(
            {
                "network": network.name,
                "returned": int(counts),
                "loss": network.loss,
                "top1": network.top1,
                "gained": network.gained,
                "lost": network.lost,
                "inference": network.inference,
                "forward_passes": network.forward_passes,
                "validation_loss": candidate.score if candidate else None,
                "difference": rival.mean if rival else None,
                "low": rival.interval[0] if rival else None,
                "high": rival.interval[1] if rival else None,
                "generation": candidate.generation if candidate and counts else None,
                "seconds": seconds if counts else None,
            }
        )
    lines = {NETWORKS: networks}
    if name in RECIPES:
        lines["rounds"] = [_round(metrics) for metrics in result.history]
        folder = case.folder / "runs" / name
        lines["recipes"] = recipes.coefficients(folder)
        lines["curves"] = recipes.generations(folder, len(result.history))
    elif name in PLOTTED:
        lines["curves"] = [_generation(metrics, name in RATED) for metrics in result.history]
    return lines


def _round(metrics: dict[str, float]) -> Line:
    """Makes the line of a round in `rounds.csv`; what there was no proposal for is empty."""
    line: Line = {key: metrics[name] for name, key in _OF_A_ROUND.items()}
    for key, value in line.items():
        if math.isnan(value):
            line[key] = None
        else:
            line[key] = int(value) if key in _WHOLE else float(f"{value:.5g}")
    return line


def _generation(metrics: dict[str, float], rated: bool) -> Line:
    """Makes the line of a generation in `curves.csv`.

    rated: whether trials and successes of each strategy are kept, too.
    """
    line: Line = {
        "generation": int(metrics["generation"]),
        "diversity": float(f"{metrics['diversity']:.5g}"),
    }
    for key in metrics:
        kind, _, rest = key.partition("/")
        strategy, _, what = rest.rpartition("/")
        if rated and kind == "strategy" and what in ("trials", "successes"):
            line[f"{what} of {strategy}"] = int(metrics[key])
    return line
