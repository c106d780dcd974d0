"""Commands as a shell would run them, in this process."""

from __future__ import annotations

import pytest

from deevo_ext.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """A command's exit status and what it wrote to stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in argv])
    out, err = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), out, err
