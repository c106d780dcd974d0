"""How a process becomes one of several ranks: by torchrun's variables, or by a process group."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import warnings
from collections.abc import Collection, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from deevo_ext.distributed.connection import Connection
from deevo_ext.distributed.ranks import RankError, Ranks, active, ranks
from deevo_ext.errors import DeevoError

TIMEOUT = 120.0
"""Seconds after which a rank that says nothing is given up; DEEVO_RANK_TIMEOUT in its place."""


_times = itertools.count()  # that ranks have joined: the same in all of them


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Makes this process one of its launcher's ranks inside; all of them come here.

    They are those of the process group that torch.distributed has been given, or of RANK and
    WORLD_SIZE, which torchrun and other launchers set; else the process is alone. An exception
    inside stops all of them, each with the reason of the first. Nested, it changes nothing. A
    process group that is made here stays: a store that outlives it would mislead a second one.

    Raises DeevoError where the others do not come.
    """
    several = dist.get_world_size() > 1 if dist.is_initialized() else _launched()
    if ranks().count > 1 or not several:
        yield ranks()
        return
    connection = _connected(_timeout())
    try:
        with active(connection):
            try:
                yield connection
            except SystemExit as end:
                if end.code in (None, 0):
                    connection.leave()
                else:
                    connection.fail(end)
                raise
            except BaseException as error:
                connection.fail(error)
                raise
            else:
                connection.leave()
    finally:
        connection.close()


def require_own_gpus(devices: Collection[torch.device]) -> None:
    """Raises RankError, on all ranks, where some crowd on one GPU and see another that is free.

    devices: those that this rank works on. What was made before the ranks came together, on "cuda",
    lies on the first GPU of all, unless the script had chosen one. A GPU is known by its UUID:
    where CUDA_VISIBLE_DEVICES gives each rank its own, all of them are "cuda:0".
    """
    used = {_uuid(device): str(device) for device in devices if device.type == "cuda"}
    seen = {_uuid(number) for number in range(torch.cuda.device_count())} if used else set()
    everyone = [*enumerate(ranks().gather((socket.gethostname(), used, seen)))]
    for rank, (host, own, _) in everyone:
        for gpu, name in own.items():
            there = [(r, gpus, sees) for r, (where, gpus, sees) in everyone if where == host]
            crowd = [r for r, gpus, _ in there if gpu in gpus]
            busy = {one for _, gpus, _ in there for one in gpus}
            free = {one for r, _, sees in there if r in crowd for one in sees} - busy
            if len(crowd) > 1 and free:
                raise RankError(
                    f"ranks {', '.join(map(str, crowd))} on {host} work on one GPU (rank {rank}'s "
                    f"{name}), beside {len(free)} that nobody works on: call "
                    'torch.cuda.set_device(int(os.environ["LOCAL_RANK"])) before population and '
                    'evaluator are made on "cuda", or name each rank\'s own ("cuda:1")'
                )


def _uuid(device: torch.device | int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _launched() -> bool:
    """Whether a launcher has started several processes."""
    return "RANK" in os.environ and (_number("WORLD_SIZE") or 1) > 1


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise DeevoError(f"{name} is {text!r} in the environment; expected a whole number")
    return int(text)


def _timeout() -> float:
    text = os.environ.get("DEEVO_RANK_TIMEOUT", str(TIMEOUT))
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise DeevoError(
        f"DEEVO_RANK_TIMEOUT is {text!r} in the environment; expected seconds above 0, after which "
        "a silent rank is given up"
    )


def _connected(timeout: float) -> Connection:
    # Processes start seconds apart, however soon a silent one is given up once all are here.
    together = max(timeout, TIMEOUT)
    limit = timedelta(seconds=together)
    local, on_node = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
    try:
        own_group = not dist.is_initialized()
        if own_group:
            store, rank, count = next(rendezvous("env://", timeout=limit))
            # torchrun keeps its store when it starts ranks again: what the last ones left there,
            # addresses among it, would be taken for the new ones'.
            start = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} of {count}"
            store = PrefixStore(f"deevo/{start}", store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=limit)
        store = distributed_c10d._get_default_store()
        # Its own, with its own timeout, whatever backend and timeout the process group has.
        group = dist.new_group(backend="gloo", timeout=limit)
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), group)
        store = PrefixStore(f"deevo/{next(_times)}", store)
        connection = Connection(store, group, timeout)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeevoError(
            f"the ranks do not come together ({reason}); expected that each of WORLD_SIZE "
            "processes has RANK, MASTER_ADDR and MASTER_PORT, as torchrun "
            f"sets them, and comes here within {together:.0f} s"
        ) from error
    try:
        hosts = connection.gather(socket.gethostname())
        here = [rank for rank, host in enumerate(hosts) if host == hosts[connection.rank]]
        local = here.index(connection.rank) if local is None else local
        connection.first_of_node = local == 0
        connection.on_node = max(1, len(here) if on_node is None else on_node)
        if own_group and torch.cuda.is_available():
            torch.cuda.set_device(local % torch.cuda.device_count())
    except BaseException:
        connection.close()
        raise
    _warn_of_threads(connection)
    return connection


def _warn_of_threads(connection: Connection) -> None:
    """Warns where torchrun has left most of the machine's cores without work."""
    cores = len(os.sched_getaffinity(0))
    each = cores // connection.on_node
    one = os.environ.get("OMP_NUM_THREADS") == "1" and torch.get_num_threads() == 1
    if one and each > 1 and connection.first_of_node and not torch.cuda.is_available():
        warnings.warn(
            f"each rank has one thread, but there are {cores} cores: torchrun sets "
            f"OMP_NUM_THREADS=1 where it is not set; set OMP_NUM_THREADS={each} to use them, no "
            "bit changes",
            stacklevel=4,
        )
