"""Threads that evaluate: each keeps to one torch thread, whatever it was asked first."""

from __future__ import annotations

import torch

from deevo_ext.networks.execution.workers import Workers
from support.operators import num_threads


def test_a_worker_keeps_to_one_thread_though_its_first_task_needed_none() -> None:
    with num_threads(3):
        workers = Workers(torch.device("cpu"))
        assert workers.run([lambda: 5, lambda: 7]) == [5, 7]  # no operator of torch
        assert workers.run([torch.get_num_threads] * 6) == [1] * 6
        assert torch.get_num_threads() == 3
