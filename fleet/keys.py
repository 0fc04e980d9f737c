"""PURE. What a fleet's root becomes when keys are made, rotated or revoked.

For: the next root document from the one before it, and who must sign it.
Not for: making or keeping keys (`fleet.adapters.key_files`), or the chain (`fleet.adapters.keychain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from wire.errors import ShallopError
from wire.roots import EPOCH_MAX, PublicKey, RoleKeys, Root, checked, keyid
from wire.trust import Role


class KeysError(ShallopError):
    """What was asked for cannot be done with these keys."""


def first_root(keys: Mapping[Role, Sequence[bytes]], thresholds: Mapping[Role, int], issued_at: str) -> Root:
    """The root with which a fleet begins.

    Args:
        keys: raw public keys (32 bytes each) of each role.
        thresholds: how many signatures each role needs; 1 where none is given.
        issued_at: RFC 3339, information.

    Raises:
        TrustError: `root_incoherent`.
    """
    return checked(
        Root(
            number=1,
            keys=_named([key for role in Role for key in keys[role]]),
            root=_role(keys[Role.ROOT], thresholds.get(Role.ROOT, 1)),
            release=_role(keys[Role.RELEASE], thresholds.get(Role.RELEASE, 1)),
            order=_role(keys[Role.ORDER], thresholds.get(Role.ORDER, 1)),
            issued_at=issued_at,
        )
    )


def rotated(root: Root, role: Role, retired: Sequence[str], new: Sequence[bytes], issued_at: str) -> Root:
    """The next root: `new` keys in place of the `retired` ones of `role`.

    A root that retires an order key opens the next epoch of order numbers, so that whatever number the
    holder of the old key gave out, the fleet's next order is above it (`wire.roots`).

    Raises:
        KeysError: `unknown_key` (not of that role), `too_few_keys` (fewer than the threshold would be
            left), `epochs_used_up`.
        TrustError: `root_incoherent`.
    """
    old = root.of(role)
    foreign = [name for name in retired if name not in old.keyids]
    if foreign:
        raise KeysError("unknown_key", f"{foreign[0][:12]} is no {role} key of root {root.number}")
    kept = tuple(name for name in old.keyids if name not in retired)
    names = (*kept, *(keyid(key) for key in new))
    if len(names) < old.threshold:
        raise KeysError(
            "too_few_keys",
            f"role {role} needs {old.threshold} keys and {len(names)} would be left; give it new ones",
        )
    epoch = root.epoch + (role is Role.ORDER and bool(retired))
    if epoch > EPOCH_MAX:
        raise KeysError("epochs_used_up", "the order key was retired too often; begin a new fleet root")
    left = {name: key for name, key in root.keys.items() if name not in retired}
    changed = {role.value: RoleKeys(keyids=names, threshold=old.threshold)}
    after = replace(
        root,
        number=root.number + 1,
        epoch=epoch,
        keys={**left, **_named(new)},
        issued_at=issued_at,
        **changed,
    )
    return checked(after)


def signatures_needed(before: Root | None, after: Root) -> dict[int, RoleKeys]:
    """Which root keys must sign `after`, by the number of the root that says so."""
    own = {after.number: after.root}
    return own if before is None else {before.number: before.root, **own}


def require_signers(before: Root | None, after: Root, signers: Sequence[str]) -> None:
    """Returns if these keys are enough to sign `after`.

    Raises:
        KeysError: `root_keys_missing`, naming how many of which.
    """
    for number, role in signatures_needed(before, after).items():
        have = len(set(signers) & set(role.keyids))
        if have < role.threshold:
            lacking = ", ".join(name[:12] for name in role.keyids if name not in signers)
            raise KeysError(
                "root_keys_missing",
                f"root {after.number} needs {role.threshold} root keys of root {number}, {have} are given; "
                f"bring {role.threshold - have} more of {lacking}",
            )


def _named(keys: Sequence[bytes]) -> dict[str, PublicKey]:
    return {keyid(key): PublicKey(public=key.hex()) for key in keys}


def _role(keys: Sequence[bytes], threshold: int) -> RoleKeys:
    return RoleKeys(keyids=tuple(keyid(key) for key in keys), threshold=threshold)
