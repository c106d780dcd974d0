"""Networks as recipes: `write_recipe` keeps one in some kilobytes, `merge` makes it again."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.files import write_whole
from deevo_ext.options import nearest
from deevo_ext.population import checkpoints
from deevo_ext.population.blocks import Blocks
from deevo_ext.population.checkpoint_file import read_wrapped
from deevo_ext.population.composed import ComposedNetwork, network_digest
from deevo_ext.population.finding import sha256
from deevo_ext.population.genes import Genes
from deevo_ext.population.inventory import STATISTICS, Inventory
from deevo_ext.population.layout import Layout
from deevo_ext.population.naming import Naming
from deevo_ext.population.population import Population
from deevo_ext.population.reading import in_files, read_members
from deevo_ext.runs import recipe_file
from deevo_ext.runs.folder import (
    check_digest,
    check_network_path,
    initial_checkpoints,
    locate_checkpoints,
    write_initial,
    write_network,
)
from deevo_ext.runs.recipe_file import Named, RecipeFile


def write_recipe(
    path: str | Path,
    population: Population,
    network: ComposedNetwork,
    *,
    naming: Naming,
    unit: str | None = None,
    fitted_on: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> None:
    """Writes a network as a recipe, from which `merge` makes every bit of it again.

    Statistics and classifier go into a .safetensors file beside it, changes by channel into a
    second; members that were read from no file are written, too. naming: the first checkpoint's.
    unit: of the blocks. fitted_on, scores: plain values, for readers.
    """
    path = Path(path)
    if population.statistics_layout.dim and network.statistics is None:
        raise DeevoError(
            "statistics are missing: the population holds BatchNorm's apart; give those that the "
            "network is used with"
        )
    state = network.state_dict(population)
    files = initial_checkpoints(population, path.parent)
    tensors = dict(network.classifier)
    if network.statistics is not None:
        apart = population.statistics_layout
        views = apart.views(network.statistics)
        tensors |= {entry.name: views[entry.name] for entry in apart.entries}
    side = path.with_suffix(".safetensors")
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    beside = Named(side.name, hashlib.sha256(data).hexdigest())
    channels, moves = path.with_name(f"{path.stem}_channels.safetensors"), b""
    if network.changes is not None:
        genes = Genes.of(population.layout, network.blocks)
        parts = genes.by_tensor(network.changes.cpu())
        moves = save({name: part.contiguous() for name, part in parts.items() if part.any()})
    inventory = population.inventory
    counters = [tensor.name for tensor in inventory.tensors if tensor.counter is not None]
    absent = [name for name in counters if name not in naming.names]
    options = population.options
    ignore = tuple(dict.fromkeys((*options.ignore, *map(glob.escape, naming.ignored))))
    names = population.names[: population.initial_size]
    recipe = RecipeFile(
        members={name: Named(*file) for name, file in zip(names, files, strict=True)},
        blocks=dict(zip(network.blocks.names, network.blocks.tensors, strict=True)),
        coefficients=network.coefficients.cpu(),
        dtype=population.rows.dtype,
        batchnorm=population.batchnorm,
        options=replace(options, ignore=ignore),
        frozen=(*inventory.frozen, *_kept(inventory)),
        tied={alias: tensor.name for tensor in inventory.tensors for alias in tensor.aliases},
        counters={name: int(population.fixed[name]) for name in absent},
        channels=Named(channels.name, hashlib.sha256(moves).hexdigest()) if moves else None,
        statistics=beside if population.statistics_layout.dim else None,
        classifier=beside if network.classifier else None,
        unit=unit,
        fitted_on=fitted_on,
        scores=scores,
        network_sha256=network_digest(state),
    )
    text = recipe.to_yaml()
    write_initial(population, path.parent, files)
    if tensors:
        write_whole(side, data)
    if moves:
        write_whole(channels, moves)
    write_whole(path, text.encode())


def _kept(inventory: Inventory) -> list[str]:
    """Names the floating tensors that never evolve, as spectral norm's, beside those frozen."""
    held = {name for p in inventory.frozen for name in fnmatch.filter(inventory.order, p)}
    return [
        tensor.name
        for tensor in inventory.tensors
        if tensor.floating and tensor.role == "fixed" and held.isdisjoint(tensor.names)
    ]


@dataclass(frozen=True)
class Merged:
    """A network that `merge` wrote.

    path, sha256: the file. members, blocks: how many the recipe has. as_recorded: whether every bit
    is that of the network whose recipe a run wrote; False for an edited recipe, None where it does
    not say. statistics: "fixed" where the network has no BatchNorm statistics of its own, "evolved"
    where they are made by coefficients like weights, "given" with the recipe, or "combined": the
    recipe holds them apart and does not give them, so they were made by coefficients all the same.
    """

    path: Path
    sha256: str
    members: int
    blocks: int
    as_recorded: bool | None
    statistics: str


def merge(recipe: str | Path, out: str | Path, checkpoint_dir: str | Path | None = None) -> Merged:
    """Makes the network of a recipe, written by a run, edited, or written by hand.

    out: a .safetensors or .pth file; tensors have the names, and a .pth file the wrappers, of the
    first member's file. checkpoint_dir: a folder below which the members lie, found by their
    SHA-256, if not where the recipe says. Nothing is written unless all is well: raises DeevoError
    for a recipe that is wrong in itself or does not fit its members, and for files that are missing
    or were changed. All members' rows are in memory, and one member's file at a time.
    """
    check_arguments(merge, locals())
    path, out = Path(recipe), Path(out)
    said = recipe_file.read(path)
    check_network_path(out)
    files = _members(said, path.parent, checkpoint_dir)
    beside = (said.channels, said.statistics, said.classifier)
    side = [path.parent / each.file for each in beside if each]
    check_network_path(out, (*files, *side))
    population, network, statistics = _rebuild(said, path.parent, files)
    state = network.state_dict(population)
    as_recorded = None
    if said.network_sha256 is not None:
        as_recorded = network_digest(state) == said.network_sha256
    provenance = {"recipe": path.name, "recipe_sha256": sha256(path)}
    digest = write_network(out, Naming.of_population(population), state, provenance)
    return Merged(out, digest, len(files), len(said.blocks), as_recorded, statistics)


def _members(said: RecipeFile, folder: Path, checkpoint_dir: str | Path | None) -> list[Path]:
    files = said.members.values()
    known = [(each.file, each.sha256) for each in files if each.sha256 is not None]
    if checkpoint_dir is not None and len(known) < len(files):
        name = next(name for name, each in said.members.items() if each.sha256 is None)
        raise DeevoError(
            f"member {name!r} has no sha256, by which files are found below {checkpoint_dir}; add "
            "it to the recipe, or leave --checkpoints out"
        )
    found = iter(locate_checkpoints(known, folder, checkpoint_dir, "the recipe"))
    paths = [folder / each.file if each.sha256 is None else next(found) for each in files]
    for path in paths:
        if not os.path.isfile(path):
            raise DeevoError(f"member {path} does not exist or is not a file")
    return paths


def _rebuild(
    said: RecipeFile, folder: Path, files: list[Path]
) -> tuple[Population, ComposedNetwork, str]:
    """Reads the members into a population; returns the network, and what its statistics are."""
    given, classifier = (_tensors(file, folder) for file in (said.statistics, said.classifier))
    if said.batchnorm == "recalibrate":  # one file may hold both
        given = {name: tensor for name, tensor in given.items() if _statistic(name)}
        classifier = {name: t for name, t in classifier.items() if not _statistic(name)}
    if said.classifier and not classifier:
        raise DeevoError(f"{said.classifier.file} holds no change of a classifier")
    inventory = _inventory(said, files[0])
    groups = _groups(said, inventory)
    if said.statistics and not any(t.role == "statistic" for t in inventory.tensors):
        raise DeevoError("statistics are given, but the members have none; delete the entry")
    sources = in_files(files, said.options, list(said.members))
    members = read_members(inventory, sources, said.dtype, "cpu")
    population = Population(members, said.options)
    rows_of = dict(zip(said.blocks, said.coefficients, strict=True))

    def recipe_in(layout: Layout) -> tuple[Blocks, Tensor]:
        blocks = Blocks.of_groups(layout, groups)  # without those that have no tensor there
        return blocks, torch.stack([rows_of[name] for name in blocks.names])

    apart, statistics = population.statistics_layout, None
    evolved = any(tensor.statistic and tensor.role == "row" for tensor in inventory.tensors)
    origin = "evolved" if evolved else "fixed"
    if apart.dim and said.statistics:
        origin, statistics = "given", torch.zeros(apart.dim)
        apart.flatten(given, statistics, source=said.statistics.file)
        apart.check_values(statistics, source=said.statistics.file)
    elif apart.dim:
        blocks, recipe = recipe_in(apart)
        origin = "combined"
        statistics = blocks.compose_rows(apart, population.statistics, recipe[None])[0]
    blocks, recipe = recipe_in(population.layout)
    changes = None
    if said.channels:
        genes = Genes.of(population.layout, blocks)
        changes = genes.from_tensors(
            _tensors(said.channels, folder), len(files), said.channels.file
        )
    return population, ComposedNetwork(blocks, recipe, statistics, classifier, changes), origin


def _statistic(name: str) -> bool:
    return name.rpartition(".")[2] in STATISTICS


def _tensors(file: Named | None, folder: Path) -> dict[str, Tensor]:
    """Reads a file beside the recipe."""
    if file is None:
        return {}
    path = folder / file.file
    if file.sha256 is not None:
        mend = "restore it, or delete its entry in the recipe"
        check_digest(path, file.sha256, "the recipe", mend)
    return checkpoints.unwrap(read_wrapped(path), None, path)[0]


def _inventory(said: RecipeFile, first: Path) -> Inventory:
    """Takes the inventory of the first member's file; a recipe names what a file may lack."""
    named = [pattern for patterns in said.blocks.values() for pattern in patterns]
    wanted = [*named, *said.tied, *said.tied.values()]
    state, _ = checkpoints.load_matched(first, wanted, said.options, patterns=True)
    for alias, name in said.tied.items():
        present = next((n for n in (name, alias) if n in state), None)
        if present is None:
            raise DeevoError(f"tied: {first} has neither {name!r} nor {alias!r}")
        state[name] = state[alias] = state[present]
    for name, count in said.counters.items():
        state.setdefault(name, torch.tensor(count))
    return Inventory.of_state_dict(state, said.frozen, said.batchnorm)


def _groups(said: RecipeFile, inventory: Inventory) -> dict[str, list[str]]:
    """Finds each block's tensors: a tensor belongs to the first block that matches a name of it."""
    evolving = [tensor for tensor in inventory.tensors if tensor.role != "fixed"]
    names = [name for tensor in evolving for name in tensor.names]
    if not names:
        raise DeevoError("the members have no floating-point tensor that evolves; freeze less")
    block_of: dict[str, str] = {}
    for block, patterns in said.blocks.items():
        for pattern in patterns:
            matches = {pattern} if pattern in names else set(fnmatch.filter(names, pattern))
            found = [t.name for t in evolving if not matches.isdisjoint(t.names)]
            if not found:
                raise DeevoError(
                    f"block {block!r}: {pattern!r} matches no tensor of the members that evolves; "
                    f"the nearest is {nearest(pattern, names)!r}"
                )
            if block not in {block_of.setdefault(name, block) for name in found}:
                raise DeevoError(
                    f"block {block!r}: all that {pattern!r} matches is in block "
                    f"{block_of[found[0]]!r} already; the first block that matches takes a tensor"
                )
    for tensor in evolving:  # a norm layer's statistics go with its weight or bias
        layer = tensor.name.removesuffix(tensor.name.rpartition(".")[2])
        for partner in (f"{layer}weight", f"{layer}bias"):
            if tensor.role == "statistic" and partner in block_of:
                block_of.setdefault(tensor.name, block_of[partner])
    left = [
        tensor.name
        for tensor in evolving
        if tensor.name not in block_of and not (tensor.role == "statistic" and said.statistics)
    ]
    if left:
        raise DeevoError(
            f"the members' tensor {left[0]!r} is in no block, nor are {len(left) - 1} more: add "
            '"*" to a block, or name in "frozen" what is to be the first member\'s'
        )
    groups: dict[str, list[str]] = {block: [] for block in said.blocks}
    for name, block in block_of.items():
        groups[block].append(name)
    return groups
