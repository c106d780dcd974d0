"""Any model on any Dataset: rows scored by a loss, for tables, texts, sequences and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from deevo_ext.arguments import check_arguments, usable_device
from deevo_ext.errors import DeevoError
from deevo_ext.fitness.base import Fitness
from deevo_ext.fitness.sampling import image_keys
from deevo_ext.fitness.statistics import Inherited
from deevo_ext.identity import attributes_of, full_name, function_identity
from deevo_ext.networks.execution.modules import call, copy_of
from deevo_ext.population.population import Population

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class DatasetFitness(Fitness):
    """The mean loss of a model's outputs on a Dataset or DataLoader, whatever these hold.

        fitness = deevo.DatasetFitness(model, population, TensorDataset(x, y), nn.MSELoss())
        best = deevo.Evolution(deevo.DifferentialEvolution(population), fitness).run()
        model.load_state_dict(best.state_dict(population))

    A micro-batch is a pair (inputs, targets), as most datasets give them: the model is called with
    the inputs, one by one where they are a tuple or a list, by name where they are a dict; the loss
    with its outputs and the targets. Or it is a dict alone, as Hugging Face's datasets give them:
    the model is called with its values by name, the loss with the outputs and the dict, as in
    `lambda outputs, batch: outputs.loss`. A DataLoader's collate_fn makes pairs of anything else.

    The data are read once, in order, and kept on the device: every network sees the same. Batch
    statistics of BatchNorm, held apart, are those of the parent (batchnorm="inherit").

    model: the module of the architecture; a copy of it is called in eval mode, without gradients.
    population: its networks are scored, in the model's dtype.
    data: a Dataset, map-style or iterable, or a DataLoader that does not shuffle.
    loss: a function of outputs and targets, minimised: a number, or a tensor whose mean counts.
    micro_batch: the number of items per forward pass of a Dataset; a DataLoader has its own.
    micro_batches: the number of micro-batches that a generation is scored on, another choice every
        generations_per_batch generations; None for all of them in every generation.
    whole_set: whether the loss is called once with all outputs and targets, end to end, as F1 or
        a correlation needs it; otherwise the fitness is the mean over micro-batches, by their size.
    device: where networks are evaluated.
    seed: of the choice of micro-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        population: Population,
        data: Dataset[Any] | DataLoader[Any],
        loss: Callable[[Any, Any], Any],
        *,
        micro_batch: int = 64,
        micro_batches: int | None = None,
        generations_per_batch: int = 3,
        whole_set: bool = False,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "data"}
        check_arguments(DatasetFitness.__init__, given)
        for name in ("micro_batch", "micro_batches", "generations_per_batch"):
            if (number := given[name]) is not None and number < 1:
                raise DeevoError(f"{name} is {number}; expected at least 1")
        if seed < 0:
            raise DeevoError(f"seed is {seed}; expected an integer in 0..2^63-1")
        if population.batchnorm == "recalibrate":
            raise DeevoError(
                'the population has batchnorm="recalibrate", which needs images to re-estimate '
                'statistics on; make it with batchnorm="evolve" or "inherit"'
            )
        if (names := set(model.state_dict())) != set(population.inventory.order):
            other = sorted(names ^ set(population.inventory.order))[0]
            raise DeevoError(
                f"model and population differ in tensor {other!r}; give the module of the "
                "architecture that the population was made with"
            )
        self._device = usable_device(device)
        self.population, self.loss, self.whole_set = population, loss, whole_set
        self.generations_per_batch, self.seed = generations_per_batch, seed
        self.batches = [
            tree_map_only(Tensor, lambda tensor: tensor.to(self._device), batch)
            for batch in _batches(data, micro_batch)
        ]
        if not self.batches:
            raise DeevoError("data is empty; expected at least one item")
        self.sizes = [_items(batch) for batch in self.batches]
        few = micro_batches is not None and micro_batches < len(self.batches)
        self.micro_batches = micro_batches if few else None
        self.model = copy_of(model).to(self._device).eval()
        self.dtype = next((p.dtype for p in model.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device that rows are scored on."""
        return self._device

    def describe(self) -> dict[str, Any]:
        """Returns what decides the scores: model, loss and the data's SHA-256."""
        digest = hashlib.sha256()
        for batch in self.batches:
            _update(digest, batch)
        return {
            "model": full_name(type(self.model)),
            "loss": function_identity(self.loss),
            "items": sum(self.sizes),
            "sha256": digest.hexdigest(),
            "micro_batches": self.micro_batches,
            "generations_per_batch": self.generations_per_batch,
            "whole_set": self.whole_set,
            "dtype": str(self.dtype).removeprefix("torch."),
            "seed": self.seed,
        }

    def batch_of(self, generation: int) -> int:
        """Returns the number of the choice of micro-batches that a generation is scored on."""
        if self.micro_batches is None:
            return 0
        return max(generation - 1, 0) // self.generations_per_batch

    def chosen(self, batch: int) -> list[int]:
        """Returns the micro-batches of a choice; each comes once before any comes again.

        (But for those that are left over where their number is no multiple.)
        """
        if self.micro_batches is None:
            return list(range(len(self.batches)))
        choices = len(self.batches) // self.micro_batches
        epoch, k = divmod(batch, choices)
        order = np.argsort(image_keys(len(self.batches), epoch, self.seed), kind="stable")
        start = k * self.micro_batches
        return sorted(order[start : start + self.micro_batches].tolist())

    def begin(self, rows: Tensor, members: Tensor, batch: int) -> Callable[[], Sequence[float]]:
        """Begins to score rows; the function that is returned waits for the values."""
        separate = self.population.statistics
        statistics: list[Inherited | None] = [None] * len(rows)
        if separate.shape[1]:
            statistics = [Inherited(separate[member]) for member in members.tolist()]
        chosen = self.chosen(batch)
        values = [
            self._score(row, of_row, chosen) for row, of_row in zip(rows, statistics, strict=True)
        ]
        return lambda: torch.stack(values).tolist()

    def score(self, row: Tensor, inherited: Inherited | None) -> float:
        """Returns the loss of a row on all data; inherited: its statistics, where held apart."""
        everything = range(len(self.batches))
        return float(self._score(row.to(self._device), inherited, everything))

    @torch.no_grad()
    def _score(self, row: Tensor, statistics: Inherited | None, chosen: Sequence[int]) -> Tensor:
        """A row's loss, float64, still on the device."""
        views = self.population.views(row.to(self.dtype), statistics=statistics)
        outputs = []
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for i in chosen:
            # A copy, since the model may write to it.
            batch = tree_map_only(Tensor, Tensor.clone, self.batches[i])
            arguments, named, targets = _call(batch)
            output = call(self.model, views, arguments, named)
            if self.whole_set:
                outputs.append((output, targets))
            else:
                total += self._loss(output, targets) * self.sizes[i]
        if self.whole_set:
            return self._loss(*self._joined(outputs))
        return total / sum(self.sizes[i] for i in chosen)

    def _joined(self, outputs: list[Any]) -> Any:
        """Returns outputs and targets of all micro-batches, end to end."""
        try:
            return tree_map(_end_to_end, *outputs)
        except DeevoError:
            raise
        except (ValueError, RuntimeError) as error:
            raise DeevoError(
                f"whole_set=True joins the outputs and the targets of all micro-batches end to end,"
                f" which these do not let it ({error}); let model and collate_fn give tensors of "
                "one shape beyond the first dimension, and as many each time, or leave whole_set "
                "out"
            ) from error

    def _loss(self, output: Any, targets: Any) -> Tensor:
        value = self.loss(output, targets)
        try:
            number = torch.as_tensor(value, device=self._device)
        except (TypeError, ValueError, RuntimeError):
            number = torch.zeros(0)
        if not number.numel() or number.is_complex():
            raise DeevoError(
                f"the loss {full_name(self.loss)} returned {value!r}; expected a number or a "
                "tensor of numbers"
            )
        return number.double().mean()


def _batches(data: Any, micro_batch: int) -> Iterator[Any]:
    """Yields the data's micro-batches in an order that is always the same."""
    if not isinstance(data, DataLoader):
        # Not every Dataset is one of torch's: Hugging Face's are not.
        numbered = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if isinstance(data, (str, Mapping)) or not (numbered or isinstance(data, IterableDataset)):
            raise DeevoError(f"data is {data!r}; expected a torch Dataset or DataLoader")
        data = DataLoader(data, batch_size=micro_batch)
    sampler = getattr(data.batch_sampler, "sampler", data.sampler)
    if isinstance(sampler, _SHUFFLING):
        raise DeevoError(
            "data is a DataLoader that shuffles; give one with shuffle=False, or its Dataset: all "
            "networks are scored on the same micro-batches, those of a resumed run, too"
        )
    for batch in data:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair and not isinstance(batch, Mapping):
            of = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise DeevoError(
                f"the data's micro-batches are {type(batch).__name__}{of}; expected pairs (inputs, "
                "targets) or dicts: let the DataLoader's collate_fn make them"
            )
        # A batch of Hugging Face's tokenizers is a Mapping, but no dict.
        yield tuple(batch) if pair else dict(batch)


def _call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Returns a model's arguments, those by name, and what the loss compares its outputs with."""
    inputs, targets = batch if isinstance(batch, tuple) else (batch, batch)
    if isinstance(inputs, Mapping):
        return (), dict(inputs), targets
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}, targets


def _items(batch: Any) -> int:
    """The number of items of a micro-batch."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise DeevoError("the data's micro-batches hold no tensor; expected inputs and targets")


def _update(digest: Any, batch: Any, around: tuple[int, ...] = ()) -> None:
    """Adds a micro-batch to a digest: tensors and arrays by content, objects by what they hold.

    A text of an object is none of its content: it may leave out much, or name an address.
    around: the objects that hold this one.
    """
    leaves, form = tree_flatten(batch)
    digest.update(repr(form).encode())
    for leaf in leaves:
        if hasattr(leaf, "__array_interface__") and not isinstance(leaf, Tensor):
            leaf = np.asarray(leaf)  # a picture, too
            if leaf.dtype.hasobject:
                _update(digest, leaf.tolist(), around)
                continue
            leaf = np.ascontiguousarray(leaf)
            digest.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
            digest.update(leaf.tobytes())
        elif isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
            digest.update(leaf.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(leaf, _PLAIN) or not (held := attributes_of(leaf)):
            digest.update(repr(leaf).encode())
        elif id(leaf) not in around:
            digest.update(full_name(type(leaf)).encode())
            _update(digest, held, (*around, id(leaf)))


def _end_to_end(*parts: Any) -> Any:
    """Returns the parts of outputs or targets that micro-batches gave, as one tensor."""
    if not isinstance(parts[0], Tensor):
        raise DeevoError(
            f"whole_set=True joins tensors, but outputs or targets hold a "
            f"{type(parts[0]).__name__}; let the model return tensors, or leave whole_set out"
        )
    return torch.cat(parts) if parts[0].ndim else torch.stack(parts)
