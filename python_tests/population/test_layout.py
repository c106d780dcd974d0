"""The flat row: alignment, pads, views, JSON and hash."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from torch import Tensor

from deevo_ext.errors import DeevoError
from deevo_ext.population.layout import Layout

SHAPES = {"a": (3, 5), "var": (5,), "scalar": (), "b": (2, 2, 2), "empty": (0, 4), "c": (7,)}


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}


def make() -> Layout:
    return Layout.build(tensors(), aliases={"a": ["tied"]}, nonneg=["var"])


def test_offsets_are_aligned_in_order_and_the_tail_is_last() -> None:
    layout = make()
    assert [e.name for e in layout.entries] == ["a", "scalar", "b", "empty", "c", "var"]
    assert [e.offset for e in layout.entries] == [0, 16, 24, 32, 32, 40]
    assert (layout.dim, layout.nonneg_start, layout.stride) == (48, 40, 64)
    assert layout.names == ("a", "tied", "scalar", "b", "empty", "c", "var")


def test_without_a_tail_nonneg_start_is_dim() -> None:
    layout = Layout.build({"a": torch.zeros(65)})
    assert (layout.dim, layout.nonneg_start, layout.stride) == (72, 72, 128)
    nothing = Layout.build({})
    assert (nothing.dim, nothing.nonneg_start, nothing.stride) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_flatten_then_views_gives_the_tensors_and_zero_pads(dtype: torch.dtype) -> None:
    layout, state = make(), tensors()
    row = torch.full((layout.stride,), -7.0, dtype=dtype)
    assert layout.flatten(state, row) is row
    covered = torch.zeros(layout.dim, dtype=torch.bool)
    for entry in layout.entries:
        covered[entry.offset : entry.end] = True
        assert torch.equal(row[entry.offset : entry.end], state[entry.name].flatten().to(dtype))
    pads = row[: layout.dim][~covered]
    assert pads.numel() == 1 + 7 + 0 + 0 + 1 + 3 and not pads.any() and not pads.signbit().any()
    assert (row[layout.dim :] == -7).all()  # beyond dim nothing is touched
    views = layout.views(row)
    assert list(views) == list(layout.names)
    for name, tensor in state.items():
        assert views[name].shape == tensor.shape and torch.equal(views[name], tensor.to(dtype))


def test_views_share_memory_and_aliases_are_one_object() -> None:
    layout = make()
    row = layout.flatten(tensors(), torch.zeros(layout.dim))
    views = layout.views(row)
    assert views["tied"] is views["a"]
    for entry in layout.entries:
        if entry.numel:
            assert views[entry.name].data_ptr() == row.data_ptr() + 4 * entry.offset
    views["c"][2] = 99
    assert row[32 + 2] == 99


def test_flatten_reads_logical_order_and_either_tied_name() -> None:
    layout, state = make(), tensors()
    state["tied"] = state.pop("a").t().contiguous().t()  # same values, other strides
    row = layout.flatten(state, torch.zeros(layout.dim))
    assert torch.equal(layout.views(row)["a"], tensors()["a"])
    state["a"] = state["tied"].clone()
    assert torch.equal(layout.flatten(state, torch.zeros(layout.dim)), row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": None}, r"here: tensor 'c' of shape \[7\] is missing"),
        ({"c": torch.zeros(1, 7)}, r"here: tensor 'c' has shape \[1, 7\], expected \[7\]"),
        ({"c": torch.zeros(7, dtype=torch.int64)}, r"'c' has dtype int64, expected a floating"),
        ({"tied": torch.zeros(3, 5)}, r"'a' and 'tied' are tied .* different values"),
        ({"tied": torch.zeros(5, 3)}, r"'tied' has shape \[5, 3\], expected \[3, 5\]"),
    ],
)
def test_flatten_refuses_before_it_writes(change: dict[str, Tensor | None], message: str) -> None:
    layout, state = make(), {**tensors(), **change}
    row = torch.full((layout.dim,), 5.0)
    with pytest.raises(DeevoError, match=message):
        layout.flatten({k: v for k, v in state.items() if v is not None}, row, source="here")
    assert (row == 5).all()


def test_check_values_names_the_tensor() -> None:
    layout = make()
    row = layout.flatten(tensors(), torch.zeros(layout.dim))
    layout.check_values(row, source="here")
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = row.clone()
        layout.views(bad)["b"][1, 1, 1] = value
        with pytest.raises(DeevoError, match="here: tensor 'b' has 1 of 8 values"):
            layout.check_values(bad, source="here")
    layout.views(row)["c"].neg_()  # negative weights are nothing special
    layout.check_values(row, source="here")
    layout.views(row)["var"][4] = -1e-30
    with pytest.raises(DeevoError, match="'var' has 1 of 5 negative"):
        layout.check_values(row, source="here")


def test_rows_of_another_form_are_refused() -> None:
    layout = make()
    for row in (torch.zeros(layout.dim - 1), torch.zeros(1, 64), torch.zeros(200)[::2]):
        with pytest.raises(DeevoError, match="one contiguous row of at least 48"):
            layout.views(row)


def test_hash_is_pinned() -> None:
    # Journals carry this hash: a change of how it is formed must be noticed.
    layout = Layout.build({"w": torch.zeros(2, 3), "v": torch.zeros(4)}, nonneg=["w"])
    text = '{"dim":16,"entries":[["v",[4],"float32",0],["w",[2,3],"float32",8]],"nonneg_start":8}'
    assert layout.hash == hashlib.sha256(text.encode()).hexdigest()


def test_hash_depends_on_all_but_aliases() -> None:
    base = {"w": torch.zeros(2, 3), "v": torch.zeros(4)}
    one = Layout.build(base)
    assert Layout.build(dict(base), aliases={"w": ["x"]}).hash == one.hash
    others = [
        Layout.build({"v": base["v"], "w": base["w"]}),
        Layout.build({"w2": base["w"], "v": base["v"]}),
        Layout.build({"w": torch.zeros(3, 2), "v": base["v"]}),
        Layout.build({"w": torch.zeros(2, 3, dtype=torch.float16), "v": base["v"]}),
        Layout.build(base, nonneg=["v"]),
        one.with_dtypes({"v": torch.float64}),
    ]
    assert len({one.hash, *(layout.hash for layout in others)}) == 1 + len(others)


def test_layout_is_frozen() -> None:
    layout = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.dim = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.entries[0].offset = 3  # type: ignore[misc]


def test_genes_are_tensors_or_slices_along_their_first_dimension() -> None:
    shapes = {"conv": (3, 2, 2), "empty": (0, 4), "bias": (3,), "scale": ()}
    layout = Layout.build({name: torch.zeros(shape) for name, shape in shapes.items()})
    assert layout.genes("weight").numel() == 0
    assert layout.genes("tensor").tolist() == [0, 16, 24]
    assert layout.genes("channel").tolist() == [0, 4, 8, 16, 17, 18, 24]
    assert layout.weights == 25
