"""Work in a process of its own: memory that is counted, libraries that may fail."""

from __future__ import annotations

import importlib
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

import bench
from bench.cases import CASES, DE_PEERS
from bench.job import Job, Skipped, WrongResult

LIMIT_S = 300
_CONTEXT = multiprocessing.get_context("spawn")


def run(job: Job) -> dict[str, Any]:
    """What `run_child(job)` of the case's module returns in a new process, or raises there."""
    bench.prefer_installed()  # whoever imported this package, its process must be able to
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_answer, args=(job, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(LIMIT_S):
            raise Skipped(f"not done in {LIMIT_S} s")
        answer: dict[str, Any] | Exception = receiver.recv()
        process.join(10)  # one that is killed leaves semaphores behind
    except EOFError:
        process.join()
        raise Skipped(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(job: Job, sender: Connection) -> None:
    """Does the job in the new process, and sends what came of it."""
    name = "peers" if job.backend in DE_PEERS else CASES[job.case].module
    torch.set_num_threads(job.threads)
    try:
        answer = importlib.import_module(f"bench.{name}").run_child(job)
    except (Skipped, WrongResult) as reason:
        answer = reason
    sender.send(answer)
