"""The plain average of checkpoints, chosen as timm's avg_checkpoints.py chooses them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.checkpoints import unwrap
from deevo_ext.population.finding import PathLike, expand_paths
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.population.reading import in_files, read_members
from deevo_ext.runs.folder import check_network_path, write_network

EMA = ("state_dict_ema", "model_ema")
"""Keys of moving averages of the weights, beside the weights themselves."""


@dataclass(frozen=True)
class Averaged:
    """What `average` wrote.

    path, sha256: the file. files: the checkpoints that it is the average of, the best one last
    where they were sorted. metrics: what each says of itself; empty where none does, or nothing was
    sorted. checkpoint_key: the key of the moving averages, where those were averaged.
    """

    path: Path
    sha256: str
    files: tuple[Path, ...]
    metrics: tuple[float, ...]
    checkpoint_key: str | None


def average(
    paths: PathLike | Sequence[PathLike],
    output: str | Path,
    *,
    count: int | None = 10,
    use_ema: bool = True,
) -> Averaged:
    """Writes the average of checkpoints of one network, under the first one's names.

    paths: at least two, as `expand_paths` takes them. output: a .safetensors or .pth file, which
    must not be there. count: how many are averaged, those whose "metric" (timm's training keeps it
    in the file) is highest; files without one, or with NaN, are left out, unless all are. None
    averages all, in their order. use_ema: whether the moving averages of the weights are taken,
    where all files have them.

    Floating-point tensors are averaged in float32, BatchNorm's statistics among them; others are
    the first file's. Raises DeevoError for files that do not fit each other, and before anything is
    read for an output that is there.
    """
    check_arguments(average, locals())
    output = Path(output)
    check_network_path(output)
    if output.exists():
        raise DeevoError(f"the output file {output} is there already; choose another name")
    if count is not None and count < 2:
        raise DeevoError(f"count is {count}; expected at least 2 checkpoints to average")
    files = expand_paths(paths)
    facts = [_facts(file) for file in files]
    told = [(metric, i) for i, (metric, _) in enumerate(facts) if metric is not None]
    metrics: tuple[float, ...] = ()
    chosen = list(range(len(files)))
    if count is not None and told:
        best = sorted(told)[-count:]
        metrics, chosen = tuple(metric for metric, _ in best), [i for _, i in best]
    elif count is not None and len(files) > count:
        raise DeevoError(
            f"none of {len(files)} checkpoints holds a metric that is a number, by which the best "
            f"{count} are chosen; name those to be averaged, or average all (--no-sort)"
        )
    keys = {facts[i][1] for i in chosen}
    key = keys.pop() if use_ema and len(keys) == 1 else None
    taken = [files[i] for i in chosen]
    state, _ = unwrap(read_wrapped(taken[0]), key, taken[0])
    options = NameOptions(checkpoint_key=key)
    inventory = Inventory.of_state_dict(state, (), "evolve")
    members = read_members(inventory, in_files(taken, options), torch.float32, "cpu")
    population = Population(members, options)
    mean = population.state_dict_of(population.mean())
    about = {"average_of": [str(file) for file in taken], "checkpoint_key": key}
    digest = write_network(output, Naming.of_population(population), mean, about)
    return Averaged(output, digest, tuple(taken), metrics, key)


def _facts(file: Path) -> tuple[float | None, str | None]:
    """The metric that a checkpoint says of itself, and the key of its moving average."""
    content: Any = read_wrapped(file, mapped=True)
    if not isinstance(content, Mapping):
        return None, None
    key = next((key for key in EMA if isinstance(content.get(key), Mapping)), None)
    return _number(content.get("metric")), key


def _number(said: Any) -> float | None:
    """A metric as trainers keep it: a number, NumPy's, or a tensor of one; NaN is none."""
    if isinstance(said, (torch.Tensor, np.ndarray, np.generic)):
        values = said.reshape(-1).tolist()
        said = values[0] if len(values) == 1 else None
    if isinstance(said, bool) or not isinstance(said, (int, float)) or math.isnan(said):
        return None
    return float(said)
