"""Names of tensors in a file against names in the model.

Training frameworks wrap a network in modules of their own, and each puts its name before the
tensors': `model.` (Lightning), `module.` (DataParallel, AveragedModel), `_orig_mod.` (compiled),
`student.`, nested ones. Nothing is listed here: the prefix is found under which the file has most
of the model's names. What does not carry it is no part of the model: a loss's buffers, a teacher.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deevo_ext.errors import DeevoError

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch's wrappers of submodules put inside names, and around some names only."""
_BUFFERS = ("total_ops", "total_params", "attn_mask", "relative_coords_table")
"""Last parts of names of buffers without weights: profilers' counts, tables of older models."""

_COUNTER = "n_averaged"
"""What torch's AveragedModel keeps beside its `module.`."""


@dataclass(frozen=True)
class NameOptions:
    """How the weights are found in files, and how files' names are changed to the model's.

    checkpoint_key: the key under which each file holds the weights, None where it needs none.
    prefix: what is taken off the names; what does not carry it is left out. None finds it.
    key_map: names of the file, or beginnings of them that end in a dot, and what the model has for
        them; applied to what the prefix leaves.
    ignore: fnmatch patterns of names, as in the file or without its prefix, that are left out.
    """

    checkpoint_key: str | None = None
    prefix: str | None = None
    key_map: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        checkpoint_key: str | None = None,
        prefix: str | None = None,
        key_map: Mapping[str, str] | None = None,
        ignore: str | Sequence[str] = (),
    ) -> NameOptions:
        """Makes options of what users give; raises DeevoError for a key_map that maps no names."""
        pairs = dict(key_map or {})
        for old, new in pairs.items():
            if not all(isinstance(name, str) for name in (old, new)) or (
                old.endswith(".") and new and not new.endswith(".")
            ):
                raise DeevoError(
                    f"key_map has {old!r}: {new!r}; expected a file's name and the model's, or "
                    'beginnings of names with their dots, as "encoder.": "backbone."'
                )
        return cls(
            checkpoint_key, prefix, pairs, (ignore,) if isinstance(ignore, str) else tuple(ignore)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, from which `from_json` makes equal options."""
        further = {"prefix": self.prefix, "key_map": dict(self.key_map), "ignore": [*self.ignore]}
        given = {name: value for name, value in further.items() if value not in (None, {}, [])}
        return {"checkpoint_key": self.checkpoint_key, **given}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> NameOptions:
        """Reads what `to_json` returned, among other values; absent ones have their defaults."""
        further = (record.get("prefix"), record.get("key_map"), record.get("ignore", ()))
        return cls.of(record["checkpoint_key"], *further)

    def mapped(self, name: str) -> str:
        """Returns the model's name for what a file calls `name` behind its prefix."""
        if name in self.key_map:
            return self.key_map[name]
        fitting = [k for k in self.key_map if k.endswith(".") and name.startswith(k)]
        key = max(fitting, key=len, default="")
        return self.key_map[key] + name.removeprefix(key) if key else name


@dataclass(frozen=True)
class Match:
    """What a file's names are in the model.

    names: the file's name of each tensor by the one it has in the model, in the file's order; what
    the model has not is among them, if it carries the prefix.
    prefix: what was found to stand before the names, "" for nothing.
    rivals: other prefixes under which the file has as many of the model's names.
    left_out: the file's names of what is no part of the model.
    ignored: the file's names of what is known to hold no weights, or was asked to be ignored.
    """

    names: Mapping[str, str]
    prefix: str
    rivals: tuple[str, ...]
    left_out: tuple[str, ...]
    ignored: tuple[str, ...]

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state dict under the model's names, without what is left out."""
        return {name: state[in_file] for name, in_file in self.names.items()}

    def describe(self) -> str:
        """Says what was taken off and left out; "" where that is nothing."""
        said = [f"{self.prefix!r} is taken off the names"] if self.prefix else []
        if away := (*self.left_out, *self.ignored):
            more = f" and {len(away) - 6} more" if len(away) > 6 else ""
            said.append(f"left out: {', '.join(map(repr, away[:6]))}{more}")
        return "; ".join(said)


def match(
    state: Mapping[str, Tensor],
    wanted: Collection[str],
    options: NameOptions,
    label: str,
    *,
    patterns: bool = False,
) -> Match:
    """Finds the prefix under which a file has most of the wanted names.

    Of equals it is none, else the one that comes first. What torch puts inside names (`WRAPPERS`)
    is dropped where that makes more of them right. patterns: `wanted` are a recipe's names and
    fnmatch patterns, which need not name everything; then what torch puts inside names is kept only
    where that makes more of them right, and nothing is known to hold no weights. Raises DeevoError,
    naming `label`, for a given prefix that no name has, and for two names that become one.
    """
    given = options.prefix or ""
    plain = {name: name.removeprefix(given) for name in state if name.startswith(given)}
    if state and not plain:
        raise DeevoError(
            f"{label}: no tensor's name begins with prefix {given!r}; names are like "
            f"{next(iter(state))!r}"
        )
    bare = {name: _without_wrappers(seen) for name, seen in plain.items()}
    whole = bare != plain and len(set(bare.values())) == len(bare)
    views = [plain, bare] if whole else [plain]
    found = [_found(view, wanted, options) for view in (views[::-1] if patterns else views)]
    view, prefix, rivals, _ = max(found, key=lambda each: each[3])
    names: dict[str, str] = {}
    ignored: list[str] = []
    for name, seen in view.items():
        in_model = options.mapped(seen.removeprefix(prefix))
        if not seen.startswith(prefix) or (seen == _COUNTER and _COUNTER not in wanted):
            continue
        if any(fnmatch.fnmatchcase(n, p) for p in options.ignore for n in (name, in_model)) or not (
            patterns or in_model in wanted or _may_be_weights(in_model, state[name])
        ):
            ignored.append(name)
        elif in_model in names:
            raise DeevoError(
                f"{label}: {names[in_model]!r} and {name!r} are both called {in_model!r} without "
                "prefix and by key_map; expected different names"
            )
        else:
            names[in_model] = name
    known = {*names.values(), *ignored, _COUNTER}
    left_out = tuple(name for name in state if name not in known)
    return Match(names, given + prefix, rivals, left_out, tuple(ignored))


def _found(
    view: Mapping[str, str], wanted: Collection[str], options: NameOptions
) -> tuple[Mapping[str, str], str, tuple[str, ...], int]:
    """Returns the view, its best prefix, those as good, and how many wanted names it gives."""
    exact = frozenset(wanted)
    wild = [name for name in wanted if any(sign in name for sign in "*?[")]
    given: dict[str, set[str]] = {"": set()}
    for seen in view.values():
        start = 0
        while True:
            name = options.mapped(seen[start:])
            hits = [name] if name in exact else [p for p in wild if fnmatch.fnmatchcase(name, p)]
            if hits:
                given.setdefault(seen[:start], set()).update(hits)
            dot = seen.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    prefix = max(given, key=lambda each: len(given[each]))  # the first of equals
    most = len(given[prefix])
    rivals = tuple(p for p in given if prefix and p != prefix and len(given[p]) == most)
    return view, prefix, rivals, most


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _may_be_weights(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and name.rpartition(".")[2] not in _BUFFERS
