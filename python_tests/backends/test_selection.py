"""Which backend serves a call, and that asking for one that cannot is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deevo_ext import _extension, backends
from deevo_ext.backends import reference
from deevo_ext.backends.native import cpu, cuda
from deevo_ext.errors import DeevoError
from deevo_ext.search.presets import configure
from support.operators import OPERATORS, evolution
from support.paths import ROOT

CPU = torch.device("cpu")
Environment = Callable[[str, str], None]


def test_cpu_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEVO_BACKEND", raising=False)
    assert backends.select(CPU, "plan") is cpu
    monkeypatch.setenv("DEEVO_BACKEND", "auto")
    assert backends.select(CPU, "plan") is cpu


@pytest.mark.parametrize(("name", "module"), [("reference", reference), ("cpu", cpu)])
def test_forced_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object
) -> None:
    monkeypatch.setenv("DEEVO_BACKEND", name)
    assert backends.select(CPU, "plan") is module


def test_use_wins_nests_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEVO_BACKEND", "cpu")
    with backends.use("reference"):
        assert backends.select(CPU, "plan") is reference
        with backends.use("cpu"):
            assert backends.select(CPU, "plan") is cpu
        assert backends.select(CPU, "plan") is reference
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    assert backends.select(CPU, "plan") is cpu


def test_operators_go_where_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(reference, "plan", lambda *arguments: called.append("reference"))
    monkeypatch.setattr(cpu, "plan", lambda *arguments: called.append("cpu"))
    run = evolution(configure("paper"), torch.ones(4))
    run.plan()
    with backends.use("reference"):
        run.plan()
    assert called == ["cpu", "reference"]


def test_unknown_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    match = "is 'fast'; expected one of reference, cpu, cuda, triton"
    with pytest.raises(DeevoError, match=f"backends.use {match}"), backends.use("fast"):
        pass
    monkeypatch.setenv("DEEVO_BACKEND", "fast")
    with pytest.raises(DeevoError, match=f"DEEVO_BACKEND {match}"):
        backends.select(CPU, "plan")


class Extension:
    """A compiled extension with CUDA kernels, or without."""

    def __init__(self, *names: str) -> None:
        for name in names:
            setattr(self, name, None)


def pretend(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, triton: str | None
) -> Callable[[str], ModuleType]:
    """A build with or without CUDA, and a Triton backend or why there is none."""
    monkeypatch.delenv("DEEVO_BACKEND", raising=False)
    monkeypatch.setattr(_extension, "why_missing", lambda: None)
    monkeypatch.setattr(_extension, "load", lambda: Extension("cuda") if compiled else Extension())
    monkeypatch.setattr(backends, "_why_no_triton", lambda: triton)
    fake = ModuleType("triton")
    fake.plan = fake.only_triton = None  # type: ignore[attr-defined]
    modules = {"cpu": cpu, "cuda": cuda, "triton": fake}
    monkeypatch.setattr(backends, "_module", modules.__getitem__)
    return lambda operator: backends.select(torch.device("cuda", 0), operator)


def test_cuda_tensors_prefer_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    select = pretend(monkeypatch, compiled=True, triton=None)
    assert select("plan") is cuda
    assert select("only_triton").__name__ == "triton"


def test_cuda_tensors_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretend(monkeypatch, compiled=False, triton=None)("plan").__name__ == "triton"
    select = pretend(monkeypatch, compiled=False, triton="triton is not installed.")
    match = "cuda:0, .*built without CUDA kernels.*FORCE_CUDA=1.*triton is not installed"
    with pytest.raises(DeevoError, match=match):
        select("plan")


def test_cuda_tensors_and_forced_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    select = pretend(monkeypatch, compiled=True, triton=None)
    with backends.use("triton"):
        assert select("plan").__name__ == "triton"
        with pytest.raises(DeevoError, match="'triton', which does not have deevo::trials"):
            select("trials")
    with backends.use("cuda"), pytest.raises(DeevoError, match=r"cuda devices; .* are on cpu"):
        backends.select(CPU, "plan")
    with backends.use("cpu"), pytest.raises(DeevoError, match=r"cpu devices; .* are on cuda:0"):
        select("plan")
    monkeypatch.setattr(_extension, "load", Extension)
    monkeypatch.setenv("DEEVO_BACKEND", "cuda")
    with pytest.raises(DeevoError, match=r"'cuda', which is not available: .*without CUDA kernels"):
        select("plan")


def test_other_devices_are_refused() -> None:
    with pytest.raises(DeevoError, match=r"plan: tensors are on device meta.*no backend"):
        backends.select(torch.device("meta"), "plan")


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never silently the slow reference."""
    monkeypatch.delenv("DEEVO_BACKEND", raising=False)
    monkeypatch.setattr(_extension, "why_missing", lambda: "it was not built.")
    with pytest.raises(DeevoError, match=r"it was not built\..*DEEVO_BACKEND=reference"):
        backends.select(CPU, "plan")
    with pytest.raises(DeevoError, match="not available: it was not built"), backends.use("cpu"):
        pass
    monkeypatch.setenv("DEEVO_BACKEND", "cpu")
    with pytest.raises(DeevoError, match="DEEVO_BACKEND asks for backend 'cpu', which is not"):
        backends.select(CPU, "plan")
    monkeypatch.setenv("DEEVO_BACKEND", "reference")
    assert backends.select(CPU, "plan") is reference
    assert backends.why_unavailable("reference") is None


PROGRAM = """
import sys
if sys.argv[1] == "hide":
    sys.modules["deevo_ext._C"] = None  # what an import of a missing module looks like
import torch
import deevo_ext.ops
from deevo_ext import _extension
from deevo_ext.search.presets import configure
from deevo_ext.search.strategies import compile_pool
c = configure("paper")
fitness = torch.arange(4, dtype=torch.float64)
choices = torch.zeros(4, 12, dtype=torch.int32)
parameters = torch.zeros(4, 4, dtype=torch.float64)
torch.ops.deevo.plan(c.settings(), compile_pool(c.strategies), c.initial_state(), fitness,
                     torch.ones(4, dtype=torch.uint8), torch.ones(1, dtype=torch.int64), 1, choices,
                     parameters, torch.zeros(4, 5), torch.zeros(4, 0, dtype=torch.int32))
print(parameters.tolist(), sys.modules.get("deevo_ext._C") is not None)
"""


def run_program(backend: str | None, hide: bool) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "DEEVO_BACKEND"}
    if backend is not None:
        environment["DEEVO_BACKEND"] = backend
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "hide" if hide else "show"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tempfile.gettempdir(),  # not a source tree
    )


def test_environment_of_a_process() -> None:
    by_cpu, by_reference = run_program(None, False), run_program("reference", True)
    assert by_cpu.returncode == 0, by_cpu.stderr
    assert by_reference.returncode == 0, by_reference.stderr
    numbers, compiled = by_cpu.stdout.rsplit(maxsplit=1)
    assert compiled == "True"
    assert by_reference.stdout.rsplit(maxsplit=1) == [numbers, "False"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (None, "the compiled operators are not available"),
        ("cpu", "DEEVO_BACKEND asks for backend 'cpu', which is not available"),
        ("fast", "DEEVO_BACKEND is 'fast'; expected one of reference, cpu"),
    ],
)
def test_processes_without_what_they_ask_for(backend: str | None, message: str) -> None:
    result = run_program(backend, True)
    assert result.returncode != 0
    assert message in result.stderr


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets at the end what a test registers."""
    monkeypatch.setattr(backends, "DEVICES", dict(backends.DEVICES))
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))


@pytest.mark.usefixtures("registry")
def test_a_registered_backend_serves_where_it_is_forced() -> None:
    written: list[torch.Tensor] = []

    def compose(
        population: torch.Tensor,
        recipes: torch.Tensor,
        starts: torch.Tensor,
        block_of: torch.Tensor,
        nonneg_start: int,
        out: torch.Tensor,
    ) -> None:
        written.append(out)
        out.fill_(3.0)

    backends.register_backend("threes", compose=compose)
    assert backends.why_unavailable("threes") is None
    population, recipes, out = torch.ones(2, 5), torch.full((1, 1, 2), 0.5), torch.zeros(1, 5)
    segments = torch.tensor([0]), torch.tensor([0], dtype=torch.int32)
    with backends.use("threes"):
        OPERATORS.compose(population, recipes, *segments, 5, out)
        with pytest.raises(DeevoError, match="'threes', which does not have deevo::commit"):
            backends.select(CPU, "commit")
    assert written[0] is out and bool((out == 3.0).all())
    OPERATORS.compose(population, recipes, *segments, 5, out)
    assert len(written) == 1 and bool((out == 1.0).all())


@pytest.mark.usefixtures("registry")
def test_registering_again_replaces() -> None:
    for value in (1, 2):
        backends.register_backend("mine", fold=lambda *arguments, value=value: value)
        assert backends.select(CPU, "plan") is cpu
        with backends.use("mine"):
            assert backends.select(CPU, "fold").fold() == value


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "devices", "operators", "message"),
    [
        ("cpu", ("cpu",), {}, "name is 'cpu', which is built in"),
        ("auto", ("cpu",), {}, "name is 'auto', which is built in"),
        ("mine", ("tpu",), {}, r"devices is \('tpu',\); expected cpu, cuda or both"),
        ("mine", (), {}, r"devices is \(\); expected"),
        ("mine", ("cpu",), {"trial": print}, "no operator deevo::trial; expected one of "),
        ("mine", ("cpu",), {"commit": lambda rows: None}, r"expected a function of \(population, "),
    ],
)
def test_bad_registrations(
    name: str, devices: tuple[str, ...], operators: dict[str, Callable[..., None]], message: str
) -> None:
    before = dict(backends.DEVICES)
    with pytest.raises(DeevoError, match=message):
        backends.register_backend(name, devices, **operators)
    assert before == backends.DEVICES


def test_a_file_registers_backends_for_every_process(tmp_path: Path) -> None:
    """Its backend is among those that operators' tests are made for."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from deevo_ext.backends import reference, register_backend\n"
        "register_backend('mine', trials=reference.trials)\n"
    )
    program = (
        "from support.operators import serving\n"
        "print(*serving('trials'), '/', *serving('trials', 'commit'))\n"
    )
    paths = os.pathsep.join([str(ROOT / "python_tests"), *sys.path])
    environment = {**os.environ, "DEEVO_BACKEND_FILE": str(file), "PYTHONPATH": paths}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    trials, _, both = done.stdout.partition("/")
    assert "mine" in trials.split() and "mine" not in both.split(), done.stderr
    file.unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode and "DEEVO_BACKEND_FILE is" in done.stderr
    assert "expected a Python file that calls" in done.stderr
