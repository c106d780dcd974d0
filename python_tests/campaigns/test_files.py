"""Journals, recipes, checkpoints, caches, pictures and formulas with bytes changed or missing."""

from __future__ import annotations

import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deevo_ext as deevo
from campaigns.interrupted import coefficients, weights
from campaigns.outcomes import Outcomes, some
from deevo_ext.data import Transform, build_cache, open_cache, open_pictures
from deevo_ext.runs import journal
from deevo_ext.runs.recording import Recording, read_journal
from deevo_ext.search.strategies import ROWS, Strategy, compile_pool, parse
from support.networks import Net, members
from support.recipe_runs import PlainNet, save_checkpoints

BYTES = [b"\0", b"\xff", b"[" * 3000, b"nan", b"\n", b",", *(bytes([c]) for c in b"]\"'1e- :{")]


def mutations(data: bytes, count: int, seed: int) -> list[bytes]:
    """Texts with bytes replaced, taken out, put in, doubled, or with their end cut off."""
    drawn = random.Random(seed)
    made = []
    for _ in range(count):
        new = bytearray(data)
        for _ in range(drawn.choice((1, 1, 1, 4))):
            at, size = drawn.randrange(len(new)), drawn.choice((0, 1, 1, 2, 40))
            piece = drawn.choice([*BYTES, bytes(new[at : at + 30])])
            new[at : at + size] = piece
        made.append(bytes(new[: drawn.randrange(len(new))] if drawn.random() < 0.1 else new))
    return made


@pytest.fixture(params=[weights, coefficients])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a run that has ended."""
    request.param(save_checkpoints(tmp_path / "checkpoints", PlainNet), tmp_path / "run")
    return tmp_path / "run"


def test_no_changed_byte_of_a_journal_is_believed(
    run: Path, request: pytest.FixtureRequest
) -> None:
    path = run / journal.FILE_NAME
    data = path.read_bytes()
    ends = data.count(b"\n")
    outcomes = Outcomes(f"changed bytes of journals of {request.node.callspec.id}")
    places = [at for at, byte in enumerate(data) if byte != ord("\n")]
    for at in some(places, 300):
        byte = data[at : at + 1]
        other = bytes([48 + (byte[0] - 47) % 10]) if byte.isdigit() else bytes([byte[0] ^ 1])
        path.write_bytes(data[:at] + other + data[at + 1 :])
        if outcomes.of(f"byte {at}", lambda: read_journal(path)) == "results":
            outcomes.fail(f"byte {at}: {byte!r} became {other!r} and was believed")
    for at in some(range(len(data)), 200):  # torn: the whole lines before, and no others
        path.write_bytes(data[:at])
        whole = data[:at].count(b"\n")
        read: list[Recording] = []
        if outcomes.of(f"torn at {at}", lambda: read.append(read_journal(path))) == "results":  # noqa: B023
            found = read[0]
            records = len(found.generations) + len(found.rounds) + (found.header is not None)
            if records + (found.returned is not None) != whole or (whole == ends) != (
                found.returned is not None
            ):
                outcomes.fail(f"torn at {at}: {records} records of {whole} lines")
        else:
            outcomes.fail(f"torn at {at}: refused")
    outcomes.check()


def test_fuzzed_journals_are_refused_or_what_they_were(
    run: Path, request: pytest.FixtureRequest
) -> None:
    path = run / journal.FILE_NAME
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    outcomes = Outcomes(f"fuzzed journals of {request.node.callspec.id}")
    for k, changed in enumerate(some(mutations(data, 3000, 1), 200)):
        path.write_bytes(changed)
        if outcomes.of(f"journal {k}", lambda: read_journal(path)) == "results":
            whole = changed[: changed.rfind(b"\n") + 1]
            if whole != b"".join(lines[: whole.count(b"\n")]):
                outcomes.fail(f"journal {k}: believed, though its lines are others")
    outcomes.check()


def test_fuzzed_recipes_make_a_network_or_an_error(tmp_path: Path) -> None:
    coefficients(save_checkpoints(tmp_path / "checkpoints", PlainNet), tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    data = path.read_bytes()
    outcomes = Outcomes("fuzzed recipes")
    for k, changed in enumerate(some(mutations(data, 1500, 2), 60)):
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.of(f"recipe {k}", lambda: deevo.merge(path, tmp_path / "m.safetensors"))
    outcomes.check()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_fuzzed_checkpoints_make_a_population_or_an_error(tmp_path: Path, suffix: str) -> None:
    """A changed byte of weights in a .safetensors, which has no sum, is other weights."""
    folder = save_checkpoints(tmp_path / "checkpoints", Net)
    path = folder / "m0.safetensors"
    state = members(Net, 1)[0]
    if suffix == "pth":
        path.unlink()
        path = folder / "m0.pth"
        torch.save(state, path)
    before = deevo.Population.from_checkpoints(Net(), folder).state_dict(0)
    data = path.read_bytes()
    outcomes = Outcomes(f"fuzzed .{suffix}")
    for k, changed in enumerate(some(mutations(data, 1500, 3), 80)):
        path.write_bytes(changed)
        made: list[deevo.Population] = []

        def read(into: list[deevo.Population] = made) -> None:
            into.append(deevo.Population.from_checkpoints(Net(), folder))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ended = outcomes.of(f"checkpoint {k}", read)
        if ended == "results" and suffix == "pth" and changed != data:
            now = made[0].state_dict(0)
            if any(not torch.equal(now[name], before[name]) for name in before):
                outcomes.fail(f"checkpoint {k}: other weights, though a .pth has sums")
    outcomes.check()


def test_no_changed_byte_of_a_cache_is_believed(tmp_path: Path) -> None:
    """Bytes that no image comes from, such as blanks after the header, may be anything."""
    made = Transform(2, (2, 2), "bilinear", (0.5,) * 3, (0.5,) * 3)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "tree" / part / name).mkdir(parents=True)
            for k in range(2):
                shade = (100 * k, 90, 80 * (name == "cat"))
                Image.new("RGB", (2, 2), shade).save(tmp_path / "tree" / part / name / f"{k}.png")
    path = tmp_path / "c.safetensors"
    build_cache(open_pictures(tmp_path / "tree"), path, made, workers=0, progress=False)

    def read() -> tuple[list[str], list[torch.Tensor]]:
        cache = open_cache(path)
        sets = [cache.images(part, made) for part in ("train", "val")]
        pixels = [images.pixels(0, len(images)) for images in sets]
        return cache.class_names, [*pixels, *(images.labels for images in sets)]

    expected, data = read(), path.read_bytes()
    outcomes = Outcomes("changed bytes of a cache")
    for at in some(range(len(data)), 250):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found: list[tuple[list[str], list[torch.Tensor]]] = []
        if outcomes.of(f"byte {at}", lambda: found.append(read())) == "results":  # noqa: B023
            names, tensors = found[0]
            same = all(map(torch.equal, tensors, expected[1]))
            if not same or names != expected[0]:
                outcomes.fail(f"byte {at}: believed, though its images are others")
    outcomes.check()


@pytest.mark.parametrize("kind", ["png", "idx"])
def test_fuzzed_pictures_make_a_cache_or_an_error(tmp_path: Path, kind: str) -> None:
    channels = (0.5,) * (3 if kind == "png" else 1)
    made = Transform(None, None, "bilinear", channels, channels)
    source = tmp_path / "source"
    if kind == "png":
        (source / "a").mkdir(parents=True)
        (source / "b").mkdir()
        pixels = np.random.default_rng(0).integers(0, 2**16, (6, 6), np.uint16)
        path = source / "a" / "0.png"
        for file in (path, source / "b" / "1.png"):
            Image.fromarray(pixels).save(file)
    else:
        source.mkdir()
        path = source / "train-images-idx3-ubyte"
        for part in ("train", "t10k"):
            images = struct.pack(">4B3I", 0, 0, 8, 3, 4, 3, 3) + bytes(range(36))
            (source / f"{part}-images-idx3-ubyte").write_bytes(images)
            labels = struct.pack(">4BI", 0, 0, 8, 1, 4) + bytes([0, 1, 0, 1])
            (source / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    outcomes = Outcomes(f"fuzzed pictures, {kind}")
    for k, changed in enumerate(some(mutations(path.read_bytes(), 1500, 4), 60)):
        path.write_bytes(changed)
        target = tmp_path / "c.safetensors"

        def build(into: Path = target) -> None:
            build_cache(open_pictures(source), into, made, workers=0, progress=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.of(f"picture {k}", build)
        for left in tmp_path.glob("c.safetensors*"):
            left.unlink()
    outcomes.check()


def test_fuzzed_formulas_mean_what_they_say_or_are_refused() -> None:
    """A formula that is taken has, as base and differences, the value that Python gives it."""
    words = ["target", "best", "pbest", "r1", "r2", "r5", "archive", "F", "U", "0.5", "2", "1e9"]
    words += [*("+-*/(),+-*+-*("), "**", ".", "lambda:", "[", "0x", "é", "\0", "rand", "trig"]
    drawn = random.Random(6)
    right = [b"target + F*(best - target) + F*(r1 - r2)", b"r1 + 2*F*U*(r2 - archive)*(0.5 - U)"]
    texts = [" ".join(drawn.choices(words, k=drawn.randrange(1, 12))) for _ in range(4000)]
    for seed, formula in enumerate(right):
        texts += [t.decode(errors="replace") for t in mutations(formula, 2500, seed)]
    values: dict[str, float] = {row: drawn.uniform(-1, 1) for row in ROWS}
    values |= {"F": 0.7, "U": 0.3}
    factors = (1.0, values["F"], values["U"], values["F"] * values["U"])
    outcomes = Outcomes("fuzzed formulas")
    for text in some(texts, 400):
        if outcomes.of(repr(text), lambda t=text: compile_pool([Strategy("a", t)])) != "results":
            continue
        terms = parse(text)
        if terms.trigonometric:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meant = eval(text.strip(), {"__builtins__": {}}, values)
        base, found = values[terms.base], values[terms.base]
        largest = 1.0  # which decides how much the sum is rounded
        for row, factor in zip(terms.rows, terms.coefficients, strict=True):
            c = sum(a * b for a, b in zip(factor, factors, strict=True))
            found += c * (values[row] - base)
            largest = max(largest, *map(abs, factor))
        if abs(found - meant) > 1e-9 * largest:
            outcomes.fail(f"{text!r}: {found} instead of {meant}")
    outcomes.check()
