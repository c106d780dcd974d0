"""Ask/tell differential evolution of a population: a thin driver of the four operators.

Trials are never state: `Trials` regenerates any of them from counters whenever it is asked, and
`tell` makes the accepted ones again in place. Peak memory is NP rows and the rows in hand.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import CONTRACT_VERSION, CONTRACTS
from deevo_ext.population.population import Population
from deevo_ext.search.adaptation import Adaptation
from deevo_ext.search.configuration import Configuration
from deevo_ext.search.generation import Generation
from deevo_ext.search.parameters import Parameters
from deevo_ext.search.presets import configure
from deevo_ext.search.row_source import RowSource
from deevo_ext.search.trials import Trials

Callback = Callable[[dict[str, float]], object]


class DifferentialEvolution:
    """SA-SHADE-tri-ensin, and every differential evolution that its parameters describe.

    population: evolved in place, by its device's operators. preset: "sa-shade-tri-ensin",
    "paper", "shade", "l-shade" or a whole `Configuration`. seed: 0..2^63-1. callbacks: called with
    a generation's metrics (dict of floats) after each `tell` of trials. parameters: fields of
    `Configuration` in place of the preset's, each documented there with its source.

        de = DifferentialEvolution(population, generations=100)
        trials = de.ask()                        # first the parents themselves: they need scores
        de.tell([loss(row) for row in trials.rows(range(population.size))])

    Fitness is minimised. NaN counts as +inf; +inf is never accepted.

    The thread that asks for trials tells their fitness; any thread may make rows of them. Callbacks
    and fitness functions neither ask nor tell: they are inside of one. Where `tell` is interrupted
    between selection and the new weights, everything but `load_state_dict` raises DeevoError.
    """

    def __init__(
        self,
        population: Population,
        preset: str | Configuration = "sa-shade-tri-ensin",
        *,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        **parameters: Unpack[Parameters],
    ) -> None:
        check_arguments(DifferentialEvolution.__init__, locals())
        configuration = configure(preset, **parameters)
        needed = max(configuration.members_needed, 4)
        if population.size < needed:
            raise DeevoError(
                f"population has {population.size} members; the strategies need at least {needed} "
                "(the target and distinct random members): give more checkpoints or strategies "
                "with fewer of r1..r5"
            )
        if configuration.population_min > population.size:
            raise DeevoError(
                f"population_min is {configuration.population_min}, above the population's "
                f"{population.size} members; expected at most that"
            )
        if 0 < configuration.evaluations < population.size:
            raise DeevoError(
                f"evaluations is {configuration.evaluations}, fewer than the population's "
                f"{population.size} members, whose first scores count; expected more"
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise DeevoError(f"seed is {seed!r}; expected an integer in 0..2^63-1")
        self.population = population
        self.configuration = configuration = configuration.for_members(population.size)
        self.seed = seed
        self.callbacks = list(callbacks)
        self.pending: Trials | None = None
        self.scored = False  # whether the parents have a fitness

        self._telling = False  # inside tell(), callbacks included
        self._interrupted = False  # whether the weights and what was learnt may not fit together
        self._completed = 0  # the generation counter without a look at the device
        self._adaptation = Adaptation(configuration, population, seed)
        self._source = RowSource(population, configuration, self._adaptation, seed)
        self._names = tuple(strategy.name for strategy in configuration.strategies)
        self._crossovers = tuple(strategy.crossover for strategy in configuration.strategies)

    def __repr__(self) -> str:
        finite = self._adaptation.fitness[self._adaptation.fitness.isfinite()]
        best = f", best fitness {float(finite.min()):.6g}" if finite.numel() else ""
        return (
            f"DifferentialEvolution, generation {self.generation} of "
            f"{self.configuration.generations}{best}, seed {self.seed}: {self.population!r}"
        )

    @property
    def generation(self) -> int:
        """The number of completed generations."""
        return self._completed

    @property
    def living(self) -> torch.Tensor:
        """The members that population reduction has left, int64, ascending; at first all."""
        if self.configuration.population_min == 0:
            return torch.arange(self.population.size)
        return self._adaptation.alive.cpu().nonzero().reshape(-1)

    @property
    def fitness(self) -> torch.Tensor:
        """The parents' fitness, float64 [NP], a copy; +inf unless scored and alive."""
        return self._adaptation.fitness.clone()

    @property
    def best(self) -> int:
        """The member of least fitness, the lowest index among equals."""
        if not self.scored:
            raise DeevoError("no member is best yet: ask() and tell() the parents' fitness first")
        fitness = self._adaptation.fitness
        if bool((fitness == math.inf).all()):
            raise DeevoError("no member is best: every fitness is +inf or NaN; mend the evaluation")
        return int(fitness.argmin().item())

    @property
    def strategy_odds(self) -> dict[str, float]:
        """The present odds of each strategy, by name."""
        return dict(zip(self._names, self._adaptation.odds.tolist(), strict=True))

    @property
    def archive(self) -> torch.Tensor:
        """Parents that were replaced and are kept, [archive_size, D]."""
        return self._source.archive

    def ask(self) -> Trials:
        """Returns the next generation's trials; at first the parents, which need a score too.

        No row is made yet. Asking again before `tell` gives the same trials.
        """
        self._require_sound()
        if not self.scored:
            return self.ask_parents()
        done = self.generation
        if done >= self.configuration.generations:
            raise DeevoError(
                f"all {self.configuration.generations} generations of the schedule are done; "
                "reschedule() gives it more"
            )
        with self._source.lock:
            self._adaptation.plan()
        return self._await(Trials(self._source, done + 1, self.living, parents=False))

    def reschedule(self, generations: int) -> None:
        """Gives the schedule another length G from the next generation on, such as a greater one.

        What follows is planned as by an optimizer that had this length from the beginning: the
        sinusoids' amplitudes, the generation from which F comes from the memories, and how many
        members population reduction leaves (it brings none back). Trials that were asked for are
        over. Raises DeevoError for fewer generations than are done.
        """
        check_arguments(DifferentialEvolution.reschedule, locals())
        self._require_sound()
        if generations < self.generation:
            raise DeevoError(
                f"generations is {generations}, but {self.generation} are done; expected at least "
                "that"
            )
        self.configuration = configure(self.configuration, generations=generations)
        self._end_pending()
        self._adaptation.reschedule(self.configuration)

    def ask_parents(self) -> Trials:
        """Returns the parents, to be scored (again), as when the fitness images change."""
        self._require_sound()
        return self._await(Trials(self._source, self.generation, self.living, parents=True))

    def tell(self, fitness: torch.Tensor | Sequence[float]) -> Generation | None:
        """Takes the fitness of what was asked for, float64 [NP], minimised.

        Values for members that population reduction has taken out are ignored. After trials it
        selects, adapts and commits, and returns what the generation did; after parents it keeps
        their scores and returns None. Raises DeevoError before anything is changed.
        """
        self._require_sound()
        pending, adaptation = self.pending, self._adaptation
        if pending is None:
            raise DeevoError("tell() without ask(): ask for trials first")
        if pending.thread != threading.get_ident():
            raise DeevoError(
                "tell() from another thread than the one that asked: ask and tell in one thread, "
                "or give each thread an optimizer of its own"
            )
        values = self._checked(fitness)
        on_device = values.to(adaptation.fitness.device)
        pending.require_unwritten()
        self._telling = True
        try:
            return self._take(pending, values, on_device)
        finally:
            self._telling = False

    def _take(
        self, pending: Trials, values: torch.Tensor, on_device: torch.Tensor
    ) -> Generation | None:
        """Selects by fitness values that are checked, and learns from them."""
        adaptation = self._adaptation
        self._end_pending()
        if pending.parents:
            adaptation.score_parents(on_device)
            self.scored = True
            return None
        parents, members = adaptation.fitness.clone(), pending.members
        with self._whole():
            adaptation.tell(on_device)
            self._source.commit()
            self._completed += 1
            self.population.pristine = False

        all_live = members.numel() == self.population.size

        def of_living(tensor: torch.Tensor) -> torch.Tensor:
            host = tensor.cpu()
            if not all_live:
                return host[members]
            return host.clone() if host is tensor else host  # cheaper than an index of everyone

        result = Generation(
            generation=pending.generation,
            strategies=self._names,
            crossovers=self._crossovers,
            members=members,
            choices=of_living(adaptation.choices),
            parameters=of_living(adaptation.parameters),
            parent_fitness=of_living(parents),
            trial_fitness=of_living(values),
            accepted=of_living(adaptation.accepted).bool(),
            odds=self.strategy_odds,
        )
        if self.callbacks:
            metrics = result.metrics()
            for callback in self.callbacks:
                callback(metrics)
        return result

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is left half done by an interruption leaves the optimizer unusable."""
        self._interrupted = True
        yield
        self._interrupted = False

    def _require_sound(self) -> None:
        if self._interrupted:
            raise DeevoError(
                "tell() was interrupted between its selection and the new weights, which may not "
                "fit together: load_state_dict() of an earlier state, or resume the run"
            )
        if self._telling:
            raise DeevoError(
                "ask() or tell() from within tell(): callbacks read metrics only; ask and "
                "tell after it has returned"
            )

    def _await(self, trials: Trials) -> Trials:
        self._end_pending()
        self.pending = trials
        return trials

    def _end_pending(self) -> None:
        if self.pending is not None:
            self.pending.over = True
        self.pending = None

    def _checked(self, fitness: torch.Tensor | Sequence[float]) -> torch.Tensor:
        try:
            given = torch.as_tensor(fitness)
            if given.is_complex():
                raise TypeError("they are complex")
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
        """Returns all of the optimizer's state: tensors (copies) and plain values.

        torch.load(weights_only=True) reads it back; resuming from it gives the bits of an
        uninterrupted run.
        """
        if self._interrupted:
            self._require_sound()
        tensors = {name: tensor.clone() for name, tensor in self._tensors().items()}
        return {**self._identity(), "scored": self.scored, **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; raises DeevoError before anything is changed."""
        check_arguments(DifferentialEvolution.load_state_dict, locals())
        identity, tensors = self._identity(), self._tensors()
        missing = [name for name in (*identity, "scored", *tensors) if name not in state]
        if missing:
            raise DeevoError(
                f"the state lacks {missing[0]!r}; expected what state_dict() of a "
                "DifferentialEvolution gave"
            )
        for name, value in identity.items():
            known = type(state[name]) is type(value)  # a tensor's == is no truth value
            same = state[name] in CONTRACTS if name == "contract" and known else None
            if not (known and (state[name] == value if same is None else same)):
                raise DeevoError(
                    f"the state's {name} differs from this optimizer's: {state[name]!r}, expected "
                    f"{value!r}; make the optimizer with the parameters of the run"
                )
        for name, tensor in tensors.items():
            saved = state[name]
            if not isinstance(saved, torch.Tensor):
                raise DeevoError(
                    f"the state's {name} is a {type(saved).__name__}; expected a tensor, as "
                    "state_dict() gave it"
                )
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise DeevoError(
                    f"the state's {name} is {saved.dtype} of shape {tuple(saved.shape)}; expected "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}, as this population has"
                )
        if not isinstance(state["scored"], bool):
            raise DeevoError(f"the state's scored is {state['scored']!r}; expected True or False")
        with self._whole():
            self._end_pending()
            for name, tensor in tensors.items():
                tensor.copy_(state[name])
            self._source.committed = None
            self.scored = bool(state["scored"])
            self._completed = int(self._adaptation.generation.item()) - 1
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
            "archive": self._source.archive,
            "state": self._adaptation.state,
            "fitness": self._adaptation.fitness,
            "alive": self._adaptation.alive,
            "generation": self._adaptation.generation,
        }
