"""One flat buffer and back: exactness, views, policies, means."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from deevo_ext.errors import DeevoError
from deevo_ext.population import checkpoints, finding
from deevo_ext.population.matching import NameOptions
from deevo_ext.population.population import Population
from support.networks import IMAGES, ConvNet, MaskedNet, TiedNet, members
from support.populations import (
    FACTORIES,
    POLICIES,
    assert_equal,
    build,
    frozen_of,
)

pytestmark = pytest.mark.filterwarnings("error")


def batch(factory: type[nn.Module]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if factory is TiedNet:
        return torch.randint(11, (2, 4), generator=generator)
    return torch.randn(IMAGES, generator=generator)


# Round trips


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_state_dict_is_the_checkpoint_bit_for_bit(factory: type[nn.Module], policy: str) -> None:
    states = members(factory, 3)
    for state in states[1:]:  # integer buffers and frozen tensors are the first member's
        state.update({n: t for n, t in states[0].items() if not t.is_floating_point()})
    probe = {ConvNet: "fc.bias", TiedNet: "mix.bias", MaskedNet: "scale"}[factory]
    states[1][probe].view(-1)[0] = -0.0
    population = Population.from_state_dicts(
        factory(), states, batchnorm=policy, frozen=frozen_of(factory)
    )
    for i, state in enumerate(states):
        returned = population.state_dict(i)
        assert_equal(returned, state)
        factory().load_state_dict(returned, strict=True)
        addresses = {t.untyped_storage().data_ptr() for t in returned.values()}
        assert len(addresses) == len(returned)  # independent copies, of tied names too
        assert population.rows.untyped_storage().data_ptr() not in addresses


@pytest.mark.parametrize("source", [torch.float64, torch.float16, torch.bfloat16])
def test_original_dtypes_come_back(source: torch.dtype) -> None:
    states = members(ConvNet, 2, dtype=source)
    population = Population.from_state_dicts(ConvNet(), states)
    assert population.rows.dtype == torch.float32
    for i, state in enumerate(states):
        returned = population.state_dict(i)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                assert returned[name].dtype == source
                assert torch.equal(returned[name], tensor.float().to(source)), name


def test_members_of_different_dtypes_keep_the_wider() -> None:
    wide, narrow = members(ConvNet, 2)
    narrow = {n: t.bfloat16() if t.is_floating_point() else t for n, t in narrow.items()}
    for states in ((wide, narrow), (narrow, wide)):
        population = Population.from_state_dicts(ConvNet(), states)
        for i, state in enumerate(states):
            returned = population.state_dict(i)
            assert returned["fc.weight"].dtype == torch.float32
            assert torch.equal(returned["fc.weight"], state["fc.weight"].float())


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_rows(policy: str) -> None:
    states = members(ConvNet, 3)
    population = build(dtype=torch.bfloat16, batchnorm=policy)
    assert population.rows.dtype == torch.bfloat16
    assert population.statistics.dtype == torch.float32
    returned = population.state_dict(1)
    apart = population.statistics_layout.names
    assert bool(apart) == (policy != "evolve")
    for name, tensor in states[1].items():
        assert returned[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            expected = tensor if name in apart else tensor.bfloat16().float()
            assert torch.equal(returned[name], expected), name
    model = ConvNet().to(torch.bfloat16).eval()
    out = functional_call(model, population.views(1), (batch(ConvNet).bfloat16(),))
    model.load_state_dict(population.state_dict(1))
    assert torch.equal(out, model(batch(ConvNet).bfloat16()))


# The buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
def test_one_aligned_buffer_with_zero_pads(dtype: torch.dtype, policy: str) -> None:
    population = build(dtype=dtype, batchnorm=policy)
    rows, layout = population.rows, population.layout
    assert rows.shape == (population.size, population.dim) == (3, layout.dim)
    assert rows.stride() == (layout.stride, 1) and layout.stride % 64 == 0
    assert rows.untyped_storage().nbytes() == 3 * layout.stride * rows.element_size()
    assert rows.data_ptr() % 64 == 0
    covered = torch.zeros(population.dim, dtype=torch.bool)
    for entry in layout.entries:
        assert entry.offset % 8 == 0
        covered[entry.offset : entry.end] = True
    assert 0 < int((~covered).sum()) < population.dim
    assert not rows[:, ~covered].any() and not rows[:, ~covered].signbit().any()
    beyond = torch.as_strided(rows, (3, layout.stride - layout.dim), (layout.stride, 1), layout.dim)
    assert not beyond.any()


def test_without_batchnorm_all_policies_are_alike() -> None:
    for factory in (TiedNet, MaskedNet):
        one, *others = (build(factory, batchnorm=policy) for policy in POLICIES)
        assert one.statistics.shape == (3, 0) and one.statistics_layout.dim == 0
        for other in others:
            assert other.layout == one.layout and torch.equal(other.rows, one.rows)
            assert other.statistics.shape == (3, 0)
            row = other.mean()
            assert_equal(other.state_dict_of(row), one.state_dict_of(row))
            assert other.mean_statistics().shape == (0,)


# Views


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_views_are_zero_copy_and_compute_the_same(factory: type[nn.Module], policy: str) -> None:
    population = build(factory, batchnorm=policy)
    x = batch(factory)
    inside = {population.rows.untyped_storage().data_ptr()}
    inside.add(population.statistics.untyped_storage().data_ptr())
    outs = []
    for i in range(3):
        views = population.views(i)
        model = factory().eval()
        outs.append(functional_call(model, views, (x,)))
        model.load_state_dict(population.state_dict(i))
        assert torch.equal(outs[-1], model(x))
        assert set(views) == set(model.state_dict())
        for name, view in views.items():
            if name in population.fixed:
                assert view is population.fixed[name]
            else:
                assert view.untyped_storage().data_ptr() in inside
        by_row = functional_call(model, population.views(population.rows[i], member=i), (x,))
        assert torch.equal(by_row, outs[-1])
    assert not torch.equal(outs[0], outs[1])


def test_a_write_to_the_row_shows_in_the_views() -> None:
    population = build()
    views = population.views(1)
    population.rows[1].fill_(2)
    assert (views["conv1.weight"] == 2).all() and (views["bn2.running_var"] == 2).all()
    assert not (population.views(0)["conv1.weight"] == 2).any()


def test_views_of_a_trial_take_the_statistics_asked_for() -> None:
    population = build(batchnorm="inherit")
    trial = population.mean()
    name = "bn1.running_mean"
    assert torch.equal(population.views(trial, member=2)[name], population.views(2)[name])
    assert torch.equal(population.views(0, member=2)[name], population.views(2)[name])
    mixed = population.mean_statistics()
    expected = torch.stack([population.views(i)[name] for i in range(3)]).double().mean(0).float()
    assert torch.allclose(population.views(trial, statistics=mixed)[name], expected)
    with pytest.raises(DeevoError, match=r"'inherit' holds statistics apart.*mean_statistics"):
        population.views(trial)
    with pytest.raises(DeevoError, match="holds statistics apart"):
        population.state_dict_of(trial)
    assert "bn1.running_mean" in build().views(trial_of(build()))  # under evolve none are needed


def trial_of(population: Population) -> Tensor:
    return torch.cat([population.mean(), torch.full((9,), 7.0)])  # longer than D


def test_fixed_floats_follow_the_dtype_of_the_row() -> None:
    states = members(ConvNet, 2)
    for state in states:
        state.update({n: states[0][n] for n in ("fc.weight", "fc.bias")})
    population = Population.from_state_dicts(
        ConvNet(), states, frozen="fc.*", dtype=torch.bfloat16, batchnorm="inherit"
    )
    assert population.fixed["fc.weight"].dtype == torch.float32
    for row, dtype in ((population.rows[0], torch.bfloat16), (population.mean(), torch.float32)):
        views = population.views(row, member=0)
        assert {v.dtype for v in views.values()} == {dtype, torch.int64}
        again = population.views(row, member=0)
        assert again["fc.weight"] is views["fc.weight"]  # converted once
    assert population.state_dict(0)["fc.weight"].dtype == torch.float32


# Tied weights


def test_frozen_tied_weights_go_by_any_name() -> None:
    states = members(TiedNet, 2)
    for state in states:
        state["embed.weight"] = state["decoder.weight"] = states[0]["embed.weight"]
    population = Population.from_state_dicts(TiedNet(), states, frozen=["decoder.weight"])
    assert "embed.weight" not in population.layout.names
    assert population.fixed["embed.weight"] is population.fixed["decoder.weight"]
    views = population.views(0, member=None)
    assert views["embed.weight"] is views["decoder.weight"]
    functional_call(TiedNet(), views, (batch(TiedNet),))
    half = population.views(population.rows[0].bfloat16())  # conversion keeps them one object
    assert half["embed.weight"] is half["decoder.weight"]
    assert_equal(population.state_dict(1), states[1])


# Frozen tensors and buffers


def test_frozen_tensors_and_integer_buffers_are_kept_once() -> None:
    states = members(MaskedNet, 3)
    for state in states:
        state["head.weight"], state["head.bias"] = states[0]["head.weight"], states[0]["head.bias"]
    population = Population.from_state_dicts(MaskedNet(), states, frozen=["head.*", "mask"])
    assert set(population.fixed) == {"head.weight", "head.bias", "mask", "steps"}
    assert population.layout.names == ("scale", "body.weight", "body.bias")
    for i in range(3):  # the integer buffer differs and stays the first one's
        assert torch.equal(population.state_dict(i)["steps"], states[0]["steps"])
        assert torch.equal(population.state_dict(i)["mask"], torch.tensor([0, 0, -torch.inf]))
    states[0]["head.weight"].zero_()
    assert population.fixed["head.weight"].any()  # a copy


# Soups


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_of_a_row(dtype: torch.dtype, policy: str) -> None:
    population = build(batchnorm=policy)
    row, statistics = population.mean().to(dtype), population.mean_statistics()
    row = torch.cat([row, torch.ones(3, dtype=dtype)])  # longer than D
    returned = population.state_dict_of(row, statistics)
    ConvNet().load_state_dict(returned, strict=True)
    exact = torch.stack([s["fc.weight"] for s in members(ConvNet, 3)]).double().mean(0)
    assert returned["fc.weight"].dtype == torch.float32
    assert torch.allclose(returned["fc.weight"], exact.float(), rtol=1e-6, atol=1e-7)
    variances = torch.stack([s["bn1.running_var"] for s in members(ConvNet, 3)]).double().mean(0)
    assert torch.allclose(returned["bn1.running_var"], variances.float(), rtol=1e-6)


def test_mean_is_the_float64_sum_in_member_order(monkeypatch: pytest.MonkeyPatch) -> None:
    population = build(count=5)
    population.rows[0, 0], population.rows[1, 0], population.rows[2, 0] = 1.0, 1e30, -1e30
    for members_, weights in (
        (None, None),
        ([3, 1, 0], None),
        ([0, 1, 2], None),
        ([1, 2, 0], None),
        ([2, 0, 4], [0.3, 0.0, 1.7]),
    ):
        chosen = range(5) if members_ is None else members_
        scale = [1.0] * len(chosen) if weights is None else weights
        acc = population.rows[0].double() * 0
        for i, weight in zip(chosen, scale, strict=True):
            acc = acc + population.rows[i].double() * weight
        mean = population.mean(members_, weights)
        assert mean.dtype == torch.float32 and mean.shape == (population.dim,)
        assert torch.equal(mean, (acc / sum(scale)).float())
        with monkeypatch.context() as patch:  # neither chunks nor threads change a bit
            patch.setattr("deevo_ext.population.averages._CHUNK", {"cpu": 7})
            assert torch.equal(population.mean(members_, weights), mean)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert torch.equal(population.mean(members_, weights), mean)
        torch.set_num_threads(threads)
    # Equal weights change nothing, and the order of the members is the order of the sum.
    assert torch.equal(population.mean(weights=[1] * 5), population.mean())
    assert population.mean([0, 1, 2])[0] == 0
    assert population.mean([1, 2, 0])[0] == torch.tensor(1 / 3)


def test_mean_of_one_member_is_its_row_and_pads_stay_zero() -> None:
    population = build(dtype=torch.bfloat16)
    assert torch.equal(population.mean([1]), population.rows[1].float())
    mean, covered = population.mean(), torch.zeros(population.dim, dtype=torch.bool)
    for entry in population.layout.entries:
        covered[entry.offset : entry.end] = True
    assert not mean[~covered].any() and not mean[~covered].signbit().any()
    assert mean.data_ptr() != population.rows.data_ptr()


def test_mean_statistics() -> None:
    population = build(batchnorm="inherit")
    acc = population.statistics[2].double() + population.statistics[0].double() * 3
    returned = population.mean_statistics([2, 0], [1, 3])
    assert torch.equal(returned, (acc / 4).float())


@pytest.mark.parametrize(
    ("members_", "weights", "message"),
    [
        ([], None, "mean of no members"),
        ([0, 3], None, "member 3 of a population of 3"),
        ([-1], None, "member -1"),
        ([0, 1], [1.0], "weights must be 2 finite"),
        ([0, 1], [1.0, -1.0], "weights (must be|is)"),
        ([0, 1], [1.0, float("nan")], "weights (must be|is)"),
        ([0, 1], [0.0, 0.0], "not all 0"),
    ],
)
def test_mean_refusals(members_: list[int], weights: list[float] | None, message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        build().mean(members_, weights)


@pytest.mark.parametrize("i", [-1, 3])
def test_members_out_of_range(i: int) -> None:
    population = build()
    for call in (population.state_dict, population.views):
        with pytest.raises(DeevoError, match=f"member {i} of a population of 3"):
            call(i)


# The model and memory


def test_the_model_is_neither_modified_nor_needed_for_values() -> None:
    model = ConvNet().train()
    before = copy.deepcopy(model.state_dict())
    population = Population.from_state_dicts(model, members(ConvNet, 2))
    population.rows.zero_()
    population.fixed["bn1.num_batches_tracked"].fill_(77)
    assert_equal(model.state_dict(), before)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    for factory in FACTORIES:
        with torch.device("meta"):
            shapeless = factory()
        frozen = frozen_of(factory)
        states = members(factory, 2)
        other = Population.from_state_dicts(shapeless, states, frozen=frozen)
        same = Population.from_state_dicts(factory(), states, frozen=frozen)
        assert other.layout == same.layout and torch.equal(other.rows, same.rows)


def test_a_layout_alone_rebuilds_the_rows(tmp_path: Path) -> None:
    for i, state in enumerate(members(ConvNet, 2)):
        torch.save({"model": {f"module.{n}": t for n, t in state.items()}}, tmp_path / f"{i}.pth")
    population = Population.from_checkpoints(ConvNet(), tmp_path)
    layout = population.layout
    assert population.sources is not None
    for i, (path, digest) in enumerate(population.sources):
        assert finding.sha256(path) == digest
        row = layout.flatten(
            checkpoints.load_matched(path, layout.names, NameOptions())[0], torch.empty(layout.dim)
        )
        assert torch.equal(row, population.rows[i])
