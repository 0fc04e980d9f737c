"""`shallop-fleet tokens` and `audit`: who may do what in a registry, and the record of it.

For: reading arguments, asking the registry or, at its machine, its database, and printing.
Not for: what a token is (`fleet.tokens`), or whether a log is whole (`fleet.audit`).
"""

from __future__ import annotations

import os
import pwd
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol

import click
from msgspec import Struct

from fleet.adapters import console as con
from fleet.adapters import key_files, keychain
from fleet.adapters.client import Client, RefusedError
from fleet.adapters.durable import kept_from_others
from fleet.audit import AuditEntry, By, Checked, checked
from fleet.audit_heads import (
    HEAD_BYTES_MAX,
    LINE_BYTES_MAX,
    believed_head,
    exported,
    imported,
    noting,
    read_head,
)
from fleet.cli_common import (
    BAD_INPUT,
    fail,
    json_option,
    remote,
    server_option,
    token_of,
    token_option,
    why_option,
)
from fleet.config import Config, ConfigError, load
from fleet.scopes import Scope
from fleet.tokens import TokenAsk, TokenMade, Tokens, TokenView
from wire.errors import ShallopError

P = ParamSpec("P")

DAY_S = 86400.0
LOGIN = Path("/proc/self/loginuid")


class _Desk(Protocol):
    """Where tokens are asked for: a registry, or its database."""

    def token_create(self, ask: TokenAsk) -> TokenMade: ...
    def tokens(self) -> list[TokenView]: ...
    def token_revoke(self, wanted: str) -> list[TokenView]: ...


class _Clock:
    def now(self) -> float:
        return time.time()


class _AtMachine:
    """The database itself, for who may write to it: that is what being at the machine means."""

    def __init__(self, tokens: Tokens, by: By) -> None:
        self._tokens = tokens
        self._by = by

    def token_create(self, ask: TokenAsk) -> TokenMade:
        return self._tokens.create(ask, self._by)

    def tokens(self) -> list[TokenView]:
        return self._tokens.tokens()

    def token_revoke(self, wanted: str) -> list[TokenView]:
        return self._tokens.revoke(wanted, self._by)


@contextmanager
def _at_machine(config: Config, why: str) -> Iterator[_Desk]:
    _require_owner(config)
    # Imported only here: the other commands need no database.
    from fleet.adapters.sql_store import SqlStore  # noqa: PLC0415 - as said

    with kept_from_others():
        store = SqlStore(config.database_url, secrets.token_hex(16))
    try:
        yield _AtMachine(Tokens(store, _Clock()), By(who=f"local:{_user()}", why=why))
    finally:
        store.close()


def _user() -> str:
    """Who is at the machine: the account, and where the kernel knows it who logged in before sudo.

    The login's number stays through sudo and su, and only root can set it (proc(5), `loginuid`).
    """
    account = pwd.getpwuid(os.getuid()).pw_name
    try:
        login = pwd.getpwuid(int(LOGIN.read_text())).pw_name
    except (OSError, ValueError, KeyError, OverflowError):
        return account  # No audit in the kernel, or nobody logged in: a service, a container.
    return account if login == account else f"{account} ({login})"


def _require_owner(config: Config) -> None:
    """A database that root made would be closed to the registry's own user."""
    data = Path(config.data)
    if config.database is not None:
        return
    try:
        number = data.stat().st_uid
    except OSError as error:
        raise ConfigError(
            "data_unusable", f"the registry's directory {data} cannot be used: {error.strerror or error}"
        ) from None
    if number == os.geteuid():
        return
    try:
        owner = pwd.getpwuid(number).pw_name
    except KeyError:
        owner = f"#{number}"
    raise ConfigError(
        "other_owner", f"{data} belongs to {owner}; run this as {owner}: sudo -u {owner} shallop-fleet ..."
    )


def _anywhere(command: Callable[Concatenate[_Desk, bool, P], None]) -> Callable[P, None]:
    """Gives a command its desk: the database where --data, --database or --config is given."""

    @click.option("--data", help="At the registry's machine: its directory.")
    @click.option("--database", help="At the registry's machine: its database's URL.")
    @click.option("--config", "config_path", type=click.Path(path_type=Path), help="Or its fleet.yaml.")
    @server_option
    @token_option
    @json_option
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        names = ("data", "database", "config_path", "server", "token_file", "why")
        data, database, config_path, server, token_file, why = (kwargs.pop(name, None) for name in names)
        as_json, why = bool(kwargs.pop("as_json")), str(why or "")
        try:
            if data is not None or database is not None or isinstance(config_path, Path):
                config = load(
                    config_path if isinstance(config_path, Path) else None,
                    {"data": data, "database": database},
                )
                with _at_machine(config, why) as desk:
                    command(desk, as_json, *args, **kwargs)
                return
            token = token_of(token_file if isinstance(token_file, Path) else None)
            with Client(str(server), token, why) as client:
                command(client, as_json, *args, **kwargs)
        except ShallopError as error:
            fail(error)

    return wrapped


# --- tokens -------------------------------------------------------------------------------------------


@click.group("tokens", context_settings={"help_option_names": ["-h", "--help"]})
def tokens_group() -> None:
    """Tokens: who may do what in a registry.

    Example: shallop-fleet tokens create ada --scope administer --data /var/lib/shallop-fleet
    """


@tokens_group.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=(Scope.VIEW.value,),
    show_default=True,
    help="What it is good for; may be given again.",
)
@click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="[default: until revoked]")
@why_option
@_anywhere
def tokens_create(
    desk: _Desk, as_json: bool, name: str, scopes: tuple[str, ...], expires_days: float | None
) -> None:
    """Make a token for NAME and print it once.

    The first one is made at the registry's machine (--data, --database or --config), and closes it for
    everybody without a token. All tokens of one person carry one name: the second person that an approval
    asks for is one of another name.

    Example: shallop-fleet tokens create ci --scope publish --expires-days 90 > ci.token
    """
    expires_s = None if expires_days is None else expires_days * DAY_S
    made = desk.token_create(
        TokenAsk(name=name, scopes=tuple(Scope(scope) for scope in scopes), expires_s=expires_s)
    )
    if as_json:
        con.print_json(made)
        return
    click.echo(made.token)
    click.echo(
        f"This is the token of {name} ({', '.join(made.view.scopes)}); it is shown this once. Keep it in a "
        "file of your own (chmod 600) and name that by --token-file, or set SHALLOP_TOKEN.",
        err=True,
    )


@tokens_group.command("list")
@_anywhere
def tokens_list(desk: _Desk, as_json: bool) -> None:
    """List tokens, without their secrets.

    Example: shallop-fleet tokens list --json
    """
    found = desk.tokens()
    con.print_json(found) if as_json else con.console().print(con.tokens_table(found))


@tokens_group.command("revoke")
@click.argument("token")
@why_option
@_anywhere
def tokens_revoke(desk: _Desk, as_json: bool, token: str) -> None:
    """Take tokens back at once: the one with that id, or all of that name.

    Example: shallop-fleet tokens revoke ci --why 'the runner was replaced'
    """
    revoked = desk.token_revoke(token)
    con.print_json(revoked) if as_json else con.console().print(con.tokens_table(revoked))


# --- the audit log ------------------------------------------------------------------------------------


@click.group("audit", context_settings={"help_option_names": ["-h", "--help"]})
def audit_group() -> None:
    """The record of who changed what, when and why.

    Example: shallop-fleet audit list --who ada
    """


@audit_group.command("list")
@click.option("--newest", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many.")
@click.option("--who", help="Only by them.")
@click.option("--subject", help="Only about that.")
@remote
def audit_list(client: Client, as_json: bool, newest: int, who: str | None, subject: str | None) -> None:
    """List the newest entries, oldest first.

    Example: shallop-fleet audit list --subject ro-0123456789ab --json
    """
    found = client.audit_newest(newest, who, subject)
    con.print_json(found) if as_json else con.console().print(con.audit_table(found))


@audit_group.command("export")
@remote
def audit_export(client: Client, as_json: bool) -> None:
    """Print the whole log as JSON lines, its signed head last.

    Example: shallop-fleet audit export > /media/usb/audit-2026-11.jsonl
    """
    del as_json  # it is JSON in any case
    head = client.audit_head()
    for line in exported(client.audit(), head):
        sys.stdout.write(line.decode())


@audit_group.command("head")
@remote
def audit_head(client: Client, as_json: bool) -> None:
    """Print how far the log goes, signed; keep it where nobody who may touch the registry can.

    Example: shallop-fleet audit head > /media/usb/audit-head.json
    """
    del as_json  # it is JSON in any case
    click.echo(client.audit_head().decode())


class AuditShow(Struct, frozen=True, kw_only=True):
    """What a check found.

    Attributes:
        heads: against which the log was checked, its own among them.
        signatures: whether the heads' signatures were checked (`--keys`).
    """

    whole: bool
    entries: int
    sha256: str
    broken: int | None
    how: str
    heads: int
    signatures: str


@audit_group.command("verify")
@click.option("--head", "heads", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="A head that was kept (`audit head`); may be given again.")  # fmt: skip
@click.option("--file", "file", type=click.Path(path_type=Path), help="An export, in place of the registry.")
@click.option("--keys", "folder", type=click.Path(path_type=Path), metavar="DIR",
              help="The fleet's root documents: check the heads' signatures too.")  # fmt: skip
@server_option
@token_option
@json_option
def audit_verify(
    heads: tuple[Path, ...], file: Path | None, folder: Path | None, server: str, token_file: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check the whole log here, entry by entry; exit 2 and name the first entry that is not what it was.

    Without --head a log that was cut short, or written anew as a whole, looks whole: keep heads elsewhere.

    Example: shallop-fleet audit verify --head /media/usb/audit-head.json --keys ./keys
    """
    try:
        chain = None if folder is None else keychain.load_chain(folder).envelopes
        kept, notes = [_bytes(path, HEAD_BYTES_MAX) for path in heads], list[AuditEntry]()
        if file is not None:
            found, count = _of_file(file, kept, chain, notes)
        else:
            with Client(server, token_of(token_file)) as client:
                entries = noting(client.audit(), notes)
                found, count = _check([*kept, *_own(client, kept)], entries, chain)
    except ShallopError as error:
        fail(error)
    _say(found, count, chain is not None, notes, as_json)


def _own(client: Client, kept: list[bytes]) -> list[bytes]:
    """The registry's own head; a log that is empty has none, which a head that was kept contradicts."""
    try:
        return [client.audit_head()]
    except RefusedError as error:
        if error.code != "audit_empty" or not kept:
            raise
        return []


def _of_file(
    file: Path, kept: list[bytes], chain: tuple[bytes, ...] | None, notes: list[AuditEntry]
) -> tuple[Checked, int]:
    try:
        with file.open("rb") as opened:
            entries = list(imported(iter(lambda: opened.readline(LINE_BYTES_MAX), b""), kept.append))
    except OSError as error:
        raise ConfigError("file_unreadable", f"{file} cannot be read: {error}") from None
    if not kept:
        raise ConfigError("head_missing", f"{file} holds no head; give one that was kept: --head FILE")
    return _check(kept, noting(entries, notes), chain)


def _check(
    envelopes: list[bytes], entries: Iterator[AuditEntry] | list[AuditEntry], chain: tuple[bytes, ...] | None
) -> tuple[Checked, int]:
    if chain is None:
        heads = [read_head(envelope) for envelope in envelopes]
    else:
        heads = [believed_head(envelope, chain, key_files.verify) for envelope in envelopes]
    return checked(entries, heads[0].registry_id, heads), len(heads)


def _say(found: Checked, heads: int, signatures: bool, notes: list[AuditEntry], as_json: bool) -> None:
    broken = found.broken
    show = AuditShow(
        whole=broken is None,
        entries=found.entries,
        sha256=found.sha256,
        broken=None if broken is None else broken.number,
        how="" if broken is None else broken.how,
        heads=heads,
        signatures="checked" if signatures else "not checked",
    )
    if as_json:
        con.print_json(show)
    elif broken is None:
        click.echo(f"{show.entries} entries are whole, up to {show.sha256[:12]}, against {heads} head(s); "
                   f"signatures {show.signatures}")  # fmt: skip
    else:
        click.echo(f"entry {broken.number} is {broken.how}; {found.entries} entries before it are sound")
        if notes:
            # It excuses nothing: whoever changed a log could have written that too.
            click.echo(f"entry {notes[0].number} says itself that its database went back ({notes[0].why}); "
                       "heads of what was lost then contradict it for ever, so keep new ones")  # fmt: skip
    if broken is not None:
        sys.exit(BAD_INPUT)


def _bytes(path: Path, size_bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes_max + 1).strip()
    except OSError as error:
        raise ConfigError("file_unreadable", f"{path} cannot be read: {error}") from None
