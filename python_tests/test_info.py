"""The environment report and the command line around it."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import deevo_ext
from deevo_ext import _extension, cli, info
from deevo_ext.errors import DeevoError


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python in `cwd`, an empty directory, so that the installed package is imported."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def report() -> dict:
    return info.collect()


def test_versions_are_those_of_the_running_process(report):
    versions = report["versions"]
    assert versions["deevo_ext"] == deevo_ext.__version__
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == numpy.__version__
    assert (versions["triton"] is None) == (importlib.util.find_spec("triton") is None)


def test_extras_are_those_of_the_package(report):
    import tomllib

    folder = Path(__file__).parents[1]
    declared = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    extras = report["extras"]
    assert extras.keys() == declared["optional-dependencies"].keys()
    assert extras["plots"].keys() == {"matplotlib"}
    # An extra that includes another has its packages, too.
    assert extras["plots"].items() <= extras["imagenet"].items() <= extras["zoo"].items()
    assert extras["imagenet"].keys() == {"matplotlib", "torchvision", "timm", "pillow"}
    for packages in extras.values():
        for name, version in packages.items():
            try:
                assert version == importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                assert version is None


def test_what_an_extra_lacks_is_said_with_its_remedy(report):
    changed = {**report, "extras": {"a": {"x": "1.2", "y": None, "z": None}, "b": {"x": "1.2"}}}
    text = info.format_report(changed)
    assert 'x 1.2; missing: y, z: pip install "deevo_ext[a]"' in text
    assert text.count("missing:") == 1


def test_cpu_facts(report):
    cpu = report["cpu"]
    assert cpu["model"]
    assert cpu["torch_threads"] == torch.get_num_threads()
    assert 1 <= cpu["cores_usable"] <= cpu["cores"] == os.cpu_count()
    # torch detects instruction sets by itself (cpuid), so it is an independent witness.
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512"):
        assert "AVX2" in cpu["instructions"]
    if capability == "AVX512":
        assert "AVX-512F" in cpu["instructions"]


def test_cpuinfo_of_x86_and_arm():
    x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.1GHz: x\nflags\t\t: fpu sse4_2 avx avx512f\n"
    assert info.read_cpuinfo(x86 * 2) == ("Some CPU @ 2.1GHz: x", ["SSE4.2", "AVX", "AVX-512F"])
    arm = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\n"
    assert info.read_cpuinfo(arm) == (None, ["NEON", "SVE"])
    assert info.read_cpuinfo("") == (None, [])


def test_gpu_facts_are_torchs(report):
    gpu = report["gpu"]
    assert gpu["torch_cuda"] == torch.version.cuda
    assert len(gpu["torch_devices"]) == torch.cuda.device_count()
    assert (gpu["torch_problem"] is None) == torch.cuda.is_available()
    for index, device in enumerate(gpu["torch_devices"]):
        assert device["name"] == torch.cuda.get_device_name(index)
    if gpu["torch_devices"]:
        assert gpu["driver"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023\nGCC: 12",
            "535.129.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
            "580.65.06",
        ),
        ("", None),
    ],
)
def test_driver_version(text, version):
    assert info.read_driver(text) == version


def test_extension_facts(report):
    extension = report["extension"]
    assert extension["present"], extension["reason"]
    assert Path(extension["path"]).name.startswith("_C.")
    assert extension["compiler_version"]
    assert "-ffp-contract=off" in extension["flags"].split()
    built_with_cuda = hasattr(_extension.load(), "cuda_plan")
    assert (extension["cuda_version"] is not None) == built_with_cuda
    assert bool(extension["cuda_architectures"]) == built_with_cuda


def test_backends(report):
    backends = report["backends"]
    assert tuple(backends) == info.BACKENDS == ("reference", "cpu", "cuda", "triton")
    assert backends["reference"]["available"]
    assert backends["cpu"]["available"]
    for fact in backends.values():
        assert fact["available"] == (fact["reason"] is None)


def facts(present=True, cuda_version=None, devices=()):
    extension = {"present": present, "reason": None if present else "not built"}
    extension["cuda_version"] = cuda_version
    return extension, {"torch_devices": list(devices), "torch_problem": "no driver"}


def test_reasons_for_missing_backends(monkeypatch):
    monkeypatch.setattr(info, "_has_module", lambda name: True)
    monkeypatch.setattr(info, "_installed", lambda name: None)
    assert info._missing_for("reference", *facts(present=False)) == []
    assert info._missing_for("cpu", *facts()) == []
    assert info._missing_for("cpu", *facts(present=False)) == [
        "the compiled extension is missing: not built"
    ]
    assert info._missing_for("cuda", *facts()) == [
        "the extension was built without CUDA kernels",
        "torch sees no GPU (no driver)",
    ]
    assert info._missing_for("cuda", *facts(cuda_version="13.0", devices=[{}])) == []
    assert info._missing_for("triton", *facts(present=False)) == [
        "the compiled extension is missing: not built",
        "triton is not installed",
        "torch sees no GPU (no driver)",
    ]
    monkeypatch.setattr(info, "_has_module", lambda name: False)
    assert info._missing_for("reference", *facts()) == [
        f"deevo_ext {deevo_ext.__version__} does not have this backend"
    ]


def test_report_without_extension_or_gpu_says_why(monkeypatch):
    monkeypatch.setattr(_extension, "_attempt", lambda: (None, "it was never built"))
    report = info.collect()
    assert report["backends"]["cpu"] == {
        "available": False,
        "reason": "the compiled extension is missing: it was never built",
    }
    assert "it was never built" in info.format_report(report)
    with pytest.raises(DeevoError, match="it was never built"):
        _extension.load()


def test_text_names_every_backend_and_version(report):
    text = info.format_report(report)
    for word in (*info.BACKENDS, *filter(None, report["versions"].values())):
        assert word in text


def test_text_of_a_machine_with_a_gpu(report):
    gpu = {
        "driver": "580.65.06",
        "torch_cuda": "13.0",
        "torch_problem": None,
        "torch_devices": [{"name": "GPU A", "capability": "9.0", "memory_bytes": 3 << 30}],
        "smi_devices": [
            {"name": "GPU A", "driver_version": "580.65.06", "memory.total": "3072 MiB"}
        ],
    }
    text = info.format_report({**report, "gpu": gpu})
    assert "GPU A, compute capability 9.0, 3.0 GiB" in text
    assert "GPU A, driver 580.65.06, 3072 MiB" in text
    assert "torch sees no GPU " not in text.split("backends")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "deevo_ext"),
        ("-m", "deevo_ext", "info"),
        ("-c", "from deevo_ext.cli import main; main(['info'])"),
    ],
    ids=["module", "module-info", "main-info"],
)
def test_command_prints_the_report(arguments, tmp_path):
    result = python(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("versions\n")
    assert "\nbackends\n" in result.stdout


def test_json_is_the_same_report(tmp_path, report):
    result = python("-m", "deevo_ext", "info", "--json", cwd=tmp_path)
    printed = json.loads(result.stdout)
    assert printed["versions"] == report["versions"]
    assert printed["extension"] == report["extension"]
    assert printed["backends"] == report["backends"]


def failing_app(error: Exception):
    def app(**_):
        raise error

    return lambda: app


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DeevoError("member 7,\n  expected below 4"), "error: member 7, expected below 4\n"),
        (FileNotFoundError(2, "No such file", "a.pt"), "error: [Errno 2] No such file: 'a.pt'\n"),
    ],
)
def test_known_errors_are_one_line(error, line, monkeypatch, capsys):
    monkeypatch.delenv("DEEVO_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", failing_app(error))
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 1
    assert capsys.readouterr().err == line


def test_deevo_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("DEEVO_DEBUG", "1")
    monkeypatch.setattr(cli, "app", failing_app(DeevoError("bad")))
    with pytest.raises(DeevoError, match="bad"):
        cli.main([])


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "app", failing_app(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main([])
