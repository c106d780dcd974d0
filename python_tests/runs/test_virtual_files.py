"""Files of virtual evolutions that are not what a run wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deevo_ext.errors import DeevoError
from deevo_ext.runs import virtual_files
from support.recipe_runs import recipe_run, save_checkpoints


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_table(path: Path) -> None:
    path.write_text("a,b\n1,2\n")


def without_a_strategy(path: Path) -> None:
    path.write_text(path.read_text().replace("/1/trials,", "/1/attempts,", 1))


def short_line(path: Path) -> None:
    path.write_text(path.read_text().rstrip().rpartition(",")[0])


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def test_a_file_that_is_no_rounds_is_named_on_resume(tmp_path: Path) -> None:
    checkpoints = save_checkpoints(tmp_path / "members")
    recipe_run(checkpoints, tmp_path / "run", rounds=1).run()
    path = tmp_path / "run" / "virtual" / "round_001.csv"
    written = path.read_bytes()
    changes: list[tuple[Callable[[Path], None], str]] = [
        (other_table, "it has no column 'evolution'"),
        (without_a_strategy, "it has no column 'strategy/.*/trials'"),
        (folder, "Is a directory"),
    ]
    for change, said in changes:
        change(path)
        with pytest.raises(DeevoError, match=rf"round_001\.csv is damaged \(.*{said}.*delete it"):
            recipe_run(checkpoints, tmp_path / "run", rounds=1).run()
        if path.is_dir():
            path.rmdir()
        path.write_bytes(written)
    path.unlink()  # as the message says
    again = recipe_run(checkpoints, tmp_path / "run", rounds=1)
    again.run()
    assert again.virtual == [[]]


@pytest.mark.parametrize("change", [short_line, not_text])
def test_a_table_that_is_cut_or_no_text_is_damaged(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    lines = [{"evolution": 0.0, "diversity": 0.5 / i} for i in (1, 2)]
    virtual_files.write(tmp_path, 2, lines)
    assert virtual_files.read(tmp_path, 2) == lines and virtual_files.read(tmp_path, 1) == []
    change(tmp_path / "virtual" / "round_002.csv")
    with pytest.raises(DeevoError, match=r"round_002\.csv is damaged"):
        virtual_files.read(tmp_path, 2)
