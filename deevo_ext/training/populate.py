"""A population from one network: fine-tunings with distinct hyper-parameters, or snapshots."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.training.fine_tune import State, fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters
from deevo_ext.training.plan import PopulationPlan
from deevo_ext.training.store import Store

TABLE = "hyper_parameters.csv"
_FORMAT = 3

Progress = Callable[[str, int, int], None]
"""Called after every step with what is trained, steps done and steps in all, kept ones included."""


def populate(
    network: nn.Module,
    images: LabelledImages,
    plan: PopulationPlan,
    folder: str | Path,
    *,
    origin: Mapping[str, object],
    save_every: float = 60.0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the members' `.safetensors` files into `folder`; their paths, in order.

    network: what all start from, float32, on the device that trains; it is not changed. images:
    what they learn from. origin: plain values that say where network and images come from; a folder
    is gone on with only where they are the same. save_every: seconds between states of the run in
    progress: killed at any moment, at most so much is lost, and members that are done are kept. On
    the CPU of one machine the result is that of an uninterrupted run, bit for bit. workers: see
    `fine_tune`.

    population.json records hyper-parameters and digests; hyper_parameters.csv is a table of them.

    Raises DeevoError: the folder holds another population, cannot be written; a loss that is not
    finite.
    """
    device = next(network.parameters()).device
    store = Store(
        Path(folder),
        {
            "format": _FORMAT,
            **origin,
            "images": len(images),
            "images_sha256": images.digest(),
            "base": None if plan.base is None else dataclasses.asdict(plan.base),
            "made_with": {"torch": torch.__version__, "device": device.type},
        },
    )
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(plan.table())
    write_whole(Path(folder) / TABLE, table.getvalue().encode())
    runner = _Runner(store, images, save_every, workers, progress)
    runner.total = plan.steps
    start = copy.deepcopy(network)
    if plan.base is not None:
        runner.train_missing("base", start, plan.base)
        start.load_state_dict(load_file(store.path("base"), str(device)))
    if plan.snapshots:
        runner.snapshots(start, plan)
    else:
        for name, hyper in plan.members.items():
            runner.train_missing(name, copy.deepcopy(start), hyper)
    return [store.path(name) for name in plan.members]


class _Runner:
    """Trains one network after the other and reports on all of them together."""

    def __init__(
        self,
        store: Store,
        images: LabelledImages,
        save_every: float,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        self.store, self.images, self.workers = store, images, workers
        self.save_every, self.progress = save_every, progress
        self.total = self.done = 0

    def train_missing(self, name: str, network: nn.Module, hyper: HyperParameters) -> None:
        """Trains one network in place and writes its file, unless that is there."""
        values = dataclasses.asdict(hyper)
        if not self.store.has(name, values):
            state = self._train(name, network, hyper)
            self.store.save(name, values, _finite(name, network))
            state.remove()
        self.done += hyper.steps

    def snapshots(self, network: nn.Module, plan: PopulationPlan) -> None:
        """All members from one run, each written when its step comes."""
        wanted = {
            step: (name, {**dataclasses.asdict(hyper), "taken_at_step": step})
            for (name, hyper), step in zip(plan.members.items(), plan.snapshots, strict=True)
        }
        if all(self.store.has(*snapshot) for snapshot in wanted.values()):
            return

        def take(step: int) -> None:
            # A run that goes on from an earlier state passes snapshots that are there: same bits.
            if step in wanted and not self.store.has(*wanted[step]):
                name, values = wanted[step]
                self.store.save(name, values, _finite(name, network))

        self._train("snapshots", network, next(iter(plan.members.values())), take).remove()

    def _train(
        self,
        name: str,
        network: nn.Module,
        hyper: HyperParameters,
        take: Callable[[int], None] | None = None,
    ) -> State:
        def on_step(step: int) -> None:
            if self.progress is not None:
                self.progress(name, self.done + step, self.total)
            if take is not None:
                take(step)

        state = State(self.store.path(name).with_suffix(".state"), self.save_every)
        fine_tune(network, self.images, hyper, state=state, on_step=on_step, workers=self.workers)
        return state


def _finite(name: str, network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DeevoError(
                f"{name}: {key} is not finite after training; choose a lower --learning-rate"
            )
    return state
