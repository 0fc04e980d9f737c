"""PURE. The root document: whose signature counts for what, and how one root follows another.

For: the keys of each role with their thresholds, the chain of versions by which they are rotated, and the
epochs of order numbers. The ideas are The Update Framework's (theupdateframework.github.io/specification,
sections 4.3 and 5.3: a root is signed by the threshold of the root before it and by its own); the form
is ours, because a device reads one small document and no expiry (DESIGN.md section 6, ADR 0012).
Not for: cryptography, which stands behind `wire.trust.SignatureCheck`, or for keeping the root on a disk.

**Epochs.** Order numbers only rise, so whoever steals the order key could push a device's highest number
to the end of all numbers, and no order would ever reach it again. The root therefore holds an epoch: an
order number is `epoch * 2**40 + n`, no device takes a number of a later epoch than its root's, and a root
that revokes the order key opens the next epoch, whose first number is above all that the thief could use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from wire.errors import TrustError
from wire.trust import Role, SignatureCheck
from wire.types import Digest, Positive, Text

VERSION = 1
ORDERS_PER_EPOCH = 2**40
"""A million orders a second for twelve days; with 53 bits of a JSON number, 8,192 epochs."""
EPOCH_MAX = 2**13 - 1
KEYS_MAX = 32

KeyId = Digest
Epoch = Annotated[int, Meta(ge=0, le=EPOCH_MAX)]


class PublicKey(Struct, frozen=True, kw_only=True):
    """One public key.

    Attributes:
        scheme: Ed25519 (RFC 8032), the only one.
        public: the 32 bytes in hexadecimal.
    """

    scheme: Literal["ed25519"] = "ed25519"
    public: Digest

    @property
    def raw(self) -> bytes:
        """The 32 bytes."""
        return bytes.fromhex(self.public)


class RoleKeys(Struct, frozen=True, kw_only=True):
    """Who may sign for a role, and how many of them it takes."""

    keyids: Annotated[tuple[KeyId, ...], Meta(min_length=1, max_length=KEYS_MAX)]
    threshold: Annotated[int, Meta(ge=1, le=KEYS_MAX)] = 1


class Root(Struct, frozen=True, kw_only=True, tag_field="kind", tag="root"):
    """The trusted keys of a fleet.

    Attributes:
        number: of this root in its chain; the first is 1, each follows the one before it.
        epoch: of the order numbers; see the module.
        keys: every key that a role names, by its id.
        issued_at: information, never compared with a clock.
    """

    version: int = VERSION
    number: Positive
    epoch: Epoch = 0
    keys: Annotated[dict[KeyId, PublicKey], Meta(min_length=3, max_length=3 * KEYS_MAX)]
    root: RoleKeys
    release: RoleKeys
    order: RoleKeys
    issued_at: Text = ""

    def of(self, role: Role) -> RoleKeys:
        """The keys of a role."""
        return {Role.ROOT: self.root, Role.RELEASE: self.release, Role.ORDER: self.order}[role]


def keyid(public: bytes) -> str:
    """The id of a key: SHA-256 of its 32 bytes, in hexadecimal."""
    return hashlib.sha256(public).hexdigest()


def checked(root: Root) -> Root:
    """The root, if it is coherent.

    Raises:
        TrustError: `root_incoherent`: an id that is not its key's, a role that names an unknown key or one
            twice, a threshold above the number of its keys, or a key with two roles: whoever holds the
            order key, which is online, must not be able to sign content or a new root.
    """
    for name, key in root.keys.items():
        _require(keyid(key.raw) == name, f"key {name[:12]} has another id than its bytes give")
    used: set[str] = set()
    for role in Role:
        keys = root.of(role)
        _require(len(set(keys.keyids)) == len(keys.keyids), f"role {role} names a key twice")
        _require(keys.threshold <= len(keys.keyids), f"role {role} asks for more signatures than it has keys")
        _require(set(keys.keyids) <= root.keys.keys(), f"role {role} names a key that is not given")
        _require(used.isdisjoint(keys.keyids), f"a key of role {role} has another role too")
        used.update(keys.keyids)
    _require(used == root.keys.keys(), "a key is given that no role names")
    return root


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise TrustError("root_incoherent", f"the root document cannot be used: {why}")


def require_signatures(
    root: Root, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]], check: SignatureCheck
) -> None:
    """Returns if enough different keys of `role` signed `message`.

    Signatures of keys that the role does not have are passed over: an envelope may be signed for two
    roots at once.

    Raises:
        TrustError: `bad_signature`: none of the role's keys signed it; `below_threshold`: too few did.
    """
    keys = root.of(role)
    good = {
        name
        for name, signature in signatures
        if name in keys.keyids and check(root.keys[name].raw, message, signature)
    }
    if len(good) >= keys.threshold:
        return
    if not good:
        raise TrustError("bad_signature", f"no {role} key of root {root.number} signed this")
    raise TrustError(
        "below_threshold", f"{len(good)} {role} keys of root {root.number} signed this, {keys.threshold} must"
    )


def require_successor(trusted: Root, new: Root) -> None:
    """Returns if `new` may follow `trusted`, its signatures left aside.

    Raises:
        TrustError: `root_out_of_order`: it is not the next one; `epoch_backwards`.
    """
    if new.number != trusted.number + 1:
        raise TrustError(
            "root_out_of_order", f"root {new.number} cannot follow root {trusted.number}; the next one must"
        )
    if new.epoch < trusted.epoch:
        raise TrustError(
            "epoch_backwards", f"epoch {new.epoch} of root {new.number} is below {trusted.epoch}"
        )


# --- epochs -----------------------------------------------------------------------------------------


def epoch_of(order: int) -> int:
    """The epoch that an order number belongs to."""
    return order // ORDERS_PER_EPOCH


def first_order(epoch: int) -> int:
    """The lowest order number of an epoch; 1 in epoch 0, since orders are positive."""
    return max(1, epoch * ORDERS_PER_EPOCH)


def require_epoch(root: Root, order: int) -> None:
    """Returns if an order number is none of the future.

    Numbers of earlier epochs are let through: they are below every number that the device has taken in
    this epoch, so the rule of sequence refuses what is stale and knows what runs already.

    Raises:
        TrustError: `future_epoch`.
    """
    if epoch_of(order) > root.epoch:
        raise TrustError(
            "future_epoch",
            f"order {order} is of epoch {epoch_of(order)}, root {root.number} allows {root.epoch} at most",
        )
