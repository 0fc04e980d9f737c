"""`shallop-fleet bar`, `unbar` and `bars`: releases that no order may bring to a device any more.

For: reading arguments, signing the list where the person holds the release key, calling one verb.
Not for: the list itself (`fleet.bars`, in the registry).
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import click
import msgspec

from fleet.adapters import console as con
from fleet.adapters.client import Client
from fleet.bars import NUMBER_MAX, BarsAsk, BarsShow, next_number, sealed_bars
from fleet.cli_common import remote
from fleet.cli_keys import opened
from fleet.ports import NotFoundError
from wire.trust import Envelope

key_option = click.option(
    "--release-key", "keys", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="Sign the list here with this release key, as often as its threshold asks; else the registry signs.",
)  # fmt: skip
above_option = click.option(
    "--above", type=click.IntRange(0, NUMBER_MAX), default=0, metavar="NUMBER",
    help="After a restore: devices believe a list of this number already; go above it.",
)  # fmt: skip
why_required = click.option("--why", required=True, help="Why, for the audit log.")


@click.command("bar")
@click.argument("release")
@why_required
@above_option
@key_option
@remote
def bar(client: Client, as_json: bool, release: str, above: int, keys: tuple[Path, ...]) -> None:
    """Bar a release, MODEL@RELEASE or its digest: devices refuse whatever order brings it, whoever signed it.

    What runs goes on; take it back with `rollback`, or abort its rollout.

    Example: shallop-fleet bar camera@v2 --why 'crashes on the first frame' --release-key /media/usb/r.pem
    """
    _change(client, as_json, BarsAsk(bar=(_digest(client, release),), above=above), keys)


@click.command("unbar")
@click.argument("release")
@why_required
@above_option
@key_option
@remote
def unbar(client: Client, as_json: bool, release: str, above: int, keys: tuple[Path, ...]) -> None:
    """Take a release off the list.

    Example: shallop-fleet unbar camera@v2 --why 'it was the camera'
    """
    _change(client, as_json, BarsAsk(unbar=(_digest(client, release),), above=above), keys)


@click.command("bars")
@click.option("--sign", is_flag=True, help="Sign the list as it is anew, after a release key was replaced.")
@above_option
@key_option
@remote
def bars(client: Client, as_json: bool, sign: bool, above: int, keys: tuple[Path, ...]) -> None:
    """List barred releases.

    Example: shallop-fleet bars --json
    """
    if above and not sign:
        raise click.UsageError("--above goes with --sign")
    if sign:
        _change(client, as_json, BarsAsk(why="signed anew", above=above), keys)
    else:
        _print(client.bars(), as_json)


def _digest(client: Client, release: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", release):
        return release
    for known in client.releases():
        if release == f"{known.model}@{known.release}":
            return known.digest
    for barred in client.bars().barred:
        if release == barred.release:
            return barred.digest
    raise NotFoundError(
        "unknown_release", f"there is no {release}; write MODEL@RELEASE as `releases` lists it, or a digest"
    )


def _change(client: Client, as_json: bool, ask: BarsAsk, keys: tuple[Path, ...]) -> None:
    if keys:
        signers = [opened(path) for path in keys]
        before = client.bars()
        after = sorted(({row.digest for row in before.barred} | set(ask.bar)) - set(ask.unbar))
        # Said before it is signed: the registry says what is barred so far, and a signature is one's own.
        number = next_number(before.number, ask.above)
        click.echo(f"signing list {number}: {len(after)} barred releases", err=True)
        for digest in after:
            click.echo(f"  {digest}", err=True)
        envelope = sealed_bars(number, after, time.time(), signers)
        ask = msgspec.structs.replace(ask, envelope=msgspec.json.decode(envelope, type=Envelope))
    _print(client.bars_change(ask), as_json)


def _print(show: BarsShow, as_json: bool) -> None:
    if as_json:
        con.print_json(show)
        return
    con.console().print(con.bars_table(show))
    for rollout in show.open_rollouts:
        click.echo(f"{rollout} still rolls a barred release out; end it: rollout abort {rollout}", err=True)
