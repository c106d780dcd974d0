"""Engines are timed once and kept, in a run's table and in the device's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import deevo_ext as deevo
from deevo_ext.networks.engines import ENGINES
from deevo_ext.networks.engines.choose import EngineTable, device_cache
from deevo_ext.networks.forward import PopulationForward
from support.evolution import images, population
from support.networks import Net

CPU = torch.device("cpu")


def test_a_new_engine_has_layers_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = device_cache(CPU).path
    monkeypatch.setitem(ENGINES, "another", ENGINES["aten"])
    assert device_cache(CPU).path != before


def test_engines_are_timed_once_and_kept(tmp_path: Path) -> None:
    pop, data = population(4), images(20)
    path = tmp_path / "run" / "engines.json"
    first = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    losses = first(pop.rows, data.images, data.labels).losses
    record = json.loads(path.read_text())
    assert record["precision"] == "float32" and len(record["engines"]) == 2
    assert set(record["engines"].values()) <= set(ENGINES)
    assert record["engines"].items() <= device_cache(CPU).engines.items()
    # A run's table wins over what would be chosen now, and is checked.
    record["engines"] = dict.fromkeys(record["engines"], "aten")
    path.write_text(json.dumps(record))
    second = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    again = second(pop.rows, data.images, data.labels).losses
    layers = second.graph((1, 10, 10)).layers
    assert {layer.engine for layer in layers} == {"aten"}
    assert torch.allclose(losses, again, atol=1e-5)
    record["engines"] = dict.fromkeys(record["engines"], "cudnn")
    path.write_text(json.dumps(record))
    third = PopulationForward(Net(), pop, micro_batch=10, table=EngineTable(CPU, path))
    with pytest.raises(deevo.DeevoError, match=r"'cudnn' for layer conv, which cannot serve here"):
        third(pop.rows, data.images, data.labels)
    with pytest.raises(deevo.DeevoError, match="was made for 'float32'"):
        PopulationForward(Net(), pop, precision="bfloat16", table=EngineTable(CPU, path))
    path.write_text("{}")
    with pytest.raises(deevo.DeevoError, match="is no engine table"):
        EngineTable(CPU, path)


def test_a_run_goes_on_with_the_engines_that_it_recorded() -> None:
    pop, data = population(4), images(20)
    first = deevo.Evaluator(Net(), pop, micro_batch=10)
    first.losses(pop.rows, data)
    record = first.engines()
    assert record["precision"] == "float32" and len(record["engines"]) == 2
    other = {**record, "engines": dict.fromkeys(record["engines"], "aten")}
    second = deevo.Evaluator(Net(), pop, micro_batch=10)
    second.use_engines(json.loads(json.dumps(other)))
    second.losses(pop.rows, data)
    assert second.engines() == other
    assert {layer.engine for layer in second.forward.graph((1, 10, 10)).layers} == {"aten"}
    with pytest.warns(UserWarning, match="the run began on abacus and goes on on"):
        second.use_engines({**record, "device": "abacus"})
    assert second.engines()["device"] == "abacus"
    bad = ({}, {**record, "engines": {"fc": 1}}, {**record, "precision": None})
    for damaged in bad:
        with pytest.raises((TypeError, KeyError)):  # which the journal names by its line
            second.use_engines(damaged)


def test_a_cache_of_engines_that_is_no_file_is_begun_anew() -> None:
    path = device_cache(CPU).path
    assert path is not None
    path.unlink(missing_ok=True)
    os.mkfifo(path)  # to read it would never end
    table = device_cache(CPU)
    assert table.engines == {}
    table.save()
    assert path.is_file()
