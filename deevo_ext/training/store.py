"""The folder of a population: whole checkpoints, each with the hyper-parameters that made it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole

RECORD = "population.json"
"""Name of the file beside the checkpoints that says how they were made."""


class Store:
    """A folder of checkpoints, and the record of how each was made.

    description: what must agree before a file is reused, as plain values; "made_with" is for the
    reader alone.

    Raises DeevoError: the folder cannot be made, or holds something else.
    """

    def __init__(self, folder: Path, description: dict[str, object]) -> None:
        self._folder = folder
        self._record: dict = {**description, "files": {}}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DeevoError(f"{folder}: cannot be made ({error})") from error
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
            found = dict(json.loads(record.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DeevoError(f"{record}: not a population's record ({error})") from error
        for key, value in description.items():
            if key != "made_with" and found.get(key) != value:
                raise DeevoError(
                    f"{record}: of another population ({key} is {found.get(key)}, not {value}); "
                    "choose another folder or delete this one"
                )
        files = found.get("files")
        if not isinstance(files, dict) or not all(
            isinstance(entry, dict) and {"hyper_parameters", "sha256"} <= entry.keys()
            for entry in files.values()
        ):
            raise DeevoError(f"{record}: not a population's record")
        return {**found, "made_with": description["made_with"]}

    def path(self, name: str) -> Path:
        """Of a network's file."""
        return self._folder / f"{name}.safetensors"

    def has(self, name: str, hyper_parameters: Mapping[str, Any]) -> bool:
        """Whether the file is recorded, whole and made by these hyper-parameters."""
        entry, path = self._record["files"].get(name), self.path(name)
        if entry is None or not path.is_file():
            return False
        if entry["hyper_parameters"] != json.loads(json.dumps(hyper_parameters)):
            raise DeevoError(
                f"{path}: made by other hyper-parameters, {entry['hyper_parameters']}; choose "
                "another folder"
            )
        return hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]

    def save(
        self, name: str, hyper_parameters: Mapping[str, Any], state: Mapping[str, torch.Tensor]
    ) -> None:
        """The file first, then its entry: an entry always speaks of a file that exists."""
        tensors = {key: value.cpu().contiguous() for key, value in state.items()}
        content = save(tensors, {"format": "pt"})
        write_whole(self.path(name), content)
        self._record["files"][name] = {
            "hyper_parameters": dict(hyper_parameters),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        self._write()

    def _write(self) -> None:
        write_whole(self._folder / RECORD, json.dumps(self._record, indent=1).encode())
