"""`shallop-convert` as a test calls it.

For: the exit code of the console script, and a command's output.
Not for: checks.
"""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner, Result

from converter.cli import command, main


def main_code(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the console script with these words."""
    monkeypatch.setattr(sys, "argv", ["shallop-convert", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def invoke(*arguments: str) -> Result:
    """The command's output, its errors uncaught."""
    return CliRunner().invoke(command, list(arguments), prog_name="shallop-convert")
