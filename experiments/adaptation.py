"""Labelled images of one kind, and what is made of them: recipes, and training on the same labels.

A population is given N labelled images and no others. `evolve` chooses by folds of them, so does
the careful trainer by a fifth of them (`experiments.training`). Where the members' average does
better on them so, their normalisation is re-estimated first, for everybody. Old images are those
that the members were trained on, with the normalisation that they had then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import nn

import deevo_ext as deevo
from deevo_ext.data.images import ImageSet
from deevo_ext.runs.contenders import compare_run
from deevo_ext.runs.given import Keywords
from deevo_ext.runs.state import Candidate
from deevo_ext.training import few_labels
from deevo_ext.training.few_labels import logits_of
from deevo_ext.training.hyper_parameters import derived_seed

from . import kinds
from .cases import Case, case_of
from .csv_files import Line, Lines
from .populations import Setting
from .training import careful

TRAINED, UNTOUCHED = "trained by Adam", "soup on the images as they come"
Images = tuple[ImageSet, ImageSet, ImageSet]
"""Labelled and test images of a kind, and old ones; nobody was trained on any of them."""
TEST, OLD = 4000, 2000
_TEST, _LABELLED = 1, 2  # what seeds of changes are derived for


def adapt(
    root: Path, setting: Setting, seed: int, kind: str, severity: int, labels: int, draw: int
) -> Lines:
    """Evolves a population on `labels` images of a kind, and trains its soup on them.

    draw: which of the disjoint sets of labelled images. Returns the networks' lines of
    `adaptation.csv`, each with its losses on images of the kind and on old ones, and its cost.
    """
    case = case_of(root, setting, seed)
    about = {"setting": setting.name, "population": seed, "kind": kind, "severity": severity,
             "labels": labels, "draw": draw}  # fmt: skip
    images = images_of(case, kind, severity, labels, draw)
    found = adapted(case, images, draw, few_labels.LENGTHS)
    return {"adaptation": [about | line for line in found]}


def adapted(
    case: Case,
    images: Images,
    draw: int,
    lengths: Sequence[int],
    **options: Unpack[Keywords],
) -> list[Line]:
    """The lines of a population that is at hand, without what names it.

    draw: of the labels, which seeds of run and training are derived for. lengths: of the trainings
    that are tried on the same labels, in steps. options: of the run.
    """
    as_they_come, test, old = images
    seed = derived_seed(case.seed, draw)
    population = deevo.Population.from_checkpoints(case.network, case.paths)
    case.network.load_state_dict(population.state_dict_of(population.mean(range(population.size))))
    labelled = min((as_they_come, renormalised(as_they_come, as_they_come)),
                   key=lambda images: _scores(case.network, images)["loss"])  # fmt: skip
    again = labelled is not as_they_come
    asked = renormalised(test, as_they_come) if again else test
    common: Keywords = {"seed": seed, "precision": "float32", "basin": "ignore", "progress": False}
    began = time.process_time()
    result = deevo.evolve(case.network, case.paths, labelled, **(common | options))
    seconds = time.process_time() - began
    lines = [
        _untouched(case.network, result, test, old),
        *_compared(case.network, result, asked, old, round(seconds, 2)),
    ]
    case.network.load_state_dict(_state(result, result.run.state.initial["soup"]))
    began = time.process_time()
    trained = careful(case.network, labelled, seed, lengths)
    seconds = time.process_time() - began
    lines.append(
        {
            "network": TRAINED,
            **_on(trained.network, asked, old),
            "forward_passes": trained.images,
            "seconds": round(seconds, 2),
            "rate": trained.learning_rate if trained.steps else None,
            "steps": trained.steps,
        }
    )
    return [{"renormalised": int(again), **line} for line in lines]


def images_of(case: Case, kind: str, severity: int, labels: int, draw: int) -> Images:
    """Returns images of a kind of `kinds`, made from those of the population's own source.

    The labelled ones are fitness images; test and old ones are parts of its test images.
    """
    fitness, test, train = case.sets.fitness, case.sets.test, case.sets.train
    seed = derived_seed(case.seed, _LABELLED + draw)
    labelled = fitness.slice(draw * labels, (draw + 1) * labels)
    few = min(TEST, len(test) // 2)
    return (
        kinds.changed(labelled, train, kind, severity, seed),
        kinds.changed(test.slice(0, few), train, kind, severity, derived_seed(case.seed, _TEST)),
        test.slice(few, min(few + OLD, len(test))),
    )


def renormalised(images: ImageSet, known: ImageSet) -> ImageSet:
    """The images with mean and deviation that all train images have, by what the known ones say."""
    changed = (images.images - known.images.mean()) / known.images.std()
    return replace(images, images=changed)


def _compared(
    network: nn.Module, result: deevo.Result, test: ImageSet, old: ImageSet, seconds: float
) -> list[Line]:
    """The lines of all networks of the run's table, and which of them is returned.

    seconds: what the run took, which is the cost of what is returned.
    """
    state = result.run.state
    candidates = (*state.initial.values(), *state.treated, *state.evolved.values())
    by_name = {candidate.name: candidate for candidate in candidates}
    lines = []
    for measured in compare_run(result.run, test).networks:
        line = {
            "network": measured.name,
            "returned": int(measured.returned),
            "loss": measured.loss,
            "top1": measured.top1,
            "forward_passes": measured.forward_passes,
        }
        if measured.name in by_name:  # the ensemble is no candidate
            candidate = by_name[measured.name]
            network.load_state_dict(_state(result, candidate))
            before = _scores(network, old)
            line |= {"score": candidate.score, "old_loss": before["loss"],
                     "old_top1": before["top1"],
                     "seconds": seconds if measured.returned else None}  # fmt: skip
        lines.append(line)
    return lines


def _untouched(network: nn.Module, result: deevo.Result, test: ImageSet, old: ImageSet) -> Line:
    """The line of the soup as it was before anything was re-estimated."""
    state = result.run.state
    averaged = [one for one in state.treated if one.treatment == "averaged" and not one.generation]
    (soup,) = averaged or [state.initial["soup"]]
    network.load_state_dict(_state(result, soup))
    return {"network": UNTOUCHED, **_on(network, test, old)}


def _state(result: deevo.Result, candidate: Candidate) -> dict[str, torch.Tensor]:
    return candidate.state_dict(result.run.population)


def _on(network: nn.Module, test: ImageSet, old: ImageSet) -> Line:
    before = {f"old_{name}": value for name, value in _scores(network, old).items()}
    return {"returned": 0, **_scores(network, test), **before}


def _scores(network: nn.Module, images: ImageSet) -> dict[str, Any]:
    logits = logits_of(network, images)
    right = logits.argmax(dim=1) == images.labels
    loss = F.cross_entropy(logits.double(), images.labels)
    return {"loss": float(loss), "top1": float(right.double().mean())}
