"""Rebuilds a run's weights, bit for bit, from its journal and its initial checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.runs import journal
from deevo_ext.runs.difference import first_difference
from deevo_ext.runs.folder import (
    VIRTUAL,
    check_network_path,
    locate_checkpoints,
    read_tensors,
    write_network,
)
from deevo_ext.runs.recipe_state import RecipeState
from deevo_ext.runs.recording import line_of, read_journal
from deevo_ext.runs.records import GenerationRecord, Header, RoundRecord
from deevo_ext.runs.state import Candidate, RunState
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.generation import Generation
from deevo_ext.search.optimizer import DifferentialEvolution
from deevo_ext.text import csv_table


@dataclass
class Replay:
    """A replayed run: its state, and the candidate that it returned.

    generations: of a search of weights; rounds: of a search of coefficients, whose state has the
    recipe. finished: whether the journal's last line says that the run was complete.
    """

    state: RunState | RecipeState
    generations: list[Generation]
    rounds: list[RoundRecord]
    candidate: Candidate
    finished: bool


def replay(run_dir: str | Path, checkpoint_dir: str | Path | None = None) -> Replay:
    """Replays a run folder of either search; no network is run, and no image needed.

    Raises DeevoError naming what is missing or does not match. An unfinished run gives its best
    candidate so far. checkpoint_dir: where the initial checkpoints lie now, if not where the
    journal says.
    """
    check_arguments(replay, locals())
    folder = Path(run_dir)
    path = folder / journal.FILE_NAME
    if not path.exists():
        raise DeevoError(
            f"{folder} holds no {journal.FILE_NAME}; expected the folder of a run (deevo merge "
            "makes the network of a recipe)"
        )
    recording = read_journal(path)
    header = recording.header
    if header is None:
        raise DeevoError(f"{path} has no whole line: the run was cut before it began; start again")
    with line_of(path, 1):
        sources = [(name, digest) for name, digest in header.checkpoints]
        files = locate_checkpoints(sources, folder, checkpoint_dir, "the journal")
        population = Population.from_manifest(header.population, files)
        if population.layout.hash != header.layout:
            raise DeevoError("the checkpoints give another layout than the journal records")
        configuration = Configuration(**header.configuration)
        # What was added to the configuration since then has its default.
        known = {name: configuration.to_json()[name] for name in header.configuration}
        for read, recorded in (
            (population.manifest(), header.population),
            (known, header.configuration),
        ):
            if json.dumps(read) != json.dumps(recorded):
                difference = first_difference(read, recorded) or "a number of another type"
                raise ValueError(f"no run writes it like this: {difference}")
        state = _begun(header, population, configuration)
    generations = []
    for i, record in enumerate(recording.records):
        with recording.line_of(i):
            if isinstance(state, RecipeState):
                state.apply(record)
                continue
            assert isinstance(record, GenerationRecord)  # the journal has checked it
            generation = state.apply(record)
            if generation is not None:
                generations.append(generation)
    if not (state.initial if isinstance(state, RecipeState) else state.de.scored):
        raise DeevoError(f"{path} holds no generation yet; nothing can be replayed")
    if recording.returned is not None:
        with recording.line_of(len(recording.records)):
            tensors = read_tensors(folder, recording.returned.tensors_sha256)
            candidate = state.recorded(recording.returned, tensors)
    else:
        candidate = state.chosen()
        if population.batchnorm == "recalibrate":
            candidate = replace(candidate, statistics=None)  # only the images could tell
    finished = recording.returned is not None
    return Replay(state, generations, recording.rounds, candidate, finished)


def _begun(
    header: Header, population: Population, configuration: Configuration
) -> RunState | RecipeState:
    """The state of a run before its first record."""
    if header.search != "coefficients":
        return RunState(DifferentialEvolution(population, configuration, seed=header.seed))
    tensors = tuple(map(tuple, header.fitness["blocks"]))
    blocks = Blocks(tuple(names[0] for names in tensors), tensors)
    blocks.segments(population.layout)  # which refuses others
    return RecipeState(population, blocks, header.seed)


def write_candidate(result: Replay, path: Path) -> None:
    """Writes the returned candidate as .safetensors or .pth, named as in the first checkpoint."""
    population = result.state.population
    check_network_path(path, [file for file, _ in population.sources or ()])
    if population.statistics_layout.dim and result.candidate.statistics is None:
        raise DeevoError(
            'the run is unfinished, and under batchnorm="recalibrate" its candidate\'s statistics '
            "are known at its end only: resume it first"
        )
    state, naming = result.candidate.state_dict(population), Naming.of_population(population)
    write_network(path, naming, state, result.candidate.record())


def write_trials(result: Replay, path: Path) -> int:
    """Writes every trial of a search of weights as CSV; returns their number."""
    if isinstance(result.state, RecipeState):
        raise DeevoError(
            "trials of a search of coefficients are virtual and not kept; what became of them, a "
            f"line a generation, is in the run folder already, {VIRTUAL}/*.csv"
        )
    trials = [trial for generation in result.generations for trial in generation.trials()]
    write_whole(path, csv_table(trials).encode())
    return len(trials)
