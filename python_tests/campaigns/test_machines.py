"""Calls in any order: hypothesis looks for a sequence after which something is not what it was.

One machine asks, tells, saves, loads and misuses an optimizer; the other begins, kills, tears,
edits and resumes a run folder. Whatever it was, each comes to the generations of a plain run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import deevo_ext as deevo
from campaigns.outcomes import FULL
from deevo_ext.runs import journal
from support.evolution import population, sphere

GENERATIONS = 7
WRONG: list[Any] = [[], [1.0], ["a"] * 8, [None] * 8, None, [[1.0]] * 8, [1j] * 8, "abcdefgh"]
counts: Counter[str] = Counter()


def run_machine(machine: type[RuleBasedStateMachine], examples: int) -> None:
    counts.clear()
    chosen = settings(
        max_examples=examples if FULL else examples // 25,
        stateful_step_count=14,
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
    calls = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    size = "full" if FULL else "small"
    print(f"\n{machine.__name__} ({size}): {sum(counts.values()):,} calls: {calls}")


def refused(call: Any) -> None:
    """Makes a call that has to be refused."""
    counts["refusals"] += 1
    try:
        call()
    except deevo.DeevoError:
        return
    raise AssertionError("it was taken")


class Optimizers(RuleBasedStateMachine):
    """An optimizer whose population is always that of a plain run."""

    rows: ClassVar[list[torch.Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.de, self.done, self.sound = self.new(), 0, True
        self.kept: tuple[dict[str, Any], int] = (copy.deepcopy(self.de.state_dict()), 0)
        if not self.rows:
            plain = self.new()
            for _ in range(GENERATIONS + 1):
                self.rows.append(plain.population.rows.clone())
                plain.tell(self.scores(plain.ask()))

    @staticmethod
    def new() -> deevo.DifferentialEvolution:
        return deevo.DifferentialEvolution(population(), seed=1, generations=20)

    @staticmethod
    def scores(trials: deevo.Trials) -> list[float]:
        return [sphere(row) for row in trials.rows(range(8))]

    @precondition(lambda self: self.sound and self.done < GENERATIONS)
    @rule(chunk=st.integers(1, 9))
    def tell(self, chunk: int) -> None:
        counts["generations"] += 1
        scores = torch.empty(8, dtype=torch.float64)
        for members, rows in self.de.ask().chunks(chunk):
            scores[members] = torch.tensor([sphere(row) for row in rows], dtype=torch.float64)
        self.de.tell(scores)
        self.done += 1

    @precondition(lambda self: self.sound)
    @rule(members=st.lists(st.integers(0, 7), max_size=3))
    def look(self, members: list[int]) -> None:
        counts["looks"] += 1
        self.de.ask().rows(members)

    @precondition(lambda self: self.sound)
    @rule(fitness=st.sampled_from(WRONG))
    def tell_wrongly(self, fitness: Any) -> None:
        self.de.ask()
        refused(lambda: self.de.tell(fitness))

    @precondition(lambda self: self.sound)
    @rule()
    def tell_twice(self) -> None:
        trials = self.de.ask()
        self.de.ask()
        refused(lambda: trials.rows([0]))

    @precondition(lambda self: self.sound)
    @rule(factor=st.sampled_from([0.0, 2.0]))
    def write(self, factor: float) -> None:
        rows = self.de.ask().rows([1, 2])
        rows.mul_(factor)
        refused(lambda: self.de.tell([1.0] * 8))

    @precondition(lambda self: self.sound and self.done > 0)
    @rule(owner=st.sampled_from(["_adaptation.tell", "_source.commit"]))
    def interrupt(self, owner: str) -> None:
        part, name = owner.split(".")
        scores = self.scores(self.de.ask())

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        setattr(getattr(self.de, part), name, stop)
        with contextlib.suppress(KeyboardInterrupt):
            self.de.tell(scores)
        delattr(getattr(self.de, part), name)
        counts["interruptions"] += 1
        self.sound = False
        for call in (self.de.ask, self.de.state_dict, lambda: self.de.tell(scores)):
            refused(call)

    @precondition(lambda self: self.sound)
    @rule(through_file=st.booleans())
    def save(self, through_file: bool) -> None:
        counts["saves"] += 1
        state = copy.deepcopy(self.de.state_dict())
        if through_file:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        self.kept = (state, self.done)

    @rule(fresh=st.booleans())
    def load(self, fresh: bool) -> None:
        counts["loads"] += 1
        if fresh:
            self.de = self.new()
        self.de.load_state_dict(copy.deepcopy(self.kept[0]))
        self.done, self.sound = self.kept[1], True

    @rule(data=st.data())
    def load_wrongly(self, data: st.DataObject) -> None:
        state = copy.deepcopy(self.kept[0])
        name = data.draw(st.sampled_from(sorted(state)))
        state[name] = data.draw(st.sampled_from([None, 3, "x", torch.zeros(2), {}]))
        refused(lambda: self.de.load_state_dict(state))

    @invariant()
    def rows_are_those_of_a_plain_run(self) -> None:
        if self.sound:
            assert torch.equal(self.de.population.rows, self.rows[self.done])


class Killed(BaseException):
    pass


class RunFolders(RuleBasedStateMachine):
    """A run folder whose journal is always that of a straight run, as far as it goes."""

    straight: ClassVar[list[str]] = []
    digest: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="deevo-machine-"))
        self.folder = self.place / "run"

    @initialize()
    def run_straight(self) -> None:
        if not self.straight:
            other = self.place / "straight"
            type(self).digest = self.start(other).run().digest
            self.straight.extend(self.lines(other))
            shutil.rmtree(other)

    def teardown(self) -> None:
        shutil.rmtree(self.place)

    @staticmethod
    def lines(folder: Path) -> list[str]:
        """The journal's records, without what differs from run to run."""
        path = folder / journal.FILE_NAME
        whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        kept = [json.loads(line) for line in whole[1:]]
        return [repr({k: v for k, v in r.items() if k not in ("seconds", "check")}) for r in kept]

    def start(self, folder: Path, seed: int = 1, stop: int = -1) -> deevo.Evolution:
        """A run that is killed after `stop` generations, as seen from its callbacks."""

        def callback(metrics: dict[str, float]) -> None:
            if metrics["generation"] == stop:
                raise Killed

        de = deevo.DifferentialEvolution(population(), generations=4, seed=seed)
        return deevo.Evolution(de, sphere, run_dir=folder, progress=False, callbacks=[callback])

    @property
    def path(self) -> Path:
        return self.folder / journal.FILE_NAME

    @rule(stop=st.integers(1, 4))
    def run_and_kill(self, stop: int) -> None:
        counts["killed runs"] += 1
        with contextlib.suppress(Killed):
            self.start(self.folder, stop=stop).run()

    @rule()
    def run_to_the_end(self) -> None:
        counts["whole runs"] += 1
        assert self.start(self.folder).run().digest == self.digest
        assert self.lines(self.folder) == self.straight

    @precondition(lambda self: self.path.exists())
    @rule(share=st.floats(0, 1))
    def tear(self, share: float) -> None:
        """Cuts the last line, as a power cut does."""
        counts["torn lines"] += 1
        data = self.path.read_bytes()
        last = data.rstrip(b"\n").rfind(b"\n") + 1
        if last:
            self.path.write_bytes(data[: last + int(share * (len(data) - last))])

    @precondition(lambda self: self.lines(self.folder))
    @rule(share=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
    def edit(self, share: float, bits: int) -> None:
        """Changes one byte of a whole line, which nothing takes, and puts it back."""
        before = self.path.read_bytes()
        at = int(share * before.rfind(b"\n"))  # seconds make its length differ from run to run
        self.path.write_bytes(before[:at] + bytes([before[at] ^ bits]) + before[at + 1 :])
        refused(lambda: self.start(self.folder).run())
        refused(lambda: deevo.replay(self.folder))
        self.path.write_bytes(before)

    @precondition(lambda self: self.lines(self.folder))
    @rule()
    def run_another(self) -> None:
        refused(lambda: self.start(self.folder, seed=2).run())

    @precondition(lambda self: len(self.lines(self.folder)) > 1)
    @rule()
    def replay(self) -> None:
        counts["replays"] += 1
        deevo.replay(self.folder)

    @rule(name=st.sampled_from(["evolved.safetensors", "metrics.csv", ".metrics.x1.partial"]))
    def lose_or_leave_a_file(self, name: str) -> None:
        counts["files lost or left"] += 1
        if (self.folder / name).exists():
            (self.folder / name).unlink()
        elif self.folder.exists():
            (self.folder / name).write_bytes(b"left")

    @invariant()
    def the_journal_is_the_beginning_of_a_straight_one(self) -> None:
        found = self.lines(self.folder)
        assert found == self.straight[: len(found)]


def test_optimizers_in_any_order() -> None:
    run_machine(Optimizers, 400)


def test_run_folders_in_any_order() -> None:
    run_machine(RunFolders, 300)
