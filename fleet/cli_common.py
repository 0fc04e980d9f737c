"""What the modules of `shallop-fleet` share: a command's client, its token, its errors and exit codes.

For: `fleet.cli` and its neighbours `fleet.cli_*`.
Not for: any command.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

import click

from fleet.adapters import console as con
from fleet.adapters.client import Client, ServerUnreachableError
from fleet.config import ConfigError
from fleet.rollout import FailureAction
from wire.errors import ShallopError, one_line

BAD_INPUT, NOT_COMPLETED, UNREACHABLE = 2, 3, 4

SERVER_DEFAULT = "http://127.0.0.1:8470"
TOKEN = "SHALLOP_TOKEN"  # noqa: S105 - the name of the environment's variable
TOKEN_BYTES_MAX = 4096

P = ParamSpec("P")
Command = TypeVar("Command", bound=Callable[..., object])

server_option = click.option(
    "--server", envvar="SHALLOP_SERVER", default=SERVER_DEFAULT, show_default=True, help="The registry."
)
token_option = click.option(
    "--token-file", type=click.Path(path_type=Path), envvar="SHALLOP_TOKEN_FILE", metavar="FILE",
    help=f"File with your token; or the token itself in {TOKEN}.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")
why_option = click.option("--why", default="", help="Why you do this, for the audit log.")


def failure_option(name: str, words: str) -> Callable[[Command], Command]:
    """The option of that name that says what becomes of devices which a failed rollout reached."""
    return click.option(
        name,
        type=click.Choice([action.value for action in FailureAction]),
        default=FailureAction.ROLLBACK_ALL.value,
        show_default=True,
        help=words,
    )


class OneLine(logging.Formatter):
    """What is logged quotes strangers; a line's end in it would let them write lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line; a traceback stands below it as ever."""
        return one_line(super().formatMessage(record))


def fail(error: ShallopError) -> NoReturn:
    """Says what happened and ends with its exit code."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(UNREACHABLE if isinstance(error, ServerUnreachableError) else BAD_INPUT)


def token_of(path: Path | None) -> str | None:
    """The caller's token, from a file or the environment; it never stands among the arguments.

    Raises:
        ConfigError: `token_file_unreadable`, or `token_file_open`: everybody on the machine may read it.
    """
    if path is None:
        return os.environ.get(TOKEN, "").strip() or None
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                raise ConfigError("token_file_open", f"everybody may read {path}; chmod o= {path}")
            text = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("token_file_unreadable", f"{path} cannot be read: {error}") from None
    if not text or len(text) > TOKEN_BYTES_MAX or not text.isprintable():
        raise ConfigError("token_file_unreadable", f"{path} holds no token")
    return text


def remote(command: Callable[Concatenate[Client, bool, P], None]) -> Callable[P, None]:
    """Gives a command its client and --json, and turns errors into exit codes."""

    @server_option
    @token_option
    @json_option
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        server, as_json = str(kwargs.pop("server")), bool(kwargs.pop("as_json"))
        path, why = kwargs.pop("token_file"), str(kwargs.pop("why", ""))
        try:
            with Client(server, token_of(path if isinstance(path, Path) else None), why) as client:
                command(client, as_json, *args, **kwargs)
        except ShallopError as error:
            fail(error)

    return wrapped


def changing(command: Callable[Concatenate[Client, bool, P], None]) -> Callable[P, None]:
    """As `remote`, for a command that changes something: it takes a --why for the audit log."""
    return why_option(remote(command))


def rollout_verb(client: Client, as_json: bool, rollout_id: str, verb: str, body: dict[str, str]) -> None:
    """Does something with a rollout, and shows it as it is afterwards."""
    found = client.verb(rollout_id, verb, body)
    con.print_json(found) if as_json else con.console().print(con.rollouts_table([found]))
