"""Ask/tell differential evolution of a population: a thin driver of the four operators.

Trials are never state: `Trials` regenerates any of them from counters whenever it is asked, and
`tell` makes the accepted ones again in place. Peak memory is NP rows and the rows in hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from deevo_ext.allocation import zero_rows
from deevo_ext.errors import DeevoError
from deevo_ext.evolution.bounds import held_bounds
from deevo_ext.evolution.configuration import Configuration, configure
from deevo_ext.evolution.generation import Generation
from deevo_ext.evolution.staging import Staging
from deevo_ext.evolution.trials import Trials
from deevo_ext.ops.library import Prepared
from deevo_ext.population import Population
from deevo_ext.strategies import compile_pool
from deevo_ext.tables import (
    CONTRACT_VERSION,
    MAX_TERMS,
    NUM_CHOICE_COLUMNS,
    NUM_PARAMETER_COLUMNS,
    gene_words,
)

Callback = Callable[[dict[str, float]], None]


class DifferentialEvolution:
    """SA-SHADE-tri-ensin, and every differential evolution that its parameters describe.

    population: evolved in place, by its device's operators. preset: "sa-shade-tri-ensin" or
    "paper". seed: 0..2^63-1. callbacks: called with a generation's metrics (dict of floats) after
    each `tell` of trials. Further keywords: any field of `Configuration`, each documented there
    with its source.

        de = DifferentialEvolution(population, generations=100)
        trials = de.ask()                        # first the parents themselves: they need scores
        de.tell([loss(row) for row in trials.rows(range(population.size))])

    Fitness is minimised. NaN counts as +inf; +inf is never accepted.
    """

    def __init__(
        self,
        population: Population,
        preset: str = "sa-shade-tri-ensin",
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **parameters: Any,
    ) -> None:
        self._begin(population, configure(preset, **parameters), seed, callbacks)

    @classmethod
    def from_configuration(
        cls, population: Population, configuration: Configuration, seed: int
    ) -> DifferentialEvolution:
        """The optimizer of a ready configuration, as a journal's header keeps one."""
        self = cls.__new__(cls)
        self._begin(population, configuration, seed, ())
        return self

    def _begin(
        self,
        population: Population,
        configuration: Configuration,
        seed: int,
        callbacks: Sequence[Callback],
    ) -> None:
        self.configuration = configuration
        needed = max(self.configuration.members_needed, 4)
        if population.size < needed:
            raise DeevoError(
                f"population has {population.size} members; the strategies need at least {needed} "
                "(the target and distinct random members): give more checkpoints or strategies "
                "with fewer of r1..r5"
            )
        if self.configuration.population_min > population.size:
            raise DeevoError(
                f"population_min is {self.configuration.population_min}, above the population's "
                f"{population.size} members; expected at most that"
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise DeevoError(f"seed is {seed!r}; expected an integer in 0..2^63-1")
        self.population = population
        self.seed = seed
        self.callbacks = list(callbacks)
        self.pending: Trials | None = None
        self.scored = False  # whether the parents have a fitness

        size, device = population.size, population.rows.device
        layout = population.layout
        self._bounds = held_bounds(self.configuration, population)
        self._genes = layout.genes(self.configuration.crossover_unit).to(device)
        genes = self._genes.numel()
        self._settings = self.configuration.settings(layout.weights, genes).to(device)
        self._strategies = compile_pool(self.configuration.strategies).to(device)
        self._state = self.configuration.initial_state().to(device)
        at = self.configuration.layout()
        self._odds = self._state[at.odds : at.sinusoid1_odds]
        self._names = tuple(s.name for s in self.configuration.strategies)
        self._crossovers = tuple(s.crossover for s in self.configuration.strategies)

        def table(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._completed = 0  # the generation counter without a look at the device
        self._fitness = table(torch.float64, size).fill_(math.inf)
        self._alive = table(torch.uint8, size).fill_(1)
        self._gene_mask = table(torch.int32, size, gene_words(genes))
        self._generation = table(torch.int64, 1).fill_(1)
        self._choices = table(torch.int32, size, NUM_CHOICE_COLUMNS)
        self._parameters = table(torch.float64, size, NUM_PARAMETER_COLUMNS)
        self._coefficients = table(torch.float32, size, MAX_TERMS)
        self._accepted = table(torch.uint8, size)
        self._archive_slot = table(torch.int32, size).fill_(-1)
        self.archive = self.new_rows(self.configuration.archive_size)
        self._buffer: torch.Tensor | None = None
        self._staging: Staging | None = None
        self._plan = Prepared(
            "plan",
            *(self._settings, self._strategies, self._state, self._fitness, self._alive),
            *(self._generation, seed, self._choices, self._parameters, self._coefficients),
            self._gene_mask,
        )
        self._tell = Prepared(
            "tell",
            *(self._settings, self._strategies, self._fitness.clone(), self._choices),
            *(self._parameters, seed, self._state, self._fitness, self._alive, self._generation),
            *(self._accepted, self._archive_slot),
        )
        self._prepared_for: tuple[object, ...] = ()
        self._prepared: dict[str, Prepared] = {}

    def _on_weights(self, operator: str) -> Prepared:
        """trials or commit, prepared anew if anybody put other rows into the population."""
        rows = self.population.rows
        identity = (rows.data_ptr(), rows.shape, rows.stride(), rows.dtype)
        if identity != self._prepared_for:
            plan = (self._choices, self._coefficients, self._genes, self._gene_mask)
            place = (self.seed, self.population.layout.nonneg_start, 0, *self._bounds)
            none = torch.empty(0, dtype=torch.int64, device=rows.device)
            self._prepared = {
                "trials": Prepared("trials", rows, self.archive, *plan, none, *place, rows[:0]),
                "commit": Prepared(
                    "commit",
                    *(rows, self.archive, *plan, self._accepted, self._archive_slot, *place),
                ),
            }
            self._prepared_for = identity
        return self._prepared[operator]

    @property
    def generation(self) -> int:
        """Generations completed."""
        return self._completed

    @property
    def living(self) -> torch.Tensor:
        """The members that population reduction has left, int64, ascending; at first all."""
        if self.configuration.population_min == 0:
            return torch.arange(self.population.size)
        return self._alive.cpu().nonzero().reshape(-1)

    @property
    def fitness(self) -> torch.Tensor:
        """The parents' fitness, float64 [NP], a copy; +inf unless scored and alive."""
        return self._fitness.clone()

    @property
    def best(self) -> int:
        """The member of least fitness, the lowest index among equals."""
        if not self.scored:
            raise DeevoError("no member is best yet: ask() and tell() the parents' fitness first")
        if bool((self._fitness == math.inf).all()):
            raise DeevoError("no member is best: every fitness is +inf or NaN; mend the evaluation")
        return int(self._fitness.argmin().item())

    @property
    def strategy_odds(self) -> dict[str, float]:
        """The present odds of each strategy."""
        return dict(zip(self._names, self._odds.tolist(), strict=True))

    def new_rows(self, count: int) -> torch.Tensor:
        """Zeroed rows like the population's, [count, D] with its stride and dtype."""
        rows = self.population.rows
        stride = self.population.layout.stride
        return zero_rows(count, stride, rows.dtype, rows.device)[:, : rows.shape[1]]

    def chunk_buffer(self, count: int) -> torch.Tensor:
        """The one buffer that chunks of trials share."""
        if self._buffer is None or self._buffer.shape[0] != count:
            self._buffer = None  # freed before the next is made
            self._buffer = self.new_rows(count)
        return self._buffer

    def staging(self, count: int, device: torch.device) -> Staging:
        """The buffers through which chunks reach another device."""
        if self._staging is None or (self._staging.rows, self._staging.device) != (count, device):
            self._staging = None  # freed before the next is made
            self._staging = Staging(self.new_rows(1), count, device)
        return self._staging

    def ask(self) -> Trials:
        """The next generation's trials; at first the parents themselves, who need a score too.

        Nothing is materialised yet. Asking again before `tell` gives the same trials.
        """
        if not self.scored:
            return self.ask_parents()
        done = self.generation
        if done >= self.configuration.generations:
            raise DeevoError(
                f"all {self.configuration.generations} generations of the schedule are done; to go "
                "on from here, begin a new run on the evolved networks"
            )
        self._plan()
        self.pending = Trials(self, done + 1, parents=False)
        return self.pending

    def ask_parents(self) -> Trials:
        """The parents' own rows, to be scored (again), as when the fitness images change."""
        self.pending = Trials(self, self.generation, parents=True)
        return self.pending

    def make_trials(self, members: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the pending trials of `members` to `out`; `Trials` is the way to call it."""
        self._on_weights("trials")(members=members, out=out)

    def tell(self, fitness: torch.Tensor | Sequence[float]) -> Generation | None:
        """Takes the fitness of what was asked for, float64 [NP], minimised (any for the dead).

        After trials: selects, adapts and commits, and returns what the generation did. After
        parents: keeps their scores and returns None. Raises DeevoError before anything is changed.
        """
        pending = self.pending
        if pending is None:
            raise DeevoError("tell() without ask(): ask for trials first")
        values = self._checked(fitness)
        own = values.to(self._fitness.device)
        if pending.population_was_written():
            raise DeevoError(
                "the population was written to since ask(), as norm layers do in train mode: call "
                "model.eval() before evaluating, and begin again on a freshly loaded population"
            )
        self.pending = None
        if pending.parents:
            lost = own.isnan() | (self._alive == 0)
            self._fitness.copy_(torch.where(lost, math.inf, own))
            self.scored = True
            return None
        parents, members = self._fitness.clone(), pending.members
        self._tell(trial_fitness=own)
        self._on_weights("commit")()
        self._completed += 1
        self.population.pristine = False
        all_live = members.numel() == self.population.size

        def of_living(tensor: torch.Tensor) -> torch.Tensor:
            host = tensor.cpu()
            return host[members] if not all_live else host.clone() if host is tensor else host

        result = Generation(
            generation=pending.generation,
            strategies=self._names,
            crossovers=self._crossovers,
            members=members,
            choices=of_living(self._choices),
            parameters=of_living(self._parameters),
            parent_fitness=of_living(parents),
            trial_fitness=of_living(values),
            accepted=of_living(self._accepted).bool(),
            odds=self.strategy_odds,
        )
        if self.callbacks:
            metrics = result.metrics()
            for callback in self.callbacks:
                callback(metrics)
        return result

    def _checked(self, fitness: torch.Tensor | Sequence[float]) -> torch.Tensor:
        try:
            values = torch.as_tensor(fitness, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DeevoError(f"fitness is not a row of numbers ({error})") from None
        if values.shape != (self.population.size,):
            raise DeevoError(
                f"fitness has shape {tuple(values.shape)}; expected ({self.population.size},), one "
                "number per member"
            )
        return values.contiguous()

    def state_dict(self) -> dict[str, Any]:
        """All of a run's state: tensors (copies) and plain values.

        torch.load(weights_only=True) reads it back; resuming from it gives the bits of an
        uninterrupted run.
        """
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**self._identity(), "scored": self.scored, **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; raises DeevoError before anything is changed."""
        tensors = self._tensors()
        missing = [name for name in (*_IDENTITY, "scored", *tensors) if name not in state]
        if missing:
            raise DeevoError(
                f"the state lacks {missing[0]!r}; expected what state_dict() of a "
                "DifferentialEvolution gave"
            )
        own = self._identity()
        for name in _IDENTITY:
            if state[name] != own[name]:
                raise DeevoError(
                    f"the state's {name} differs from this optimizer's: {state[name]!r}, expected "
                    f"{own[name]!r}; make the optimizer with the parameters of the run"
                )
        for name, tensor in tensors.items():
            given = state[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise DeevoError(
                    f"the state's {name} is {given.dtype} of shape {tuple(given.shape)}; expected "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}, as this population has"
                )
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        self.scored = bool(state["scored"])
        self._completed = int(self._generation.item()) - 1
        self.pending = None
        self.population.pristine = False

    def _identity(self) -> dict[str, Any]:
        return {
            "contract": CONTRACT_VERSION,
            "configuration": self.configuration.to_json(),
            "layout": self.population.layout.hash,
            "seed": self.seed,
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            "rows": self.population.rows,
            "statistics": self.population.statistics,
            "archive": self.archive,
            "state": self._state,
            "fitness": self._fitness,
            "alive": self._alive,
            "generation": self._generation,
        }


_IDENTITY = ("contract", "configuration", "layout", "seed")
