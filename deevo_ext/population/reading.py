"""Reading members: networks, from files or in memory, one at a time into rows.

`read_members` takes an `Inventory` and a `Source` for each member, and checks what it reads: that
it fits the inventory, is finite, and differs from the other members.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deevo_ext.arguments import usable_device
from deevo_ext.distributed.ranks import warn
from deevo_ext.errors import DeevoError
from deevo_ext.population import checkpoints
from deevo_ext.population.allocation import zero_rows
from deevo_ext.population.finding import PathLike, expand_paths, sha256, short_names, stamp
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.layout import Layout
from deevo_ext.population.matching import Match, NameOptions, match
from deevo_ext.population.mismatch import require_fit
from deevo_ext.population.tensors import wider

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Paths = PathLike | Sequence[PathLike]
_CALLER = 4  # stack level of the caller of Population.from_..., which warnings name


@dataclass(frozen=True)
class Source:
    """Where a member comes from.

    name: the member's name.
    label: what messages call it: the file's path, where there is a file.
    load: gives the state dict under the names that the model expects, which it is told, and how
        the names were matched.
    file: the checkpoint, None for a state dict in memory.
    """

    name: str
    label: str
    load: Callable[[Collection[str]], tuple[Mapping[str, Tensor], Match]]
    file: Path | None = None


@dataclass(frozen=True)
class MemberRows:
    """All members as `read_members` leaves them; `Population` explains the fields.

    Both matrices have the spare rows, of zeros, behind those of the members.
    """

    inventory: Inventory
    names: list[str]
    sources: list[tuple[str, str]] | None
    rows: Tensor
    layout: Layout
    statistics: Tensor
    statistics_layout: Layout
    fixed: dict[str, Tensor]


def in_files(
    paths: Paths, options: NameOptions, names: Sequence[str] | None = None
) -> list[Source]:
    """Returns the files that `paths` names as sources called `names`, by default their short names.

    options: how weights are found in each file.
    """
    files = expand_paths(paths)
    if names is None:
        names = short_names(files)
    if len(names) != len(files):
        raise DeevoError(
            f"{len(files)} files for {len(names)} members ({', '.join(names)}); expected one "
            "for each, in this order"
        )

    def source(name: str, file: Path) -> Source:
        read = checkpoints.load_matched
        return Source(name, str(file), lambda expected: read(file, expected, options), file)

    return [source(name, file) for name, file in zip(names, files, strict=True)]


def check_files(inventory: Inventory, files: Sequence[Path], options: NameOptions) -> None:
    """Refuses files whose names, shapes or dtypes are not the model's; reads no weights."""
    for file in files:
        state, _ = checkpoints.load_matched(file, inventory.order, options, mapped=True)
        require_fit(inventory, state, str(file))
        inventory.check_kinds(state, str(file))


def in_memory(
    state_dicts: Sequence[Mapping[str, Tensor]],
    names: Sequence[str] | None = None,
    options: NameOptions | None = None,
) -> list[Source]:
    """Returns state dicts as sources called `names`, by default member0, member1, ...

    options: how tensors' names are made the model's.
    """
    if isinstance(state_dicts, Mapping) or not isinstance(state_dicts, Sequence):
        raise DeevoError(
            f"state_dicts are a {type(state_dicts).__name__}; expected a list of state dicts"
        )
    for i, state in enumerate(state_dicts):
        if not isinstance(state, Mapping):
            raise DeevoError(
                f"state dict {i} is a {type(state).__name__}; expected names to tensors, as "
                "model.state_dict() gives (Population.from_checkpoints takes paths)"
            )
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise DeevoError(
                    f"state dict {i} has {name!r}, a {type(value).__name__}; expected names to "
                    "tensors, as model.state_dict() gives"
                )
    if names is None:
        names = [f"member{i}" for i in range(len(state_dicts))]
    if len(names) != len(state_dicts) or len(set(names)) < len(names):
        raise DeevoError(f"names must be {len(state_dicts)} different ones; they are {names}")

    def source(name: str, state: Mapping[str, Tensor]) -> Source:
        def load(expected: Collection[str]) -> tuple[Mapping[str, Tensor], Match]:
            found = match(state, expected, options or NameOptions(), name)
            return found.renamed(state), found

        return Source(name, name, load)

    return [source(name, state) for name, state in zip(names, state_dicts, strict=True)]


def read_members(
    inventory: Inventory,
    sources: Sequence[Source],
    dtype: torch.dtype,
    device: torch.device | str,
    spare: int = 0,
) -> MemberRows:
    """Reads the members into rows of `dtype`, with only one state dict in memory at a time.

    Behind them lie `spare` rows of zeros, for members that are appended later.
    """
    labels = [source.label for source in sources]
    if dtype not in DTYPES:
        raise DeevoError(
            f"dtype {dtype} of a population; expected torch.float32, bfloat16 or float16"
        )
    if isinstance(spare, bool) or not isinstance(spare, int) or not 0 <= spare < 2**31:
        raise DeevoError(f"spare is {spare!r}; expected a whole number of rows, 0 or some more")
    if len(sources) < 2:
        raise DeevoError(
            f"{len(sources)} member ({', '.join(labels)}); expected at least 2: fine-tunings of "
            "one network (deevo populate makes them), or the last checkpoints of its training"
        )
    layout, statistics_layout = inventory.layout("row"), inventory.layout("statistic")
    if not layout.dim:
        raise DeevoError("nothing to evolve: no floating-point tensor is left; freeze less")
    device = usable_device(device)
    rows = zero_rows(len(sources) + spare, layout.stride, dtype, device)
    statistics = torch.zeros(
        len(sources) + spare, statistics_layout.stride, dtype=torch.float32, device=device
    )
    fixed: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    differing: dict[str, list[str]] = {}
    moving: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    rivals: dict[str, list[str]] = {}
    expected = frozenset(inventory.order)
    # A state dict alone does not tell parameters from buffers.
    told = any(tensor.parameter for tensor in inventory.tensors)

    stamps = {source.file: stamp(source.file) for source in sources if source.file}

    def read_one(i: int) -> None:  # a function, so that its state dict is dropped before the next
        label = labels[i]
        state, matched = sources[i].load(expected)
        require_fit(inventory, state, label)
        for name in matched.left_out:
            left_out.setdefault(name, []).append(label)
        if matched.rivals:
            rivals.setdefault(matched.prefix, []).append(label)
        for part, matrix in ((layout, rows), (statistics_layout, statistics)):
            part.flatten(state, matrix[i], source=label)
            part.check_values(matrix[i], source=label)
        first, own = layout.views(rows[0]), layout.views(rows[i])
        for tensor in inventory.tensors:
            name, value = tensor.name, tensor.value_in(state, label)
            if tensor.role != "fixed":
                dtypes[name] = wider(dtypes.get(name, value.dtype), value.dtype)
                buffer = (
                    told and tensor.role == "row" and not (tensor.parameter or tensor.statistic)
                )
                if buffer and not torch.equal(own[name], first[name]):
                    moving.setdefault(name, []).append(label)
            elif i == 0:
                kept = value.detach().to(device, copy=True).contiguous()
                fixed.update(dict.fromkeys(tensor.names, kept))
            elif tensor.counter is None and not torch.equal(value.to(fixed[name]), fixed[name]):
                differing.setdefault(name, []).append(label)

    for i in range(len(sources)):
        read_one(i)
    digests = [(str(source.file), sha256(source.file)) for source in sources if source.file]
    for file, before in stamps.items():
        if stamp(file) != before:
            raise DeevoError(
                f"{file} was changed while it was read; copy checkpoints of a training that goes "
                "on, and give the copies"
            )
    rows = rows[:, : layout.dim]
    _check_duplicates(rows[: len(sources)], labels)
    everywhere = ["all members"]
    for names in (left_out, rivals):
        names.update({n: everywhere for n, where in names.items() if len(where) == len(labels)})
    _warn("tensors outside of the model are left out", left_out)
    _warn("checkpoints hold the model more than once; taken (prefix= names another)", rivals)
    _warn(f"fixed tensors differ between members and are kept from {labels[0]}", differing)
    if any(tensor.parameter for tensor in inventory.tensors):  # a file alone does not tell them
        _warn("buffers differ between members and evolve like weights (frozen= keeps one)", moving)
    return MemberRows(
        inventory=inventory,
        names=[source.name for source in sources],
        sources=digests or None,
        rows=rows,
        layout=layout.with_dtypes(dtypes),
        statistics=statistics[:, : statistics_layout.dim],
        statistics_layout=statistics_layout.with_dtypes(dtypes),
        fixed=fixed,
    )


def _check_duplicates(rows: Tensor, labels: Sequence[str]) -> None:
    """Refuses rows that are all equal, and warns of pairs that are."""
    bits = rows.view(torch.int32 if rows.dtype == torch.float32 else torch.int16)
    groups: dict[int, list[int]] = {}  # by a cheap fingerprint: equal rows have equal sums
    pairs: list[tuple[int, int]] = []
    for i in range(len(rows)):
        fingerprint = sum(int(piece.sum(dtype=torch.int64)) for piece in bits[i].split(1 << 18))
        same = groups.setdefault(fingerprint, [])
        twin = next((j for j in same if torch.equal(rows[i], rows[j])), None)
        if twin is None:
            same.append(i)
        else:
            pairs.append((twin, i))
    if len(pairs) == len(rows) - 1:
        raise DeevoError(
            f"all {len(rows)} members have the weights of {labels[0]}: one checkpoint repeated "
            f"{len(rows)} times has no differences to evolve; give differently trained networks"
        )
    if pairs:
        listed = ", ".join(f"{labels[j]} and {labels[i]}" for j, i in pairs)
        warn(f"members with the same weights: {listed}", stacklevel=_CALLER)


def _warn(what: str, tensors: Mapping[str, Sequence[str]]) -> None:
    """Warns of tensors, by the members that differ from the first."""
    if tensors:
        listed = [f"{name!r} in {', '.join(where)}" for name, where in tensors.items()]
        more = f"; and {len(listed) - 8} more tensors" if len(listed) > 8 else ""
        warn(f"{what}: {'; '.join(listed[:8])}{more}", stacklevel=_CALLER)
