"""`torch.ops.deevo.tell`: what a generation's fitness values teach."""

from __future__ import annotations

import torch

from deevo_ext.ops.checks import Checker
from deevo_ext.ops.library import register
from deevo_ext.ops.tables import NUM_PARAMETER_COLUMNS


def check(
    settings: torch.Tensor,
    strategies: torch.Tensor,
    trial_fitness: torch.Tensor,
    choices: torch.Tensor,
    parameters: torch.Tensor,
    seed: int,
    state: torch.Tensor,
    fitness: torch.Tensor,
    alive: torch.Tensor,
    generation: torch.Tensor,
    accepted: torch.Tensor,
    archive_slot: torch.Tensor,
) -> None:
    """Updates state, fitness, alive and generation in place; fills accepted and archive_slot.

    trial_fitness float64 [NP], minimised; accepted uint8 [NP]; archive_slot int32 [NP]; the rest
    as in `deevo_ext.ops.tables`. Raises DeevoError naming the argument at fault.
    """
    c = Checker("tell", fitness.device)
    c.configuration(settings, strategies, state)
    c.tensor("fitness", fitness, torch.float64, None)
    members = fitness.numel()
    c.tensor("trial_fitness", trial_fitness, torch.float64, members)
    c.plan(members, choices, None)
    c.tensor("parameters", parameters, torch.float64, members, NUM_PARAMETER_COLUMNS)
    c.seed(seed)
    c.tensor("alive", alive, torch.uint8, members)
    c.tensor("generation", generation, torch.int64, 1)
    c.tensor("accepted", accepted, torch.uint8, members)
    c.tensor("archive_slot", archive_slot, torch.int32, members)


register(
    "tell",
    check,
    mutated=("state", "fitness", "alive", "generation", "accepted", "archive_slot"),
)
