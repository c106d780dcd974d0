"""Several ranks on this machine, in processes that are forked from one that has imported torch."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from support.paths import child_environment

_CONTEXT = multiprocessing.get_context("forkserver")
SECONDS = 90.0  # of a busy machine: ranks that hang fail a test, and take no hour
SILENT = 6.0  # after which a rank is given up: a busy machine keeps a live one from speaking for 2


class RankFailure(Exception):
    """What a rank raised, as its traceback."""


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def environment(rank: int, count: int, port: int, timeout: float) -> dict[str, str]:
    """What a launcher sets."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DEEVO_RANK_TIMEOUT": str(timeout),
    }


def start(
    count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0
) -> tuple[list[BaseProcess], list[Connection]]:
    """Starts ranks that call a module's function, each with the others' environment."""
    port, processes, pipes = free_port(), [], []
    _start_server()
    for rank in range(count):
        here, there = _CONTEXT.Pipe(duplex=False)
        names = environment(rank, count, port, timeout)
        process = _CONTEXT.Process(
            target=_child, args=(there, names, function, arguments), daemon=True
        )
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    return processes, pipes


@functools.cache
def _start_server() -> None:
    """Starts the process that ranks are forked from; the checkout is not on its path.

    The building of a cache may have started one already, where that is on the path.
    """
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    _CONTEXT.set_forkserver_preload(["support.ranks_preloaded"])
    before = dict(os.environ)
    os.environ.update(child_environment(PYTHONSAFEPATH="1"))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def finish(processes: list[BaseProcess], pipes: list[Connection]) -> list[Any]:
    """What each rank returned, or the exception that it raised, or its exit code."""
    results: list[Any] = [None] * len(pipes)
    waiting = dict(zip(pipes, range(len(pipes)), strict=True))
    try:
        while waiting:
            ready = wait(list(waiting), SECONDS)
            assert ready, f"ranks {sorted(waiting.values())} hang"
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]
                try:
                    results[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    processes[rank].join(SECONDS)
                    results[rank] = processes[rank].exitcode
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def on_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0
) -> list[Any]:
    """What a module's function returns on each of some ranks; raises what one of them raised."""
    results = finish(*start(count, function, *arguments, timeout=timeout))
    for result in results:
        if isinstance(result, RankFailure):
            raise result
    return results


def _child(
    pipe: Connection,
    names: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(names)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        result: Any = function(*arguments)
    except BaseException:
        result = RankFailure(traceback.format_exc())
    pipe.send_bytes(pickle.dumps(result))  # torch's own way needs a process that lives on
    pipe.close()
