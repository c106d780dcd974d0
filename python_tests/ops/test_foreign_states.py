"""What plan and tell refuse in choices, states and strategies that no run has made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn, StrategyColumn
from deevo_ext.search.presets import configure
from support.operators import NATIVE_BACKENDS, Evolution, evolution, serving
from support.told import PAPER

NAN = math.nan

SERVING = serving("plan", "tell", among=NATIVE_BACKENDS)


def broken(**changes: Any) -> Evolution:
    run = evolution(configure("paper", archive_size=2), torch.ones(4, dtype=torch.float64))
    run.plan()
    at = run.configuration.offsets()
    for name, value in changes.items():
        if name == "pointer":
            run.state[at.pointer] = value
        elif name == "count":
            run.state[at.archive_count] = value
        elif name == "generation":
            run.generation.fill_(value)
        else:
            run.choices[2, ChoiceColumn[name.upper()]] = value
    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": 2}, "choices are of another generation"),
        ({"generation": 0}, "generation is not in 1..2147483647"),
        ({"generation": -(2**40)}, "generation is not in 1..2147483647"),
        ({"strategy": 5}, "choices name a strategy that does not exist"),
        ({"strategy": -1}, "choices name a strategy that does not exist"),
        ({"pointer": 5.0}, "state holds a memory pointer that does not exist"),
        ({"pointer": NAN}, "state holds a memory pointer that does not exist"),
        ({"pointer": -1.0}, "state holds a memory pointer that does not exist"),
        ({"count": 3.0}, "state holds an archive count beyond the archive"),
        ({"count": -1.0}, "state holds an archive count beyond the archive"),
    ],
)
def test_foreign_plans_and_states_are_refused(
    backend: str, changes: dict[str, Any], message: str
) -> None:
    run = broken(**changes)
    before = run.clone()
    with pytest.raises(DeevoError, match=f"deevo::tell: {message}"):
        run.tell(torch.zeros(4, dtype=torch.float64))
    run.assert_same(before)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (StrategyColumn.NUM_TERMS, 6.0),
        (StrategyColumn.NUM_TERMS, -1.0),
        (StrategyColumn.BASE_TERM, 9.0),
        (StrategyColumn.TERM_CODES, -1.0),
        (StrategyColumn.TERM_CODES, 1e9),
        (StrategyColumn.TERM_CODES, NAN),
    ],
)
def test_plan_refuses_terms_that_do_not_exist(
    backend: str, column: StrategyColumn, value: float
) -> None:
    run = evolution(PAPER, torch.ones(4, dtype=torch.float64))
    run.strategies[4, column] = value
    before = run.clone()
    with pytest.raises(DeevoError, match="deevo::plan: strategies hold a term that does not exist"):
        run.plan()
    run.assert_same(before)
    run = evolution(PAPER, torch.ones(4, dtype=torch.float64), generation=0)
    with pytest.raises(DeevoError, match="deevo::plan: generation is not in"):
        run.plan()
