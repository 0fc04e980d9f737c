"""What a device believes, kept through restarts, and what it refuses by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import believing
from agent import trust as agent_trust
from agent.adapters.ed25519 import verify
from agent.believing import TrustState
from agent.errors import StateError
from agent.trust import Trust
from tests.keys import (
    ORDER,
    ORDER_2,
    RELEASE,
    RELEASE_2,
    ROOT_1,
    ROOT_2,
    ROOT_3,
    Key,
    root_of,
    root_sha256,
    sealed_root,
)
from wire import roots, trust
from wire.codec import encode
from wire.errors import ShallopError, TrustError
from wire.messages import Bars, Desired, DesiredModel
from wire.roots import Root
from wire.trust import Role

DIGEST = "ab" * 32


@pytest.fixture
def enrolled(tmp_path: Path) -> Trust:
    return enrol(tmp_path)


def enrol(folder: Path, root: Root | None = None) -> Trust:
    made = Trust(folder, verify)
    first = root or root_of()
    made.pin(sealed_root(first), root_sha256(first))
    return made


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ShallopError) as caught:
        act()
    return caught.value.code


def document(number: int, order: int = 1, issued_at: str = "2026-11-21T06:00:00+00:00") -> Desired:
    models = {"cam": DesiredModel(order=order, digest=DIGEST, release="1")}
    return Desired(device="roof-1", number=number, models=models, issued_at=issued_at)


# --- the beginning


def test_a_new_device_believes_nobody(tmp_path: Path) -> None:
    fresh = Trust(tmp_path, verify)
    assert not fresh.enrolled
    assert (
        code_of(lambda: fresh.verify(Role.ORDER, b"x", [(ORDER.keyid, ORDER.sign(b"x"))])) == "not_enrolled"
    )
    assert fresh.policy(insecure_unsigned=True).insecure_unsigned


def test_what_was_enrolled_is_known_after_a_restart(tmp_path: Path) -> None:
    enrol(tmp_path)
    again = Trust(tmp_path, verify)
    again.verify(Role.ORDER, b"x", [(ORDER.keyid, ORDER.sign(b"x"))])
    assert again.state.root == root_of()


def test_an_enrolled_device_never_believes_unsigned_words_again(enrolled: Trust) -> None:
    policy = enrolled.policy(insecure_unsigned=True)
    assert (
        code_of(lambda: trust.open_envelope(trust.seal("desired", b"x"), "desired", policy, 1000))
        == "unsigned"
    )


def test_a_root_that_was_not_pinned_is_refused(tmp_path: Path) -> None:
    fresh = Trust(tmp_path, verify)
    other = root_of(root=(ROOT_2,))
    assert code_of(lambda: fresh.pin(sealed_root(other, ROOT_2), root_sha256(root_of()))) == "wrong_root"
    assert (
        code_of(lambda: fresh.pin(sealed_root(root_of(), ROOT_2), root_sha256(root_of()))) == "bad_signature"
    )
    assert not fresh.enrolled
    assert not (tmp_path / "trust.json").exists()


# --- the file


@pytest.mark.parametrize("content", [b"", b"\0" * 400, b"{}", b"junk\njunk", b'{"kind":"agent-trust"}\n{}'])
def test_a_damaged_file_means_refuse_and_never_start_afresh(tmp_path: Path, content: bytes) -> None:
    enrol(tmp_path)
    (tmp_path / "trust.json").write_bytes(content)
    damaged = Trust(tmp_path, verify)
    assert damaged.enrolled
    assert code_of(lambda: damaged.state) == "trust_damaged"
    policy = damaged.policy(insecure_unsigned=True)
    for envelope in (trust.seal("desired", b"x"), trust.seal("desired", b"x", [ORDER])):
        assert code_of(lambda e=envelope: trust.open_envelope(e, "desired", policy, 1000)) in {  # type: ignore[misc]
            "unsigned",
            "trust_damaged",
        }


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_flipped_byte_goes_unseen(at: int, flip: int) -> None:
    state = TrustState(root=root_of(), document=7, signed_at="2026-11-21T06:00:00+00:00")
    data = bytearray(agent_trust.encode(state))
    data[at % len(data)] ^= flip
    try:
        found = agent_trust.decode(bytes(data), "trust.json")
    except StateError:
        return
    # An unknown key in the header is none of our business; what is believed must be what was saved.
    assert found == state


def test_a_newer_programs_file_is_left_alone(tmp_path: Path) -> None:
    enrol(tmp_path)
    path = tmp_path / "trust.json"
    newer = path.read_bytes().replace(b'"version":1,"sha256"', b'"version":2,"sha256"', 1)
    path.write_bytes(newer)
    assert code_of(lambda: Trust(tmp_path, verify)) == "trust_version"
    assert path.read_bytes() == newer


def test_a_change_that_cannot_be_saved_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = enrol(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent_trust, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        made.obey(document(5))
    assert made.state.document == 0


# --- roots


def test_three_missed_roots_are_caught_up_one_by_one(enrolled: Trust, tmp_path: Path) -> None:
    chain = [
        sealed_root(root_of(2, root=(ROOT_1, ROOT_2)), ROOT_1),
        sealed_root(root_of(3, root=(ROOT_2,), order=(ORDER_2,), epoch=1), ROOT_1, ROOT_2),
        sealed_root(root_of(4, root=(ROOT_3,), order=(ORDER_2,), epoch=1), ROOT_2, ROOT_3),
    ]
    assert code_of(lambda: enrolled.rotate(chain[2])) == "root_out_of_order"
    for data in chain:
        enrolled.rotate(data)
    again = Trust(tmp_path, verify)
    again.verify(Role.ORDER, b"x", [(ORDER_2.keyid, ORDER_2.sign(b"x"))])
    assert (
        code_of(lambda: again.verify(Role.ORDER, b"x", [(ORDER.keyid, ORDER.sign(b"x"))])) == "bad_signature"
    )
    assert code_of(lambda: again.rotate(chain[0])) == "root_out_of_order"


@pytest.mark.parametrize(
    ("new", "signers"),
    [
        (root_of(2, root=(ROOT_2,)), (ROOT_2,)),
        (root_of(2, root=(ROOT_2,)), (ROOT_1,)),
        (root_of(2), (ORDER,)),
        (root_of(2), (RELEASE,)),
    ],
)
def test_a_root_needs_the_old_and_the_new_keys(enrolled: Trust, new: Root, signers: tuple[Key, ...]) -> None:
    assert code_of(lambda: enrolled.rotate(sealed_root(new, *signers))) == "bad_signature"
    assert enrolled.state.root.number == 1


def test_thresholds_of_both_roots_count(tmp_path: Path) -> None:
    first = root_of(root=(ROOT_1, ROOT_2, ROOT_3), threshold=2)
    made = Trust(tmp_path, verify)
    made.pin(sealed_root(first, ROOT_1, ROOT_3), root_sha256(first))
    second = root_of(2, root=(ROOT_1, ROOT_2, ROOT_3), threshold=3)
    assert code_of(lambda: made.rotate(sealed_root(second, ROOT_1, ROOT_2))) == "below_threshold"
    made.rotate(sealed_root(second, ROOT_1, ROOT_2, ROOT_3))


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_junk_is_no_root(junk: bytes) -> None:
    state = TrustState(root=root_of())
    with pytest.raises(ShallopError):
        believing.rotated(state, junk, verify)


# --- documents


def test_an_old_document_does_not_come_back(enrolled: Trust, tmp_path: Path) -> None:
    enrolled.obey(document(7))
    enrolled.obey(document(7))
    assert code_of(lambda: enrolled.obey(document(6))) == "stale_document"
    again = Trust(tmp_path, verify)
    assert code_of(lambda: again.obey(document(6))) == "stale_document"


@pytest.mark.parametrize(("number", "order"), [(roots.first_order(1), 1), (8, roots.first_order(1))])
def test_numbers_of_a_later_epoch_are_refused(enrolled: Trust, number: int, order: int) -> None:
    assert code_of(lambda: enrolled.obey(document(number, order))) == "future_epoch"
    assert enrolled.state.document == 0


def test_a_thief_cannot_use_up_the_numbers_for_ever(enrolled: Trust) -> None:
    last = roots.first_order(1) - 1
    enrolled.obey(document(last))
    assert code_of(lambda: enrolled.obey(document(9))) == "stale_document"
    enrolled.rotate(sealed_root(root_of(2, order=(ORDER_2,), epoch=1)))
    enrolled.obey(document(roots.first_order(1), roots.first_order(1) + 1))
    assert enrolled.state.document == roots.first_order(1)


@pytest.mark.parametrize(
    ("issued_at", "kept"),
    [
        ("2026-11-21T07:00:00+00:00", "2026-11-21T07:00:00+00:00"),
        ("2020-01-01T00:00:00+00:00", "2026-11-21T06:00:00+00:00"),
        ("9", "2026-11-21T06:00:00+00:00"),
        ("", "2026-11-21T06:00:00+00:00"),
        ("2026-11-21T09:00:00+02:00", "2026-11-21T06:00:00+00:00"),
    ],
)
def test_the_highest_signed_time_only_rises(enrolled: Trust, issued_at: str, kept: str) -> None:
    enrolled.obey(document(1))
    enrolled.obey(document(2, issued_at=issued_at))
    assert enrolled.state.signed_at == kept


# --- barred releases


def bars(number: int, *digests: str, key: Key = RELEASE) -> bytes:
    return trust.seal("bars", encode(Bars(number=number, digests=digests)), [key])


def test_a_barred_release_stays_barred(enrolled: Trust, tmp_path: Path) -> None:
    enrolled.bar(bars(2, DIGEST))
    again = Trust(tmp_path, verify)
    assert code_of(lambda: believing.require_not_barred(again.state, DIGEST)) == "release_barred"
    believing.require_not_barred(again.state, "cd" * 32)
    assert code_of(lambda: again.bar(bars(1))) == "stale_bars"
    again.bar(bars(3))
    believing.require_not_barred(again.state, DIGEST)


@pytest.mark.parametrize("key", [ORDER, ROOT_1, RELEASE_2])
def test_only_the_release_role_bars(enrolled: Trust, key: Key) -> None:
    assert code_of(lambda: enrolled.bar(bars(1, DIGEST, key=key))) == "bad_signature"
    assert enrolled.state.barred == ()


def test_trust_error_is_what_a_caller_catches(enrolled: Trust) -> None:
    with pytest.raises(TrustError):
        enrolled.obey(document(roots.first_order(1)))
