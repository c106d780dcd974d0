"""Programs that kill themselves with -9, as a power cut would."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from support.paths import child_environment


def run_killed(program: str, folder: Path) -> None:
    """Runs a Python program in a folder to its SIGKILL."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, check=False, cwd=folder, env=child_environment())
    assert done.returncode == -signal.SIGKILL
