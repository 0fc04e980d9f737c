"""The desk on which the registry's words are signed, made from the directory of keys, also while it runs.

For: loading chain and online keys, taking a grown chain up, and signing everything anew under it.
Not for: when that is looked at (`fleet.adapters.following`), what is signed anew (`fleet.signing`), or which
chain may follow (`fleet.succession`).

A passphrase is read from the environment of this process, which nobody can change from outside: a new key
with another one is refused as `passphrase_wrong` until the registry is started with that one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fleet.adapters import keychain
from fleet.adapters.key_files import PASSPHRASE, verify
from fleet.config import Config
from fleet.current import Current
from fleet.keys import KeysError
from fleet.orders import Desk
from fleet.ports import Clock, ReadyFiles, Store
from fleet.signing import Renewed, renew
from fleet.succession import require_successor
from wire.roots import Root, require_signatures
from wire.topics import Topics
from wire.trust import Policy, Role

_LOG = logging.getLogger("shallop.fleet")

_FILES = ("root-*.json", "order-*.pem", "release-*.pem")


class Keyring:
    """Fulfils `wire.trust.Verifier` with the keys of one root."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def verify(self, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
        """Returns if enough keys of `role` signed `message`.

        Raises:
            TrustError: they did not.
        """
        require_signatures(self._root, role, message, signatures, verify)


def first_desk(config: Config) -> Desk:
    """With keys everything is signed; without them the configuration decides whether anything goes out.

    Raises:
        KeysError: the keys that are there cannot be used, or the configured ones are not there.
    """
    topics, folder = Topics(config.root), config.keys_dir
    if not keychain.exists(folder):
        if config.keys is not None:
            raise KeysError("no_keys", f"there are no keys in {folder}; begin with `shallop-fleet keys init`")
        return Desk(topics, policy=Policy(insecure_unsigned=config.insecure_unsigned))
    desk = _desk_of(topics, folder)
    _LOG.info("signing under %s, of %s", _words(desk), folder)
    return desk


def key_files_in(folder: Path) -> list[Path]:
    """The files that say what is signed with: roots and online keys."""
    return [path for form in _FILES for path in folder.glob(form)]


class SigningDesk:
    """The desk of a registry with keys; fulfils `fleet.adapters.following.Holder`.

    Args:
        folder: of the keys.
        desk: the one that counts; another succeeds it inside the transaction that signs everything anew.
        store: what is signed anew.
        ready: ready rollbacks, likewise.
        clock: the registry's.
    """

    def __init__(
        self, folder: Path, desk: Current[Desk], store: Store, ready: ReadyFiles, clock: Clock
    ) -> None:
        self._folder, self._desk, self._store, self._ready, self._clock = folder, desk, store, ready, clock

    def files(self) -> list[Path]:
        """Roots and online keys."""
        return key_files_in(self._folder)

    def take_up(self) -> str:
        """Reads the directory; a chain that grew, or other online keys, are used from now on.

        Raises:
            KeysError: what lies there cannot be used, or may not follow; nothing changed.
            StoreError: the database; it is in doubt what was signed anew. Asked again, it is.
        """
        before = self._desk.now
        after = _desk_of(before.topics, self._folder)
        require_successor(before.roots, after.roots)
        self.sign_anew(after)
        return "" if _signed_by(before) == _signed_by(after) else _words(after)

    def sign_anew(self, desk: Desk) -> None:
        """Uses that desk, and signs anew whatever was signed under an earlier root.

        Raises:
            StoreError: see `take_up`.
        """
        with self._store.begin() as tx:
            done = renew(tx, desk, self._clock.now())
            # Before the commit, and of ended rollouts too: after a kill in between all of it is done again.
            for rollout, payload in done.rollbacks.items():
                self._ready.write(rollout, payload)
            # Last: where something above is refused, the desk before stays. Still inside: whatever the next
            # transaction signs, it signs by the desk that the database knows of.
            self._desk.succeed(desk)
        _tell(done)


def _desk_of(topics: Topics, folder: Path) -> Desk:
    online = keychain.load_online(folder, os.environ.get(PASSPHRASE))
    chain = online.chain
    return Desk(
        topics, signers=online.order, release_signers=online.release,
        policy=Policy(verifier=Keyring(chain.root)), roots=chain.envelopes, root=chain.root,
    )  # fmt: skip


def _signed_by(desk: Desk) -> tuple[int, list[str]]:
    return len(desk.roots), [key.keyid for key in (*desk.signers, *desk.release_signers)]


def _words(desk: Desk) -> str:
    number, epoch = (0, 0) if desk.root is None else (desk.root.number, desk.root.epoch)
    names = [
        f"{role} key {key.keyid[: keychain.NAME_CHARS]}"
        for role, keys in ((Role.ORDER, desk.signers), (Role.RELEASE, desk.release_signers))
        for key in keys
    ]
    return f"root {number}, epoch {epoch}, with {', '.join(names)}"


def _tell(done: Renewed) -> None:
    if done.roots:
        _LOG.warning(
            "signed anew: %d roots, %d releases, %d desired documents, %d ready rollbacks",
            done.roots, done.releases, done.documents, len(done.rollbacks),
        )  # fmt: skip
    for name in done.unsigned:
        _LOG.error(
            "%s lost its signature; publish it again with --release-key FILE (the list: bars --sign)", name
        )
