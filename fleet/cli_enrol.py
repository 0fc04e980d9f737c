"""`shallop-fleet enrol` and `devices revoke`: tokens for devices, and devices that are shut out.

For: reading arguments, asking the registry, and saying what a person does next.
Not for: deciding anything (`fleet.enrolments`), or the device's side (`shallop-agent enrol`).
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import msgspec

from fleet.adapters import console as con
from fleet.adapters import console_enrolment as shown
from fleet.adapters.client import Client
from fleet.adapters.console_trust import moment
from fleet.cli_common import changing, remote
from fleet.config import ConfigError
from fleet.enrolment_views import DEVICES_MAX, VALID_S, VALID_S_MAX, VALID_S_MIN, EnrolAsk, TokenShow

LIST_BYTES_MAX = 8 * 1024 * 1024
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class _Duration(click.ParamType[float]):
    """Seconds from `90s`, `15m`, `24h` or `7d`."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 24h or 7d", param, ctx)
        seconds = int(found[1]) * _UNITS[found[2]]
        if not VALID_S_MIN <= seconds <= VALID_S_MAX:
            self.fail(f"{value}: a token is good for one minute to 30 days", param, ctx)
        return seconds


class _Enrol(click.Group):
    """A group whose first word may be a device, which no subcommand is called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`enrol roof-17` is `enrol make roof-17`."""
        if args and args[0] not in self.commands and args[0] not in {"-h", "--help"}:
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group("enrol", cls=_Enrol, subcommand_metavar="DEVICE | COMMAND [ARGS]...")
def enrol_group() -> None:
    """Make the one-time token by which a device joins the fleet.

    `enrol DEVICE` is short for `enrol make DEVICE`.

    Example: shallop-fleet enrol roof-17 --qr
    """


@enrol_group.command("make")
@click.argument("device", required=False)
@click.option(
    "--valid", "valid_s", type=_Duration(), default=VALID_S, show_default="24h",
    help="How long it is good for: 90s, 15m, 24h, 7d.",
)  # fmt: skip
@click.option("--qr", is_flag=True, help="Show it as a QR code too.")
@click.option(
    "--from", "list_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Many devices, one id a line; `-` is standard input. The answer is CSV, or JSON lines with --json.",
)  # fmt: skip
@changing
def make(
    client: Client, as_json: bool, /, device: str | None, valid_s: float, qr: bool, list_path: Path | None
) -> None:
    """Make a token; older unused ones of the device end.

    Example: shallop-fleet enrol make roof-17 --valid 2h --qr
    """
    if (device is None) == (list_path is None):
        raise click.UsageError("say a DEVICE, or --from FILE")
    if list_path is not None:
        if qr:
            raise click.UsageError("--qr shows one token; leave --from out")
        _make_many(client, _listed(list_path), valid_s, as_json=as_json)
        return
    _require_device(str(device))
    (token,) = client.enrol(EnrolAsk(devices=(str(device),), valid_s=valid_s))
    if as_json:
        con.print_json(token)
        return
    for line in shown.token_words(token):
        click.echo(line)
    if qr:
        shown.print_qr(token.token)


def _make_many(client: Client, devices: list[str], valid_s: float, *, as_json: bool) -> None:
    """A request of DEVICES_MAX at a time, printed as they come: what was printed is good."""
    rest = iter(devices)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if not as_json:
        writer.writerow(("device", "token", "expires_at", "reinstates"))
    while group := tuple(islice(rest, DEVICES_MAX)):
        for token in client.enrol(EnrolAsk(devices=group, valid_s=valid_s)):
            if as_json:
                sys.stdout.write(msgspec.json.encode(token).decode() + "\n")
            else:
                writer.writerow((token.device, token.token, moment(token.expires_at), _back(token)))


def _back(token: TokenShow) -> str:
    return "" if token.reinstates is None else f"revoked: {token.reinstates}"


def _require_device(word: str) -> None:
    if not _DEVICE.fullmatch(word):
        raise ConfigError(
            "no_device_id",
            f"{word[:80]!r} is no device id: up to 63 of a-z, 0-9 and `-`, which is not the first",
        )


def _listed(path: Path) -> list[str]:
    """The devices of a list, each once, in its order.

    Raises:
        ConfigError: `list_unreadable`, naming the line.
    """
    try:
        with click.open_file(str(path), "rb") as file:
            text = file.read(LIST_BYTES_MAX + 1)
        if len(text) > LIST_BYTES_MAX:
            raise ConfigError("list_unreadable", f"{path} is larger than {LIST_BYTES_MAX} bytes")
        lines = text.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("list_unreadable", f"{path} cannot be read: {error}") from None
    devices = list(dict.fromkeys(_words(lines, path)))
    if not devices:
        raise ConfigError("list_unreadable", f"{path} names no device")
    return devices


def _words(lines: list[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        if not _DEVICE.fullmatch(word):
            raise ConfigError(
                "list_unreadable",
                f"{path}, line {number}: {word[:80]!r} is no device id; nothing was made",
            )
        yield word


@enrol_group.command("list")
@remote
def tokens(client: Client, as_json: bool) -> None:
    """List tokens and what became of them; their secrets are kept nowhere.

    Example: shallop-fleet enrol list
    """
    found = client.enrolments()
    con.print_json(found) if as_json else con.console().print(shown.enrolments_table(found))


@enrol_group.command("cancel")
@click.argument("which", metavar="ID_OR_DEVICE")
@changing
def cancel(client: Client, as_json: bool, which: str) -> None:
    """End an unused token, or all unused ones of a device.

    Example: shallop-fleet enrol cancel roof-17 --why 'the paper was lost'
    """
    found = client.enrolment_cancel(which)
    if as_json:
        con.print_json(found)
        return
    for row in found:
        click.echo(f"{row.id} for {row.device} is {row.state}")


@click.command("revoke")
@click.argument("device")
@changing
def devices_revoke(client: Client, as_json: bool, device: str) -> None:
    """Shut a device out: its certificates, its open tokens, its orders.

    Only a new token (`shallop-fleet enrol DEVICE`) brings it back.

    Example: shallop-fleet devices revoke roof-17 --why 'stolen from the roof'
    """
    found = client.revoke(device)
    if as_json:
        con.print_json(found)
        return
    click.echo(f"{device} is revoked since {moment(found.at)}: {found.why or 'no reason was given'}")
    if found.in_force:
        click.echo(f"It is cut off: {found.detail}.")
    else:
        click.echo(f"NOT CUT OFF at the broker yet: {found.detail}")
        click.echo(
            "That is tried on and on; `shallop-fleet health` names it under not_in_force until it is so."
        )
    click.echo(f"It comes back only by a new token: shallop-fleet enrol {device}")
