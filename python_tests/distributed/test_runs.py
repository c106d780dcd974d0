"""Runs of several ranks give the bits of one process, whatever their number."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from support.rank_runs import (
    differing,
    do,
    given_a_folder_apart,
    interrupted,
    lines_of,
    stopped,
    twice,
)
from support.ranks import SILENT, finish, on_ranks, start
from support.recipe_runs import PlainNet, save_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("members")
    return save_checkpoints(folder / "norms"), save_checkpoints(folder / "plain", PlainNet)


@pytest.fixture(scope="module")
def alone(
    checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, on_ranks(1, do, folder, *checkpoints)[0]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_bits(
    count: int,
    checkpoints: tuple[Path, Path],
    alone: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    folder, expected = alone
    for found in on_ranks(count, do, tmp_path, *checkpoints):
        for name, outcome in found.items():
            traffic = outcome.pop("traffic")
            assert outcome == {k: v for k, v in expected[name].items() if k != "traffic"}, name
            assert 0 < traffic < 10_000_000, name
    for name in expected:
        assert lines_of(tmp_path / name) == lines_of(folder / name), name
        for file in ("evolved.safetensors", "evolved.pth"):
            ours, theirs = (where / name / file for where in (tmp_path, folder))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)


def test_a_second_run_counts_its_own_traffic_and_rank_0_alone_warns() -> None:
    first, *others = on_ranks(3, twice)
    for one, other, _ in (first, *others):
        assert one > 0 and other < 1.5 * one  # they are alike
    assert len(first[2]) == 2 and "members with the same weights" in first[2][0]
    assert [said for *_, said in others] == [[], []]


@pytest.mark.parametrize(
    ("name", "how", "count", "then"),
    [
        ("weights", "kill", 3, 2),
        ("races", "full", 2, 3),
        ("function", "raise", 3, 1),
        ("groups", "kill", 2, 1),
        ("few", "full", 2, 1),
    ],
)
def test_an_interrupted_run_goes_on_with_another_number_of_ranks(
    name: str,
    how: str,
    count: int,
    then: int,
    checkpoints: tuple[Path, Path],
    alone: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    said = finish(*start(count, interrupted, tmp_path, *checkpoints, name, how, timeout=SILENT))
    whole = lines_of(alone[0] / name)
    before = lines_of(tmp_path / name)
    assert before == whole[: len(before)] and 1 < len(before) < len(whole)
    if how == "kill":
        assert said.pop(1) == -signal.SIGKILL
        for text in said:
            assert text.startswith("RankError: ")
            assert f"rank 1 has not answered for {SILENT:.0f} s" in text or "was cut off" in text
    elif how == "raise":
        assert said[1] == "ZeroDivisionError: of rank 1"
        for text in (said[0], *said[2:]):
            assert text.startswith("RankError: rank 1 failed: Traceback") and "struck()" in text
    else:
        full = f"cannot write {tmp_path / name / 'journal.jsonl'}: No space left on device"
        assert said[0].startswith(f"DeevoError: {full}")
        for text in said[1:]:
            assert text.startswith(f"RankError: rank 0 failed: {full}")
    for found in on_ranks(then, do, tmp_path, *checkpoints, name):
        assert found[name]["record"] == alone[1][name]["record"]
    assert lines_of(tmp_path / name) == whole


def test_ranks_stop_together(
    checkpoints: tuple[Path, Path], alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert on_ranks(2, stopped, tmp_path) == [(True, 1)] * 2
    for found in on_ranks(2, do, tmp_path, *checkpoints, "function"):
        assert found["function"]["record"] == alone[1]["function"]["record"]
    assert lines_of(tmp_path / "function") == lines_of(alone[0] / "function")


def test_ranks_that_differ_are_named() -> None:
    for said in on_ranks(2, differing, "images"):
        assert said.startswith("at the start: rank 1 has fitness.sha256 '")
    for said in on_ranks(2, differing, "members"):
        assert said.startswith("generation 4: rank 1 has member 5 '")


def test_a_run_folder_of_one_rank_alone_is_named_before_anything_is_read(tmp_path: Path) -> None:
    for said in on_ranks(2, given_a_folder_apart, tmp_path):
        assert said.startswith("at the start: rank 1 has run_dir 'none', rank 0 has 'given'")
    assert list(tmp_path.iterdir()) == []
