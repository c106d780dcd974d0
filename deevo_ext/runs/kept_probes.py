"""Probes of a round that takes long, kept on the disk until the round is recorded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deevo_ext.distributed.ranks import ranks
from deevo_ext.distributed.slices import Slices
from deevo_ext.files import write_whole

FOLDER = "probes"
LONG_SECONDS = 600.0
"""Rounds whose probes would take longer keep them."""


class KeptProbes:
    """Gives the columns of some of a round's probes: those kept of an earlier start, or new ones.

    run_dir: the run folder. check: tells what is kept from all else, which is not taken: the check
    of the journal's last line stands for the whole run up to the round that asks, and the device
    for last bits, by which other classes may be the likeliest. parts: of the round: blocks of the
    recipe, or directions.
    """

    def __init__(self, run_dir: Path, check: str, parts: int) -> None:
        self._folder, self._parts = run_dir / FOLDER, parts
        self._about = {"check": check}

    def __call__(self, some: range, slices: Slices, compute: Callable[[], Tensor]) -> Tensor:
        """Returns the columns float32 [probes, n, columns] of the probes of some parts.

        slices: tell of which images each rank gets them. Those of all images are kept, so that any
        number of ranks can go on with them.
        """
        path = self._folder / f"{some.start:04d}_{some.stop:04d}.safetensors"
        found = self._kept(path) if ranks().leads else None
        if ranks().lead(lambda: found is not None):
            return slices.dealt(found)
        started = time.perf_counter()
        columns = compute()
        took = time.perf_counter() - started
        if ranks().lead(lambda: took * self._parts > LONG_SECONDS * len(some)):
            whole = slices.gathered(columns, dim=1)
            if ranks().leads:
                self._folder.mkdir(exist_ok=True)
                write_whole(path, save({"columns": whole.contiguous()}, self._about))
        return columns

    def _kept(self, path: Path) -> Tensor | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() != self._about:
                    return None
                columns: Tensor = file.get_tensor("columns")
        except (OSError, SafetensorError):
            return None
        return columns if columns.dtype == torch.float32 else None


def remove_kept(run_dir: Path) -> None:
    """Removes what was kept, once the round is recorded."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
