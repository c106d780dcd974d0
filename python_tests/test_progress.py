"""Progress off a terminal: a line now and then, none of them overwritten."""

from __future__ import annotations

import pytest

from deevo_ext import progress
from deevo_ext.progress import progress_bar


def test_off_a_terminal_lines_come_every_few_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar(40, unit="round") as bar:
        for i in range(40):
            now[0] += 1.0
            bar.update(1)
            bar.set_postfix_str(f"score {i}")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err
    # The first at once, one each SECONDS seconds of the 39 that remain, and the last.
    assert len(lines) == 1 + int(39 / progress.SECONDS) + 1
    assert "1/40" in lines[0] and "40/40" in lines[-1] and "score 39" in lines[-1]
    assert all("round" in line and "█" not in line for line in lines)


def test_what_is_not_shown_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, unit="step", shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")
