"""The directory of a fleet's keys: the public chain of roots, and the private keys that are online.

For: beginning a chain, adding to it, and loading it whole or not at all. Each root is checked against the
one before it exactly as a device does.
Not for: deciding what a root becomes (`fleet.keys`), or publishing (`fleet.signing`).

    KEYS/root-1.json, root-2.json, ...   signed root documents, public
    KEYS/order-1a2b3c4d5e6f.pem          the online order key; orders are signed by the registry
    KEYS/release-....pem                 the release key, where releases are signed here too
    ROOT_KEYS/root-....pem               the root's private keys, which do not stay on this machine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from fleet import keys
from fleet.adapters import key_files
from fleet.adapters.key_files import KeyPair
from fleet.keys import KeysError
from fleet.verify import follow
from wire import trust
from wire.chunks import digest
from wire.codec import encode
from wire.errors import ShallopError
from wire.roots import Root
from wire.topics import ROOT
from wire.trust import Role

NAME_CHARS = 12
ROOTS_MAX = 100_000


class Chain(Struct, frozen=True, kw_only=True):
    """Every root of a fleet, oldest first.

    Attributes:
        envelopes: the signed documents as they are published.
        root: the last one.
        first_sha256: digest of the first one's payload.
        last_sha256: digest of the last one's payload: what an enrolment token pins.
    """

    envelopes: tuple[bytes, ...]
    root: Root
    first_sha256: str
    last_sha256: str


class Online(Struct, frozen=True, kw_only=True):
    """What a registry signs with: the chain, and the private keys of the last root that lie here."""

    chain: Chain
    order: tuple[KeyPair, ...]
    release: tuple[KeyPair, ...]


def exists(folder: Path) -> bool:
    """Whether a chain was begun there.

    Raises:
        KeysError: `keys_unreadable`: nobody but its owner may look.
    """
    try:
        return (folder / "root-1.json").exists()
    except OSError as error:
        raise KeysError(
            "keys_unreadable",
            f"{folder} cannot be looked at: {error.strerror or error}; run this as its owner, such as "
            "`sudo -u shallop-fleet`",
        ) from None


def require_new(folder: Path) -> None:
    """Returns if no chain was begun there.

    Raises:
        KeysError: `keys_exist` or `keys_unreadable`.
    """
    if exists(folder):
        raise KeysError("keys_exist", f"{folder} holds a fleet's keys already; `keys show` lists them")


def load_chain(folder: Path) -> Chain:
    """The chain, each root checked against the one before it.

    Raises:
        KeysError: `no_keys`, `keys_unreadable` or `chain_broken`.
    """
    if not exists(folder):
        raise KeysError("no_keys", f"there are no keys in {folder}; begin with `shallop-fleet keys init`")
    envelopes: list[bytes] = []
    before: Root | None = None
    first = last = ""
    while len(envelopes) < ROOTS_MAX:
        path = folder / f"root-{len(envelopes) + 1}.json"
        if not path.exists():
            break
        try:
            with path.open("rb") as file:
                data = file.read(ROOT.size_bytes_max + 1)
            before, payload = follow(before, data, key_files.verify)
        except (ShallopError, OSError) as error:
            raise KeysError("chain_broken", f"{path} cannot be used: {error}") from None
        envelopes.append(data)
        last = digest(payload)
        first = first or last
    if before is None:
        raise KeysError("no_keys", f"there are no keys in {folder}")
    return Chain(envelopes=tuple(envelopes), root=before, first_sha256=first, last_sha256=last)


def load_online(folder: Path, passphrase: str | None = None) -> Online:
    """The chain with the private keys of its last root that lie in the folder.

    Raises:
        KeysError: `no_keys`, `chain_broken`, `no_order_key` (fewer than its threshold), or why a key
            cannot be opened.
    """
    chain = load_chain(folder)
    held = {role: _held(folder, chain.root, role, passphrase) for role in (Role.ORDER, Role.RELEASE)}
    needed = chain.root.order.threshold
    if len(held[Role.ORDER]) < needed:
        names = ", ".join(file_name(Role.ORDER, name) for name in chain.root.order.keyids)
        raise KeysError("no_order_key", f"{needed} of {names} must lie in {folder} for orders to be signed")
    return Online(chain=chain, order=held[Role.ORDER], release=held[Role.RELEASE])


def encrypted(chain: Chain, folder: Path, role: Role, others: Sequence[Path]) -> bool:
    """Whether a private key of a role asks for a passphrase: among those that lie here, and `others`."""
    here = [folder / file_name(role, name) for name in chain.root.of(role).keyids]
    return any(key_files.is_encrypted(path) for path in (*here, *others))


def _held(folder: Path, root: Root, role: Role, passphrase: str | None) -> tuple[KeyPair, ...]:
    paths = [folder / file_name(role, name) for name in root.of(role).keyids]
    return tuple(key_files.load(path, passphrase) for path in paths if path.exists())


def file_name(role: Role, name: str) -> str:
    """What the file of a private key is called."""
    return f"{role}-{name[:NAME_CHARS]}.pem"


# --- changes ----------------------------------------------------------------------------------------


class Change(Struct, frozen=True, kw_only=True):
    """A root that is ready to be signed, with the private keys that come into being with it.

    Attributes:
        before: the root that it follows; None for the first.
        made: new private keys by role.
    """

    before: Root | None
    after: Root
    made: Mapping[Role, Sequence[KeyPair]]


def begin(counts: Mapping[Role, int], root_threshold: int, issued_at: str) -> Change:
    """The first root, with new keys for every role; nothing is written.

    Raises:
        TrustError: `root_incoherent`: a threshold above the number of keys.
    """
    made = {role: tuple(key_files.generate() for _ in range(counts.get(role, 1))) for role in Role}
    publics = {role: [key.public for key in pairs] for role, pairs in made.items()}
    after = keys.first_root(publics, {Role.ROOT: root_threshold}, issued_at)
    return Change(before=None, after=after, made=made)


def retire(root: Root, role: Role, retired: Sequence[str], issued_at: str) -> Change:
    """The next root, in which each retired key has a new one in its place; nothing is written.

    Raises:
        KeysError, TrustError: see `fleet.keys.rotated`.
    """
    made = tuple(key_files.generate() for _ in retired)
    after = keys.rotated(root, role, retired, [key.public for key in made], issued_at)
    return Change(before=root, after=after, made={role: made})


def carry_out(
    change: Change, folder: Path, root_folder: Path, signers: Sequence[KeyPair], passphrase: str | None
) -> list[Path]:
    """Writes the new private keys, then the signed root: the chain grows last, so a crash leaves it whole.

    Args:
        change: from `begin` or `retire`.
        folder: of the chain and the online keys.
        root_folder: for new private keys of the root role.
        signers: root keys that are at hand; new ones are added by themselves.
        passphrase: for the new private keys; None leaves them unencrypted.

    Returns:
        The files that were written, the root document last.

    Raises:
        KeysError: `root_keys_missing`, `key_exists` or `key_unwritable`: nothing counts that was written.
    """
    own = change.made.get(Role.ROOT, ())
    signing = {key.keyid: key for key in (*signers, *own)}
    named = {n for role in keys.signatures_needed(change.before, change.after).values() for n in role.keyids}
    keys.require_signers(change.before, change.after, list(signing))
    # All of them first: what cannot be made is found out before a key lies anywhere.
    for where in (folder, root_folder) if Role.ROOT in change.made else (folder,):
        key_files.make_directory(where)
    written: list[Path] = []
    for role, pairs in change.made.items():
        where = root_folder if role is Role.ROOT else folder
        for pair in pairs:
            written.append(where / file_name(role, pair.keyid))
            key_files.write_new(written[-1], pair.pem(passphrase))
    using = [signing[name] for name in sorted(named) if name in signing]
    written.append(folder / f"root-{change.after.number}.json")
    key_files.write_new(written[-1], trust.seal("root", encode(change.after), using))
    return written
