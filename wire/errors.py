"""The errors of the contract, split by viewpoint.

For: saying whose fault it is when something that crossed between the programs cannot be used. Every
error carries a short stable `code`, which is what reports, logs and tests name; the message says what
happened, why, and where it helps what to do next.
Not for: a program's own failures (its disk, its database); those live with that program.
"""

from __future__ import annotations

MESSAGE_CHARS_MAX = 2000
"""An error that quotes its input must not carry a hostile one into logs, reports and answers."""


def one_line(text: str) -> str:
    """The text without what a terminal obeys and without line ends, by which words pass for a log's own."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


class ShallopError(Exception):
    """Base of everything that Shallop raises on purpose.

    Attributes:
        code: short snake_case name, stable across versions, safe to match on.
    """

    def __init__(self, code: str, message: str) -> None:
        if len(message) > MESSAGE_CHARS_MAX:
            message = f"{message[:MESSAGE_CHARS_MAX]} ..."
        super().__init__(one_line(message))
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.code}]"


class WireError(ShallopError):
    """The other side sent bytes that are not a message of this contract."""


class ContentError(ShallopError):
    """Content (a chunk, a file, a bundle) is not what its name or manifest says."""


class TrustError(ShallopError):
    """The sender is not shown to have the authority that the message needs."""


class LimitsError(ShallopError):
    """An SLA or gate was written in a form that cannot be judged; it is refused when it is read."""
