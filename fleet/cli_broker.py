"""`shallop-fleet broker`: set the fleet's broker up, renew its certificates, and try its door.

For: reading arguments, saying what will be written and what a person must do then.
Not for: what the files say (`fleet.broker_rules`), or making them (`fleet.adapters.broker_files`).

These commands work on files, on the machine of the registry, and need no registry. Run them as the user of
the registry (`sudo -u shallop-fleet`), or as root: what root makes becomes the directory's owner's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec

import click
import msgspec
from msgspec import Struct

from fleet.adapters import console as con
from fleet.adapters.authority import DAY_S, Authority, read_certificate
from fleet.adapters.authority import KEYS as AUTHORITY_KEYS
from fleet.adapters.broker_files import BrokerFiles
from fleet.adapters.door_check import check
from fleet.adapters.key_files import PASSPHRASE, is_encrypted
from fleet.adapters.x509_parts import general_name
from fleet.broker_rules import CONFIG, PORT_DEFAULT, REGISTRY, SERVER, Setup, access_list
from fleet.keys import KeysError
from wire.errors import ShallopError
from wire.topics import ROOT_DEFAULT

BAD_INPUT, NOT_WELL = 2, 3
TAKEN_UP = (
    "A registry that runs takes it up by itself within seconds (`shallop-fleet health`: authorities, or "
    "keys_trouble)."
)

P = ParamSpec("P")

keys_option = click.option(
    "--keys", type=click.Path(path_type=Path), default=Path("keys"), show_default=True,
    help="Directory of the fleet's keys.",
)  # fmt: skip
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("broker"), show_default=True,
    help="Directory of what the broker reads.",
)  # fmt: skip
dry_option = click.option("--dry-run", is_flag=True, help="Say what would happen, and do nothing.")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of words.")


def said(command: Callable[P, None]) -> Callable[P, None]:
    """Turns errors into words and the exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ShallopError as error:
            fail(error)

    return wrapped


def fail(error: ShallopError) -> NoReturn:
    """Says what happened and ends."""
    click.echo(f"Error: {error}", err=True)
    sys.exit(BAD_INPUT)


@click.group("broker", context_settings={"help_option_names": ["-h", "--help"]})
def broker_group() -> None:
    """The fleet's broker: certificates, access list, configuration.

    Example: shallop-fleet broker init --host broker.example --host 192.0.2.7
    """


# --- init ---------------------------------------------------------------------------------------------


@broker_group.command("init")
@click.option("--host", "hosts", multiple=True, required=True, metavar="NAME",
              help="A name or address by which devices know the broker; may be given again.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=PORT_DEFAULT, show_default=True)
@click.option("--bind", metavar="ADDRESS", help="Listen on this address only.  [default: every one]")
@click.option("--root", default=ROOT_DEFAULT, show_default=True, help="Root of the topic tree.")
@click.option("--home-assistant", metavar="PREFIX", help="Let Home Assistant look on; often `homeassistant`.")
@click.option("--directory", metavar="DIR", help="Where the broker's machine has --out.  [default: --out]")
@click.option("--encrypt", is_flag=True, help=f"Encrypt the authority's key by {PASSPHRASE}.")
@click.option(
    "--forget-revoked", is_flag=True, help="The record of revoked devices is lost, and that is well."
)
@keys_option
@out_option
@dry_option
@said
def broker_init(  # noqa: PLR0913 - options
    keys: Path, out: Path, *, encrypt: bool, dry_run: bool, hosts: tuple[str, ...], port: int,
    bind: str | None, root: str, home_assistant: str | None, directory: str | None,
    forget_revoked: bool,
) -> None:  # fmt: skip
    """Make what the broker needs: authority, certificates, access list, configuration.

    Run again it writes everything anew, and keeps the authority and who was revoked.

    Example: shallop-fleet broker init --host broker.example --out /var/lib/shallop-broker
    """
    setup = _setup({
        "hosts": hosts, "port": port, "bind": bind, "root": root, "home_assistant": home_assistant,
        "directory": directory or str(out.resolve()),
    })  # fmt: skip
    files, passphrase = BrokerFiles(out, keys), os.environ.get(PASSPHRASE)
    if encrypt and not passphrase:
        raise KeysError("passphrase_needed", f"--encrypt needs {PASSPHRASE}")
    _require_usable(setup)
    if dry_run:
        _explain(files, setup)
        return
    now = time.time()
    files.prepare()
    if Authority.exists(keys):
        authority = Authority.load(keys, passphrase)
        if encrypt and not is_encrypted(keys / AUTHORITY_KEYS):
            authority.save(keys, passphrase)
            click.echo(f"encrypted the authority's key in {keys}")
    else:
        authority = Authority.create(keys, "Shallop fleet", passphrase if encrypt else None, now)
        click.echo(f"made the authority {authority.sha256[:12]} in {keys}")
    files.begin(setup, authority, now, forget_revoked=forget_revoked)
    for line in _advice(files, setup):
        click.echo(line)


def _setup(values: dict[str, object]) -> Setup:
    try:
        return msgspec.convert(values, Setup)
    except msgspec.ValidationError as error:
        raise KeysError("bad_setup", f"this broker cannot be set up: {error}") from None


def _require_usable(setup: Setup) -> None:
    """Returns if a broker can be made of it; a dry run must not promise what would be refused.

    Raises:
        KeysError: `bad_host` or `bad_root`.
    """
    for host in setup.hosts:
        general_name(host)
    try:
        access_list(setup)
    except ValueError as error:
        raise KeysError("bad_root", str(error)) from None


def _explain(files: BrokerFiles, setup: Setup) -> None:
    keys, out = files.keys, files.out
    kept = "is kept" if Authority.exists(keys) else "would be made: whoever holds it may name devices"
    click.echo(f"{keys / 'ca.pem'}, {keys / 'ca-key.pem'}: the certificate authority {kept}")
    click.echo(f"{keys / 'registry.pem'}: certificate and key of the registry, {REGISTRY} at the broker")
    click.echo(f"{keys / 'watch.pem'}, probe.pem, canary.pem: to read the broker's figures, to try its door")
    click.echo(f"{out / SERVER}: the broker's certificate and key for {', '.join(setup.hosts)}")
    click.echo(
        f"{out}: ca.pem, crl.pem, access.acl, revoked.json, setup.json; root {setup.root}, port {setup.port}"
    )
    click.echo(f"{out / CONFIG}: Mosquitto's configuration, which names the files in {setup.directory}")
    click.echo("nothing was written (--dry-run)")


def _advice(files: BrokerFiles, setup: Setup) -> list[str]:
    out, there = files.out.resolve(), setup.directory
    copied = f"  copy {out} to {there}, and again whenever it changes; the broker's user must read it"
    return [
        f"wrote {out} and the registry's certificates in {files.keys}",
        "On the broker's machine:",
        *([copied] if there != str(out) else []),
        f"  cp {there}/{CONFIG} /etc/mosquitto/conf.d/shallop.conf && systemctl restart mosquitto",
        "  systemctl enable --now shallop-broker-reload.path   (so that a revocation is read at once)",
        "In fleet.yaml:",
        f"  broker: mqtts://{setup.hosts[0]}:{setup.port}",
        f"  broker_files: {out}",
        "Restart the registry, then: shallop-fleet broker check",
    ]


# --- renew and check ----------------------------------------------------------------------------------


@broker_group.command("renew")
@keys_option
@out_option
@dry_option
@said
def broker_renew(keys: Path, out: Path, *, dry_run: bool) -> None:
    """Make new certificates for broker and registry; a running registry does so by itself.

    Example: shallop-fleet broker renew
    """
    files, now = BrokerFiles(out, keys), time.time()
    names = files.programs
    if dry_run:
        for path in (files.out / SERVER, *(files.program(name) for name in names)):
            days = (read_certificate(path).not_after - now) / DAY_S
            click.echo(f"{path}: would be renewed; the present one ends in {days:.0f} days")
        return
    authority = Authority.load(keys, os.environ.get(PASSPHRASE))
    _renew_all(files, authority, now)
    click.echo(f"renewed {files.out / SERVER} and {', '.join(names)}")
    click.echo(
        "The registry uses its own from its next connection on; the broker reads its own by itself, or on "
        "`systemctl reload mosquitto`."
    )


def _renew_all(files: BrokerFiles, authority: Authority, now: float) -> None:
    for name in files.programs:
        files.renew_program(name, authority, now)
    files.renew_server(authority, now)


@broker_group.command("check")
@click.option("--host", help="Where the broker is.  [default: the first --host of init]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: as in init]")
@keys_option
@out_option
@json_option
@said
def broker_check(keys: Path, out: Path, host: str | None, port: int | None, *, as_json: bool) -> None:
    """Try the broker's door as a stranger would; exit 3 where it does not do as it should.

    Example: shallop-fleet broker check --host broker.example
    """
    files = BrokerFiles(out, keys)
    setup = files.setup
    found = check(files, (host or setup.hosts[0], port or setup.port), time.time())
    if as_json:
        con.print_json(found)
    else:
        for one in found:
            click.echo(f"{'ok  ' if one.ok else 'BAD '} it {one.what}: {one.seen}")
    if not all(one.ok for one in found):
        sys.exit(NOT_WELL)


# --- one authority follows another --------------------------------------------------------------------


class AuthorityShow(Struct, frozen=True, kw_only=True):
    """An authority as it is shown."""

    sha256: str
    signs: bool


@broker_group.group("ca")
def ca_group() -> None:
    """The authority that names devices: follow one by another.

    rotate (both are accepted), wait until every device has renewed, switch, wait again, drop.

    Example: shallop-fleet broker ca show
    """


@ca_group.command("show")
@keys_option
@json_option
@said
def ca_show(keys: Path, *, as_json: bool) -> None:
    """List the authorities whose certificates are accepted.

    Example: shallop-fleet broker ca show
    """
    names = Authority.load(keys, os.environ.get(PASSPHRASE)).sha256s
    shown = [AuthorityShow(sha256=name, signs=at == 0) for at, name in enumerate(names)]
    if as_json:
        con.print_json(shown)
        return
    for one in shown:
        click.echo(f"{one.sha256}  {'signs' if one.signs else 'is accepted'}")


def _step(
    keys: Path, out: Path, change: Callable[[Authority], Authority], advice: str, *, dry_run: bool
) -> None:
    passphrase, files, now = os.environ.get(PASSPHRASE), BrokerFiles(out, keys), time.time()
    before = Authority.load(keys, passphrase)
    # Without its files the broker would go on with the old authorities, and refuse who comes by a new one.
    _ = files.setup, files.revoked
    after = change(before)
    names = ", ".join(name[:12] for name in after.sha256s)
    if dry_run:
        click.echo(f"would accept {names}; {after.sha256[:12]} would sign")
        return
    after.save(keys, passphrase if is_encrypted(keys / AUTHORITY_KEYS) else None)
    if after.sha256 != before.sha256:
        _renew_all(files, after, now)
    files.rewrite(after, now)
    click.echo(f"accepted: {names}; {after.sha256[:12]} signs")
    click.echo(advice)


@ca_group.command("rotate")
@keys_option
@out_option
@dry_option
@said
def ca_rotate(keys: Path, out: Path, *, dry_run: bool) -> None:
    """Make the next authority: accepted from now on, and not signing yet.

    Example: shallop-fleet broker ca rotate
    """
    _step(keys, out, lambda held: held.with_next("Shallop fleet", time.time()), (
        f"{TAKEN_UP} Each device learns of it when it renews; then `broker ca switch`."
    ), dry_run=dry_run)  # fmt: skip


@ca_group.command("switch")
@keys_option
@out_option
@dry_option
@said
def ca_switch(keys: Path, out: Path, *, dry_run: bool) -> None:
    """Let the newest authority sign; the broker's certificate is made anew. Old ones are still accepted.

    A device that has not renewed since `rotate` does not know the broker any more, and enrols again.

    Example: shallop-fleet broker ca switch
    """
    _step(keys, out, Authority.switched, (
        f"{TAKEN_UP} When no device's certificate is of the old one: `broker ca drop`."
    ), dry_run=dry_run)  # fmt: skip


@ca_group.command("drop")
@keys_option
@out_option
@dry_option
@said
def ca_drop(keys: Path, out: Path, *, dry_run: bool) -> None:
    """Accept nothing of the old authorities any more.

    Example: shallop-fleet broker ca drop
    """
    _step(keys, out, Authority.dropped, TAKEN_UP, dry_run=dry_run)
