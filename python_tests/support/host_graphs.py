"""CUDA graphs on the CPU: what torch.cuda has of graphs, streams and events, for tests.

A capture runs nothing, like CUDA's: it notes each operator with the very tensors that it reads and
writes, and a replay runs them on that memory. So a graph that reads what is not there any more, or
was not captured from its static inputs, gives wrong numbers here too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deevo_ext.ops.library import BoundOperator


class Device:
    """What happened: captures and replays, and how long a call takes, in milliseconds.

    launched, replayed: of one pass kernel by kernel, and of one replay. fails: whether captures
    raise.
    """

    def __init__(self) -> None:
        self.captures = self.replays = 0
        self.launched, self.replayed = 10.0, 1.0
        self.fails = False
        self.current = Stream("main")
        self.clock = 0.0
        self.noting: Graph | None = None


class Stream:
    """A stream that only knows its name: the host runs everything in the order of the calls."""

    def __init__(self, name: object = None) -> None:
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        assert other is not self

    def wait_event(self, event: Event) -> None:
        pass


class Event:
    """An event; timing ones read the device's clock."""

    device: Device

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = self.device.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


class Graph:
    """Operators with their tensors."""

    device: Device

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        self.device.replays += 1
        self.device.clock += self.device.replayed
        for function, args, kwargs, result in self.calls:
            made = tree_leaves(function(*args, **kwargs))
            for old, new in zip(tree_leaves(result), made, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Noting(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [a.alias_info for a in (*func._schema.returns, *func._schema.arguments)]
        views = any(r.alias_info is not None for r in func._schema.returns)
        if not views or any(alias is not None and alias.is_write for alias in aliases):
            self.graph.calls.append((func, args, kwargs or {}, result))
        return result


@contextlib.contextmanager
def host_graphs() -> Iterator[Device]:
    """Puts them in the places of torch.cuda's within the with-block."""
    device, patch = Device(), pytest.MonkeyPatch()

    @contextlib.contextmanager
    def capture(graph: Graph, capture_error_mode: str = "global") -> Iterator[None]:
        assert capture_error_mode == "thread_local"  # other threads may call CUDA
        if device.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        device.captures += 1
        device.noting = graph
        with _Noting(graph):
            yield
        device.noting = None
        # What the capture computed is not there: only replays compute.
        for *_, result in graph.calls:
            tree_map(lambda t: t.fill_(7) if isinstance(t, Tensor) else t, result)

    call = BoundOperator.__call__

    def called(self: BoundOperator, **replacements: Any) -> None:
        """Torch's dispatcher does not see these calls."""
        call(self, **replacements)
        if device.noting is not None:
            device.noting.calls.append((call, (self,), replacements, None))

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, device.current = device.current, stream
        yield
        device.current = before

    try:
        patch.setattr(Event, "device", device, raising=False)
        patch.setattr(Graph, "device", device, raising=False)
        for name, fake in (
            ("CUDAGraph", Graph),
            ("graph", capture),
            ("Stream", Stream),
            ("Event", Event),
            ("stream", on),
            ("current_stream", lambda device_=None: device.current),
            ("synchronize", lambda: None),
        ):
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(BoundOperator, "__call__", called)
        patch.setattr(Tensor, "record_stream", lambda self, stream: None)
        yield device
    finally:
        patch.undo()
