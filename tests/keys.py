"""Real Ed25519 keys and roots for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from msgspec import Struct
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from wire import trust
from wire.codec import encode
from wire.roots import PublicKey, RoleKeys, Root, keyid


class Key(Struct, frozen=True):
    """A key pair, made from a name; fulfils `wire.trust.Signer`."""

    name: str

    @property
    def _pair(self) -> tuple[bytes, bytes]:
        return crypto_sign_seed_keypair(hashlib.sha256(self.name.encode()).digest())

    @property
    def public(self) -> PublicKey:
        return PublicKey(public=self._pair[0].hex())

    @property
    def keyid(self) -> str:
        return keyid(self._pair[0])

    def sign(self, message: bytes) -> bytes:
        return crypto_sign(message, self._pair[1])[:64]


ROOT_1, ROOT_2, ROOT_3 = Key("root-1"), Key("root-2"), Key("root-3")
RELEASE, RELEASE_2 = Key("release"), Key("release-2")
ORDER, ORDER_2 = Key("order"), Key("order-2")


def root_of(
    number: int = 1,
    *,
    root: Sequence[Key] = (ROOT_1,),
    release: Sequence[Key] = (RELEASE,),
    order: Sequence[Key] = (ORDER,),
    threshold: int = 1,
    epoch: int = 0,
) -> Root:
    """A coherent root."""
    return Root(
        number=number,
        epoch=epoch,
        keys={key.keyid: key.public for key in (*root, *release, *order)},
        root=RoleKeys(keyids=tuple(key.keyid for key in root), threshold=threshold),
        release=RoleKeys(keyids=tuple(key.keyid for key in release)),
        order=RoleKeys(keyids=tuple(key.keyid for key in order)),
    )


def sealed_root(root: Root, *signers: Key) -> bytes:
    """The root document as it travels."""
    return trust.seal("root", encode(root), signers or (ROOT_1,))


def root_sha256(root: Root) -> str:
    """What an enrolment token pins."""
    return hashlib.sha256(encode(root)).hexdigest()
