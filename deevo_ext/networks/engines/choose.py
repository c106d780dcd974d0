"""Which engine computes which layer: chosen by timing once, then fixed.

A run's table lies in its journal and is used again on resume, so that a fitness never depends on
how busy the machine was. A second table, in a file by device, saves new runs the timing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.files import cache_folder, read_regular, write_whole
from deevo_ext.networks.engines import ENGINES, Bindable, Bound, Engine, candidates
from deevo_ext.networks.graph.network_graph import Aten, Convolution

_VERSION = 1
_ROUNDS = 5
# Another engine must beat the preferred one by this much: less is noise, and a table that is
# measured again should come out the same.
_MARGIN = 0.95
# Of a layer in a device's queue; the cycles, some milliseconds, in which the host fills it.
_CALLS, _SLEEP_CYCLES = 5, 5_000_000
# What an engine does once a member counts as if a member saw this many micro-batches.
_MICRO_BATCHES = 8


def device_name(device: torch.device) -> str:
    """Returns the processor and torch version, for which timings are good."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {cpu_model()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}"


def cpu_model() -> str:
    """Returns what the processor is called; empty where nothing says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


class EngineTable:
    """Engines by layer signature, and the precision of the run; kept in a file where there is one.

    engines: names, by signature. precision: "" until it is decided. device: what was timed.
    """

    def __init__(self, device: torch.device, path: Path | None = None) -> None:
        self.device, self.path = device_name(device), path
        self.engines: dict[str, str] = {}
        self.precision = ""
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            record = json.loads(read_regular(path))
            if record["version"] != _VERSION:
                raise ValueError(f"version {record['version']}")
            self._take(record)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DeevoError(
                f"{path} is no engine table ({error!r}); delete it, and engines are timed anew"
            ) from error

    @classmethod
    def of(cls, record: dict[str, Any], device: torch.device) -> EngineTable:
        """Returns the table that `record` gave, for a device."""
        table = cls(device)
        table._take(record)
        return table

    def _take(self, record: dict[str, Any]) -> None:
        values = (record["device"], record["precision"], *sum(record["engines"].items(), ()))
        if not all(isinstance(value, str) for value in values):
            raise TypeError("engines, precision and device are no text")
        self.device, self.precision = record["device"], record["precision"]
        self.engines = dict(record["engines"])

    def record(self) -> dict[str, Any]:
        """Returns the table as JSON values."""
        return {
            "device": self.device,
            "precision": self.precision,
            "engines": dict(self.engines),
        }

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self.path is None:
            return
        text = json.dumps({"version": _VERSION, **self.record()}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, f"{text}\n".encode())


def device_cache(device: torch.device) -> EngineTable:
    """The machine's own table for the engines there are; one that cannot be read is begun anew."""
    name = "".join(c if c.isalnum() else "-" for c in device_name(device)).lower()
    known = hashlib.sha256(" ".join(sorted(ENGINES)).encode()).hexdigest()[:8]
    path = cache_folder() / f"engines-{name}-{known}.json"
    try:
        return EngineTable(device, path)
    except DeevoError:
        with contextlib.suppress(OSError):  # to write to a pipe would never end
            path.unlink()
        empty = EngineTable(device)
        empty.path = path
        return empty


class Chooser:
    """Chooses engines for layers, by a fixed table, a forced name, or timing.

    measure(task) runs a task as layers will run: on a worker thread.
    """

    def __init__(
        self,
        device: torch.device,
        table: EngineTable,
        forced: str | None,
        measure: Callable[[Callable[[], float]], float],
    ) -> None:
        self.device, self.table, self._measure = device, table, measure
        self._forced = forced
        self._cache = device_cache(device)

    def choose(self, layer: Bindable) -> Engine:
        """The engine of a layer; a new choice goes to the tables (see `save`)."""
        usable = candidates(layer, self.device)
        if len(usable) == 1:
            return usable[0]
        if self._forced is not None:
            return self._first_that_runs(layer, usable)
        name = self.table.engines.get(layer.signature)
        if name is not None:
            engine = ENGINES.get(name)
            reason = "there is no such engine"
            if engine is not None:
                reason = engine.why_not(layer, self.device) or ""
            if engine is None or reason:
                raise DeevoError(
                    f"the engine table {self.table.path or ''} has {name!r} for layer "
                    f"{layer.name}, which cannot serve here: {reason}; resume on the machine where "
                    "the run began, or start a new run folder"
                )
            return engine
        name = self._cache.engines.get(layer.signature)
        names = [engine.name for engine in usable]
        if name not in names:
            name = names[self._fastest(layer, usable)]
            self._cache.engines[layer.signature] = name
        self.table.engines[layer.signature] = name
        return ENGINES[name]

    def save(self) -> None:
        """Writes both tables; a cache that cannot be written is done without."""
        if self._forced is not None:
            return
        self.table.save()
        try:
            self._cache.save()
        except (DeevoError, OSError):
            return

    def _first_that_runs(self, layer: Bindable, engines: Sequence[Engine]) -> Engine:
        for engine in engines:
            if self._seconds(layer, engine, _trial(layer, engine.bind(layer), self.device)) < inf:
                return engine
        raise _none_runs(layer, engines)

    def _fastest(self, layer: Bindable, engines: Sequence[Engine]) -> int:
        runs = [_trial(layer, engine.bind(layer), self.device) for engine in engines]
        best, failed = [inf] * len(runs), set[int]()
        for turn in range(_ROUNDS + 1):  # interleaved, the first turn warms up
            for i, run in enumerate(runs):
                if i in failed:
                    continue
                seconds = self._seconds(layer, engines[i], run)
                if seconds == inf:
                    failed.add(i)
                    best[i] = inf
                elif turn:
                    best[i] = min(best[i], seconds)
        fastest = min(range(len(best)), key=best.__getitem__)
        if best[fastest] == inf:
            raise _none_runs(layer, engines)
        return fastest if best[fastest] < _MARGIN * best[0] else 0

    def _seconds(self, layer: Bindable, engine: Engine, run: Callable[[], float]) -> float:
        """The seconds of a run; one that fails, as on a shape a library lacks, takes forever."""
        try:
            return self._measure(run)
        except RuntimeError as error:
            warnings.warn(
                f"engine {engine.name} fails on layer {layer.name} and is not used for it: {error}",
                stacklevel=2,
            )
            return inf


def _none_runs(layer: Bindable, engines: Sequence[Engine]) -> DeevoError:
    names = ", ".join(engine.name for engine in engines)
    return DeevoError(
        f"no engine computes layer {layer.name}: {names} all fail on it, see the warnings; use "
        'engine="eager"'
    )


def _trial(layer: Bindable, bound: Bound, device: torch.device) -> Callable[[], float]:
    """A task that runs a layer on random numbers; returns its seconds a micro-batch."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        value = torch.randn(shape, generator=generator, device=device).to(layer.dtype)
        if len(shape) == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value

    seconds = device_seconds if device.type == "cuda" else _host_seconds
    x = draw(layer.in_shape)
    if isinstance(layer, Aten):
        return lambda: seconds(lambda: bound.run(None, x, None))
    weights = [draw(layer.weights.shape), torch.zeros(layer.weights.shape[0], device=device)]
    second = None
    if isinstance(layer, Convolution) and layer.residual:
        second = draw(layer.out_shape)
    elif isinstance(layer, Convolution) and layer.shortcut is not None:
        weights.append(draw(layer.shortcut.weights.shape))
        second = draw(layer.shortcut.in_shape)

    def run() -> float:
        prepared = bound.prepare(*weights)
        once = seconds(lambda: bound.prepare(*weights))
        return seconds(lambda: bound.run(prepared, x, second)) + once / _MICRO_BATCHES

    return run


def _host_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def device_seconds(call: Callable[[], object]) -> float:
    """Returns the seconds of one call on the current CUDA device, among several in its queue.

    The device sleeps until they wait there: in a run graphs launch the kernels, so what the host
    needs to launch them must not count.
    """
    begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SLEEP_CYCLES)
    begun.record()
    for _ in range(_CALLS):
        call()
    done.record()
    done.synchronize()
    return begun.elapsed_time(done) / 1000 / _CALLS
