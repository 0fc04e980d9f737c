"""`shallop-fleet keys`: make, rotate, revoke and show the keys of a fleet.

For: reading arguments, asking for passphrases, saying what will be written and what a person must do then.
Not for: what a root becomes (`fleet.keys`), or the files (`fleet.adapters.keychain`).

These commands work on files and need no registry: the root keys belong on no machine with a network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from msgspec import Struct

from fleet.adapters import console as con
from fleet.adapters import key_files, keychain
from fleet.adapters.key_files import PASSPHRASE, KeyPair
from fleet.adapters.keychain import Chain, Change
from fleet.cli_common import fail, json_option
from fleet.keys import KeysError, signatures_needed
from wire.errors import ShallopError
from wire.trust import Role

ROOT_KEYS = "shallop-root-keys"

P = ParamSpec("P")

folder_option = click.option(
    "--keys", "folder", type=click.Path(path_type=Path), default=Path("keys"), show_default=True,
    help="Directory of the root documents and the online keys.",
)  # fmt: skip
root_keys_option = click.option(
    "--root-keys", "root_folder", type=click.Path(path_type=Path), default=Path(ROOT_KEYS), show_default=True,
    help="Directory for new root keys; take it offline afterwards.",
)  # fmt: skip
with_option = click.option(
    "--with", "signer_paths", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="A root key that signs; as often as the threshold asks.",
)  # fmt: skip
encrypt_option = click.option(
    "--encrypt",
    is_flag=True,
    help=f"Ask for a passphrase for the new keys ({PASSPHRASE} where no one can be asked). Keys that follow "
    "encrypted ones are encrypted in any case.",
)
dry_option = click.option("--dry-run", is_flag=True, help="Say what would happen, and do nothing.")


class KeyShow(Struct, frozen=True, kw_only=True):
    """One key as it is shown.

    Attributes:
        here: whether its private half lies in the directory.
    """

    keyid: str
    role: str
    here: bool


class ChainShow(Struct, frozen=True, kw_only=True):
    """A chain as it is shown."""

    root: int
    epoch: int
    root_sha256: str
    thresholds: dict[str, int]
    keys: tuple[KeyShow, ...]


@click.group("keys", context_settings={"help_option_names": ["-h", "--help"]})
def keys_group() -> None:
    """The fleet's keys: root (offline), release and order.

    Example: shallop-fleet keys init --root-count 3 --root-threshold 2 --encrypt
    """


class Ask(Struct, frozen=True, kw_only=True):
    """What init, rotate and revoke are given alike.

    Attributes:
        folder: of the root documents and the online keys.
        root_folder: for new root keys.
        signer_paths: root keys that sign.
        encrypt: the new keys.
        dry_run: say what would happen.
        as_json: for the answer.
    """

    folder: Path
    root_folder: Path
    signer_paths: tuple[Path, ...] = ()
    encrypt: bool
    dry_run: bool
    as_json: bool


def asking(command: Callable[Concatenate[Ask, P], None]) -> Callable[P, None]:
    """Gives a command the options that all changes of keys have, and turns errors into exit codes."""

    @folder_option
    @root_keys_option
    @encrypt_option
    @dry_option
    @json_option
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in Ask.__struct_fields__ if name in kwargs}
        try:
            command(Ask(**given), *args, **kwargs)
        except ShallopError as error:
            fail(error)

    return wrapped


@keys_group.command()
@click.option("--root-count", type=click.IntRange(1, 16), default=1, show_default=True, help="Root keys.")
@click.option(
    "--root-threshold",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Of which so many must sign.",
)
@asking
def init(ask: Ask, root_count: int, root_threshold: int) -> None:
    """Make a fleet's first root, release and order keys.

    Example: shallop-fleet keys init --keys /var/lib/shallop-fleet/keys --root-keys /media/usb/root-keys
    """
    keychain.require_new(ask.folder)
    change = keychain.begin({Role.ROOT: root_count}, root_threshold, _now())
    _do(change, ask, (), _passphrase(ask.encrypt))


@keys_group.command()
@click.argument("role", type=click.Choice([role.value for role in Role]))
@with_option
@asking
def rotate(ask: Ask, role: str) -> None:
    """Put new keys in the place of all keys of a role; root keys sign that.

    Example: shallop-fleet keys rotate order --with /media/usb/root-keys/root-1a2b3c4d5e6f.pem
    """
    chain = keychain.load_chain(ask.folder)
    _next(chain, Role(role), chain.root.of(Role(role)).keyids, ask)


@keys_group.command()
@click.argument("keyid")
@with_option
@asking
def revoke(ask: Ask, keyid: str) -> None:
    """Take one key's authority away, with a new key in its place; root keys sign that.

    KEYID may be cut short where it stays plain which one is meant.

    Example: shallop-fleet keys revoke 1a2b3c4d5e6f --with /media/usb/root-keys/root-6f5e4d3c2b1a.pem
    """
    chain = keychain.load_chain(ask.folder)
    role, name = _meant(chain, keyid)
    _next(chain, role, (name,), ask)


@keys_group.command()
@folder_option
@json_option
def show(folder: Path, *, as_json: bool) -> None:
    """Say which keys the fleet trusts, and which of them lie here.

    Example: shallop-fleet keys show --json
    """
    try:
        shown = _shown(keychain.load_chain(folder), folder)
    except ShallopError as error:
        fail(error)
    if as_json:
        con.print_json(shown)
        return
    click.echo(f"root {shown.root}, epoch {shown.epoch}, sha256 {shown.root_sha256}")
    for key in shown.keys:
        here = "private key here" if key.here else "private key elsewhere"
        threshold = shown.thresholds[key.role]
        click.echo(f"  {key.role:8}{key.keyid[: keychain.NAME_CHARS]}  {here} (threshold {threshold})")


def _shown(chain: Chain, folder: Path) -> ChainShow:
    root = chain.root
    return ChainShow(
        root=root.number,
        epoch=root.epoch,
        root_sha256=chain.last_sha256,
        thresholds={role.value: root.of(role).threshold for role in Role},
        keys=tuple(
            KeyShow(keyid=n, role=role.value, here=(folder / keychain.file_name(role, n)).exists())
            for role in Role
            for n in root.of(role).keyids
        ),
    )


def _meant(chain: Chain, keyid: str) -> tuple[Role, str]:
    """The one key whose id begins so."""
    found = [(role, n) for role in Role for n in chain.root.of(role).keyids if n.startswith(keyid.lower())]
    if len(found) == 1 and keyid:
        return found[0]
    how = f"{len(found)} keys begin" if found else "no key begins"
    raise KeysError("unknown_key", f"{how} with {keyid!r} in root {chain.root.number}; see `keys show`")


# --- what init, rotate and revoke share -------------------------------------------------------------


def _next(chain: Chain, role: Role, retired: tuple[str, ...], ask: Ask) -> None:
    signers = () if ask.dry_run else tuple(opened(path) for path in ask.signer_paths)
    change = keychain.retire(chain.root, role, retired, _now())
    # A key that follows an encrypted one lies there no more openly than that one did.
    others = ask.signer_paths if role is Role.ROOT else ()
    encrypt = ask.encrypt or keychain.encrypted(chain, ask.folder, role, others)
    _do(change, ask, signers, _passphrase(encrypt and not ask.dry_run))


def _do(change: Change, ask: Ask, signers: tuple[KeyPair, ...], passphrase: str | None) -> None:
    if ask.dry_run:
        plan = _plan(change, ask.folder, ask.root_folder)
        if ask.as_json:
            con.print_json({"plan": plan})
            return
        for line in plan:
            click.echo(line)
        return
    written = keychain.carry_out(change, ask.folder, ask.root_folder, signers, passphrase)
    if ask.as_json:
        con.print_json(_shown(keychain.load_chain(ask.folder), ask.folder))
        return
    for path in written:
        click.echo(f"wrote {path}")
    for line in _advice(change, ask.root_folder):
        click.echo(line)


def _plan(change: Change, folder: Path, root_folder: Path) -> list[str]:
    after = change.after
    lines = [f"would write {folder / f'root-{after.number}.json'}: root {after.number}, epoch {after.epoch}"]
    for role, pairs in change.made.items():
        where = root_folder if role is Role.ROOT else folder
        lines.append(f"would make {len(pairs)} new {role} key(s) in {where}")
    for number, role_keys in signatures_needed(change.before, after).items():
        if number != after.number:
            names = ", ".join(name[: keychain.NAME_CHARS] for name in role_keys.keyids)
            lines.append(
                f"needs {role_keys.threshold} of the root keys of root {number}: {names} (--with FILE)"
            )
    if change.before is not None and after.epoch > change.before.epoch:
        lines.append("opens a new epoch of order numbers: whatever the old order key gave out is below it")
    lines.append("devices take the root up by themselves when the registry publishes it")
    return lines


def _advice(change: Change, root_folder: Path) -> list[str]:
    lines = []
    if Role.ROOT in change.made:
        lines.append(
            f"Now take {root_folder} offline: copy it to two media, keep them apart, and delete it here. "
            "Whoever holds the root keys holds the fleet; without them no key can be replaced."
        )
    if change.before is not None:
        lines.append(
            "A registry that runs takes it up by itself within seconds: it publishes the root and signs "
            "everything anew (`shallop-fleet health`: signing_root, or keys_trouble). Devices that are off "
            "catch up when they come back."
        )
    return lines


def opened(path: Path) -> KeyPair:
    """The key in a file; its passphrase is asked for where it has one and somebody is there.

    Raises:
        KeysError: see `fleet.adapters.key_files.load`.
    """
    try:
        return key_files.load(path, os.environ.get(PASSPHRASE))
    except ShallopError as error:
        # The environment's may be that of the registry's keys, and this one a root key with one of its own.
        if error.code not in {"passphrase_needed", "passphrase_wrong"} or not sys.stdin.isatty():
            raise
    return key_files.load(path, click.prompt(f"Passphrase of {path}", hide_input=True, err=True))


def _passphrase(wanted: bool) -> str | None:
    """For new keys; asked for twice, or taken from the environment where no one can be asked."""
    if not wanted:
        return None
    given = os.environ.get(PASSPHRASE)
    if given:
        return given
    if not sys.stdin.isatty():
        raise KeysError(
            "passphrase_needed",
            f"new keys are to be encrypted: that needs a terminal to ask on, or {PASSPHRASE}",
        )
    return str(
        click.prompt("Passphrase for the new keys", hide_input=True, confirmation_prompt=True, err=True)
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
