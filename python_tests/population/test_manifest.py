"""A population's manifest: the same bits again from the same files, with no model at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.population import Population
from support.networks import ConvNet, MaskedNet, TiedNet, members
from support.populations import FACTORIES, POLICIES, assert_equal, build, changed, frozen_of
from support.zoo import torchvision_model

pytestmark = pytest.mark.filterwarnings("error")


def save(states: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    files = [folder / f"run{i}.pth" for i in range(len(states))]
    for file, state in zip(files, states, strict=True):
        torch.save(state, file)
    return files


def through_json(manifest: dict[str, Any]) -> dict[str, Any]:
    replayed = json.loads(json.dumps(manifest, allow_nan=False))
    assert replayed == manifest  # lists, no tuples: a journal's manifest is compared with a new one
    return replayed


def assert_same(replayed: Population, expected: Population) -> None:
    for name in ("rows", "statistics"):
        a, b = getattr(replayed, name), getattr(expected, name)
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8))
    for layout, other in (
        (replayed.layout, expected.layout),
        (replayed.statistics_layout, expected.statistics_layout),
    ):
        assert layout == other and layout.hash == other.hash
    assert_equal(replayed.fixed, expected.fixed)
    assert replayed.inventory == expected.inventory
    assert (replayed.names, replayed.batchnorm) == (expected.names, expected.batchnorm)
    assert replayed.options == expected.options
    for i in range(replayed.size):
        a, b = replayed.state_dict(i), expected.state_dict(i)  # order, dtypes and tied names
        assert list(a) == list(b) and all(a[n].dtype == b[n].dtype for n in b)
        assert all(torch.equal(a[n], b[n]) for n in b)
    assert replayed.manifest() == expected.manifest()


def assert_replayed(model: nn.Module, files: list[Path], **kwargs: Any) -> Population:
    population = Population.from_checkpoints(model, files, **kwargs)
    replayed = Population.from_manifest(through_json(population.manifest()), files)
    assert_same(replayed, population)
    assert replayed.sources == population.sources
    return replayed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_the_same_bits(
    factory: type[nn.Module], policy: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    files = save(members(factory, 3), tmp_path)
    assert_replayed(factory(), files, dtype=dtype, batchnorm=policy, frozen=frozen_of(factory))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("factory", "frozen"),
    [
        (ConvNet, ["bn1.*", "fc.weight"]),
        (ConvNet, "*.running_var"),
        (TiedNet, ["decoder.weight"]),
        (MaskedNet, ["mask", "head.*"]),
    ],
)
def test_frozen_tensors(
    factory: type[nn.Module], frozen: str | list[str], policy: str, tmp_path: Path
) -> None:
    states = members(factory, 3)
    held = {n for t in Inventory.of(factory(), frozen).tensors if t.role == "fixed"
            for n in t.names}  # fmt: skip
    for state in states:
        state.update({name: states[0][name] for name in held})
    replayed = assert_replayed(factory(), save(states, tmp_path), frozen=frozen, batchnorm=policy)
    assert replayed.fixed.keys() == held
    assert replayed.inventory.frozen == ((frozen,) if isinstance(frozen, str) else tuple(frozen))


def test_wrapped_and_prefixed_files(tmp_path: Path) -> None:
    raw, ema = members(ConvNet, 6)[:3], members(ConvNet, 6)[3:]
    wrapped = [
        {"model": a, "model_ema": {f"module.{n}": t for n, t in b.items()}}
        for a, b in zip(raw, ema, strict=True)
    ]
    files = save(wrapped, tmp_path)
    with pytest.warns(UserWarning, match="'model' is taken"):
        assert assert_replayed(ConvNet(), files).options == NameOptions()
    replayed = assert_replayed(ConvNet(), files, checkpoint_key="model_ema")
    assert replayed.options.checkpoint_key == "model_ema"
    assert torch.equal(replayed.state_dict(1)["fc.weight"], ema[1]["fc.weight"])


def test_names_changed_by_options(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    files = save(
        [
            {
                **{f"student.{n.replace('fc.', 'head.')}": t for n, t in state.items()},
                **{f"teacher.{n}": t + 1 for n, t in state.items()},
                "student.loss.weight": torch.ones(3),
            }
            for state in states
        ],
        tmp_path,
    )
    with pytest.warns(UserWarning, match="left out: 'teacher"):
        replayed = assert_replayed(
            ConvNet(), files, prefix="student.", key_map={"head.": "fc."}, ignore="loss.*"
        )
    assert_equal(replayed.state_dict(0), states[0])


def test_absent_counters_are_the_models(tmp_path: Path) -> None:
    tracked = {f"bn{i}__num_batches_tracked": None for i in (1, 2)}
    states = [changed(state, **tracked) for state in members(ConvNet, 3)]
    model = ConvNet()
    model.bn1.num_batches_tracked = torch.tensor(2**53 + 1)
    replayed = assert_replayed(model, save(states, tmp_path))
    assert replayed.fixed["bn1.num_batches_tracked"].tolist() == 2**53 + 1
    assert replayed.fixed["bn2.num_batches_tracked"].dtype == torch.int64


def test_dtypes_of_the_files_and_of_the_model(tmp_path: Path) -> None:
    one, two = members(ConvNet, 2)
    files = save([one, {n: t.half() if t.is_floating_point() else t for n, t in two.items()}],
                 tmp_path)  # fmt: skip
    replayed = assert_replayed(ConvNet().double(), files)
    assert {entry.dtype for entry in replayed.layout.entries} == {"float32"}
    assert {t.dtype for t in replayed.inventory.tensors} == {torch.float64, torch.int64}


def test_a_checkpoint_with_one_of_the_tied_names(tmp_path: Path) -> None:
    states = members(TiedNet, 3)
    del states[0]["embed.weight"], states[1]["decoder.weight"]
    assert_replayed(TiedNet(), save(states, tmp_path))


def test_names_are_kept_wherever_the_files_lie(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
    first, second = members(ConvNet, 2)
    torch.save(first, tmp_path / "a" / "last.pth")
    torch.save(second, tmp_path / "b" / "last.pth")
    population = Population.from_checkpoints(ConvNet(), f"{tmp_path}/*/last.pth")
    assert population.names == ["a/last", "b/last"]
    moved = save([first, second], tmp_path)
    replayed = Population.from_manifest(through_json(population.manifest()), moved)
    assert_same(replayed, population)
    assert replayed.sources is not None and population.sources is not None
    assert [path for path, _ in replayed.sources] == [str(file) for file in moved]


def test_of_state_dicts(tmp_path: Path) -> None:
    population = build(names=["x", "y", "z"])
    assert population.options == NameOptions()
    files = save(members(ConvNet, 3), tmp_path)
    assert_same(Population.from_manifest(through_json(population.manifest()), files), population)


def test_warnings_name_the_callers_line(tmp_path: Path) -> None:
    one, two = members(ConvNet, 2)
    files = save([one, two, one], tmp_path)
    manifest = build().manifest()
    calls: list[Callable[[], Population]] = [
        lambda: Population.from_manifest(manifest, files),
        lambda: Population.from_checkpoints(ConvNet(), files),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="same weights") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_other_files_are_refused(tmp_path: Path) -> None:
    manifest = build().manifest()
    files = save(members(ConvNet, 3), tmp_path)
    with pytest.raises(DeevoError, match=r"2 files for 3 members \(member0, member1, member"):
        Population.from_manifest(manifest, files[:2])
    torch.save(members(TiedNet, 1)[0], files[1])
    with pytest.raises(DeevoError, match=r"run1\.pth: does not fit .* missing: 'conv1.weight'"):
        Population.from_manifest(manifest, files)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "manifest has version 2; this package reads version 1"),
        ({"version": None}, "manifest has version None"),
        ({"version": ...}, "not the manifest of a population: KeyError"),
        ({"architecture": ...}, "not the manifest of a population"),
        ({"architecture": {"version": 7}}, "inventory's JSON has version 7"),
        ({"dtype": "float31"}, "'float31' is not the name of a torch dtype"),
        ({"dtype": "float64"}, "dtype torch.float64 of a population"),
        ({"dtype": 3}, "not the manifest of a population"),
        ({"members": 3}, "not the manifest of a population"),
        ({"checkpoint_key": ...}, "not the manifest of a population"),
    ],
)
def test_other_manifests_are_refused(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    manifest = {**build().manifest(), **damage}
    manifest = {key: value for key, value in manifest.items() if value is not ...}
    with pytest.raises(DeevoError, match=message):
        Population.from_manifest(manifest, save(members(ConvNet, 3), tmp_path))


def test_a_large_models_architecture_stays_small() -> None:
    with torch.device("meta"):
        model = torchvision_model("resnet50")
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    inventory = Inventory.of(model, batchnorm="recalibrate")
    assert len(inventory.order) == 320
    text = json.dumps(inventory.to_json())
    assert len(text) < 40_000
    assert Inventory.from_json(json.loads(text)) == inventory
