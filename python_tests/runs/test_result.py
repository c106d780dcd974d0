"""What a script or a notebook gets back: a module, and descriptions that fit a screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

import deevo_ext as deevo
from deevo_ext.data.cached import CachedImages
from deevo_ext.reports.tables import Table
from support import evolution
from support.evolution import images, population, save_members, short_run
from support.networks import Net

HALF = {torch.float32: torch.bfloat16}


@pytest.fixture(scope="module")
def given() -> Net:
    """A module whose state must stay as it is, training mode included."""
    torch.manual_seed(5)
    return Net().train()


@pytest.fixture(scope="module")
def result(given: Net, tmp_path_factory: pytest.TempPathFactory) -> deevo.Result:
    """A short run with a table."""
    return deevo.evolve(
        given,
        save_members(tmp_path_factory.mktemp("result") / "members", 8),
        images(150, 1),
        images(90, 2),
        images(70, 3, "test <set>"),
        search="weights",
        generations=3,
        micro_batch=32,
        engine="eager",
        inject_soups=False,
        progress=False,
    )


def test_model_has_the_returned_weights(result: deevo.Result, given: Net) -> None:
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    model = result.model()
    assert not model.training and given.training
    pixels = images(20, 4).images
    reference = functional_call(Net().eval(), result.state_dict, (pixels,))
    with torch.no_grad():
        assert torch.equal(model(pixels), reference)
        for parameter in model.parameters():
            parameter.zero_()
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert any(bool(tensor.any()) for tensor in result.state_dict.values())  # no memory is shared


def test_rounding_to_the_checkpoints_dtype_is_said(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = save_members(tmp_path / "members", 4)
    options: dict = {"inject_soups": True, "basin": "ignore", "generations": 1}
    short_run(folder, None, **options)
    assert not [w for w in recwarn if "rounded" in str(w.message)]
    for file in folder.iterdir():
        save_file({n: t.to(HALF.get(t.dtype, t.dtype)) for n, t in load_file(file).items()}, file)
    text = "hold bfloat16, to which the returned network is rounded, while .* as float32: save"
    with pytest.warns(UserWarning, match=text) as caught:
        result = short_run(folder, None, **options)
    assert {caught.pop(UserWarning).filename} == {evolution.__file__}  # that of the caller
    assert result.state_dict["fc.weight"].dtype == torch.bfloat16
    recwarn.clear()
    short_run(folder, None, **options, dtype=torch.bfloat16)
    assert not [w for w in recwarn if "rounded" in str(w.message)]


def test_history_is_flat(result: deevo.Result) -> None:
    assert len(result.history) == 3
    for metrics in result.history:
        for name, value in metrics.items():
            assert type(value) is float
            assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-/"), name


def described() -> Iterator[object]:
    members = population(8)
    yield members
    de = deevo.DifferentialEvolution(members, generations=7)
    yield de
    yield de.ask()
    de.tell([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    yield de
    yield de.ask()
    yield images(2000, 1)
    pixels = torch.zeros(500, 8, 8, 3, dtype=torch.uint8)
    labels = torch.zeros(500, dtype=torch.int64)
    yield CachedImages(pixels, labels, (0.5,) * 3, (0.2,) * 3, "cached")


def test_descriptions_fit_a_screen(result: deevo.Result) -> None:
    for described_one in (*described(), result.candidate):
        text = repr(described_one)
        assert type(described_one).__name__ in text and len(text) < 300 and "tensor(" not in text
    for table in (result, result.comparison):
        lines = repr(table).splitlines()
        assert len(lines) < 25 and "tensor(" not in repr(table)
    assert result.comparison is not None and repr(result.comparison) in repr(result)


def test_tables_are_html_in_a_notebook(result: deevo.Result) -> None:
    assert result.comparison is not None
    shown = result._repr_html_()
    for line in result.comparison.networks:
        assert f">{line.name}</" in shown
    assert "<set>" not in shown and "&lt;set&gt;" in shown
    assert Table(("a", "b"), [("x<y", "1")], bold={0})._repr_html_() == (
        "<table><thead><tr>"
        '<th style="text-align: left">a</th><th style="text-align: right">b</th></tr></thead>'
        '<tbody><tr><th style="text-align: left">x&lt;y</th>'
        '<th style="text-align: right">1</th></tr></tbody></table>'
    )
