"""commit: the accepted trials, in place, as if all had been made before the first write."""

from __future__ import annotations

import random

import pytest
import torch

from deevo_ext import backends
from deevo_ext.errors import DeevoError
from deevo_ext.ops.tables import ChoiceColumn
from support.operators import (
    BIG_SEED,
    GENERATION,
    NATIVE_BACKENDS,
    configurations,
    evolution,
    in_reach,
    instruction_set,
    instruction_sets,
    num_threads,
    same_bits,
    serving,
)
from support.weights import BROKEN_CHOICES, Weights, random_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETS = instruction_sets()

SERVING = serving("trials", "commit")


def outcome(w: Weights, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random accepted members, most of them with an archive slot of their own."""
    source = random.Random(draw)
    members, slots = w.population.shape[0], list(range(w.archive.shape[0]))
    source.shuffle(slots)
    accepted = [int(source.random() < 0.7) for _ in range(members)]
    kept = [slots.pop() if slots and source.random() < 0.8 else -1 for _ in accepted]
    return (
        torch.tensor(accepted, dtype=torch.uint8),
        torch.tensor(kept, dtype=torch.int32),
    )


def expected(
    w: Weights, accepted: torch.Tensor, archive_slot: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Population and archive from trials made beforehand."""
    population, archive, trials = w.population.clone(), w.archive.clone(), w.trials()
    for member, taken in enumerate(accepted.tolist()):
        if taken:
            population[member] = trials[member]
            if archive_slot[member] >= 0:
                archive[archive_slot[member]] = w.population[member]
    return population, archive


def assert_commits(w: Weights, draw: int = 0) -> None:
    accepted, slots = outcome(w, draw)
    population, archive = expected(w, accepted, slots)
    w.commit(accepted, slots)
    assert same_bits(w.population, population)
    assert same_bits(w.archive, archive)


@pytest.mark.parametrize("dtype", DTYPES)
def test_commit_is_trials_written_over_the_parents(backend: str, dtype: torch.dtype) -> None:
    for draw, columns in enumerate((1, 3, 127, 129, 4097)):
        assert_commits(random_weights(7, columns, dtype, 4, BIG_SEED, draw=draw), draw)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_size_threads_and_instruction_set(dtype: torch.dtype, name: str, threads: int) -> None:
    with instruction_set(name), num_threads(threads):
        for members, columns in ((4, 2**16 - 1), (9, 2**16 + 1), (64, 3001), (200, 1500)):
            w = random_weights(members, columns, dtype, members // 2, draw=members)
            w.nonneg_start = columns - columns // 3 | 1
            assert_commits(w, members)


@pytest.mark.parametrize("columns", [129, 2**16 + 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype: torch.dtype, columns: int) -> None:
    for draw in range(3):
        cpu = random_weights(6, columns, dtype, 3, draw=draw)
        reference = cpu.clone()
        accepted, slots = outcome(cpu, draw)
        cpu.commit(accepted, slots)
        with backends.use("reference"):
            reference.commit(accepted, slots)
        assert same_bits(cpu.population, reference.population)
        assert same_bits(cpu.archive, reference.archive)


def copying(members: int, columns: int, archive_rows: int, bases: list[int]) -> Weights:
    """Every trial is a plain copy of another row."""
    w = random_weights(members, columns, archive_rows=archive_rows, nonneg=0)
    w.choices.zero_()
    w.choices[:, ChoiceColumn.THRESHOLD] = 65536
    w.choices[:, ChoiceColumn.BASE_ROW] = torch.tensor(bases)
    return w


@pytest.mark.parametrize("columns", [5, 70001])
def test_members_that_refer_to_each_other(backend: str, columns: int) -> None:
    """A cycle: writing one before the other is read would lose a row."""
    w = copying(4, in_reach(backend, columns), 0, [1, 2, 3, 0])
    before = w.population.clone()
    w.commit(torch.ones(4, dtype=torch.uint8), torch.full((4,), -1, dtype=torch.int32))
    assert same_bits(w.population, before.roll(-1, dims=0))


@pytest.mark.parametrize("columns", [5, 70001])
def test_archive_rows_read_and_written_at_once(backend: str, columns: int) -> None:
    """Members and archive change places."""
    w = copying(3, in_reach(backend, columns), 3, [3, 4, 5])
    population, archive = w.population.clone(), w.archive.clone()
    w.commit(torch.ones(3, dtype=torch.uint8), torch.tensor([1, 2, 0], dtype=torch.int32))
    assert same_bits(w.population, archive)
    assert same_bits(w.archive, population[[2, 0, 1]])


def test_rejected_members_and_their_slots_do_not_move(backend: str) -> None:
    w = copying(4, 100, 2, [1, 2, 3, 0])
    before = w.clone()
    none = torch.zeros(4, dtype=torch.uint8)
    w.commit(none, torch.tensor([0, 0, 9, -5], dtype=torch.int32))  # slots of rejected: unread
    assert same_bits(w.population, before.population)
    assert same_bits(w.archive, before.archive)
    none[2] = 1
    w.commit(none, torch.full((4,), -1, dtype=torch.int32))
    assert same_bits(w.population[[0, 1, 3]], before.population[[0, 1, 3]])
    assert same_bits(w.population[2], before.population[3])
    assert same_bits(w.archive, before.archive)


@pytest.mark.parametrize("offset", [1, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_leave_their_surroundings_alone(dtype: torch.dtype, offset: int) -> None:
    columns = 4099
    plain = random_weights(6, columns, dtype, 3, draw=2)
    buffer = torch.full((6, columns + 40), 77.0, dtype=dtype)
    archive_buffer = torch.full((3, columns + 21), 77.0, dtype=dtype)
    inside = plain.clone()
    inside.population = buffer[:, offset : offset + columns]
    inside.population.copy_(plain.population)
    inside.archive = archive_buffer[:, 3 : 3 + columns]
    inside.archive.copy_(plain.archive)
    accepted, slots = outcome(plain, 5)
    plain.commit(accepted, slots)
    inside.commit(accepted, slots)
    assert same_bits(inside.population, plain.population)
    assert same_bits(inside.archive, plain.archive)
    for whole, part in ((buffer, inside.population), (archive_buffer, inside.archive)):
        part.fill_(77.0)
        assert (whole == 77.0).all()


def test_slices_of_columns_make_the_whole(backend: str) -> None:
    """Any split of the columns at multiples of 8 gives the same next population."""
    whole = random_weights(6, 1000, archive_rows=3, draw=3)
    parts = whole.clone()
    accepted, slots = outcome(whole, 3)
    whole.commit(accepted, slots)
    population, archive, start = parts.population, parts.archive, parts.nonneg_start
    for first, end in ((504, 1000), (0, 64), (64, 504)):
        parts.population, parts.archive = population[:, first:end], archive[:, first:end]
        parts.nonneg_start, parts.first_weight = max(start - first, 0), first
        parts.commit(accepted, slots)
    assert same_bits(population, whole.population)
    assert same_bits(archive, whole.archive)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", configurations())
def test_whole_generations_agree(name: str, dtype: torch.dtype) -> None:
    """plan, trials, tell, commit on every backend; the fitness is a function of the trial."""
    c = configurations()[name]
    members, columns = 8, 200
    source = torch.Generator().manual_seed(4)
    rows = torch.randn(members, columns, generator=source).to(dtype)
    runs = []
    for backend_name in serving(*GENERATION, among=NATIVE_BACKENDS):
        with backends.use(backend_name):
            population = rows.clone()
            archive = torch.zeros(c.archive_size, columns, dtype=dtype)
            run = evolution(c, population.double().square().sum(1), seed=BIG_SEED)
            first = run.fitness.min().item()
            for _ in range(25):
                run.plan()
                w = Weights(population, archive, run.choices, run.coefficients, BIG_SEED, columns)
                run.tell(w.trials().double().square().sum(1))
                w.commit(run.accepted, run.archive_slot)
                alive = run.alive.bool()
                assert torch.equal(run.fitness[alive], population.double().square().sum(1)[alive])
            assert run.fitness.min().item() < first
            runs.append((run, population, archive))
    for run, population, archive in runs[1:]:
        runs[0][0].assert_same(run)
        assert same_bits(population, runs[0][1])
        assert same_bits(archive, runs[0][2])


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([0, 2, -1, -1], "archive_slot names a row that does not exist"),
        ([0, 1, 1, -1], "archive_slot names a row twice"),
    ],
)
def test_bad_slots_are_refused(backend: str, slots: list[int], message: str) -> None:
    w = random_weights(4, 16, archive_rows=2)
    before = w.clone()
    with pytest.raises(DeevoError, match=f"deevo::commit: {message}"):
        w.commit(torch.ones(4, dtype=torch.uint8), torch.tensor(slots, dtype=torch.int32))
    assert same_bits(w.population, before.population)
    assert same_bits(w.archive, before.archive)


@pytest.mark.parametrize(("column", "value", "message"), BROKEN_CHOICES)
def test_broken_choices_are_refused(backend: str, column: int, value: int, message: str) -> None:
    w = random_weights(6, 16)
    w.choices[:, ChoiceColumn.TERMS] = 5
    w.choices[4, column] = value
    before, slots = w.clone(), torch.full((6,), -1, dtype=torch.int32)
    with pytest.raises(DeevoError, match=f"deevo::commit: {message}"):
        w.commit(torch.ones(6, dtype=torch.uint8), slots)
    assert same_bits(w.population, before.population)
    assert same_bits(w.archive, before.archive)
