"""What products of float32 are formed in on a GPU: the switches of torch, set and put back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import pytest
import torch

from deevo_ext.networks.execution.runner import Execution
from deevo_ext.networks.execution.workers import Workers

# Each in a process of its own: switches cannot be unset.
PROGRAM = """
import sys, torch
from deevo_ext.networks.execution.float32 import float32_products
cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

def switches():
    def of(read):
        try:
            return read()
        except RuntimeError:
            return "disagree"
    return [
        of(lambda: cudnn.allow_tf32), of(lambda: matmul.allow_tf32),
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision,
    ]

exec(sys.argv[1])
before = switches()
for tf32, name in ((True, "tf32"), (False, "ieee")):
    with float32_products(tf32):
        assert switches() == [tf32, tf32, name, name, name], switches()
    for was, found in zip(before, switches()):  # those that disagreed may agree now
        assert found == was or was == "disagree", (before, switches())
if "conv" in sys.argv[1]:
    assert before[0] == "disagree", before
"""


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "cudnn.allow_tf32 = False",
        "matmul.allow_tf32 = True",
        "cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.set_float32_matmul_precision('high')",
    ],
)
def test_switches_are_set_and_put_back(settings: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, settings]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_threads_take_turns_with_what_is_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks' evaluations on a GPU; a nested one is the same thread's."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    workers, seen = Workers(torch.device("cpu")), list[str]()
    one, other = (
        Execution(torch.device("cuda:0"), precision, 4, workers)
        for precision in ("tf32", "float32")
    )

    def beside() -> None:
        with other.torch_settings():
            seen.append(torch.backends.cuda.matmul.fp32_precision)

    thread = threading.Thread(target=beside)
    with one.torch_settings():
        thread.start()
        thread.join(0.2)
        with one.torch_settings():
            seen.append(torch.backends.cuda.matmul.fp32_precision)
        assert thread.is_alive() and seen == ["tf32"]
    thread.join()
    assert seen == ["tf32", "ieee"]
