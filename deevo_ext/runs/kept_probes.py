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

from deevo_ext.files import write_whole
from deevo_ext.runs.recipe_state import recipe_digest

LONG_SECONDS = 600.0
"""Rounds whose probes would take longer keep them."""


class KeptProbes:
    """Gives the logits of a block's probes: those that are kept of an earlier start, or new ones.

    run_dir: the run folder; number, recipe: of the round that asks. Files of another recipe are
    not taken.
    """

    def __init__(self, run_dir: Path, number: int, recipe: Tensor) -> None:
        self._folder = run_dir / "probes"
        self._about = {"round": str(number), "recipe": recipe_digest(recipe)}
        self._blocks = len(recipe)

    def __call__(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """Returns logits float32 [members - 1, n, classes] of a block's probes."""
        path = self._folder / f"block_{block:04d}.safetensors"
        if (logits := self._kept(path)) is not None:
            return logits
        started = time.perf_counter()
        logits = compute()
        if (time.perf_counter() - started) * self._blocks > LONG_SECONDS:
            self._folder.mkdir(exist_ok=True)
            write_whole(path, save({"logits": logits.cpu().contiguous()}, self._about))
        return logits

    def remove(self) -> None:
        """Removes what was kept, once the round has its outcome."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kept(self, path: Path) -> Tensor | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() != self._about:
                    return None
                logits: Tensor = file.get_tensor("logits")
        except (OSError, SafetensorError):
            return None
        return logits if logits.dtype == torch.float32 else None
