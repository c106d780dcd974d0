"""What recipe.yaml says is read to the bit, and every mistake in it is named."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from deevo_ext.errors import DeevoError
from deevo_ext.population.matching import NameOptions
from deevo_ext.runs.recipe_file import Named, RecipeFile, read

MEMBERS = "members: [a.pth, b.pth]\n"
DIGEST = "0123456789abcdef" * 4


def full(coefficients: torch.Tensor) -> RecipeFile:
    """A recipe that says something of everything."""
    return RecipeFile(
        members={
            "no": Named("c/no.pth", DIGEST),  # a truth value to YAML
            "1e-5": Named("../x y: #.safetensors", DIGEST),
            "lr=0.1, [wd] é": Named("/abs/é.pth", None),
        },
        blocks={f"block {b}": (f"layer{b}.weight", "*") for b in range(len(coefficients))},
        coefficients=coefficients,
        dtype=torch.bfloat16,
        batchnorm="recalibrate",
        options=NameOptions("null", "student.", {"head.": "fc."}, ("loss.*", "*.ops")),
        frozen=("mask", "head.*"),
        tied={"decoder.weight": "embed.weight"},
        counters={"bn.num_batches_tracked": 12345678901},
        statistics=Named("r.safetensors", DIGEST),
        classifier=Named("r.safetensors", None),
        unit="layer",
        fitted_on={"fitness": "photos", "digest": DIGEST},
        scores={"loss": "0.25"},
        network_sha256=DIGEST,
    )


def test_every_float32_is_read_as_it_was_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31, (700,), generator=generator, dtype=torch.int64)
    ordinary = torch.randn(300, generator=generator)
    ends = torch.tensor([1e-5, 1e-45, -0.0, 3.4028235e38, 2**-126, 1 / 3, 1e16, 123456.0])
    x = torch.cat([bits.int().view(torch.float32), ordinary, ends])
    x = x[x.isfinite()]
    rows = torch.stack([x, -x, torch.ones_like(x)], dim=1)
    recipe = full(rows)
    (tmp_path / "r.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = read(tmp_path / "r.yaml")
    assert torch.equal(again.coefficients.view(torch.int32), rows.view(torch.int32))
    assert {**vars(again), "coefficients": None} == {**vars(recipe), "coefficients": None}
    # Any other reader of YAML 1.1 sees numbers, too, and the same ones.
    content = yaml.safe_load(recipe.to_yaml())
    values = [list(block["coefficients"].values()) for block in content["blocks"]]
    assert all(isinstance(value, float) for row in values for value in row)
    np.testing.assert_array_equal(np.array(values, dtype=np.float32), rows.numpy())
    # No digit too many.
    written = re.search(r"'no': (\S+),", full(torch.tensor([[0.1, 0.2, 0.7]])).to_yaml())
    assert written is not None and written[1] == "0.1"


def test_a_recipe_written_by_hand_is_short(tmp_path: Path) -> None:
    text = "members: [runs/a.pth, runs/b.pth]\ncoefficients: {b: 1e-1, a: .9}\n"
    (tmp_path / "r.yaml").write_text("\ufeff" + text, encoding="utf-8")
    recipe = read(tmp_path / "r.yaml")
    assert recipe.members == {"a": Named("runs/a.pth", None), "b": Named("runs/b.pth", None)}
    assert recipe.blocks == {"network": ("*",)}
    np.testing.assert_array_equal(recipe.coefficients.numpy(), np.float32([[0.9, 0.1]]))
    assert recipe.dtype == torch.float32 and recipe.batchnorm == "evolve"


def one(coefficients: str) -> str:
    return f"{MEMBERS}coefficients: {coefficients}\n"


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "the recipe is missing"),
        ("just words", "the recipe is 'just words', which is no mapping"),
        ("- a\n- b\n", "which is no mapping"),
        ("members: [a.pth", "line 1: not the YAML of a recipe"),
        ("a: &x [1]\nb: *x\n", "line 2: .*aliases are not read"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "line 2: .*aliases are not read"),
        ("members: [a]\nmembers: [b]\n", "line 2: .*'members' is there twice"),
        ("? [a, b]\n: c\n", "line 1: .*a key is no text"),
        ("a: b\n---\nc: d\n", "line 2: not the YAML of a recipe"),
        ("[" * 2000, "nested too deeply"),
        ("a: \x07\n", "not the YAML of a recipe"),
        (MEMBERS + "normalize: true\n", "unknown key 'normalize'; did you mean 'normalise'"),
        (MEMBERS + "version: 2\n", "version is '2'; this package reads version 1"),
        (MEMBERS, "neither blocks nor coefficients"),
        ("coefficients: [1]\n", "members are missing or fewer than 2"),
        ("members: [a.pth]\ncoefficients: [1]\n", "members are missing or fewer than 2"),
        ("members: [a.pth, {name: b}]\n", "member 2: file is None; expected a text"),
        ("members: [a.pth, {fiel: b.pth}]\n", "member 2: unknown key 'fiel'; did you mean 'file'"),
        ("members: [a.pth, /]\n", "member 2: file is '/'; expected a name that ends in"),
        ("members: [a.pth, {file: b.pth, sha256: ab}]\n", "sha256 is 'ab'; expected 64 hex"),
        (
            "members: [{name: x, file: a.pth}, {name: x, file: b.pth}]\n",
            "two members are called 'x'",
        ),
        (one("[1]"), "has 1 coefficients for 2 members"),
        (one("{a: 1}"), "has no coefficient of member 'b'; write 0 for none"),
        (one("{a: 1, b: 0, bb: 0}"), "unknown member 'bb'; did you mean 'b'"),
        (one("{a: 0.5, b: 0.4}"), "block 'network': .* add up to 0.9; expected 1 .*normalise"),
        (one("{a: .nan, b: 1}"), "coefficient of 'a' is '.nan'; expected a finite number"),
        (one("{a: nan, b: 1}"), "expected a finite number"),
        (one("{a: [1], b: 1}"), r"is \['1'\]; expected a finite number"),
        (one("{a: true, b: 1}"), "is 'true'; expected a finite number"),
        (one("{a: 1e39, b: -1e39}"), "add up to"),
        (one("uniform"), "coefficients of the recipe is 'uniform', which is no mapping"),
        (one("[1, -1]") + "normalise: true\n", "add up to 0, by which .* cannot divide"),
        (one("[1, 0]") + "normalise: yes\n", "normalise is 'yes'; expected one of true, false"),
        (one("[1, 0]") + "dtype: float64\n", "dtype is 'float64'; expected one of float32"),
        (one("[1, 0]") + "batchnorm: inherit\n", "expected one of evolve, recalibrate"),
        (one("[1, 0]") + "statistics: {file: s.safetensors}\n", '"batchnorm: evolve" makes them'),
        (one("[1, 0]") + "classifier: fc\n", "classifier is 'fc', which is no mapping"),
        (one("[1, 0]") + "scores: 3\n", "scores is '3', which is no mapping"),
        (one("[1, 0]") + "unit: [a]\n", r"unit is \['a'\]; expected a text"),
        (one("[1, 0]") + "frozen: {a: b}\n", "frozen: .* is no list of names"),
        (one("[1, 0]") + "counters: {a: -1}\n", "counters: a is '-1'; expected a whole number"),
        (MEMBERS + "blocks: [{coefficients: [1, 0]}]\n", "block 1 has no tensors"),
        (MEMBERS + "blocks: [{tensors: x}]\n", "coefficients of block 'x' is missing"),
        (MEMBERS + "blocks: [x]\n", "block 1 is 'x', which is no mapping"),
        (MEMBERS + "blocks: {x: y}\n", "blocks are no list"),
        (
            MEMBERS + "blocks: [{tensors: x, coefficients: [1, 0]}, {tensors: x, "
            "coefficients: [0, 1]}]\n",
            "two blocks are called 'x'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DeevoError, match=match) as caught:
        read(tmp_path / "r.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'r.yaml'}: ")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"members: [\xff\xfe]\n")
    with pytest.raises(DeevoError, match="not UTF-8"):
        read(tmp_path / "r.yaml")
    with open(tmp_path / "r.yaml", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DeevoError, match="larger than 16 MiB"):
        read(tmp_path / "r.yaml")
    with pytest.raises(DeevoError, match="cannot be read: Is a directory"):
        read(tmp_path)


def test_no_text_makes_the_reader_fail_otherwise(tmp_path: Path) -> None:
    rng = random.Random(11)
    by_hand = one("{a: .5, b: .5}") + "normalise: true\nfrozen: [x]\n"
    seeds = [full(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])).to_yaml(), by_hand]
    pieces = [
        "[",
        "]",
        "{",
        "}",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "'",
        '"',
        "&a ",
        "*a",
        "!!int ",
        "|",
        ">",
    ]
    pieces += ["? ", "<<: ", "#", "---\n", "%", "@", "\t", "\0", "\ud7ff", "nan", "1e999", "-", ""]
    path, read_whole = tmp_path / "r.yaml", 0
    for _ in range(700):
        text = rng.choice(seeds)
        for _ in range(rng.randint(1, 4)):
            at, end = rng.randrange(len(text)), rng.randrange(len(text))
            end = max(at, min(end, at + rng.choice([0, 1, 5, 60])))
            cut = text[at:end] if rng.random() < 0.2 else ""
            text = text[:at] + rng.choice(pieces) + cut * 2 + text[end:]
        path.write_bytes(text.encode())
        try:
            recipe = read(path)
        except DeevoError:
            continue
        read_whole += 1
        assert bool(recipe.coefficients.isfinite().all())
        assert recipe.coefficients.shape == (len(recipe.blocks), len(recipe.members))
    assert 0 < read_whole < 700
