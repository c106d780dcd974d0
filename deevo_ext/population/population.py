"""The population: NP networks of one architecture as the rows of one flat buffer.

`Population.from_checkpoints(model, "runs/*.pth")` reads the members one at a time into rows of one
allocation; `state_dict(i)` gives any of them back; `views` gives any row as zero-copy tensors for
`torch.func.functional_call`. `Inventory` says which tensors the model has, `Layout` where each lies
in a row. There are three kinds of tensors:

* **evolved**, in the rows: floating-point parameters and buffers that are not frozen;
* **statistics**: BatchNorm's running_mean and running_var, by the policy `batchnorm`:
  `"evolve"` recombines them like weights (they are in the rows, running_var in the non-negative
  tail); `"inherit"` and `"recalibrate"` hold them apart in `statistics`, one float32 row per
  member, which a child takes from its parent or which are recomputed from its weights;
* **fixed**, kept once, from the first member: frozen tensors, integer, bool and complex buffers,
  spectral norm's vectors and quantisation observers' ranges.

`manifest()` says in some kilobytes of JSON how the members' files were read: with the same files
`from_manifest` gives every bit of the population again, without the model.
"""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deevo_ext.arguments import check_arguments
from deevo_ext.errors import DeevoError
from deevo_ext.population.averages import average_rows
from deevo_ext.population.finding import sha256
from deevo_ext.population.inventory import Inventory, ModelTensor
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.reading import MemberRows, Paths, in_files, in_memory, read_members
from deevo_ext.population.saved_names import with_saved_names
from deevo_ext.population.saving import save_members
from deevo_ext.population.tensors import converted, dtype_name, dtype_of, rounded

_MANIFEST_VERSION = 1


class Population:
    """NP flat rows and all that turns them back into networks; made by the `from_` methods.

    rows: [NP, D] float32, bfloat16 or float16; their stride is `layout.stride`, their pads are +0.
    all_rows: these, and behind them those that `append_average` may still fill.
    layout: where each evolved tensor lies in a row.
    statistics: [NP, S] float32, BatchNorm statistics held apart (S is 0 under "evolve").
    statistics_layout: where each of them lies in its row.
    fixed: tensors kept once, by name (aliases too), in their checkpoint's dtypes.
    names: the members' names, unique: file stems, as far up the path as they need to differ.
    sources: (path, SHA-256 hex) of each file that was read; None when made from state dicts.
    averages: the members whose average each appended member is.
    inventory: the model's tensors, and what becomes of them.
    pristine: whether the members are still those that were read; an optimizer clears it.
    options: how the weights were found in files, and their names.
    """

    def __init__(self, members: MemberRows, options: NameOptions | None = None) -> None:
        size = len(members.names)
        self.all_rows, self._all_statistics = members.rows, members.statistics
        self.rows, self.statistics = members.rows[:size], members.statistics[:size]
        self.layout, self.statistics_layout = members.layout, members.statistics_layout
        self.fixed, self.names, self.sources = members.fixed, members.names, members.sources
        self.averages: list[list[int]] = []
        self.inventory, self.options = members.inventory, options or NameOptions()
        self.pristine = True
        self._fixed_as: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    @classmethod
    def from_checkpoints(
        cls,
        model: nn.Module,
        paths: Paths,
        *,
        dtype: torch.dtype = torch.float32,
        frozen: str | Sequence[str] = (),
        batchnorm: str = "evolve",
        checkpoint_key: str | None = None,
        prefix: str | None = None,
        key_map: Mapping[str, str] | None = None,
        ignore: str | Sequence[str] = (),
        device: torch.device | str = "cpu",
        spare: int = 0,
    ) -> Population:
        """Reads files (a list, a folder or a glob), one at a time, into a population.

        model: gives names, shapes, tied weights and norm layers; it is not modified, its values
            are not used, and it may be on the meta device.
        paths: at least two files, as `finding.expand_paths` takes them.
        dtype: that of the rows, float32, bfloat16 or float16. `state_dict` gives the checkpoints'
            dtypes back.
        frozen: fnmatch patterns on full tensor names, e.g. `"fc.*"`; one of a tied tensor's names
            is enough.
        batchnorm: "evolve", "inherit" or "recalibrate", as the module's docstring explains.
        checkpoint_key: the key of the weights in each file, e.g. "model_ema".
        prefix: what stands before the model's names in each file, e.g. "student."; what does not
            begin with it is left out. None finds it: the one under which most names are the
            model's.
        key_map: names of the files, without prefix, and the model's in their place; keys and
            values that end in a dot are beginnings of names. Those that transformers' models are
            saved under are known.
        ignore: fnmatch patterns of names in the files that are left out, e.g. "criterion.*".
        device: where the rows lie.
        spare: the number of members that `append_average` may add.

        Raises DeevoError, naming the file and the tensor, for members that do not fit the model,
        are not finite, or are all equal. Warns of equal members, of fixed tensors that differ
        (num_batches_tracked apart), of buffers that differ and evolve, and of tensors outside of
        the model.
        """
        given = {name: value for name, value in locals().items() if name != "paths"}
        check_arguments(
            Population.from_checkpoints, given
        )  # what paths are is said where they are found
        options = with_saved_names(NameOptions.of(checkpoint_key, prefix, key_map, ignore), model)
        files = in_files(paths, options)
        inventory = Inventory.of(model, frozen, batchnorm)
        return cls(read_members(inventory, files, dtype, device, spare), options)

    @classmethod
    def from_state_dicts(
        cls,
        model: nn.Module,
        state_dicts: Sequence[Mapping[str, Tensor]],
        *,
        dtype: torch.dtype = torch.float32,
        frozen: str | Sequence[str] = (),
        batchnorm: str = "evolve",
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        spare: int = 0,
    ) -> Population:
        """Makes a population of state dicts, called `names`: by default member0, member1, ...

        The other arguments are those of `from_checkpoints`.
        """
        given = {name: value for name, value in locals().items() if name != "state_dicts"}
        check_arguments(Population.from_state_dicts, given)  # of those `in_memory` says more
        sources = in_memory(state_dicts, names, with_saved_names(NameOptions(), model))
        inventory = Inventory.of(model, frozen, batchnorm)
        return cls(read_members(inventory, sources, dtype, device, spare))

    @classmethod
    def from_rows(cls, rows: Tensor, name: str = "coefficients") -> Population:
        """Makes a population of plain vectors [NP, D]: individuals of one float32 tensor `name`.

        Differential evolution works on them as on networks' rows; they are copied.
        """
        check_arguments(Population.from_rows, locals())
        if rows.ndim != 2:
            raise DeevoError(f"rows are {list(rows.shape)}; expected vectors [NP, D]")
        tensor = ModelTensor(name, (), (rows.shape[1],), torch.float32, "row", parameter=True)
        inventory = Inventory((tensor,), (name,), "evolve")
        vectors = [{name: row} for row in rows.detach().float()]
        return cls(read_members(inventory, in_memory(vectors), torch.float32, rows.device))

    @classmethod
    def from_manifest(
        cls, manifest: Mapping[str, Any], paths: Paths, *, device: torch.device | str = "cpu"
    ) -> Population:
        """Reads the population of a `manifest` from the same files in the same order, bit for bit.

        The files may lie elsewhere by now; that they are the same is for the caller to check, by
        `sources`. Raises DeevoError for a manifest of another version, and for a wrong number of
        files.
        """
        check_arguments(Population.from_manifest, {"manifest": manifest, "device": device})
        try:
            if manifest["version"] != _MANIFEST_VERSION:
                raise DeevoError(
                    f"the population's manifest has version {manifest['version']!r}; this package "
                    f"reads version {_MANIFEST_VERSION}: use the deevo_ext that wrote it"
                )
            inventory = Inventory.from_json(manifest["architecture"])
            dtype, options = dtype_of(manifest["dtype"]), NameOptions.from_json(manifest)
            names = [str(name) for name in manifest["members"]]
            averages = [(str(a["name"]), list(a["members"])) for a in manifest.get("averages", [])]
        except (TypeError, KeyError, ValueError) as error:
            raise DeevoError(f"not the manifest of a population: {error!r}") from error
        files = in_files(paths, options, names)
        population = cls(read_members(inventory, files, dtype, device, len(averages)), options)
        for name, members in averages:
            population.append_average(name, members)
        return population

    def __repr__(self) -> str:
        return (
            f"Population of {self.size} members, {self.layout.weights:,} evolved weights each, "
            f"{dtype_name(self.rows.dtype)} on {self.rows.device}, batchnorm={self.batchnorm!r}"
        )

    @property
    def size(self) -> int:
        """NP, the number of members."""
        return self.rows.shape[0]

    @property
    def initial_size(self) -> int:
        """The number of members that were read; those behind them were appended."""
        return self.size - len(self.averages)

    @property
    def dim(self) -> int:
        """D, the columns of a row, pads included."""
        return self.layout.dim

    @property
    def batchnorm(self) -> str:
        """The policy for BatchNorm's statistics."""
        return self.inventory.batchnorm

    def manifest(self) -> dict[str, Any]:
        """Says how the members were read, as JSON values that `from_manifest` takes."""
        appended = zip(self.names[self.initial_size :], self.averages, strict=True)
        averages = [{"name": name, "members": members} for name, members in appended]
        return {
            "version": _MANIFEST_VERSION,
            "architecture": self.inventory.to_json(),
            "dtype": dtype_name(self.rows.dtype),
            **self.options.to_json(),
            "members": self.names[: self.initial_size],
            **({"averages": averages} if averages else {}),
        }

    def append_average(self, name: str, members: Sequence[int]) -> None:
        """Adds the plain average of `members`, by `mean`, as one more member called `name`.

        Raises DeevoError where no spare row is left, the name is taken, or the population has been
        evolved.
        """
        check_arguments(Population.append_average, locals())
        size = self.size
        if size == len(self.all_rows):
            raise DeevoError(
                f"no row is left for {name!r}: give spare= when the population is made"
            )
        if name in self.names:
            raise DeevoError(f"a member called {name!r} is there already; choose another name")
        if not self.pristine:
            raise DeevoError(f"{name!r} cannot be appended to a population that has been evolved")
        row, statistics = self.mean(members), self.mean_statistics(members)
        self.rows, self.statistics = self.all_rows[: size + 1], self._all_statistics[: size + 1]
        self.rows[size], self.statistics[size] = row, statistics
        self.names.append(name)
        self.averages.append([int(i) for i in members])

    def state_dict(self, i: int) -> dict[str, Tensor]:
        """Returns member `i` as `state_dict_of` does."""
        member = self._member(i)
        return self.state_dict_of(self.rows[member], self.statistics[member])

    def state_dict_of(self, row: Tensor, statistics: Tensor | None = None) -> dict[str, Tensor]:
        """Returns a row ([D] or longer, any floating dtype) as a state dict for `strict=True`.

        The tensors are independent copies on the row's device, in the model's order and the
        checkpoints' dtypes (the wider one where members differ), with the fixed ones. Tied names
        get a copy each: safetensors saves no tensors that share memory. `statistics` ([S]) are
        needed when they are held apart. Raises DeevoError for weights that such a dtype is too
        narrow for, as float16 is for 1e5.
        """
        return {
            name: rounded(value, dtype, row.device, name)
            for name, value, dtype in self.tensors_of(row, statistics)
        }

    def tensors_of(
        self, row: Tensor, statistics: Tensor | None = None
    ) -> Iterator[tuple[str, Tensor, torch.dtype]]:
        """Yields names, values and checkpoints' dtypes, of which `state_dict_of` makes its own."""
        values = dict(self.fixed)
        dtypes: dict[str, str] = {}
        for layout, flat in ((self.layout, row), (self.statistics_layout, statistics)):
            if layout.dim:
                values.update(layout.views(self._statistics_or_refuse(flat)))
            dtypes.update({name: entry.dtype for entry in layout.entries for name in entry.names})
        for name in self.inventory.order:
            value = values[name].detach()
            yield name, value, dtype_of(dtypes[name]) if name in dtypes else value.dtype

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes the members into a new folder, member_000.safetensors, ...; returns the paths.

        They are checkpoints with the model's names, to go on from later or elsewhere:
        `Population.from_checkpoints(model, folder)` with this population's dtype, frozen and
        batchnorm has every bit of rows and statistics again. Where rows are wider than the
        checkpoints that were read, as in a float32 population of float16 files, so are the tensors.
        Raises DeevoError for a folder that holds something.
        """
        check_arguments(Population.save, locals())
        return save_members(self, Path(folder))

    def reread(self, i: int) -> tuple[Tensor, Tensor]:
        """Returns member `i` as it was read: row [D], statistics [S], which are copies.

        They have the dtypes and the device of `rows` and `statistics`. Once an optimizer has
        changed these, the member's file is read again. Raises DeevoError for a member that was not
        made from a file, and for a file that was changed since.
        """
        i = self._member(i)
        if self.pristine:
            return self.rows[i].clone(), self.statistics[i].clone()
        if self.sources is None or i >= self.initial_size:
            raise DeevoError(f"member {self.names[i]!r} was not made from a file that can be read")
        path, expected = self.sources[i]
        [source] = in_files([path], self.options)
        state, _ = source.load(self.inventory.order)
        if (actual := sha256(path)) != expected:
            raise DeevoError(
                f"{path} has SHA-256 {actual}, it had {expected} when the population was read: it "
                "was changed since; restore it, or copy checkpoints of a training that goes on"
            )
        row, statistics = torch.zeros_like(self.rows[i]), torch.zeros_like(self.statistics[i])
        self.layout.flatten(state, row, source=source.label)
        self.statistics_layout.flatten(state, statistics, source=source.label)
        return row, statistics

    def views(
        self, i_or_row: int | Tensor, member: int | None = None, *, statistics: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns tensors by name for `torch.func.functional_call(model, views, ...)`, zero-copy.

        `i_or_row` is a member or a row ([D] or longer). Where statistics are held apart, they are
        those of the member, or for a row those of `member` (a trial's parent) or `statistics`
        ([S]). All floating tensors have the row's dtype, as norm layers ask: for a bfloat16 row the
        statistics are small copies, and fixed tensors of another dtype are converted once and kept.
        The rest shares the population's memory: call the model in eval mode, or norm layers write
        into it.
        """
        if isinstance(i_or_row, Tensor):
            row = i_or_row
        else:
            row = self.rows[self._member(i_or_row)]
            member = i_or_row if member is None else member
        if statistics is None and member is not None:
            statistics = self.statistics[self._member(member)]
        kind = row.dtype, row.device
        if kind not in self._fixed_as:
            self._fixed_as[kind] = converted(self.fixed, row)
        tensors = dict(self._fixed_as[kind])
        tensors.update(self.layout.views(row))
        if self.statistics_layout.dim:
            separate = self._statistics_or_refuse(statistics).to(row)
            tensors.update(self.statistics_layout.views(separate))
        return tensors

    def mean(
        self, members: Sequence[int] | None = None, weights: Sequence[float] | None = None
    ) -> Tensor:
        """Returns the average of `members` (default all), float32 [D]; `weights` are >= 0.

        `averages.average_rows` says how: the bits are the same on every device and thread count.
        """
        return self._average(self.rows, members, weights)

    def mean_statistics(
        self, members: Sequence[int] | None = None, weights: Sequence[float] | None = None
    ) -> Tensor:
        """Returns the average of the members' statistics, float32 [S], computed like `mean`."""
        return self._average(self.statistics, members, weights)

    def _average(
        self, matrix: Tensor, members: Sequence[int] | None, weights: Sequence[float] | None
    ) -> Tensor:
        check_arguments(Population.mean, {"weights": weights})
        chosen: Sequence[int] = range(self.size)
        if members is not None:
            try:
                chosen = [self._member(i) for i in members]
            except TypeError as error:  # not to be iterated over
                raise DeevoError(f"members are no whole numbers ({error})") from None
        return average_rows(matrix, chosen, weights)

    def _member(self, i: int) -> int:
        try:
            number = -1 if isinstance(i, bool) else operator.index(i)
        except TypeError:
            number = -1
        if not 0 <= number < self.size:
            raise DeevoError(
                f"member {reprlib.repr(i)} of a population of {self.size}; expected 0.."
                f"{self.size - 1}"
            )
        return number

    def _statistics_or_refuse(self, statistics: Tensor | None) -> Tensor:
        if not isinstance(statistics, Tensor):
            raise DeevoError(
                f"batchnorm={self.batchnorm!r} holds statistics apart from the row: give "
                "statistics= (such as mean_statistics()), or member= to views"
            )
        return statistics
