"""fold_trials: what fold makes of stored trials, bit for bit, with no trial stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from support import cuda_on_host
from support.folding import DTYPES, Problem, varied
from support.operators import OPERATORS, Weights, num_threads, random_weights, same_bits

# test_triton_evaluation.py compares Triton's kernels, which the interpreter runs slowly.
BACKENDS = ("reference", "cpu", cuda_on_host.NAME)


def weights_and_problem(
    dtype: torch.dtype, members: list[int], **more: Any
) -> tuple[Weights, Problem, torch.Tensor]:
    """Rows as long as the entries need; the trials' statistics; which members."""
    p = varied().problem(members=len(members))
    w = random_weights(5, p.rows.shape[1], dtype, **more)
    return w, p, torch.tensor(members)


def fold_trials(
    w: Weights, p: Problem, members: torch.Tensor, target: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    _, *others, weights, vectors = p.arguments(target)
    # Trials' arguments without first_weight and out.
    trials = w.trials_arguments(members, torch.empty(0))[:-1]
    trials = (*trials[:9], *trials[10:])
    OPERATORS.fold_trials(*trials, *others, weights, vectors)
    return weights, vectors


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_is_fold_of_trials(source: torch.dtype, target: torch.dtype) -> None:
    w, p, members = weights_and_problem(source, [4, 0, 4, 2])
    with backends.use("reference"):
        p.rows = w.trials(members)
        expected = p.fold(target)
    for backend, threads in (*((name, 1) for name in BACKENDS), ("cpu", 3)):
        with backends.use(backend), num_threads(threads):
            for found, wanted in zip(fold_trials(w, p, members, target), expected, strict=True):
                assert same_bits(found, wanted)


@pytest.mark.parametrize(
    "more", [{"genes": 97}, {"forced": True}, {"bounds": (-0.5, 0.25)}, {"nonneg": 0}]
)
def test_all_kinds_of_crossover_and_limits(more: dict[str, Any]) -> None:
    w, p, members = weights_and_problem(torch.float32, [3, 1], **more)
    with backends.use("reference"):
        p.rows = w.trials(members)
        expected = p.fold(torch.float16)
    for backend in BACKENDS:
        with backends.use(backend):
            found = fold_trials(w, p, members, torch.float16)
        for ours, wanted in zip(found, expected, strict=True):
            assert same_bits(ours, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_members_at_all(backend: str) -> None:
    w, p, members = weights_and_problem(torch.float32, [])
    with backends.use(backend):
        weights, vectors = fold_trials(w, p, members.long(), torch.float16)
    assert weights.shape[0] == vectors.shape[0] == 0


@pytest.mark.parametrize(
    "check",
    ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"],
)
def test_opcheck(check: str) -> None:
    w, p, members = weights_and_problem(torch.float32, [4, 0])
    arguments = (*w.trials_arguments(members, torch.empty(0))[:-1], *p.arguments(torch.float16)[1:])
    arguments = (*arguments[:9], *arguments[10:])
    torch.library.opcheck(OPERATORS.fold_trials.default, arguments, test_utils=check)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_plans_and_tables_are_refused(backend: str) -> None:
    w, p, members = weights_and_problem(torch.float32, [1, 7])
    with backends.use(backend), pytest.raises(DeevoError, match="members name a row"):
        fold_trials(w, p, members, torch.float32)
    w, p, members = weights_and_problem(torch.float32, [1, 2])
    w.population, w.archive = w.population[:, :-64], w.archive[:, :-64]
    with backends.use(backend), pytest.raises(DeevoError, match="ends beyond its operand"):
        fold_trials(w, p, members, torch.float32)
    w, p, members = weights_and_problem(torch.float32, [1, 2])
    with backends.use(backend), pytest.raises(DeevoError, match="statistics is of shape"):
        fold_trials(w, p, members[:1], torch.float32)
