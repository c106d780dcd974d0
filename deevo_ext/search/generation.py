"""What one generation did: the record that metrics, journals and analyses are made from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from deevo_ext.ops.tables import ChoiceColumn, ParameterColumn, Source


@dataclass(frozen=True)
class Generation:
    """A generation's plan and outcome.

    generation: its number, from 1.
    strategies, crossovers: the names and crossovers of the pool's strategies.
    members: the n members that were alive in it, int64, ascending; the tensors below have one line
        for each of them.
    choices, parameters: their plan, with the columns of `deevo_ext.ops.tables`.
    parent_fitness, trial_fitness: float64 [n].
    accepted: bool [n], whether the trial replaced its parent.
    odds: the odds of each strategy for the next generation.
    """

    generation: int
    strategies: tuple[str, ...]
    crossovers: tuple[str, ...]
    members: torch.Tensor
    choices: torch.Tensor
    parameters: torch.Tensor
    parent_fitness: torch.Tensor
    trial_fitness: torch.Tensor
    accepted: torch.Tensor
    odds: dict[str, float]

    @property
    def improvement(self) -> torch.Tensor:
        """The parents' minus the trials' fitness, float64 [n]; NaN fitness counts as +inf."""
        trial = torch.where(self.trial_fitness.isnan(), math.inf, self.trial_fitness)
        return self.parent_fitness - trial

    def metrics(self) -> dict[str, float]:
        """Returns flat floats for callbacks and CSV files; means over no value are NaN."""
        survivors = torch.where(self.accepted, self.trial_fitness, self.parent_fitness)
        sources = self.choices[:, ChoiceColumn.SOURCE]
        with_f = sources != int(Source.NONE)
        crossed = torch.tensor([crossover != "none" for crossover in self.crossovers])
        with_cr = crossed[self.choices[:, ChoiceColumn.STRATEGY].long()]
        values = {
            "generation": float(self.generation),
            "best_fitness": float(survivors.min()),
            "mean_fitness": _mean(survivors),
            "best_parent_fitness": float(self.parent_fitness.min()),
            "mean_parent_fitness": _mean(self.parent_fitness),
            "non_finite": float((~self.trial_fitness.isfinite()).sum()),
            "success_rate": _mean(self.accepted.double()),
            "mean_improvement": _mean(self.improvement[self.accepted]),
            "f": _mean(self.parameters[with_f, ParameterColumn.F]),
            "cr": _mean(self.parameters[with_cr, ParameterColumn.CR]),
            "frequency": _mean(
                self.parameters[sources == int(Source.SINUSOID_2), ParameterColumn.FREQUENCY]
            ),
        }
        for source in (Source.SINUSOID_1, Source.SINUSOID_2, Source.MEMORY):
            chosen = sources == int(source)
            name = source.name.lower()
            values[f"{name}/trials"] = float(chosen.sum())
            values[f"{name}/successes"] = float((chosen & self.accepted).sum())
        for k, name in enumerate(self.strategies):
            chosen = self.choices[:, ChoiceColumn.STRATEGY] == k
            won = chosen & self.accepted
            values[f"strategy/{name}/trials"] = float(chosen.sum())
            values[f"strategy/{name}/successes"] = float(won.sum())
            values[f"strategy/{name}/mean_improvement"] = _mean(self.improvement[won])
            values[f"strategy/{name}/odds"] = self.odds[name]
        return values

    def trials(self) -> Iterator[dict[str, Any]]:
        """Yields a record for each member: what its trial was made of and what became of it."""
        table = zip(
            self.members.tolist(), self.choices.tolist(), self.parameters.tolist(), strict=True
        )
        for i, (member, choice, parameters) in enumerate(table):
            terms = choice[ChoiceColumn.TERMS]
            rows = choice[ChoiceColumn.ROWS : ChoiceColumn.ROWS + terms]
            yield {
                "generation": self.generation,
                "member": member,
                "strategy": self.strategies[choice[ChoiceColumn.STRATEGY]],
                "f_source": Source(choice[ChoiceColumn.SOURCE]).name.lower(),
                "f": parameters[ParameterColumn.F],
                "cr": parameters[ParameterColumn.CR],
                "frequency": parameters[ParameterColumn.FREQUENCY],
                "base": choice[ChoiceColumn.BASE_ROW],
                "parents": " ".join(str(row) for row in rows),
                "parent_fitness": float(self.parent_fitness[i]),
                "trial_fitness": float(self.trial_fitness[i]),
                "improvement": float(self.improvement[i]),
                "accepted": int(self.accepted[i]),
            }


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


def diversity(rows: torch.Tensor, members: torch.Tensor) -> float:
    """Returns the root mean square Euclidean distance of two of these n of [NP, D] rows.

    It is sqrt(2 n/(n-1) * mean_i |x_i - mean|^2), by one pass over the weights, in column chunks
    with float64 sums.
    """
    size, columns = members.numel(), rows.shape[1]
    everyone = size == rows.shape[0]
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    for start in range(0, columns, 1 << 18):
        chunk = rows[:, start : start + (1 << 18)]
        chunk = (chunk if everyone else chunk[members]).float()
        total += (chunk - chunk.mean(dim=0)).square_().sum(dtype=torch.float64)
    return math.sqrt(2.0 * float(total) / (size - 1))
