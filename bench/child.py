"""Work in a process of its own: memory that is counted, libraries that may fail."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch

from bench import ROOT
from bench.cases import CASES, DE_PEERS
from bench.job import Job, Skipped, WrongResult

LIMIT_S = 300


def run(job: Job) -> dict[str, Any]:
    """What `run_child(job)` of the case's module gives in a new process; its reasons come along."""
    command = [sys.executable, "-m", "bench", "--child", json.dumps(asdict(job))]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Skipped(f"not done in {LIMIT_S} s") from None
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise Skipped(f"its process ended with status {result.returncode}: {last[:200]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    if "skipped" in answer:
        raise Skipped(answer["skipped"])
    if "wrong" in answer:
        raise WrongResult(answer["wrong"])
    return answer


def main(text: str) -> int:
    """The new process: prints the answer as JSON, as its last line."""
    job = Job(**json.loads(text))
    name = CASES[job.case].module
    if job.backend in DE_PEERS:
        name = "peers"
    torch.set_num_threads(job.threads)
    try:
        answer = importlib.import_module(f"bench.{name}").run_child(job)
    except Skipped as reason:
        answer = {"skipped": str(reason)}
    except WrongResult as error:
        answer = {"wrong": str(error)}
    print(json.dumps(answer))
    return 0
