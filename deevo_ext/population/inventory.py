"""The inventory of a model: names, shapes and ties of its tensors, and which of them evolve.

`Inventory.of(model, frozen, batchnorm)` asks an `nn.Module` once; `to_json` and
`from_json` keep the answer as plain values, so that a journal reads checkpoints into the very
same rows with no module at hand. `value_in` checks a tensor of a checkpoint.

A norm layer is any module with both a running_mean and a running_var, so InstanceNorm, timm's
BatchNormAct2d and torchvision's FrozenBatchNorm2d count. Freezing a tensor goes before any policy.
Buffers that no average has the meaning of (`buffers.py`) are kept as if frozen.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deevo_ext.errors import DeevoError
from deevo_ext.population.buffers import kept_buffers, kept_by_name, norm_tensors, other_norms
from deevo_ext.population.layout import Layout
from deevo_ext.population.tensors import (
    check_finite,
    check_kind,
    check_nonnegative,
    dtype_name,
    dtype_of,
    pick,
)

POLICIES = ("evolve", "inherit", "recalibrate")
"""What may become of BatchNorm statistics; population.py explains each policy."""
ROLES = ("row", "statistic", "fixed")
"""A tensor is evolved in the rows, held apart by the policy, or kept once for all members."""
STATISTICS = ("running_mean", "running_var")
"""What a norm layer calls its statistics."""
_JSON_VERSION = 1


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of the model, under all its names.

    name: the first of its names in the state dict; `aliases` are the others (tied weights).
    role: one of `ROLES`.
    parameter: whether it is a parameter rather than a buffer.
    statistic: whether it is a norm layer's running_mean or running_var, whatever its role.
    counter: the model's value of a norm layer's num_batches_tracked, which stands in for the one
        that old checkpoints lack; None for any other tensor.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str
    parameter: bool = False
    statistic: bool = False
    counter: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The name and then the aliases."""
        return (self.name, *self.aliases)

    @property
    def floating(self) -> bool:
        """Whether its dtype is a floating-point one."""
        return self.dtype.is_floating_point

    @property
    def nonneg(self) -> bool:
        """Whether it is a variance."""
        return self.statistic and _last_part(self.name) == "running_var"

    def value_in(self, state: Mapping[str, Tensor], label: str) -> Tensor:
        """Returns this tensor of a checkpoint, with the checks that writing to a row leaves out."""
        if self.counter is not None:
            # Counts only steer training; averaging scripts leave them as floats or drop them.
            for name in self.names:
                if name in state and state[name].numel() == 1:
                    return state[name].to(self.dtype).reshape(self.shape)
            return torch.full(self.shape, self.counter, dtype=self.dtype)
        value = pick(state, self.names, self.shape, label, floating=self.floating)
        if self.role == "fixed" and (self.statistic or (self.parameter and self.floating)):
            check_finite(value, self.name, label)  # constant buffers may hold infinities: masks
            if self.nonneg:
                check_nonnegative(value, self.name, label)
        return value


@dataclass(frozen=True)
class Inventory:
    """A model's tensors and what is to become of them.

    tensors: in the order of the state dict, tied ones as one.
    order: every name in the order of the state dict, aliases in their places.
    batchnorm: the policy, one of `POLICIES`; it is already applied in the tensors' roles.
    frozen: the patterns of what was frozen; they too are already applied in the roles.
    """

    tensors: tuple[ModelTensor, ...]
    order: tuple[str, ...]
    batchnorm: str
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batchnorm not in POLICIES:
            raise DeevoError(f"batchnorm={self.batchnorm!r}; expected one of {', '.join(POLICIES)}")
        names = [name for tensor in self.tensors for name in tensor.names]
        if sorted(names) != sorted(self.order) or len(set(names)) < len(names):
            raise DeevoError("an inventory's order must hold each of its tensors' names once")
        for tensor in self.tensors:
            if tensor.role not in ROLES or not (tensor.floating or tensor.role == "fixed"):
                raise DeevoError(
                    f"tensor {tensor.name!r} of dtype {dtype_name(tensor.dtype)} has role "
                    f"{tensor.role!r}; expected one of {', '.join(ROLES)}, and fixed unless it is "
                    "floating point"
                )

    @classmethod
    def of(
        cls, model: nn.Module, frozen: str | Sequence[str] = (), batchnorm: str = "evolve"
    ) -> Inventory:
        """Takes the inventory of `model`, which is not modified and may be on the meta device.

        `frozen` are fnmatch patterns on full tensor names, e.g. `"fc.*"`; one of a tied
        tensor's names is enough. Raises DeevoError for a pattern that matches nothing, and for
        statistics to be recalibrated of a norm that is no BatchNorm.
        """
        if not isinstance(model, nn.Module):
            raise DeevoError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
        state = model.state_dict(keep_vars=True)
        found = cls._of(state, norm_tensors(model), kept_buffers(model), frozen, batchnorm)
        if batchnorm == "recalibrate":
            apart = [t.name for t in found.tensors if t.role == "statistic"]
            for path, kind in other_norms(model, apart).items():
                raise DeevoError(
                    f'batchnorm is "recalibrate", but layer {path!r} is of type {kind}, and only '
                    'BatchNorm\'s statistics can be re-estimated; give batchnorm="evolve", which '
                    f"combines them like weights, or frozen={f'{path}.running_*'.lstrip('.')!r} "
                    "(--batchnorm evolve, --frozen)"
                )
        return found

    @classmethod
    def of_state_dict(
        cls, state: Mapping[str, Tensor], frozen: Sequence[str], batchnorm: str
    ) -> Inventory:
        """Takes the inventory of a checkpoint's state dict, without the model.

        Its names tell the norm layers, tensors that share memory are tied; that some are
        parameters it does not tell.
        """
        prefixes = {_prefix(name) for name in state if _last_part(name) == "running_var"}
        norms = {prefix for prefix in prefixes if f"{prefix}running_mean" in state}
        statistics = {f"{prefix}{part}" for prefix in norms for part in STATISTICS}
        counters = {f"{prefix}num_batches_tracked" for prefix in norms}.intersection(state)
        # Averaging scripts leave counts as floats.
        whole = {name: state[name].long() for name in counters if state[name].numel() == 1}
        kept = kept_by_name(state)
        return cls._of({**state, **whole}, (statistics, counters), kept, frozen, batchnorm)

    @classmethod
    def _of(
        cls,
        state: Mapping[str, Tensor],
        norms: tuple[set[str], set[str]],
        kept: set[str],
        frozen: str | Sequence[str],
        batchnorm: str,
    ) -> Inventory:
        """Makes the inventory of a model's tensors.

        norms: the names of statistics and counters; kept: those of buffers that never evolve.
        """
        patterns = (frozen,) if isinstance(frozen, str) else tuple(frozen or ())
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise DeevoError(f"frozen is {frozen!r}; expected patterns of tensors' names")
        held = _match(patterns, state) | kept
        statistics, counters = norms
        tensors: list[ModelTensor] = []
        for names in _tied_groups(state):
            first = state[names[0]]
            statistic, free = not statistics.isdisjoint(names), held.isdisjoint(names)
            role = "row" if free and first.is_floating_point() else "fixed"
            if role == "row" and statistic and batchnorm != "evolve":
                role = "statistic"
            if first.is_complex() and free:
                raise DeevoError(
                    f"tensor {names[0]!r} is complex, which cannot be evolved; freeze it"
                )
            whole = not (first.is_floating_point() or first.is_complex()) and first.numel() == 1
            counter = None
            if whole and not counters.isdisjoint(names):
                counter = 0 if first.is_meta else int(first)
            tensors.append(
                ModelTensor(
                    name=names[0],
                    aliases=tuple(names[1:]),
                    shape=tuple(first.shape),
                    dtype=first.dtype,
                    role=role,
                    parameter=isinstance(first, nn.Parameter),
                    statistic=statistic,
                    counter=counter,
                )
            )
        return cls(tuple(tensors), tuple(state), batchnorm, patterns)

    def layout(self, role: str) -> Layout:
        """Lays out the tensors of one role ("row" or "statistic"), in the model's dtypes."""
        chosen = [tensor for tensor in self.tensors if tensor.role == role]
        return Layout.build(
            {t.name: torch.empty(t.shape, dtype=t.dtype, device="meta") for t in chosen},
            aliases={t.name: t.aliases for t in chosen},
            nonneg=[t.name for t in chosen if t.nonneg],
        )

    def check_kinds(self, state: Mapping[str, Tensor], label: str) -> None:
        """Refuses a checkpoint whose tensors are not dense ones of the model's kind of dtype."""
        for tensor in self.tensors:
            if tensor.counter is None:
                check_kind(state, tensor.names, tensor.shape, label, floating=tensor.floating)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, from which `from_json` makes an equal inventory.

        `tensors` has one record per name, in the order of the state dict: a tied tensor's further
        names have only `tied`, its first name. False flags and absent counters are left out.
        """
        first = {tensor.name: tensor for tensor in self.tensors}
        tied = {alias: tensor.name for tensor in self.tensors for alias in tensor.aliases}
        records: list[dict[str, Any]] = []
        for name in self.order:
            if name in tied:
                records.append({"name": name, "tied": tied[name]})
                continue
            tensor = first[name]
            record: dict[str, Any] = {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": dtype_name(tensor.dtype),
                "role": tensor.role,
            }
            record |= {key: True for key in ("parameter", "statistic") if getattr(tensor, key)}
            if tensor.counter is not None:
                record["counter"] = tensor.counter
            records.append(record)
        return {
            "version": _JSON_VERSION,
            "batchnorm": self.batchnorm,
            "frozen": list(self.frozen),
            "tensors": records,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Inventory:
        """Reads what `to_json` returned; raises DeevoError for anything else."""
        try:
            version = record["version"]
            if version != _JSON_VERSION:
                raise DeevoError(
                    f"the inventory's JSON has version {version!r}; this package reads version "
                    f"{_JSON_VERSION}: use the deevo_ext that wrote it"
                )
            fields = list(record["tensors"])
            if any(
                type(size) is not int or size < 0 for f in fields for size in f.get("shape", ())
            ):
                raise ValueError("a shape is no list of sizes")
            aliases: dict[str, list[str]] = {f["name"]: [] for f in fields if "tied" not in f}
            for field in fields:
                if "tied" in field:
                    aliases[field["tied"]].append(str(field["name"]))
            tensors = [
                ModelTensor(
                    **{
                        **field,
                        "aliases": tuple(aliases[field["name"]]),
                        "shape": tuple(field["shape"]),
                        "dtype": dtype_of(field["dtype"]),
                    }
                )
                for field in fields
                if "tied" not in field
            ]
            order = tuple(str(field["name"]) for field in fields)
            frozen = tuple(str(pattern) for pattern in record["frozen"])
            return cls(tuple(tensors), order, str(record["batchnorm"]), frozen)
        except DeevoError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DeevoError(f"not the JSON of an inventory: {error!r}") from error


def _match(patterns: Iterable[str], names: Collection[str]) -> set[str]:
    """Returns the names that match any pattern; refuses a pattern without a match."""
    held: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            inside = any(name.startswith(f"{pattern}.") for name in names)
            hint = (
                f"write {pattern + '.*'!r}" if inside else f"names are like {next(iter(names))!r}"
            )
            raise DeevoError(f"frozen pattern {pattern!r} matches no tensor of the model; {hint}")
        held.update(matches)
    return held


def _tied_groups(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups names by tensor: the same memory seen with the same shape and strides."""
    groups: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if is_lazy(tensor):
            raise DeevoError(
                f"the model's {name!r} has no shape yet, as a lazy module's before its first "
                "forward pass: call the model once on an image, then hand it over"
            )
        if not isinstance(tensor, Tensor):
            raise DeevoError(
                f"the model's state dict holds {name!r}, a {type(tensor).__name__} rather than a "
                "tensor; extra state is not supported"
            )
        address = 0 if tensor.is_meta else tensor.data_ptr()  # 0 too where there are no elements
        place = (address, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        groups.setdefault(place if address else id(tensor), []).append(name)
    return list(groups.values())


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _prefix(name: str) -> str:
    """Returns what stands before the last part of a name, with its dot."""
    return name.removesuffix(_last_part(name))
