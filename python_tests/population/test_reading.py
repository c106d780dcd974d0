"""Reading members into rows: files, names, refusals and warnings."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population import checkpoints, finding
from deevo_ext.population.matching import Match
from deevo_ext.population.population import Population
from support.networks import ConvNet, MaskedNet, TiedNet, members
from support.populations import (
    POLICIES,
    State,
    assert_equal,
    build,
    changed,
    refused,
)

pytestmark = pytest.mark.filterwarnings("error")


def test_from_checkpoints_of_mixed_formats(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    for state in states:
        state["bn1.num_batches_tracked"].fill_(5)
        state["bn2.num_batches_tracked"].fill_(5)
    torch.save({"model": states[0], "epoch": 1}, tmp_path / "a.pth")
    torch.save({f"module.{n}": t for n, t in states[1].items()}, tmp_path / "b.pt")
    save_file(states[2], tmp_path / "c.safetensors")
    population = Population.from_checkpoints(ConvNet(), tmp_path)
    assert population.names == ["a", "b", "c"] and population.size == 3
    files = [tmp_path / name for name in ("a.pth", "b.pt", "c.safetensors")]
    assert population.sources == [(str(f), finding.sha256(f)) for f in files]
    for i, state in enumerate(states):
        assert_equal(population.state_dict(i), state)
    assert build().sources is None


def test_checkpoint_key_reaches_the_files(tmp_path: Path) -> None:
    states = members(ConvNet, 4)
    for i in (0, 1):
        averaged = {"n_averaged": torch.tensor(2)}
        averaged |= {f"module.{n}": t for n, t in states[i + 2].items()}
        torch.save({"model": states[i], "model_ema": averaged}, tmp_path / f"{i}.pth")
    with pytest.warns(UserWarning, match="'model' is taken"):
        raw = Population.from_checkpoints(ConvNet(), f"{tmp_path}/*.pth")
    ema = Population.from_checkpoints(ConvNet(), f"{tmp_path}/*.pth", checkpoint_key="model_ema")
    assert_equal(raw.state_dict(0), states[0])
    assert_equal(ema.state_dict(0), states[2])


def test_names_reach_up_the_path_as_far_as_needed(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    files = [tmp_path / p for p in ("x/run1/last.pth", "x/run2/last.pth", "y/run1/last.pth")]
    for file, state in zip(files, states, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, file)
    assert Population.from_checkpoints(ConvNet(), files[:2]).names == ["run1/last", "run2/last"]
    names = Population.from_checkpoints(ConvNet(), files).names
    assert names == ["x/run1/last", "x/run2/last", "y/run1/last"]
    with pytest.warns(UserWarning, match="same weights"):
        twice = Population.from_checkpoints(ConvNet(), [files[0], files[1], files[0]])
    assert twice.names == ["last#0", "last#1", "last#2"]


def test_a_checkpoint_may_hold_either_tied_name() -> None:
    states = members(TiedNet, 3)
    full = build(TiedNet)
    del states[0]["embed.weight"], states[1]["decoder.weight"]
    partial = Population.from_state_dicts(TiedNet(), states)
    assert torch.equal(partial.rows, full.rows) and partial.layout == full.layout
    assert_equal(partial.state_dict(0), full.state_dict(0))


def test_tied_names_that_differ_are_refused() -> None:
    one, two = members(TiedNet, 2)
    two["decoder.weight"] = two["decoder.weight"] + 1
    refused(
        "member1: tensors 'embed.weight' and 'decoder.weight' are tied", one, two, factory=TiedNet
    )


def test_frozen_tensors_that_differ_are_told_once(tmp_path: Path) -> None:
    states = members(ConvNet, 3)
    states[1]["fc.weight"] = states[0]["fc.weight"]
    for i, state in enumerate(states):
        torch.save(state, tmp_path / f"run{i}.pth")
    with pytest.warns(UserWarning) as caught:
        population = Population.from_checkpoints(ConvNet(), tmp_path, frozen=["fc.*"])
    assert len(caught) == 1 and caught[0].filename == __file__
    text = str(caught[0].message)
    assert f"'fc.bias' in {tmp_path}/run1.pth, {tmp_path}/run2.pth; " in text
    assert text.endswith(f"'fc.weight' in {tmp_path}/run2.pth")
    assert f"kept from {tmp_path}/run0.pth" in text
    assert torch.equal(population.state_dict(2)["fc.weight"], states[0]["fc.weight"])


@pytest.mark.parametrize(
    ("wrap", "inner"),
    [(partial(torch.compile, backend="eager"), "_orig_mod"), (torch.nn.DataParallel, "module")],
)
def test_a_wrapped_model_for_files_of_the_network_is_refused_by_what_it_wraps(
    wrap: Callable[[torch.nn.Module], torch.nn.Module], inner: str, tmp_path: Path
) -> None:
    for i, state in enumerate(members(ConvNet, 2)):
        torch.save(state, tmp_path / f"{i}.pth")
    model = wrap(ConvNet())
    with pytest.raises(DeevoError, match=rf"in a wrapper .*: give model\.{inner}$"):
        Population.from_checkpoints(model, tmp_path)
    assert Population.from_checkpoints(getattr(model, inner), tmp_path).size == 2


def nan_at_4(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[4] = torch.nan
    return tensor


def test_mismatches_name_tensor_shapes_and_file(tmp_path: Path) -> None:
    one, two, three = members(ConvNet, 3)
    cases = {
        r"does not fit the model; missing: 'fc.bias' \[3\]; all members": changed(
            two, fc__bias=None
        ),
        r"model; unexpected: 'aux' \[2, 2\]. .*--ignore": {**two, "aux": torch.zeros(2, 2)},
        r"missing: 'conv2.weight' .*; unexpected: 'conv3.weight' .*; .*--key-map": {
            n.replace("conv2.w", "conv3.w"): t for n, t in two.items()
        },
        r"shape: 'fc.weight' \[4, 5\], not \[3, 5\]; it has 4 classes where .* has 3": changed(
            two, fc__weight=torch.zeros(4, 5)
        ),
        r"missing: 'fc.bias' .* another shape: 'fc.weight' \[4, 5\], .* architecture$": changed(
            two, fc__weight=torch.zeros(4, 5), fc__bias=None
        ),
        r"'fc.weight' has dtype int8, expected a floating": changed(
            two, fc__weight=torch.zeros(3, 5, dtype=torch.int8)
        ),
        "'conv1.weight' has 1 of 135 values that are not finite": changed(
            two, conv1__weight=nan_at_4(two["conv1.weight"])
        ),
        "'bn2.running_var' has 1 of 5 negative values": changed(
            two, bn2__running_var=torch.tensor([1, 2, -1e-3, 0, 1])
        ),
    }
    for message, bad in cases.items():
        for i, state in enumerate((one, bad, three)):
            torch.save(state, tmp_path / f"run{i}.pth")
        for policy in POLICIES:
            with pytest.raises(DeevoError, match=rf"{tmp_path}/run1\.pth: .*{message}"):
                Population.from_checkpoints(ConvNet(), tmp_path, batchnorm=policy)


def test_not_finite_values_are_refused_wherever_they_matter() -> None:
    one, two = members(MaskedNet, 2)
    with pytest.raises(DeevoError, match=r"member0: tensor 'mask' .*frozen="):
        Population.from_state_dicts(MaskedNet(), [one, two])  # an evolved mask of infinities
    bad = changed(two, head__weight=torch.full((3, 4), torch.inf))
    for frozen in (["mask"], ["mask", "head.*"]):  # a frozen parameter is used all the same
        refused("member1: tensor 'head.weight' has 12 of 12", one, bad,
                factory=MaskedNet, frozen=frozen)  # fmt: skip
    one, two = members(ConvNet, 2)
    for policy in POLICIES:
        bad = changed(two, bn1__running_mean=torch.full((5,), torch.nan))
        refused("member1: tensor 'bn1.running_mean' has 5 of 5", one, bad, batchnorm=policy)
        frozen = {"batchnorm": policy, "frozen": ["bn1.*"]}
        refused("member1: tensor 'bn1.running_mean' has 5 of 5", one, bad, **frozen)
        bad = changed(two, bn1__running_var=torch.full((5,), -1.0))
        refused("member1: tensor 'bn1.running_var' has 5 of 5 negative", one, bad, **frozen)


def test_overflow_on_conversion_is_refused() -> None:
    one, two = members(ConvNet, 2, dtype=torch.float64)
    two["fc.bias"][0] = 1e300
    refused("'fc.bias' has 1 of 3 values that are not finite as float32", one, two)
    two["fc.bias"][0] = 3.4e38
    Population.from_state_dicts(ConvNet(), [one, two])
    refused("'fc.bias' .* not finite as bfloat16", one, two, dtype=torch.bfloat16)


def test_integer_buffers_take_integers() -> None:
    one, two = members(MaskedNet, 2)
    refused("member1: tensor 'steps' has dtype float32, expected an integer", one,
            changed(two, steps=torch.zeros(2)), factory=MaskedNet)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.int32])
def test_unsupported_dtypes(dtype: torch.dtype) -> None:
    refused(
        f"dtype {dtype} .*expected torch.float32, bfloat16 or float16",
        *members(ConvNet, 2),
        dtype=dtype,
    )


def test_fewer_than_two_members(tmp_path: Path) -> None:
    refused(r"1 member \(member0\); expected at least 2", *members(ConvNet, 1))
    refused("0 member", *[])
    torch.save(members(ConvNet, 1)[0], tmp_path / "only.pth")
    with pytest.raises(DeevoError, match=r"only\.pth\); expected at least 2"):
        Population.from_checkpoints(ConvNet(), tmp_path)


def test_names_must_fit() -> None:
    refused("names must be 2", *members(ConvNet, 2), names=["a"])
    refused("names must be 2 different", *members(ConvNet, 2), names=["a", "a"])
    assert build(count=2, names=["a", "b"]).names == ["a", "b"]


def test_one_checkpoint_repeated_is_refused() -> None:
    one = members(ConvNet, 1)[0]
    other = changed(one, bn1__num_batches_tracked=torch.tensor(9))  # not evolved
    refused("one checkpoint repeated 3 times has no differences", one, other, dict(one))
    close = changed(one, fc__bias=one["fc.bias"] * (1 + 1e-6))
    assert Population.from_state_dicts(ConvNet(), [one, close]).size == 2
    refused("one checkpoint repeated 2 times", one, close, dtype=torch.bfloat16)


def test_some_duplicates_are_told() -> None:
    a, b, c = members(ConvNet, 3)
    permuted = changed(a, fc__bias=a["fc.bias"].flip(0))  # the same sum, other weights
    with pytest.warns(UserWarning) as caught:
        Population.from_state_dicts(ConvNet(), [a, b, a, c, b, a, permuted])
    assert len(caught) == 1 and caught[0].filename == __file__
    text = "member0 and member2, member1 and member4, member0 and member5"
    assert str(caught[0].message) == f"members with the same weights: {text}"


def test_old_and_averaged_batchnorm_counters() -> None:
    states = members(ConvNet, 2)
    for state in states:  # as checkpoints from before PyTorch 0.4.1
        del state["bn1.num_batches_tracked"], state["bn2.num_batches_tracked"]
    model = ConvNet()
    model.bn1.num_batches_tracked.fill_(4)  # type: ignore[union-attr,operator]
    state = Population.from_state_dicts(model, states).state_dict(0)
    assert state["bn1.num_batches_tracked"] == 4 and state["bn2.num_batches_tracked"] == 0
    states = members(ConvNet, 2)
    states[0]["bn1.num_batches_tracked"] = torch.tensor([12.5])
    state = Population.from_state_dicts(ConvNet(), states).state_dict(0)
    assert torch.equal(state["bn1.num_batches_tracked"], torch.tensor(12))


def test_the_given_state_dicts_are_not_shared() -> None:
    states = members(ConvNet, 2)
    population = Population.from_state_dicts(ConvNet(), states)
    copies = [population.state_dict(i) for i in range(2)]
    for state in states:
        for tensor in state.values():
            tensor.zero_()
    for i in range(2):
        assert_equal(population.state_dict(i), copies[i])


def test_one_checkpoint_at_a_time_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, state in enumerate(members(ConvNet, 4)):
        torch.save(state, tmp_path / f"{i}.pth")
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    seen = []
    real = checkpoints.load_matched

    def counting(*args: Any, **kwargs: Any) -> tuple[State, Match]:
        gc.collect()
        seen.append(len(alive))
        state, matched = real(*args, **kwargs)
        alive.update(state.values())
        return state, matched

    monkeypatch.setattr(checkpoints, "load_matched", counting)
    Population.from_checkpoints(ConvNet(), tmp_path, frozen=["bn1.num_batches_tracked"])
    assert seen == [0, 0, 0, 0]


LONG = "x" * 300
STATES = members(ConvNet, 2)


@pytest.mark.parametrize(
    "paths",
    [STATES, STATES[0], 7, None, [7, 8], LONG, [LONG, LONG], "a\0b", "~nobody-at-all/x", ""],
)
def test_what_is_no_path_is_one_clear_error(paths: Any) -> None:
    with pytest.raises(DeevoError):
        Population.from_checkpoints(ConvNet(), paths)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (STATES[0], "state_dicts are a"),
        (7, "state_dicts are a int"),
        (["a.pth", "b.pth"], "state dict 0 is a str"),
        ([{"x": 1.0}, {"x": 2.0}], "state dict 0 has 'x', a float"),
        ([{3: torch.ones(1)}] * 2, "state dict 0 has 3, a Tensor"),
    ],
)
def test_what_is_no_state_dict_is_named(states: Any, message: str) -> None:
    with pytest.raises(DeevoError, match=message):
        Population.from_state_dicts(ConvNet(), states)


@pytest.mark.parametrize("spare", [-1, 1.5, "1", True])
def test_spare_rows_are_a_whole_number(spare: Any) -> None:
    with pytest.raises(DeevoError, match="spare is"):
        Population.from_state_dicts(ConvNet(), STATES, spare=spare)


def test_frozen_patterns_are_strings() -> None:
    with pytest.raises(DeevoError, match="frozen is"):
        Population.from_state_dicts(ConvNet(), STATES, frozen=[7])  # type: ignore[list-item]
