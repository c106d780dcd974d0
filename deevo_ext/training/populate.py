"""A population from one network: fine-tunings with distinct hyper-parameters, or snapshots."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deevo_ext.data.labelled import LabelledImages
from deevo_ext.data.locked import locked
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.networks.execution.modules import copy_of
from deevo_ext.population.finding import sha256
from deevo_ext.population.saving import writable
from deevo_ext.training.fine_tune import State, fine_tune
from deevo_ext.training.hyper_parameters import HyperParameters
from deevo_ext.training.trainings import Trainings

TABLE = "hyper_parameters.csv"
RECORD = "population.json"
"""The file beside the checkpoints that says how they were made."""
_FORMAT = 3
_SNAPSHOTS = "snapshots"  # what the training is called that all of them are taken from

Progress = Callable[[str, int, int], None]
"""Called after every step with what is trained, steps done and steps in all, kept ones included."""


def populate(
    network: nn.Module,
    images: LabelledImages,
    trainings: Trainings,
    folder: str | Path,
    *,
    origin: Mapping[str, object],
    save_every: float = 60.0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the members' `.safetensors` files into `folder`; returns their paths, in order.

    network: what all start from, float32, on the device that trains; it is not changed. images:
    what they learn from. origin: plain values that say where network and images come from; a folder
    is continued only where they are the same. save_every: seconds between states of the training in
    progress: killed at any moment, at most so much is lost, and members that are done are kept. On
    the CPU of one machine the result is that of an uninterrupted run, bit for bit. workers: as in
    `fine_tune`.

    population.json records hyper-parameters and digests; hyper_parameters.csv is a table of them.

    Raises DeevoError: the network cannot be copied; the folder holds another population, cannot be
    written or locked; a loss that is not finite.
    """
    start, device = copy_of(network), next(network.parameters()).device
    base, folder = trainings.base, Path(folder)
    with _alone(folder):
        members = MembersFolder(
            folder,
            {
                "format": _FORMAT,
                **origin,
                "images": len(images),
                "images_sha256": images.digest(),
                "base": None if base is None else dataclasses.asdict(base),
                "made_with": {"torch": torch.__version__, "device": device.type},
            },
        )
        members.require_made_by(_values(trainings))
        trainer = _Trainer(members, images, trainings, save_every, workers, progress)
        trainer.require_same_states()
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(trainings.table())
        write_whole(folder / TABLE, table.getvalue().encode())
        if base is not None:
            trainer.train_missing("base", start, base)
            start.load_state_dict(load_file(members.path("base"), str(device)))
        if trainings.snapshots:
            trainer.take_snapshots(start)
        else:
            for name, hyper in trainings.members.items():
                trainer.train_missing(name, copy.deepcopy(start), hyper)
        return [members.path(name) for name in trainings.members]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps it for this process alone; waits for another that does."""
    lock = folder / ".lock"
    with locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@dataclasses.dataclass
class _Trainer:
    """Trains one network after the other and reports on all of them together."""

    folder: MembersFolder
    images: LabelledImages
    trainings: Trainings
    save_every: float
    workers: int | None
    progress: Progress | None
    done: int = 0

    def require_same_states(self) -> None:
        """Raises DeevoError where a training in progress has other hyper-parameters."""
        trained = {} if self.trainings.base is None else {"base": self.trainings.base}
        if self.trainings.snapshots:
            trained[_SNAPSHOTS] = self._of_snapshots()
        else:
            trained |= self.trainings.members
        for name, hyper in trained.items():
            self._state(name, hyper).require_same()

    def train_missing(self, name: str, network: nn.Module, hyper: HyperParameters) -> None:
        """Trains one network in place and writes its file, unless that is there."""
        if not self.folder.has(name):
            state = self._train(name, network, hyper)
            self.folder.save(name, dataclasses.asdict(hyper), _finite(name, network))
            state.remove()
        self.done += hyper.steps

    def _of_snapshots(self) -> HyperParameters:
        return next(iter(self.trainings.members.values()))

    def take_snapshots(self, network: nn.Module) -> None:
        """Takes all members from one training, each when its step comes."""
        names = dict(zip(self.trainings.snapshots, self.trainings.members, strict=True))
        values = _values(self.trainings)
        if all(map(self.folder.has, names.values())):
            return

        def take(step: int) -> None:
            # From an earlier state on, training passes snapshots that are there: the same bits.
            name = names.get(step)
            if name is not None and not self.folder.has(name):
                self.folder.save(name, values[name], _finite(name, network))

        self._train(_SNAPSHOTS, network, self._of_snapshots(), take).remove()

    def _state(self, name: str, hyper: HyperParameters) -> State:
        values = dataclasses.asdict(hyper)
        if name == _SNAPSHOTS:
            values["taken_at_steps"] = list(self.trainings.snapshots)
        return State(self.folder.path(name).with_suffix(".state"), self.save_every, values)

    def _train(
        self,
        name: str,
        network: nn.Module,
        hyper: HyperParameters,
        take: Callable[[int], None] | None = None,
    ) -> State:
        def on_step(step: int) -> None:
            if self.progress is not None:
                self.progress(name, self.done + step, self.trainings.steps)
            if take is not None:
                take(step)

        state = self._state(name, hyper)
        fine_tune(network, self.images, hyper, state=state, on_step=on_step, workers=self.workers)
        return state


def _values(trainings: Trainings) -> dict[str, dict[str, Any]]:
    """The hyper-parameters of each file, as the record has them."""
    base = {} if trainings.base is None else {"base": dataclasses.asdict(trainings.base)}
    members = {name: dataclasses.asdict(hyper) for name, hyper in trainings.members.items()}
    for values, step in zip(members.values(), trainings.snapshots, strict=False):
        values["taken_at_step"] = step
    return base | members


def _finite(name: str, network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DeevoError(
                f"{name}: {key} is not finite after training; choose a lower --learning-rate"
            )
    return state


class MembersFolder:
    """A folder of checkpoints, and the record of the hyper-parameters that made each.

    description: plain values that must agree before a file is reused; "made_with" is for the reader
    alone.

    Raises DeevoError: the folder, which is there, holds something else.
    """

    def __init__(self, folder: Path, description: dict[str, object]) -> None:
        self._folder = folder
        self._record: dict = {**description, "files": {}}
        record = folder / RECORD
        if record.exists():
            self._record = self._continued(record, description)
        elif strangers := sorted(path.name for path in folder.glob("*.safetensors")):
            raise DeevoError(
                f"{folder}: holds {strangers[0]} but no {RECORD}; choose another folder"
            )
        else:  # before any checkpoint, so that a kill leaves no strangers
            self._write()

    def _continued(self, record: Path, description: dict[str, object]) -> dict:
        try:
            saved = dict(json.loads(record.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DeevoError(f"{record}: not a population's record ({error})") from error
        for key, value in description.items():
            if key != "made_with" and saved.get(key) != value:
                raise DeevoError(
                    f"{record}: of another population ({key} is {saved.get(key)}, not {value}); "
                    "choose another folder or delete this one"
                )
        files = saved.get("files")
        if not isinstance(files, dict) or not all(
            isinstance(entry, dict) and {"hyper_parameters", "sha256"} <= entry.keys()
            for entry in files.values()
        ):
            raise DeevoError(f"{record}: not a population's record")
        return {**saved, "made_with": description["made_with"]}

    def path(self, name: str) -> Path:
        """Returns the path of a network's file."""
        return self._folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Returns whether the file is recorded and whole."""
        entry, path = self._record["files"].get(name), self.path(name)
        return entry is not None and path.is_file() and sha256(path) == entry["sha256"]

    def require_made_by(self, hyper_parameters: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises DeevoError where the folder has files that others than these made.

        hyper_parameters: of each file, by its name; further members would be taken in by a glob.
        """
        for name, entry in self._record["files"].items():
            path, values = self.path(name), hyper_parameters.get(name)
            if values is None:
                raise DeevoError(
                    f"members is {len(hyper_parameters.keys() - {'base'})}, but {self._folder} "
                    f"holds {name} already; give at least as many as there are, or choose another "
                    "folder"
                )
            if path.is_file() and entry["hyper_parameters"] != json.loads(json.dumps(values)):
                raise DeevoError(
                    f"{path}: made by other hyper-parameters, {entry['hyper_parameters']}; choose "
                    "another folder"
                )

    def save(
        self, name: str, hyper_parameters: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> None:
        """Writes the file first, then its entry, so that an entry speaks of a file that exists."""
        tensors = writable({key: value.cpu() for key, value in state.items()})
        metadata = {"format": "pt"}
        if names := self._record.get("class_names"):
            metadata["class_names"] = json.dumps(names)
        content = save(tensors, metadata)
        write_whole(self.path(name), content)
        self._record["files"][name] = {
            "hyper_parameters": dict(hyper_parameters),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        self._write()

    def _write(self) -> None:
        write_whole(self._folder / RECORD, json.dumps(self._record, indent=1).encode())
