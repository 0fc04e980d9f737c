"""Whose signature counts for what, and how one root follows another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.adapters.ed25519 import verify
from tests.keys import ORDER, ORDER_2, RELEASE, ROOT_1, ROOT_2, ROOT_3, Key, root_of
from wire import roots
from wire.errors import TrustError
from wire.roots import PublicKey, RoleKeys, Root
from wire.trust import Role

MESSAGE = b"what is signed"


def signed(*keys: Key) -> list[tuple[str, bytes]]:
    return [(key.keyid, key.sign(MESSAGE)) for key in keys]


def code_of(root: Root, role: Role, message: bytes, signatures: list[tuple[str, bytes]]) -> str:
    with pytest.raises(TrustError) as caught:
        roots.require_signatures(root, role, message, signatures, verify)
    return caught.value.code


def test_rfc_8032_test_vector_2_is_verified() -> None:
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert verify(public, b"\x72", signature)
    assert not verify(public, b"\x73", signature)


@pytest.mark.parametrize(
    ("public", "signature"), [(b"", bytes(64)), (bytes(32), b""), (bytes(32), bytes(64))]
)
def test_keys_and_signatures_of_any_length_are_only_false(public: bytes, signature: bytes) -> None:
    assert not verify(public, MESSAGE, signature)


@pytest.mark.parametrize(("role", "key"), [(Role.ROOT, ROOT_1), (Role.RELEASE, RELEASE), (Role.ORDER, ORDER)])
def test_a_key_signs_for_its_own_role_only(role: Role, key: Key) -> None:
    root = root_of()
    roots.require_signatures(root, role, MESSAGE, signed(key), verify)
    for other in set(Role) - {role}:
        assert code_of(root, other, MESSAGE, signed(key)) == "bad_signature"


def test_one_key_twice_is_one_signature() -> None:
    root = root_of(root=(ROOT_1, ROOT_2, ROOT_3), threshold=2)
    assert code_of(root, Role.ROOT, MESSAGE, signed(ROOT_1, ROOT_1)) == "below_threshold"
    roots.require_signatures(root, Role.ROOT, MESSAGE, signed(ROOT_1, ROOT_3), verify)


def test_a_wrong_signature_beside_enough_right_ones_does_no_harm() -> None:
    root = root_of(root=(ROOT_1, ROOT_2, ROOT_3), threshold=2)
    given_ = [(ROOT_2.keyid, bytes(64)), *signed(ROOT_1, ROOT_3)]
    roots.require_signatures(root, Role.ROOT, MESSAGE, given_, verify)
    assert code_of(root, Role.ROOT, MESSAGE, given_[:2]) == "below_threshold"


def test_a_signature_under_another_keys_id_counts_for_nobody() -> None:
    assert code_of(root_of(), Role.ORDER, MESSAGE, [(ORDER.keyid, ORDER_2.sign(MESSAGE))]) == "bad_signature"


def test_no_signature_is_never_enough() -> None:
    assert code_of(root_of(), Role.ORDER, MESSAGE, []) == "bad_signature"


@pytest.mark.parametrize(
    "change",
    [
        {"order": RoleKeys(keyids=(RELEASE.keyid,))},
        {"release": RoleKeys(keyids=(ORDER.keyid,))},
        {"root": RoleKeys(keyids=(ROOT_1.keyid,), threshold=2)},
        {"root": RoleKeys(keyids=(ROOT_1.keyid, ROOT_1.keyid), threshold=2)},
        {"order": RoleKeys(keyids=(ORDER_2.keyid,))},
        {"keys": {**root_of().keys, ORDER_2.keyid: ORDER_2.public}},
        {"keys": {**root_of().keys, ORDER.keyid: PublicKey(public="0" * 64)}},
    ],
)
def test_an_incoherent_root_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TrustError) as caught:
        roots.checked(replace(root_of(), **change))
    assert caught.value.code == "root_incoherent"


@pytest.mark.parametrize("role", [Role.ROOT, Role.RELEASE])
def test_a_key_with_two_roles_is_refused_though_all_else_fits(role: Role) -> None:
    root = root_of()
    keys = {name: key for name, key in root.keys.items() if name != ORDER.keyid}
    with pytest.raises(TrustError, match="has another role too"):
        roots.checked(replace(root, keys=keys, order=root.of(role)))


def test_a_coherent_root_is_taken() -> None:
    assert roots.checked(root_of(root=(ROOT_1, ROOT_2), threshold=2)).of(Role.ROOT).threshold == 2


@pytest.mark.parametrize(("number", "epoch", "code"), [
    (1, 0, "root_out_of_order"), (3, 0, "root_out_of_order"), (2, 4, "epoch_backwards"),
])  # fmt: skip
def test_roots_follow_one_another_without_gap(number: int, epoch: int, code: str) -> None:
    trusted = root_of(1, epoch=5)
    roots.require_successor(trusted, root_of(2, epoch=5))
    roots.require_successor(trusted, root_of(2, epoch=6))
    with pytest.raises(TrustError) as caught:
        roots.require_successor(trusted, root_of(number, epoch=epoch))
    assert caught.value.code == code


@given(st.integers(0, roots.EPOCH_MAX))
def test_an_epoch_begins_above_all_numbers_of_the_one_before(epoch: int) -> None:
    first = roots.first_order(epoch)
    last = first + roots.ORDERS_PER_EPOCH - (2 if epoch == 0 else 1)
    assert roots.epoch_of(first) == roots.epoch_of(last) == epoch
    assert last < 2**53
    if epoch:
        assert roots.epoch_of(first - 1) == epoch - 1
    root = root_of(epoch=epoch)
    roots.require_epoch(root, first)
    roots.require_epoch(root, last)
    with pytest.raises(TrustError) as caught:
        roots.require_epoch(root, last + 1)
    assert caught.value.code == "future_epoch"
