"""PURE. One line of `shallop-agent doctor`, and what all of them together mean.

For: the type that every check returns, and the exit code.
Not for: any check.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

EXIT_PROBLEM = 3


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something will surprise somebody."""
    PROBLEM = "problem"
    """Something that the agent needs does not work."""
    UNKNOWN = "unknown"
    """It could not be found out, or does not apply here; never taken for fine."""


class Finding(Struct, frozen=True, kw_only=True):
    """What was found about one thing.

    Attributes:
        name: stable, such as `clock` or `runtime:onnxruntime`.
        detail: what was found, with figures.
        remedy: what to do; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(name=name, status=Status.OK, detail=detail)


def warning(name: str, detail: str, remedy: str) -> Finding:
    """It works, but."""
    return Finding(name=name, status=Status.WARNING, detail=detail, remedy=remedy)


def problem(name: str, detail: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name=name, status=Status.PROBLEM, detail=detail, remedy=remedy)


def unknown(name: str, detail: str, remedy: str = "") -> Finding:
    """Nobody could tell."""
    return Finding(name=name, status=Status.UNKNOWN, detail=detail, remedy=remedy)


def exit_code(findings: Iterable[Finding]) -> int:
    """3 where there is a problem, else 0."""
    return EXIT_PROBLEM if any(f.status is Status.PROBLEM for f in findings) else 0


def amount(size_bytes: float) -> str:
    """Bytes for a person.

    >>> amount(999), amount(16 * 1024**2), amount(5.5 * 1024**3)
    ('999 bytes', '16.0 MiB', '5.5 GiB')
    """
    if size_bytes < 1024:
        return f"{size_bytes:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size_bytes /= 1024
        if size_bytes < 1024 or unit == "GiB":
            break
    return f"{size_bytes:.1f} {unit}"
