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
from deevo_ext import _extension, backends, cli
from deevo_ext.cli import diagnostics
from deevo_ext.errors import DeevoError
from support import cuda_on_host
from support.paths import ROOT


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
    return diagnostics.collect()


def test_versions_are_those_of_the_running_process(report):
    versions = report["packages"]
    assert versions["deevo_ext"] == deevo_ext.__version__
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == numpy.__version__
    assert (versions["triton"] is None) == (importlib.util.find_spec("triton") is None)
    assert report["torch"]["torch_version"] == torch.__version__
    assert report["torch"]["python_version"].startswith(platform.python_version())


def test_extras_are_those_of_the_package(report):
    import tomllib

    folder = ROOT
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


def test_packages_are_imported_and_not_only_found(report, tmp_path, monkeypatch):
    assert report["why_no_import"] == {}
    (tmp_path / "broken.py").write_text("raise RuntimeError('no such\\n driver')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(diagnostics.IMPORTED, "matplotlib", "broken")
    changed = diagnostics.collect()
    assert changed["why_no_import"].keys() == {"matplotlib"}
    version = importlib.metadata.version("matplotlib")
    line = f"matplotlib {version}; not usable: broken cannot be imported beside torch"
    text = diagnostics.format_report(changed)
    assert line in text and "(no such driver)" in text


def test_what_an_extra_lacks_is_said_with_its_remedy(report):
    changed = {**report, "extras": {"a": {"x": "1.2", "y": None, "z": None}, "b": {"x": "1.2"}}}
    text = diagnostics.format_report(changed)
    assert 'x 1.2; missing: y, z; pip install "deevo_ext[a]" brings them' in text
    assert text.count("missing:") == 1


def test_processor_facts(report):
    processor = report["processor"]
    assert processor["torch_threads"] == torch.get_num_threads()
    assert 1 <= processor["usable_cores"] <= processor["cores"] == os.cpu_count()


def test_gpu_facts_are_torchs(report):
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert (report["why_no_gpu"] is None) == torch.cuda.is_available()
    for index, words in enumerate(report["gpus"]):
        assert words.startswith(torch.cuda.get_device_name(index))


def test_extension_facts(report):
    extension = report["extension"]
    assert Path(extension["file"]).name.startswith("_C.")
    assert extension["instruction_set"] == _extension.load().instruction_set()
    assert extension["compiler"]
    assert "-ffp-contract=off" in extension["flags"].split()
    built_with_cuda = hasattr(_extension.load(), "cuda")
    assert extension["CUDA"].startswith("none") != built_with_cuda
    assert bool(extension["GPU_architectures"]) == built_with_cuda


def test_backends(report):
    assert {"reference", "cpu", "cuda", "triton"} <= set(report["backends"])
    assert report["backends"]["reference"] is None
    assert report["backends"]["cpu"] is None
    for name in ("cuda", "triton"):
        assert ("torch sees no GPU" in (report["backends"][name] or "")) == (not report["gpus"])


def test_reasons_for_backends_that_cannot_be_used(monkeypatch):
    why = diagnostics.why_unusable
    monkeypatch.setattr(backends, "why_unavailable", lambda name: None)
    assert why("cpu", "no driver") is None and why("cuda", None) is None
    assert why("triton", "no driver") == "torch sees no GPU (no driver)"
    monkeypatch.setattr(backends, "why_unavailable", lambda name: "it was not built")
    assert why("cpu", "no driver") == "it was not built"
    assert why("cuda", "no driver") == "it was not built; torch sees no GPU (no driver)"


def test_report_without_extension_says_why(monkeypatch):
    monkeypatch.setattr(_extension, "_attempt", lambda: (None, "it was never built"))
    report = diagnostics.collect()
    assert report["backends"]["cpu"] == report["extension"]["missing"] == "it was never built"
    assert "it was never built" in diagnostics.format_report(report)
    with pytest.raises(DeevoError, match="it was never built"):
        _extension.load()


def test_engine_tables_are_those_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path))
    assert "none yet" in diagnostics.format_report(diagnostics.collect())
    (tmp_path / "engines-some-cpu-1.json").touch()
    assert diagnostics.collect()["caches"]["engine_tables"] == ["engines-some-cpu-1.json"]


def test_text_names_every_backend_version_and_gpu(report):
    gpu = "GPU A, compute capability 9.0, 3.0 GiB"
    text = diagnostics.format_report({**report, "gpus": [gpu]})
    for word in (*report["backends"], *filter(None, report["packages"].values()), gpu):
        assert word in text
    assert f"PyTorch version: {torch.__version__}" in text


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
    assert result.stdout.startswith("packages\n")
    assert "\nbackends\n" in result.stdout


def test_json_is_the_same_report(tmp_path, report):
    result = python("-m", "deevo_ext", "info", "--json", "-", cwd=tmp_path)
    printed = json.loads(result.stdout)
    assert printed["packages"] == report["packages"]
    assert printed["extension"] == report["extension"]
    report["backends"].pop(cuda_on_host.NAME, None)  # other tests in this process made it known
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


def test_other_errors_are_one_line_that_says_how_to_see_where(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", failing_app(ZeroDivisionError("by 0")))
    with pytest.raises(SystemExit, match="1"):
        cli.main([])
    said = capsys.readouterr().err
    assert said.splitlines() == ["error: ZeroDivisionError: by 0 (DEEVO_DEBUG=1 shows where)"]
    monkeypatch.setenv("DEEVO_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main([])
