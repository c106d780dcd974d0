"""The compiled module is found once, and its absence explained."""

from __future__ import annotations

import importlib.machinery
from collections.abc import Iterator
from pathlib import Path

import pytest

from deevo_ext import _extension
from deevo_ext.errors import DeevoError
from support.operators import instruction_set, instruction_sets

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "site" / "deevo_ext"
    package.mkdir(parents=True)
    return package


@pytest.fixture
def no_memory_of_attempts() -> Iterator[None]:
    _extension._attempt.cache_clear()
    yield
    _extension._attempt.cache_clear()


def test_it_is_there() -> None:
    assert _extension.why_missing() is None
    assert _extension.load() is _extension.load()
    assert _extension.load().__name__ == "deevo_ext._C"


def test_installed_without_it(package: Path) -> None:
    assert "was installed without it. Reinstall" in _extension.explain(package, "no module")


def test_source_tree_that_was_not_built(package: Path) -> None:
    (package.parent / "setup.py").touch()
    text = _extension.explain(package, "no module")
    assert f"this is the source tree {package.parent}" in text
    assert 'pip install -e ."' in text


def test_built_for_another_python(package: Path) -> None:
    (package / "_C.cpython-27-vax.so").touch()
    text = _extension.explain(package, "no module")
    assert "_C.cpython-27-vax.so, built for another Python" in text
    assert f"_C{SUFFIX}" in text


def test_there_but_does_not_load(package: Path) -> None:
    (package / f"_C{SUFFIX}").touch()
    text = _extension.explain(package, "file too short")
    assert f"{package / f'_C{SUFFIX}'} exists but does not load (file too short)" in text


@pytest.mark.usefixtures("no_memory_of_attempts")
def test_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol: x")

    with monkeypatch.context() as patch:
        patch.setattr(_extension.importlib, "import_module", fail)
        patch.setattr(_extension, "explain", lambda package, error: f"because of {error}")
        with pytest.raises(DeevoError, match="_C is not available: because of undefined symbol: x"):
            _extension.load()
        assert _extension.why_missing() == "because of undefined symbol: x"


@pytest.mark.parametrize("name", instruction_sets())
def test_instruction_sets_by_name(name: str) -> None:
    compiled = _extension.load()
    fastest = compiled.instruction_set()
    with instruction_set(name):
        assert compiled.instruction_set() == name
    assert compiled.instruction_set() == fastest


def test_unknown_instruction_sets_change_nothing() -> None:
    compiled = _extension.load()
    before = compiled.instruction_set()
    assert not compiled.use_instruction_set("avx1024")
    assert compiled.instruction_set() == before
    assert compiled.use_instruction_set("")
    assert compiled.instruction_set() == before
