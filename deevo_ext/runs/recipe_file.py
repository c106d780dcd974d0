"""The file recipe.yaml: what it may say, read and checked before any weight is.

`docs/recipes.md` shows it to its readers and writers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.finding import expected_names, is_checkpoint, short_names
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.recipes import check_recipe, normalised
from deevo_ext.population.tensors import dtype_name
from deevo_ext.runs.edited_yaml import choice, count, dump, load, mapping, number, text, texts

VERSION = 1
POLICIES = ("evolve", "recalibrate")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KEYS = (
    *("version", "unit", "dtype", "batchnorm", "checkpoint_key", "prefix", "key_map", "ignore"),
    *("frozen", "tied", "counters"),
    *("members", "normalise", "blocks", "coefficients", "channels", "statistics", "classifier"),
    *("fitted_on", "scores", "network_sha256"),
)
_TITLE = """\
# A network made of the members below: in each block, the sum of coefficient times member.
# `deevo merge FILE --out model.safetensors` makes it; docs/recipes.md explains the file.
"""


@dataclass(frozen=True)
class Named:
    """A file that a recipe names; relative names start at the recipe's folder.

    sha256: what its SHA-256 (hex) must be; None where a recipe does not say.
    """

    file: str
    sha256: str | None

    def said(self) -> dict[str, str]:
        """Returns it as the recipe says it."""
        return {"file": self.file, **({"sha256": self.sha256} if self.sha256 else {})}


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe.yaml says.

    members: files by the members' names. blocks: for each block's name the names of its tensors, or
    fnmatch patterns of them; a tensor belongs to the first block that matches. coefficients:
    float32 [blocks, members], normalised already. dtype: that of the rows. batchnorm: "evolve", or
    "recalibrate" for statistics apart. options, frozen: as of a population; the recipe says each
    option by its name. tied: the first name of each further name of a tensor. counters: values of
    num_batches_tracked that the first member's file lacks. channels: the file with what differences
    add to the coefficients, channel by channel. statistics, classifier: the files with what was
    made for this network alone: statistics, and what the refit of its last layer adds to that.
    unit, fitted_on, scores: for readers; numbers in them are texts once they are read.
    network_sha256: `network_digest` of the whole network.
    """

    members: Mapping[str, Named]
    blocks: Mapping[str, tuple[str, ...]]
    coefficients: Tensor
    dtype: torch.dtype = torch.float32
    batchnorm: str = "evolve"
    options: NameOptions = field(default_factory=NameOptions)
    frozen: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    channels: Named | None = None
    statistics: Named | None = None
    classifier: Named | None = None
    unit: str | None = None
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    network_sha256: str | None = None

    def to_yaml(self) -> str:
        """Returns the file's text; what it would say of nothing is left out."""
        names = list(self.members)
        rows = [[_shortest(a) for a in row] for row in self.coefficients.tolist()]
        content = {
            "version": VERSION,
            "unit": self.unit,
            "dtype": dtype_name(self.dtype),
            "batchnorm": self.batchnorm,
            **self.options.to_json(),
            "frozen": list(self.frozen),
            "tied": dict(self.tied),
            "counters": dict(self.counters),
            "members": [{"name": name, **member.said()} for name, member in self.members.items()],
            "blocks": [
                {
                    "name": block,
                    "tensors": list(tensors),
                    "coefficients": dict(zip(names, row, strict=True)),
                }
                for (block, tensors), row in zip(self.blocks.items(), rows, strict=True)
            ],
            "channels": self.channels.said() if self.channels else None,
            "statistics": self.statistics.said() if self.statistics else None,
            "classifier": self.classifier.said() if self.classifier else None,
            "fitted_on": dict(self.fitted_on),
            "scores": dict(self.scores),
            "network_sha256": self.network_sha256,
        }
        said = {key: value for key, value in content.items() if value not in (None, [], {})}
        return _TITLE + dump(said)


def read(path: Path) -> RecipeFile:
    """Reads a recipe's file; raises DeevoError that names the file and what is wrong in it."""
    try:
        return _recipe(mapping(load(path), "the recipe", _KEYS))
    except DeevoError as error:
        raise DeevoError(f"{path}: {error}") from error


def _recipe(content: dict[str, Any]) -> RecipeFile:
    version = content.get("version", str(VERSION))
    if version != str(VERSION):
        raise DeevoError(
            f"version is {version!r}; this package reads version {VERSION}: use the deevo_ext that "
            "wrote it"
        )
    members = _members(content.get("members"))
    blocks, rows = _blocks(content, list(members))
    values = torch.tensor(rows, dtype=torch.float64)
    names = tuple(blocks)
    normalise = choice(content.get("normalise", "false"), "normalise", ("true", "false"))
    recipe = normalised(values, names) if normalise == "true" else values.float()
    check_recipe(recipe, names)
    batchnorm = choice(content.get("batchnorm", "evolve"), "batchnorm", POLICIES)
    channels, statistics, classifier = (
        _named(content[key], key) if key in content else None
        for key in ("channels", "statistics", "classifier")
    )
    if statistics is not None and batchnorm == "evolve":
        raise DeevoError(
            'statistics are given, but "batchnorm: evolve" makes them by coefficients; expected '
            '"batchnorm: recalibrate", or no statistics'
        )
    unit, key, prefix, digest = (
        text(content[name], name) if name in content else None
        for name in ("unit", "checkpoint_key", "prefix", "network_sha256")
    )
    tied, counters, fitted_on, scores, key_map = (
        mapping(content.get(name, {}), name)
        for name in ("tied", "counters", "fitted_on", "scores", "key_map")
    )
    return RecipeFile(
        members,
        blocks,
        recipe,
        dtype=_DTYPES[choice(content.get("dtype", "float32"), "dtype", _DTYPES)],
        batchnorm=batchnorm,
        options=NameOptions.of(key, prefix, key_map, texts(content.get("ignore", []), "ignore")),
        frozen=texts(content.get("frozen", []), "frozen"),
        tied={alias: text(name, f"tied: {alias}") for alias, name in tied.items()},
        counters={name: count(value, f"counters: {name}") for name, value in counters.items()},
        channels=channels,
        statistics=statistics,
        classifier=classifier,
        unit=unit,
        fitted_on=fitted_on,
        scores=scores,
        network_sha256=digest,
    )


def _members(value: Any) -> dict[str, Named]:
    """Reads members: mappings of name, file and SHA-256, or file names alone."""
    if not isinstance(value, list) or len(value) < 2:
        raise DeevoError(
            "members are missing or fewer than 2; expected a list of files, or of mappings with "
            "name, file and sha256"
        )
    items = [{"file": item} if isinstance(item, str) else item for item in value]
    keys = ("name", "file", "sha256")
    files = [_named(item, f"member {i + 1}", keys) for i, item in enumerate(items)]
    stems = short_names([Path(each.file) for each in files])
    names = [
        text(item.get("name", stem), "a member's name")
        for item, stem in zip(items, stems, strict=True)
    ]
    _require_different(names, "members")
    return dict(zip(names, files, strict=True))


def _named(value: Any, what: str, keys: tuple[str, ...] = ("file", "sha256")) -> Named:
    item = mapping(value, what, keys)
    file, digest = text(item.get("file"), f"{what}: file"), item.get("sha256")
    if not is_checkpoint(Path(file)):
        raise DeevoError(
            f"{what}: file is {file!r}; expected a name that ends in one of {expected_names()}"
        )
    if digest is not None:
        digest = text(digest, f"{what}: sha256").lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DeevoError(f"{what}: sha256 is {digest!r}; expected 64 hex digits")
    return Named(file, digest)


def _blocks(
    content: dict[str, Any], members: list[str]
) -> tuple[dict[str, tuple[str, ...]], list[list[float]]]:
    """Reads the blocks, and the coefficients outside of them, which are those of the rest."""
    items = content.get("blocks", [])
    if not isinstance(items, list):
        raise DeevoError("blocks are no list; expected name, tensors and coefficients of each")
    names: list[str] = []
    tensors: list[tuple[str, ...]] = []
    rows: list[list[float]] = []
    for i, value in enumerate(items):
        item = mapping(value, f"block {i + 1}", ("name", "tensors", "coefficients"))
        patterns = texts(item.get("tensors", []), f"block {i + 1}: tensors")
        if not patterns:
            raise DeevoError(f"block {i + 1} has no tensors; name some, or patterns of names")
        names.append(text(item.get("name", patterns[0]), f"block {i + 1}: name"))
        tensors.append(patterns)
        rows.append(_coefficients(item.get("coefficients"), f"block {names[-1]!r}", members))
    if "coefficients" in content:
        names.append("the rest" if items else "network")
        tensors.append(("*",))
        rows.append(_coefficients(content["coefficients"], "the recipe", members))
    if not names:
        raise DeevoError("it has neither blocks nor coefficients; give either or both")
    _require_different(names, "blocks")
    return dict(zip(names, tensors, strict=True)), rows


def _coefficients(value: Any, what: str, members: list[str]) -> list[float]:
    if isinstance(value, list):
        if len(value) != len(members):
            raise DeevoError(
                f"{what} has {len(value)} coefficients for {len(members)} members; expected one "
                "for each, in their order"
            )
        value = dict(zip(members, value, strict=True))
    given = mapping(value, f"coefficients of {what}", members, "member")
    if missing := [name for name in members if name not in given]:
        raise DeevoError(f"{what} has no coefficient of member {missing[0]!r}; write 0 for none")
    return [number(given[name], f"{what}: coefficient of {name!r}") for name in members]


def _require_different(names: list[str], what: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise DeevoError(f"two {what} are called {twice[0]!r}; give them different names")


def _shortest(value: float) -> float:
    """Returns the number of fewest digits that is this float32 when it is read."""
    short = float(str(np.float32(value)))
    return short if np.float32(short) == np.float32(value) else value
