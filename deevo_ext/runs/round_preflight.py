"""What is known of a search of coefficients before it starts: members, blocks, passes, time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from deevo_ext.fitness.differences import DIRECTIONS
from deevo_ext.fitness.refit import FOLDS
from deevo_ext.fitness.virtual import virtual_fitness
from deevo_ext.networks.blocks import NetworkBlocks
from deevo_ext.runs.basin import BasinReport, some_images
from deevo_ext.runs.population_place import place_line
from deevo_ext.runs.preflight import MemberScores, duration_text, members_and_time
from deevo_ext.runs.recipe_run import Budget
from deevo_ext.runs.rounds import WAVES, RoundSearch, threads_of
from deevo_ext.runs.validation import Validation
from deevo_ext.search.likeliest import bytes_of_image
from deevo_ext.search.virtual import evolve_virtually, first_individuals

_TRIED_SLOPES, _TRIED_GENERATIONS = 1 << 22, 5


@dataclass(frozen=True)
class RoundPreflight:
    """What is known before the first round.

    members: on some fitness images. basin: between them. blocks: with their shares of weights and
    FLOPs. parts: the images of a round: of the model, those that choose, those that test. passes:
    forward passes of a round, at most; initial: before the first. seconds_per_pass, seconds_beside:
    measured on some images: what a forward pass takes, and what a round takes beside them, for fits
    and virtual evolutions. rounds: at most. bytes: of the linear model. place: where the population
    lies, as a line.
    """

    members: MemberScores
    basin: BasinReport | None
    blocks: NetworkBlocks
    parts: tuple[int, int, int]
    passes: int
    initial: int
    seconds_per_pass: float
    seconds_beside: float
    rounds: int
    bytes: int
    place: str

    @property
    def seconds(self) -> float:
        """The time that the search takes, if all rounds are needed."""
        return self.initial * self.seconds_per_pass + self.rounds * self.seconds_per_round

    @property
    def seconds_per_round(self) -> float:
        """The time that a round takes."""
        return self.passes * self.seconds_per_pass + self.seconds_beside

    def __str__(self) -> str:
        model, choice, test = self.parts
        judged = f"{choice:,} choose, {test:,} test" if choice else "folds of them choose and test"
        lines = [str(self.members)]
        if self.basin is not None:
            lines.append(f"Between them: {self.basin}")
        lines.append(self.place)
        lines.append(f"\n{self.blocks}\n")
        lines.append(
            f"A round: {model:,} images in the linear model ({self.bytes / 2**20:,.0f} MiB), "
            f"{judged}; at most {self.passes:,} forward passes at "
            f"{1 / self.seconds_per_pass:,.0f} member-images/s, and "
            f"{duration_text(self.seconds_beside)} for virtual ones: "
            f"{duration_text(self.seconds_per_round)}"
        )
        lines.append(f"At most {self.rounds} rounds: about {duration_text(self.seconds)}")
        return "\n".join(lines)


def examine_rounds(
    rounds: RoundSearch,
    validation: Validation,
    blocks: NetworkBlocks,
    basin: BasinReport | None,
    budget: Budget,
) -> RoundPreflight:
    """Scores every member on 1,000 class-balanced fitness images, and times it."""
    evaluator = rounds.evaluator
    population = evaluator.population
    some = some_images(rounds.images, rounds.seed)
    scored, per_pass = members_and_time(evaluator, some, basin, rounds.metric, rounds.probing.chunk)
    model, *_ = parts = rounds.sizes()
    extra = evaluator.policy.passes
    some_of = rounds.images.slice(0, model)
    members = population.initial_size
    passes = rounds.probing.passes(members, some_of, rounds.classes)
    probes, directions = blocks.directions, len(blocks.blocks) * members
    if not rounds.few:  # a round along differences may follow, and its probes share nothing
        passes, probes = max(passes, (DIRECTIONS + 1) * model), max(probes, DIRECTIONS)
        directions = max(directions, DIRECTIONS)
    # A user's function has no batch statistics: probes, the present network, the one that corrects
    # the model, and those apart of few images have theirs re-estimated.
    networks = probes + 2 + FOLDS * rounds.few
    passes += networks * extra * evaluator.forward.own_engine
    passes += rounds.proving(extra)
    passes += extra  # of the network that is kept
    if not validation.by_folds:
        passes += len(validation.images) + extra
    probing = rounds.probing
    each = bytes_of_image(directions, rounds.classes, probing.likeliest, probing.dtype.itemsize)
    return RoundPreflight(
        members=scored,
        basin=basin,
        blocks=blocks,
        parts=parts,
        passes=passes,
        initial=2 * members * (len(validation.images) + extra),
        seconds_per_pass=per_pass,
        seconds_beside=_seconds_beside(rounds, directions, model),
        rounds=budget.rounds,
        bytes=model * each,
        place=place_line(population.rows.device, evaluator.device),
    )


def _seconds_beside(rounds: RoundSearch, directions: int, size: int) -> float:
    """The seconds of a round's fits and virtual evolutions: of some generations on some images."""
    probing, labels = rounds.probing, rounds.images.labels
    n = max(1, min(size, _TRIED_SLOPES // (directions * rounds.classes)))
    device = rounds.evaluator.device
    z0 = torch.randn(n, rounds.classes, generator=torch.Generator().manual_seed(0)).to(device)
    model = probing.empty(z0, labels[:n], directions)
    started = time.perf_counter()
    with threads_of(model):
        evolve_virtually(
            virtual_fitness(model, rounds.metric, 0.0),
            first_individuals([torch.zeros(directions)], 0, rounds.seed),
            replace(rounds.configuration, generations=_TRIED_GENERATIONS),
            0,
            rounds.seed,
        )
    seconds = (time.perf_counter() - started) / _TRIED_GENERATIONS
    # A virtual evolution for each wave; the fits to the folds take about as long as one.
    return (WAVES + 1) * rounds.configuration.generations * seconds * size / n
