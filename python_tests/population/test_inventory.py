"""What a model says about its tensors: norm layers, ties, frozen patterns, and the JSON of it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deevo_ext.errors import DeevoError
from deevo_ext.population.inventory import Inventory
from deevo_ext.population.population import Population
from support.networks import ConvNet, FrozenNorm, SharedNorm, TiedNet, members
from support.populations import FACTORIES, POLICIES, assert_equal, build, refused

pytestmark = pytest.mark.filterwarnings("error")


def test_subclasses_and_kin_of_batchnorm_count() -> None:
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x))

    norms: list[nn.Module] = [
        WithActivation(2),
        nn.BatchNorm2d(2, affine=False),
        nn.SyncBatchNorm(2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        FrozenNorm(),
        nn.BatchNorm2d(2, track_running_stats=False),
    ]
    model = nn.Sequential(nn.Conv2d(2, 2, 1), *norms)
    states = []
    for i in range(2):
        with torch.no_grad():
            next(model.parameters()).fill_(i)
        states.append(copy.deepcopy(model.state_dict()))
    layout = Population.from_state_dicts(model, states).layout
    tail = [e.name for e in layout.entries if e.offset >= layout.nonneg_start]
    assert tail == [f"{i}.running_var" for i in range(1, 6)]
    apart = Population.from_state_dicts(model, states, batchnorm="inherit").statistics_layout
    assert len(apart.entries) == 10
    # A norm layer at the root has names without a dot.
    norm = nn.BatchNorm1d(3)
    two = [{**norm.state_dict(), "bias": torch.full((3,), float(i))} for i in range(2)]
    assert Population.from_state_dicts(norm, two).layout.entries[-1].name == "running_var"


def test_evolved_variances_are_the_tail() -> None:
    layout = build().layout
    tail = [e.name for e in layout.entries if e.offset >= layout.nonneg_start]
    assert tail == ["bn1.running_var", "bn2.running_var"]
    names = {e.name for e in layout.entries}
    assert "bn1.running_mean" in names and "bn1.num_batches_tracked" not in names
    for policy in POLICIES[1:]:
        population = build(batchnorm=policy)
        layout, apart = population.layout, population.statistics_layout
        assert layout.nonneg_start == layout.dim
        assert {e.name for e in apart.entries} == names - {e.name for e in layout.entries}
        assert set(apart.names) == {
            f"bn{i}.running_{kind}" for i in (1, 2) for kind in ("mean", "var")
        }
        tail = [e.name for e in apart.entries if e.offset >= apart.nonneg_start]
        assert tail == ["bn1.running_var", "bn2.running_var"]


def test_tied_weights_are_one_entry() -> None:
    population = build(TiedNet)
    entry = population.layout.entries[0]
    assert (entry.name, entry.aliases) == ("embed.weight", ("decoder.weight",))
    views = population.views(0)
    assert views["embed.weight"] is views["decoder.weight"]
    state = population.state_dict(0)
    assert torch.equal(state["embed.weight"], state["decoder.weight"])
    assert state["embed.weight"] is not state["decoder.weight"]


def test_shared_modules_with_batchnorm() -> None:
    one, two = SharedNorm().state_dict(), SharedNorm().state_dict()
    two["first.weight"] = two["second.weight"] = torch.full((3,), 2.0)
    layout = Population.from_state_dicts(SharedNorm(), [one, two]).layout
    assert layout.entries[-1].names == ("first.running_var", "second.running_var")
    assert layout.nonneg_start == layout.entries[-1].offset


def test_frozen_batchnorm_goes_before_the_policy() -> None:
    states = members(ConvNet, 2)
    for state in states:
        state.update({n: t for n, t in states[0].items() if n.startswith("bn1.")})
    for policy in POLICIES:
        population = Population.from_state_dicts(
            ConvNet(), states, frozen=["bn1.*"], batchnorm=policy
        )
        held = {n for n in states[0] if n.startswith("bn1.")} | {"bn2.num_batches_tracked"}
        assert set(population.fixed) == held
        assert_equal(population.state_dict(0), states[0])


def test_frozen_patterns() -> None:
    assert set(build(frozen="bn?.num_batches_tracked").fixed) == set(build().fixed)
    refused(r"frozen pattern 'fc' matches no tensor.*write 'fc\.\*'", *members(ConvNet, 2),
            frozen=["fc"])  # fmt: skip
    refused("frozen pattern 'head.*' matches no tensor", *members(ConvNet, 2), frozen=["head.*"])
    refused("nothing to evolve", *members(ConvNet, 2), frozen="*")


def test_policies_other_than_the_three_are_refused() -> None:
    refused("batchnorm='average'; expected one of evolve, inherit, recalibrate",
            *members(ConvNet, 2), batchnorm="average")  # fmt: skip


def test_models_that_cannot_be_described() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(DeevoError, match="'_extra_state', a dict"):
        Population.from_state_dicts(Extra(2, 2), [{}, {}])
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(DeevoError, match="'weight' is complex"):
        Population.from_state_dicts(model, [{}, {}])


# JSON


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_json_reads_back_equal(factory: type[nn.Module], policy: str) -> None:
    for frozen in ((), "*.weight", ["*.weight", "*.bias"]):
        inventory = Inventory.of(factory(), frozen, policy)
        record = json.loads(json.dumps(inventory.to_json()))
        assert record == inventory.to_json()
        again = Inventory.from_json(record)
        assert again == inventory
        for role in ("row", "statistic", "fixed"):
            assert again.layout(role) == inventory.layout(role)


def test_json_is_pinned() -> None:
    # Journals carry it: a change of its form must raise its version.
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2, affine=False)
            self.a = nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
            self.b = nn.Parameter(torch.zeros(()))
            self.register_buffer("c", torch.zeros(2, dtype=torch.bool))
            self.last = self.a
            self.norm.num_batches_tracked = torch.tensor(9)

    assert Inventory.of(Net(), "b", "inherit").to_json() == {
        "version": 1,
        "batchnorm": "inherit",
        "frozen": ["b"],
        "tensors": [
            {"name": "a", "shape": [2, 3], "dtype": "bfloat16", "role": "row", "parameter": True},
            {"name": "b", "shape": [], "dtype": "float32", "role": "fixed", "parameter": True},
            {"name": "last", "tied": "a"},
            {"name": "c", "shape": [2], "dtype": "bool", "role": "fixed"},
            {"name": "norm.running_mean", "shape": [2], "dtype": "float32", "role": "statistic",
             "statistic": True},
            {"name": "norm.running_var", "shape": [2], "dtype": "float32", "role": "statistic",
             "statistic": True},
            {"name": "norm.num_batches_tracked", "shape": [], "dtype": "int64", "role": "fixed",
             "counter": 9},
        ],
    }  # fmt: skip


def test_a_model_on_the_meta_device_says_the_same() -> None:
    for factory in FACTORIES:
        with torch.device("meta"):
            shapeless = factory()
        assert Inventory.of(shapeless) == Inventory.of(factory())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "version 2; this package reads version 1"),
        ({"batchnorm": "average"}, "batchnorm='average'"),
        ({"tensors": 3}, "not the JSON of an inventory"),
        ({"tensors": [{"name": "a"}]}, "not the JSON of an inventory: KeyError"),
        ({"tensors": [{"name": "a", "tied": "b"}]}, "not the JSON of an inventory: KeyError"),
        ({"frozen": None}, "not the JSON of an inventory"),
    ],
)
def test_a_damaged_json_is_refused(damage: dict[str, Any], message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        Inventory.from_json({**Inventory.of(TiedNet()).to_json(), **damage})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"shape": ["x"]}, "not the JSON of an inventory"),
        ({"dtype": "float31"}, "'float31' is not the name of a torch dtype"),
        ({"dtype": "int64"}, "'embed.weight' of dtype int64 has role 'row'; .*fixed unless"),
        ({"role": "frozen"}, "has role 'frozen'; expected one of row, statistic, fixed"),
        ({"name": "mix.weight"}, "not the JSON of an inventory|order must hold each"),
    ],
)
def test_a_damaged_tensor_is_refused(damage: dict[str, Any], message: str) -> None:
    record = Inventory.of(TiedNet()).to_json()
    record["tensors"][0].update(damage)
    with pytest.raises(DeevoError, match=message):
        Inventory.from_json(record)
