"""How enrolment looks in a terminal: a token with what to do with it, its QR code, tables.

For: words and tables of `fleet.cli_enrol`.
Not for: calling the registry.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import segno
from rich.table import Table

from fleet.adapters.console import ago
from fleet.adapters.console_trust import moment
from fleet.config import ConfigError
from fleet.enrolment_views import EnrolmentView, TokenShow


def token_words(token: TokenShow) -> list[str]:
    """A token and what a person does with it."""
    lines = []
    if token.reinstates is not None:
        lines.append(
            f"{token.device} was revoked ({token.reinstates or 'no reason was given'}); using this token "
            "lets it in again."
        )
    if token.replaces:
        lines.append(f"{token.device} has a certificate; using this token ends it.")
    return [
        *lines,
        f"Type this on {token.device}, before {moment(token.expires_at)}; it works once:",
        "",
        f"  sudo shallop-agent enrol {token.token}",
        "",
        f"The device must reach {token.url}. Whoever has the token can be {token.device}.",
    ]


def qr_text(text: str) -> str:
    """The text as a QR code of half blocks, dark on light whatever the terminal's colours are.

    Error correction L: a screen has no scratches, and a smaller code is read from farther away.
    """
    matrix = [
        list(row) for row in segno.make(text, error="l", micro=False, boost_error=False).matrix_iter(border=4)
    ]
    if len(matrix) % 2:
        matrix.append([0] * len(matrix[0]))
    lines = []
    for upper, lower in zip(matrix[::2], matrix[1::2], strict=True):
        cells = "".join(_BLOCKS[bool(above), bool(below)] for above, below in zip(upper, lower, strict=True))
        lines.append(f"{_DARK_ON_LIGHT}{cells}{_RESET}")
    return "\n".join(lines)


_BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
_DARK_ON_LIGHT, _RESET = "\x1b[38;5;16;48;5;231m", "\x1b[0m"
"""Colours of the fixed cube: the sixteen named ones are what a theme makes of them."""


def print_qr(text: str) -> None:
    """The QR code on standard output.

    Raises:
        ConfigError: `no_utf8`: the terminal cannot show half blocks.
    """
    try:
        sys.stdout.write(qr_text(text) + "\n")
    except UnicodeEncodeError:
        raise ConfigError(
            "no_utf8", f"a terminal of {sys.stdout.encoding} cannot show a QR code; set LC_ALL=C.UTF-8"
        ) from None


def enrolments_table(rows: Sequence[EnrolmentView]) -> Table:
    """Tokens."""
    table = Table(
        "id", "device", "state", "made", "good until", "certificate", "why", box=None, pad_edge=False
    )
    for row in rows:
        table.add_row(
            row.id, row.device, row.state, ago(row.issued_at), moment(row.expires_at),
            (row.serial or "")[:12], row.why,
        )  # fmt: skip
    return table
