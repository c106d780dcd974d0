"""The run of the coefficients' search: initial candidates, rounds, the classifier's refit."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deevo_ext.distributed.ranks import ranks
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.evaluator import Evaluator
from deevo_ext.networks.engines.choose import device_name
from deevo_ext.population.composed import ComposedNetwork
from deevo_ext.population.naming import Naming
from deevo_ext.population.recipes import uniform
from deevo_ext.progress import begin_at, progress_bar
from deevo_ext.runs import virtual_files
from deevo_ext.runs.base import Run, evaluators_of
from deevo_ext.runs.directions import directed
from deevo_ext.runs.journal import Journal
from deevo_ext.runs.kept_probes import KeptProbes, remove_kept
from deevo_ext.runs.merge import write_recipe
from deevo_ext.runs.old_images import Keep, between, recipe_between
from deevo_ext.runs.proposals import Outcome
from deevo_ext.runs.recipe_state import RecipeState, recipe_digest
from deevo_ext.runs.recording import Recording
from deevo_ext.runs.records import BLOCKS, CHANNELS, GenerationRecord, ProposalRecord, RoundRecord
from deevo_ext.runs.rounds import RoundSearch
from deevo_ext.runs.soups import candidates_of
from deevo_ext.runs.state import Candidate
from deevo_ext.runs.treatments import Treatments
from deevo_ext.runs.validation import Validation
from deevo_ext.search.optimizer import Callback

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Budget:
    """When a run ends, at the latest: after so many rounds, forward passes or seconds."""

    rounds: int
    passes: int | None = None
    seconds: float | None = None


class RecipeRun(Run):
    """Runs the search of coefficients to its end.

    rounds: how a round goes. validation: chooses what is returned. unit: what a block is, for the
    recipe's readers. budget: when it ends, at the latest. Rounds go along coordinates first; after
    one without a step along the others, coordinates or differences. The run ends when neither has
    given a step twice in a row; where images are few, with the first round without a step. keep:
    how much of the first network is kept. run_dir: the folder for journal.jsonl, recipe.yaml, the
    weights and metrics; one that holds this run is resumed.
    """

    search = "coefficients"
    state: RecipeState

    def __init__(
        self,
        rounds: RoundSearch,
        validation: Validation,
        budget: Budget,
        *,
        unit: str,
        run_dir: str | Path | None = None,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
        journal: Journal | None = None,
        keep: Keep | None = None,
    ) -> None:
        population = rounds.probing.population
        super().__init__(population, run_dir, validation, progress, callbacks, journal)
        self.configuration, self.seed = rounds.configuration, rounds.seed
        self.rounds, self.budget, self.unit, self.keeps = rounds, budget, unit, keep
        self._validation = validation
        self.state = RecipeState(
            population, rounds.probing.blocks, self.seed, validation.evaluator.used_statistics
        )
        self.treatments = Treatments(validation, rounds.images, rounds.seed)
        self.virtual: list[list[dict[str, float]]] = []
        rounds.check()
        self.require_fresh()

    @property
    def recipe(self) -> torch.Tensor:
        """The recipe float32 [blocks, members] of what was returned, or of the present network."""
        return self.state.recipe if self.chosen is None else self.recipe_of(self.chosen)

    def recipe_of(self, chosen: Candidate) -> torch.Tensor:
        """Returns the recipe float32 [blocks, members] of a candidate."""
        if chosen.treatment == "kept":
            assert self.keeps is not None
            return recipe_between(self, chosen, self.keeps.share)
        if chosen.generation and self.state.best is not None:
            return self.state.best
        blocks = len(self.state.blocks)
        return uniform(blocks, self.population.initial_size, chosen.members)

    @property
    def changes(self) -> torch.Tensor | None:
        """What differences have added to `recipe`, float32 [genes, members], where they have."""
        return self.state.changes if self.chosen is None else self.changes_of(self.chosen)

    def changes_of(self, chosen: Candidate) -> torch.Tensor | None:
        """Returns the changes float32 [genes, members] to a candidate's recipe, if any."""
        changes = self.state.best_changes if chosen.generation else None
        if changes is None or self.keeps is None or chosen.treatment != "kept":
            return changes
        return (1.0 - self.keeps.share) * changes

    def describe_fitness(self) -> dict[str, Any]:
        """Returns what decides the rounds, as JSON values."""
        images, probing = self.rounds.images, self.rounds.probing
        return {
            "images": len(images),
            "sha256": images.digest(),
            **self.rounds.metric.describe(),
            "unit": self.unit,
            "blocks": [list(tensors) for tensors in probing.blocks.tensors],
            "eps": probing.eps,
            "slopes": str(probing.dtype).removeprefix("torch."),
            "images_per_round": self.rounds.size,
            "images_in_memory": self.rounds.fit,
            **({} if probing.likeliest is None else {"likeliest": probing.likeliest}),
            "rounds": self.budget.rounds,
            "passes": self.budget.passes,
            "seconds": self.budget.seconds,
            **(
                {}
                if self.keeps is None
                else {"keep": self.keeps.share, "old_images": self.keeps.images.digest()}
            ),
            "evaluator": self.rounds.evaluator.describe(),
        }

    def choose(self) -> Candidate:
        """Returns what the run returns: by its scores or, where that is asked for, between."""
        chosen = super().choose()
        if self.keeps is None or chosen.treatment == "averaged":
            return chosen
        return between(self, chosen, self.keeps)

    def require_fresh(self) -> None:
        """Raises DeevoError where the population has been evolved, or the run was used."""
        if not self.population.pristine or self.state.round or self.state.initial:
            raise DeevoError(
                "the run or its population has been used already; read the population again and "
                "make a new run (a run folder's journal brings it back to where it was)"
            )

    def evaluators(self) -> list[Evaluator]:
        """Returns the evaluators of validation and rounds, which may be one."""
        return evaluators_of(self._validation.evaluator, self.rounds.evaluator)

    def advance(self, recording: Recording | None) -> None:
        """Runs, or resumes, up to the last round."""
        with progress_bar(self.budget.rounds, unit="round", shown=self.progress) as bar:
            if recording is not None and recording.generations:
                self._resume(recording)
                self.say_resumed(self.budget.rounds, self.done())
            self.new_passes()
            if not self.state.initial:
                self._first()
            begin_at(bar, self.state.round)
            while not self.done():
                started = time.perf_counter()
                record = self._round(self.state.round + 1)
                after = {"recipe's SHA-256": record.recipe_sha256}
                ranks().require_same(f"round {record.round}", after)
                self.state.apply(record)  # which may re-estimate statistics
                record = self.with_costs(record, started)
                self.keep(record)
                bar.set_postfix_str(self._observe(record), refresh=False)
                bar.update(1)
                self._remove_kept()
                if self.stops():
                    break
            self._remove_kept()  # a kill may have come between

    def _resume(self, recording: Recording) -> None:
        self.use_engines(recording)
        self._resuming = True
        for i, record in enumerate(recording.records):
            with recording.line_of(i):
                self.state.apply(record)
                self.account(record)
            if isinstance(record, RoundRecord):
                assert self.run_dir is not None
                place = self.run_dir, record.round, self._strategies()
                read = functools.partial(virtual_files.read, *place)
                self.virtual.append(ranks().lead(read))
                self._observe(record)
        self._resuming = False
        if self.rounds.few and self.state.evolved and self.state.folds is None:
            raise DeevoError(
                f"{recording.path} is of a version that did not keep what a step comes to without "
                "each fold of the images, by which a run on few images goes on and chooses; "
                "expected a journal of this version: give another run_dir (`deevo replay` reads "
                "this one)"
            )

    def _first(self) -> None:
        """Scores the initial candidates, as generation 0."""
        started = time.perf_counter()
        everyone = list(range(self.population.initial_size))
        validation = candidates_of(
            self.population, everyone, self._validation.score, self.state.average
        )
        if not math.isfinite(validation.member.score):
            raise DeevoError(
                f"no member of the population has a finite score by metric "
                f"{self._validation.metric.name}: mend the metric, or check images, labels and "
                "preprocessing against the model"
            )
        record = GenerationRecord(
            generation=0, validation=validation, forward_passes=0, seconds=0.0
        )
        self.state.apply(record)
        self.keep(self.with_costs(record, started))

    def done(self) -> bool:
        """Whether the budget is spent, or no direction is left that may give a step."""
        budget, state = self.budget, self.state
        last = self.history[-1]["round_passes"] if self.history else 0.0
        return (
            state.round >= budget.rounds
            or self._exhausted()
            or (budget.passes is not None and self.forward_passes + last > budget.passes)
            or (budget.seconds is not None and self.seconds >= budget.seconds)
        )

    def _exhausted(self) -> bool:
        """Whether no directions are left that may give a step."""
        failed = any(path.failures for path in self.state.paths.values())
        return self.state.directions is None or (self.rounds.few and failed)

    def _round(self, number: int) -> RoundRecord:
        state, kept = self.state, None
        directions = state.directions or BLOCKS
        rounds, present, parts = directed(self.rounds, state, number)
        if self.run_dir is not None and self._journal is not None:
            here = device_name(self.rounds.evaluator.device)
            kept = KeptProbes(self.run_dir, f"{self._journal.check} on {here}", parts)
        outcome = rounds.run(present, number, state.paths[directions].radius, kept)
        recipe, changes, step, score = state.recipe, state.changes, outcome.step, None
        if outcome.accepted:
            assert step is not None
            after = rounds.along.after(present, step, outcome.proposals[outcome.best].length)
            recipe, changes = (recipe, after) if directions == CHANNELS else (after, changes)
            score = self._score(state.row(recipe, changes), outcome)
        self.virtual.append(virtual_files.lines_of(outcome.virtual))
        if self.run_dir is not None and ranks().leads:
            virtual_files.write(self.run_dir, number, self.virtual[-1])
        return RoundRecord(
            round=number,
            directions=CHANNELS if directions == CHANNELS else None,
            images=list(self.rounds.sizes()),
            radius=state.paths[directions].radius,
            left_out=outcome.left_out,
            held_out=outcome.held_out.gain,
            proposals=[
                ProposalRecord(p.proposer, p.ridge, p.length, p.predicted, p.score)
                for p in outcome.proposals
            ],
            best=outcome.best if outcome.proposals else None,
            gain=outcome.gain,
            standard_error=outcome.standard_error,
            accepted=outcome.accepted,
            step=step.flatten() if outcome.accepted and step is not None else None,
            recipe_sha256=recipe_digest(recipe, changes),
            score=score,
            slices=outcome.slices,
            folds=outcome.folds.flatten()
            if outcome.accepted and outcome.folds is not None
            else None,
            forward_passes=0,
            seconds=0.0,
        )

    def _remove_kept(self) -> None:
        if self.run_dir is not None and ranks().leads:
            remove_kept(self.run_dir)

    def _score(self, row: torch.Tensor, outcome: Outcome) -> float:
        """A network's score on validation images, or on such as the fit to them has not seen."""
        if not self._validation.by_folds:
            return self._validation.score(row, None)
        # For want of memory a part of few images may have made the model, and another tested.
        return outcome.score if self.rounds.few else self.state.score - outcome.gain

    def write_more(self, chosen: Candidate, naming: Naming) -> None:
        """Writes recipe.yaml, which `deevo merge` makes the same network of."""
        assert self.run_dir is not None
        shown = self._validation.metric.shown
        views = self.population.layout.views(self.state.row(self.recipe, self.changes))
        network = ComposedNetwork(
            self.state.blocks,
            self.recipe,
            chosen.statistics,
            {
                name: tensor - views[name]
                for name, tensor in chosen.tensors.items()
                if not torch.equal(tensor, views[name])
            },
            self.changes,
        )
        if not torch.equal(network.row(self.population), chosen.row):
            raise DeevoError("the recipe does not give the network that was chosen")
        write_recipe(
            self.run_dir / RECIPE_FILE,
            self.population,
            network,
            naming=naming,
            unit=self.unit,
            fitted_on={
                "images": self.rounds.images.name,
                "number": len(self.rounds.images),
                "sha256": self.rounds.images.digest(),
                "metric": self.rounds.metric.name,
            },
            scores={
                "validation": shown(chosen.score),
                **{f"initial {kind}": shown(one.score) for kind, one in self.state.initial.items()},
            },
        )

    def _strategies(self) -> list[str]:
        return [strategy.name for strategy in self.configuration.strategies]

    def _observe(self, record: RoundRecord) -> str:
        """Keeps a round's metrics; returns what the progress says of it."""
        best = None if record.best is None else record.proposals[record.best]
        shown = self._validation.metric.shown
        metrics = {
            "round": float(record.round),
            "by_channel": float(record.directions == CHANNELS),
            "accepted": float(record.accepted),
            "radius": record.radius,
            "gain": record.gain,
            "standard_error": record.standard_error,
            "predicted_gain": math.nan if best is None else -best.predicted,
            "length": math.nan if best is None else best.length,
            "by_de": math.nan if best is None else float(best.proposer == "de"),
            "left_out": float(len(record.left_out)),
            "validation/recipe": math.nan if record.score is None else shown(record.score),
            **virtual_files.summary(self.virtual[-1], self._strategies()),
            "traffic": float(record.traffic or 0),
            "round_passes": float(record.forward_passes),
            "forward_passes": float(self.forward_passes),
            "seconds": self.seconds,
        }
        self.observe(metrics)
        what = "step taken" if record.accepted else "no step"
        return f"{what}, gain {record.gain:.4g} ± {record.standard_error:.2g}"
