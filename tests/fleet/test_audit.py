"""The audit log: what it notices, and that the database itself keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.adapters.key_files import verify
from fleet.adapters.sql_store import SqlStore
from fleet.audit import (
    REGISTRY,
    AuditEntry,
    AuditHead,
    checked,
    clean,
    entry_sha256,
    follow,
    genesis,
)
from fleet.audit_heads import HEAD_KIND, believed_head, read_head
from fleet.ports import StoreError
from tests.fleet.test_store import store
from tests.keys import ORDER, ORDER_2, RELEASE, ROOT_1, Key, root_of, sealed_root
from wire.errors import TrustError
from wire.trust import seal

__all__ = ["store"]

ID = "a" * 32
OTHER = "b" * 32


def log(count: int, registry_id: str = ID) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for n in range(count):
        previous = entries[-1].sha256 if entries else genesis(registry_id)
        entries.append(
            follow(n, previous, at=1.5 + n, who="ada", what="device.label", subject=f"dev-{n}", why="so",
                   details={"z": 1, "a": ["ü", None]})
        )  # fmt: skip
    return entries


def head_of(entry: AuditEntry, registry_id: str = ID) -> AuditHead:
    return AuditHead(registry_id=registry_id, number=entry.number, sha256=entry.sha256, at_ms=0)


def test_a_whole_log_is_whole() -> None:
    entries = log(5)
    found = checked(entries, ID, [head_of(entries[2]), head_of(entries[4])])
    assert (found.entries, found.sha256, found.broken) == (5, entries[4].sha256, None)
    empty = checked([], ID)
    assert (empty.entries, empty.sha256, empty.broken) == (0, genesis(ID), None)


def test_anybody_can_compute_the_hash() -> None:
    """As the module's docstring says it, without this program."""
    entry = log(3)[2]
    content = [
        "shallop-audit-1", entry.number, entry.at_ms, entry.who, entry.what, entry.subject, entry.why,
        entry.details, entry.previous,
    ]  # fmt: skip
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == entry.sha256


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), _JSON, max_size=4),
    st.text(max_size=50),
)
def test_an_entry_read_back_has_its_hash(details: dict[str, Any], why: str) -> None:
    entry = follow(0, genesis(ID), at=0.0, who="ada", what="x", subject="", why=why, details=details)
    assert entry_sha256(replace(entry, details=json.loads(json.dumps(entry.details)))) == entry.sha256
    assert entry.why.isprintable()


CHANGES: dict[str, Callable[[AuditEntry], AuditEntry]] = {
    "who": lambda e: replace(e, who="eve"),
    "what": lambda e: replace(e, what="device.forget"),
    "subject": lambda e: replace(e, subject="dev-9"),
    "why": lambda e: replace(e, why=""),
    "details": lambda e: replace(e, details={}),
    "at": lambda e: replace(e, at_ms=e.at_ms + 1),
    "previous": lambda e: replace(e, previous="0" * 64),
    "sha256": lambda e: replace(e, sha256="0" * 64),
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_entry_is_named(field: str, place: int) -> None:
    entries = log(5)
    entries[place] = CHANGES[field](entries[place])
    found = checked(entries, ID)
    assert found.broken is not None
    assert (found.broken.number, found.entries) == (place + 1, place)


@pytest.mark.parametrize("place", [0, 2])
def test_an_entry_changed_with_its_hash_breaks_the_next(place: int) -> None:
    entries = log(5)
    forged = replace(entries[place], who="eve")
    entries[place] = replace(forged, sha256=entry_sha256(forged))
    broken = checked(entries, ID).broken
    assert broken is not None
    assert (broken.number, broken.how.split(":")[0]) == (place + 2, "put in anew")


def test_an_entry_taken_out_or_doubled_is_named() -> None:
    entries = log(5)
    for wrong, number in (
        (entries[:2] + entries[3:], 3),
        (entries[1:], 1),
        (entries[:3] + entries[2:], 3),
        ([entries[0], entries[2], entries[1], *entries[3:]], 2),
    ):
        broken = checked(wrong, ID).broken
        assert broken is not None
        assert (broken.number, broken.how.split(":")[0]) == (number, "missing")


def test_a_log_cut_short_or_written_anew_is_seen_by_a_head_that_was_kept() -> None:
    entries = log(5)
    assert checked(entries[:3], ID).broken is None, "without a head nobody can tell"
    cut = checked(entries[:3], ID, [head_of(entries[4])]).broken
    assert cut is not None
    assert (cut.number, cut.how) == (4, "missing: a head says that the log went on to entry 5")
    assert checked([], ID, [head_of(entries[0])]).broken is not None
    anew = log(5)
    anew[0] = follow(0, genesis(ID), at=1.5, who="eve", what="x", subject="", why="", details={})
    for n in range(1, 5):
        anew[n] = follow(n, anew[n - 1].sha256, at=2.0, who="ada", what="x", subject="", why="", details={})
    assert checked(anew, ID).broken is None, "without a head nobody can tell"
    found = checked(anew, ID, [head_of(entries[3])]).broken
    assert found is not None
    assert (found.number, found.how.split(":")[0]) == (4, "written anew")


def test_another_registrys_log_or_head_does_not_pass() -> None:
    entries = log(3)
    assert checked(entries, OTHER).broken is not None
    assert checked(entries, ID, [head_of(entries[2], OTHER)]).broken is not None


def test_texts_are_cleaned_and_cut() -> None:
    assert clean("a\x00b\x1b[31m\nc\ud800", 100) == "a b [31m c "
    entry = follow(
        0, genesis(ID), at=0.0, who="w" * 500, what="x", subject="s" * 500, why="y" * 9000, details={}
    )
    assert (len(entry.who), len(entry.subject), len(entry.why)) == (100, 200, 2000)


# --- in the database


def write(store: SqlStore, count: int) -> None:
    for n in range(count):
        with store.begin() as tx:
            tx.audit(
                at=float(n),
                who="ada",
                what="device.label",
                subject=f"d-{n % 2}",
                details={"n": n, "u": "ü\x00"},
            )


def test_the_log_comes_back_as_it_was_written(store: SqlStore) -> None:
    with store.begin() as tx:
        assert tx.audit_last() is None
    write(store, 5)
    with store.begin() as tx:
        entries = tx.audit_entries(0, 100)
        assert [e.number for e in entries] == [1, 2, 3, 4, 5]
        assert checked(entries, ID).broken is None
        assert tx.audit_last() == entries[4]
        assert tx.audit_entries(2, 2) == entries[2:4]
        assert tx.audit_newest(2, None, None) == entries[3:]
        assert tx.audit_newest(9, "ada", "d-1") == [entries[1], entries[3]]
        assert tx.audit_newest(9, REGISTRY, None) == []
        assert entries[4].details == {"n": 4, "u": "ü\x00"}


def test_an_entry_is_kept_only_with_its_change(store: SqlStore) -> None:
    def fails() -> None:
        with store.begin() as tx:
            tx.audit(at=1.0, who="ada", what="x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    write(store, 1)
    with store.begin() as tx:
        assert [e.number for e in tx.audit_entries(0, 9)] == [1]


ATTACKS = {
    "update": "UPDATE audit SET who='eve' WHERE number=2",
    "delete": "DELETE FROM audit WHERE number=3",
    "delete all": "DELETE FROM audit",
    "doubled": "INSERT INTO audit SELECT * FROM audit WHERE number=2",
    "a gap": "INSERT INTO audit SELECT 9, at_ms, who, what, subject, why, details, sha256, sha256 "
    "FROM audit WHERE number=3",
    "in between": "INSERT INTO audit SELECT 4, at_ms, who, what, subject, why, details, previous, sha256 "
    "FROM audit WHERE number=3",
}
SQLITE_ATTACKS = {
    "replace": "INSERT OR REPLACE INTO audit SELECT number, at_ms, 'eve', what, subject, why, details, "
    "previous, sha256 FROM audit WHERE number=3",
    "replace all": "REPLACE INTO audit SELECT * FROM audit",
}
POSTGRESQL_ATTACKS = {"truncate": "TRUNCATE audit"}


def test_the_database_refuses_every_change(store: SqlStore) -> None:
    write(store, 3)
    with store.begin() as tx:
        dialect = tx.dialect
        before = tx.audit_entries(0, 9)
    more = SQLITE_ATTACKS if dialect == "sqlite" else POSTGRESQL_ATTACKS
    for statement in {**ATTACKS, **more}.values():
        with pytest.raises(StoreError, match="the audit log"), store.begin() as tx:
            tx.connection.exec_driver_sql(statement)
    with store.begin() as tx:
        assert tx.audit_entries(0, 9) == before


@pytest.mark.parametrize(
    ("root", "signer", "code"),
    [
        (1, ORDER, ""),
        (2, ORDER_2, ""),
        (1, Key("thief"), "bad_signature"),
        (1, RELEASE, "bad_signature"),
        (1, ROOT_1, "bad_signature"),
        (2, ORDER, "bad_signature"),
        (3, ORDER_2, "unknown_root"),
        (0, ORDER, "unknown_root"),
    ],
)
def test_a_head_is_believed_by_the_order_key_of_its_root_and_no_other(
    root: int, signer: Key, code: str
) -> None:
    """A head of one's own would let a log that was cut short, or written anew, pass for whole."""
    first = root_of()
    chain = [sealed_root(first, ROOT_1), sealed_root(root_of(number=2, order=(ORDER_2,)), ROOT_1)]
    head = AuditHead(registry_id="r" * 32, number=7, sha256="a" * 64, at_ms=1, root=root)
    envelope = seal(HEAD_KIND, msgspec.json.encode(head), [signer])
    assert read_head(envelope) == head
    if not code:
        assert believed_head(envelope, chain, verify) == head
        return
    with pytest.raises(TrustError) as refused:
        believed_head(envelope, chain, verify)
    assert refused.value.code == code
