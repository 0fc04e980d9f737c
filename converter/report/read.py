"""Reads `candidates.json` back.

For: whoever shows a conversion again: the page, the table.
Not for: bundles (`converter.inspect`).

What a version did not write yet reads None, what it wrote and we do not know is ignored.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from converter.candidates import Report
from converter.errors import InputError
from converter.limits import CANDIDATES_BYTES_MAX

CANDIDATES_NAME = "candidates.json"


def read_report(directory: Path) -> tuple[Report, bytes]:
    """The report that lies in a bundle's directory, and the file's bytes.

    Args:
        directory: that a conversion wrote; the file itself will do too.

    Raises:
        InputError: `candidates_missing`, `candidates_too_large` or `candidates_malformed`.
    """
    path = directory / CANDIDATES_NAME if directory.is_dir() else directory
    try:
        with path.open("rb") as file:
            content = file.read(CANDIDATES_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(
            "candidates_missing",
            f"{path} cannot be read ({error.strerror}); name the directory that a conversion wrote",
        ) from error
    if len(content) > CANDIDATES_BYTES_MAX:
        raise InputError(
            "candidates_too_large", f"{path} has more than {CANDIDATES_BYTES_MAX} bytes; it is not read"
        )
    try:
        return msgspec.json.decode(content, type=Report), content
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(
            "candidates_malformed", f"{path} is no candidates.json: {error}; convert the model again"
        ) from error
