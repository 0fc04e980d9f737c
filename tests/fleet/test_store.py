"""The store's contract, on every database that is at hand: SQLite in memory, on disk, and PostgreSQL.

PostgreSQL is tried where SHALLOP_TEST_DATABASE names an empty database, such as
postgresql+psycopg://user@localhost/test; its statements are compiled in any case.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from msgspec.structs import replace
from sqlalchemy import Dialect, Table, create_engine, text
from sqlalchemy.dialects import postgresql, sqlite

from fleet.adapters import tables
from fleet.adapters.sql_base import upsert
from fleet.adapters.sql_store import MIGRATIONS, SqlStore, migrate
from fleet.audit import genesis
from fleet.enrolments import Enrolment, Held, Revocation, TokenState
from fleet.inventory import Device, labelled
from fleet.ports import (
    DesiredRow,
    OutboxRow,
    Post,
    ReleaseRow,
    RollbackRow,
    RolloutRow,
    StoreError,
)
from fleet.ports_people import BarredRow, TokenRow
from wire.messages import DesiredModel, Phase, PhaseChanged, Report

INSTALL = "1" * 32


POSTGRESQL = os.environ.get("SHALLOP_TEST_DATABASE", "")


@pytest.fixture(params=["memory", "disk", *(["postgresql"] if POSTGRESQL else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlStore]:
    on_disk = f"sqlite:///{tmp_path / 'fleet.db'}"
    url = {"memory": "sqlite://", "disk": on_disk, "postgresql": POSTGRESQL}[request.param]
    if request.param == "postgresql":
        _empty(url)
    made = SqlStore(url, "a" * 32)
    yield made
    made.close()


def _empty(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        tables.metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()


def report(number: int, device: str = "dev-0", order: int = 1) -> Report:
    return Report(
        device=device,
        install_id=INSTALL,
        number=number,
        order=order,
        event=PhaseChanged(phase=Phase.FETCHING),
    )


def entry(order: int, digest: str = "d" * 64) -> DesiredModel:
    return DesiredModel(order=order, digest=digest, release="v1")


def retained(topic: str, payload: bytes = b"x", rank: int = 2) -> Post:
    return Post(topic=topic, rank=rank, retain=True, payload=payload)


def topics_of(rows: list[OutboxRow]) -> list[str]:
    return [row.post.topic for row in rows]


def test_orders_rise_and_never_repeat(store: SqlStore) -> None:
    with store.begin() as tx:
        assert tx.take_orders(2) == 1
        assert tx.take_orders(1) == 3
    with store.begin() as tx:
        assert not tx.raise_orders(2)
        assert tx.raise_orders(10)
        assert tx.take_orders(1) == 11


def test_a_transaction_that_raises_leaves_nothing(store: SqlStore) -> None:
    def fails() -> None:
        with store.begin() as tx:
            tx.take_orders(5)
            tx.post([retained("t")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with store.begin() as tx:
        assert (tx.mark().orders, tx.mark().generation, tx.pending_count()) == (0, 0, 0)


def test_transactions_of_many_threads_follow_one_another(store: SqlStore) -> None:
    taken: list[int] = []

    def take() -> None:
        for _ in range(20):
            with store.begin() as tx:
                taken.append(tx.take_orders(1))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 81))


def test_a_device_comes_back_as_it_was_saved(store: SqlStore) -> None:
    view = labelled(Device(id="dev-0", seen_at=5.0), {"site": "roof", "ring": "canary"}, ["north", "lab"])
    with store.begin() as tx:
        tx.save_device(view)
        tx.save_labels(view)
        tx.save_device(Device(id="dev-1"))
    with store.begin() as tx:
        assert tx.device("dev-0") == view
        assert [device.id for device in tx.devices()] == ["dev-0", "dev-1"]
        assert tx.devices()[0] == view
        assert tx.device("dev-2") is None
        assert tx.device_count() == 2
        tx.save_labels(labelled(view, {"site": "cellar"}, []))
    with store.begin() as tx:
        again = tx.device("dev-0")
        assert again is not None
        assert (again.labels_own, again.groups) == ({"site": "cellar"}, ())


def test_forgetting_a_device_takes_all_of_it(store: SqlStore) -> None:
    with store.begin() as tx:
        for name in ("dev-0", "dev-1"):
            tx.save_device(Device(id=name))
            tx.save_labels(labelled(Device(id=name), {"a": "b"}, ["g"]))
            tx.add_report(report(1, name), 1.0)
            tx.save_desired(DesiredRow(device=name, model="m", rollout=None, entry=entry(1)))
        tx.forget_device("dev-0")
    with store.begin() as tx:
        assert [device.id for device in tx.devices()] == ["dev-1"]
        assert tx.desired("dev-0") == {}
        assert tx.reports("dev-0", 10) == []
        assert tx.contiguous("dev-0", INSTALL) == 0
        assert len(tx.reports("dev-1", 10)) == 1


def test_the_mark_follows_the_unbroken_run_of_reports(store: SqlStore) -> None:
    with store.begin() as tx:
        assert tx.add_report(report(1), 1.0)
        assert not tx.add_report(report(1), 2.0), "a duplicate"
        assert tx.add_report(report(3), 3.0)
        assert tx.contiguous("dev-0", INSTALL) == 1
        assert tx.add_report(report(2), 4.0)
        assert tx.contiguous("dev-0", INSTALL) == 3
        assert tx.contiguous("dev-0", "2" * 32) == 0, "another install counts on its own"


def test_a_gap_that_never_fills_is_given_up(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.add_report(report(1), 1.0)
        tx.add_report(report(4), 10.0)
        tx.add_report(report(5), 20.0)
        tx.add_report(report(8), 30.0)
        assert tx.skip_gaps(9.0) == []
        assert tx.skip_gaps(11.0) == [("dev-0", INSTALL, 5)], "up to the next gap"
        assert tx.skip_gaps(11.0) == [("dev-0", INSTALL, 8)]
        assert tx.skip_gaps(1e9) == []
        assert tx.contiguous("dev-0", INSTALL) == 8


def test_only_old_and_acknowledged_reports_are_pruned(store: SqlStore) -> None:
    with store.begin() as tx:
        for number, at in ((1, 1.0), (2, 50.0), (4, 2.0)):
            tx.add_report(report(number), at)
        assert tx.prune_reports(10.0) == 1
        assert sorted(r.number for r in tx.reports("dev-0", 10)) == [2, 4]
        assert not tx.add_report(report(1), 60.0), "a pruned one is still known"


def test_reports_of_an_order_come_from_all_devices(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.add_report(report(1, "dev-1", order=7), 2.0)
        tx.add_report(report(1, "dev-0", order=7), 1.0)
        tx.add_report(report(2, "dev-0", order=8), 3.0)
        assert [r.device for r in tx.reports_of_order(7)] == ["dev-0", "dev-1"]


def test_releases_and_blobs(store: SqlStore) -> None:
    row = ReleaseRow(
        digest="d" * 64, model="m", name="v1", state="uploading", created_at=1.0, manifest=b"\x00\xff"
    )
    with store.begin() as tx:
        tx.save_release(row)
        tx.add_blob("b" * 64, 5, "bb/b")
        tx.post([Post(topic="blob/b", rank=1, retain=True, blob="b" * 64)])
    with store.begin() as tx:
        assert tx.release("d" * 64) == tx.release_named("m", "v1") == row
        assert tx.releases() == [row]
        assert tx.known_blobs(["b" * 64, "c" * 64]) == {"b" * 64}
        tx.lose_blob("b" * 64)
        assert tx.known_blobs(["b" * 64]) == set()
        assert tx.pending_count() == 0
        tx.delete_release("d" * 64)
        assert tx.release_named("m", "v1") is None


def test_one_name_belongs_to_one_release(store: SqlStore) -> None:
    def twice() -> None:
        with store.begin() as tx:
            for digest in ("d" * 64, "e" * 64):
                tx.save_release(
                    ReleaseRow(
                        digest=digest, model="m", name="v1", state="published", created_at=1.0, manifest=b""
                    )
                )

    with pytest.raises(StoreError, match="database"):
        twice()


def test_rollouts_by_state(store: SqlStore) -> None:
    rows = [
        RolloutRow(
            id=f"ro-{i}",
            model="m",
            release="d" * 64,
            state=state,
            created_at=float(i),
            doc=b'{"a":1}',
            rollback_order=i,
            rollback_payload=b"\x01",
        )
        for i, state in enumerate(["running", "completed"])
    ]
    with store.begin() as tx:
        for row in rows:
            tx.save_rollout(row)
    with store.begin() as tx:
        assert tx.rollouts() == rows
        assert tx.rollouts(["running", "paused"]) == rows[:1]
        assert tx.rollout("ro-1") == rows[1]
        assert tx.rollout("ro-9") is None


def test_desired_entries(store: SqlStore) -> None:
    row = DesiredRow(device="dev-0", model="m", rollout="ro-1", entry=entry(3))
    with store.begin() as tx:
        tx.save_desired(row)
        tx.save_desired(DesiredRow(device="dev-0", model="n", rollout=None, entry=entry(4, "e" * 64)))
        tx.save_desired(DesiredRow(device="dev-1", model="m", rollout=None, entry=entry(5)))
    with store.begin() as tx:
        assert tx.desired("dev-0")["m"] == row
        assert [r.device for r in tx.desired_of_model("m")] == ["dev-0", "dev-1"]
        assert tx.desired_digests() == {"d" * 64, "e" * 64}
        tx.drop_desired("dev-0", "n")
        assert tx.desired("dev-0") == {"m": row}


def test_rollbacks_stay_open_until_they_ended(store: SqlStore) -> None:
    row = RollbackRow(
        id="rb", device="dev-0", model="m", from_digest="d" * 64, order=1, state="commanded", asked_at=1.0
    )
    done = RollbackRow(
        id="rb", device="dev-1", model="m", from_digest="d" * 64, order=1, state="done", asked_at=1.0
    )
    with store.begin() as tx:
        tx.save_rollback(row)
        tx.save_rollback(done)
        assert tx.rollback_rows("rb") == [row, done]
        assert tx.rollback_rows(open_only=True) == [row]
        assert tx.rollback_rows("other") == []


def test_the_outbox_gives_lowest_rank_first(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.post([retained("desired", rank=3), retained("blob", rank=1)])
        tx.post([Post(topic="command", rank=0, retain=False, payload=b"c")])
        assert topics_of(tx.pending(10)) == ["command", "blob", "desired"]
        assert topics_of(tx.pending(1)) == ["command"]


def test_a_newer_retained_post_takes_the_older_ones_place(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.post([retained("t", b"old"), Post(topic="t", rank=0, retain=False, payload=b"command")])
    with store.begin() as tx:
        tx.post([retained("t", b"new")])
        assert [row.post.payload for row in tx.pending(10)] == [b"command", b"new"]


def test_published_posts_are_kept_if_retained(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.post([retained("t"), Post(topic="c", rank=0, retain=False, payload=b"c"), retained("gone", b"")])
        assert tx.mark().generation == 1, "one generation a transaction"
        assert tx.retained_topics("") == {"t"}
        payloads = [tx.retained_payload(topic) for topic in ("t", "c", "gone", "never")]
        assert payloads == [retained("t").payload, None, None, None]
        tx.published([row.id for row in tx.pending(10)], 5.0)
        assert tx.pending_count() == 0
        assert tx.republish_after(0) == 1, "the command and the clearing are not said again"
        assert topics_of(tx.pending(10)) == ["t"]


def test_what_is_newer_than_the_brokers_marker_is_published_again(store: SqlStore) -> None:
    for topic in ("a", "b", "c"):
        with store.begin() as tx:
            tx.post([retained(topic)])
    with store.begin() as tx:
        tx.published([row.id for row in tx.pending(10)], 5.0)
        assert tx.republish_after(3) == 0
        assert tx.republish_after(1) == 2
        assert topics_of(tx.pending(10)) == ["b", "c"]
        assert tx.republish_topics(["a", "b", "zzz"]) == 1
        assert topics_of(tx.pending(10)) == ["a", "b", "c"]


def test_topics_are_found_by_prefix_and_a_percent_sign_is_no_wildcard(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.post([retained("r/blob/1"), retained("r/release/1"), retained("x/blob/2")])
        assert tx.retained_topics("r/blob/") == {"r/blob/1"}
        assert tx.retained_topics("%/blob/") == set()


def test_many_values_fit_into_one_question(store: SqlStore) -> None:
    digests = [f"{i:064x}" for i in range(1200)]
    with store.begin() as tx:
        for digest in digests[:600]:
            tx.add_blob(digest, 1, "p")
        tx.post(Post(topic=d, rank=1, retain=True, blob=d) for d in digests)
        tx.published([row.id for row in tx.pending(5000)], 1.0)
        assert tx.known_blobs(digests) == set(digests[:600])
        assert tx.republish_topics(digests) == 1200


def test_a_database_on_disk_outlives_its_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    first = SqlStore(url, "a" * 32)
    with first.begin() as tx:
        tx.take_orders(4)
    first.close()
    again = SqlStore(url, "b" * 32)
    with again.begin() as tx:
        assert (tx.mark().registry_id, tx.mark().orders) == ("a" * 32, 4)
        raw = tx.connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        full = tx.connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        assert (raw, full) == ("wal", 2)
    again.close()


def test_the_migrations_make_the_tables_that_the_code_describes(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with engine.begin() as connection:
        migrate(connection)
    with engine.begin() as connection:
        migrate(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


@pytest.mark.parametrize("table", tables.metadata.sorted_tables, ids=str)
def test_upserts_are_written_in_both_dialects(table: Table) -> None:
    dialects: tuple[Dialect, ...] = (sqlite.dialect(), postgresql.dialect())  # type: ignore[no-untyped-call]
    for dialect in dialects:
        statement = upsert(dialect.name, table).compile(dialect=dialect)
        assert "ON CONFLICT" in str(statement)
    with pytest.raises(StoreError, match="not supported"):
        upsert("mysql", table)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/x.db", "no+such://x/y"])
def test_a_database_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be"):
        SqlStore(url, "a" * 32)


def test_tokens_stay_though_revoked(store: SqlStore) -> None:
    row = TokenRow(id="a" * 16, name="ada", scopes="view", sha256="0" * 64, created_at=1.0, created_by="x")
    with store.begin() as tx:
        assert not tx.any_token()
        tx.save_token(row)
        tx.save_token(replace(row, id="b" * 16, created_at=0.5, expires_at=9.0))
    with store.begin() as tx:
        assert [token.id for token in tx.tokens()] == ["b" * 16, "a" * 16]
        tx.save_token(replace(row, used_at=3.0, revoked_at=4.0))
    with store.begin() as tx:
        assert tx.token("a" * 16) == replace(row, used_at=3.0, revoked_at=4.0)
        assert tx.token("c" * 16) is None
        assert tx.any_token()


def test_barred_releases_and_their_list(store: SqlStore) -> None:
    row = BarredRow(digest="b" * 64, model="m", name="v1", at=1.0, who="ada", why="ü")
    with store.begin() as tx:
        assert (tx.mark().bars, tx.bars_envelope(), tx.barred()) == (0, None, [])
        tx.bar(row)
        tx.bar(replace(row, digest="a" * 64, model=None, name=None))
        tx.save_bars(1, b"\x00\xff")
    with store.begin() as tx:
        assert (tx.mark().bars, tx.bars_envelope()) == (1, b"\x00\xff")
        assert [barred.digest for barred in tx.barred()] == ["a" * 64, "b" * 64]
        tx.unbar("a" * 64)
        assert tx.barred() == [row]


def test_a_database_of_before_comes_along(tmp_path: Path) -> None:
    """What a registry without tokens and audit log wrote."""
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(text("INSERT INTO registry VALUES (1, :id, 7, 40, 2)"), {"id": "c" * 32})
    engine.dispose()
    store = SqlStore(url, "a" * 32)
    with store.begin() as tx:
        mark = tx.mark()
        assert (mark.registry_id, mark.generation, mark.orders, mark.signed_root, mark.bars) == (
            "c" * 32, 7, 40, 2, 0,
        )  # fmt: skip
        assert tx.audit(at=1.0, who="ada", what="x").previous == genesis("c" * 32)
    store.close()


def test_the_largest_order_number_fits(store: SqlStore) -> None:
    with store.begin() as tx:
        tx.save_device(Device(id="dev-9", order_highest=2**53 - 1))
        found = tx.device("dev-9")
        assert found is not None
        assert found.order_highest == 2**53 - 1
        assert tx.raise_orders(2**53 - 1)
        assert tx.mark().orders == 2**53 - 1


def _certificate(serial: str, device: str, at: float) -> Held:
    return Held(
        serial=serial,
        device=device,
        public="b" * 64,
        issued_at=at,
        not_before=at,
        not_after=at + 100.0,
        pem="pem",
    )


def test_tokens_come_back_by_id_secret_and_device(store: SqlStore) -> None:
    one = Enrolment(
        id="en-1", device="dev-0", secret_sha256="c" * 64, root_number=2, issued_at=1.0, expires_at=9.0
    )
    two = replace(one, id="en-2", device="dev-1", secret_sha256="d" * 64, issued_at=2.0, expires_at=20.0)
    used = replace(one, state=TokenState.USED, public="e" * 64, serial="ab", ended_at=3.0, why="so")
    with store.begin() as tx:
        for row in (two, one, used):
            tx.save_enrolment(row)
        assert tx.enrolment("en-1") == tx.enrolment_of_secret("c" * 64) == used
        assert (tx.enrolments(), tx.enrolments("dev-1")) == ([used, two], [two])
        assert tx.enrolment("en-3") is tx.enrolment_of_secret("f" * 64) is None
        assert tx.prune_enrolments(10.0) == 1
        assert tx.enrolments() == [two]


def test_certificates_newest_first_and_what_of_them_counts(store: SqlStore) -> None:
    old, new, other = (
        _certificate(*row) for row in (("0a", "dev-0", 1.0), ("0b", "dev-0", 50.0), ("0c", "dev-1", 9.0))
    )
    with store.begin() as tx:
        for held in (old, other, new):
            tx.save_certificate(held)
        bare = [replace(held, pem="") for held in (new, other, old)]
        assert tx.certificates("dev-0") == [new, old]
        assert tx.certificate_heads() == bare
        assert tx.newest_certificates() == {"dev-0": bare[0], "dev-1": bare[1]}
        assert tx.newest_certificates((85.0, 0.25)) == {"dev-1": bare[1]}, "the old one was followed"
        assert [tx.devices_with_certificate(now) for now in (0.0, 120.0, 150.0)] == [2, 1, 0]
        assert tx.revoke_certificates("dev-0", 60.0, "so", keep="0b") == 1
        assert [held.serial for held in tx.revoked_certificates()] == ["0a"]
        assert tx.revoke_certificates("dev-0", 70.0, "more") == 1
        assert [(held.revoked_at, held.why) for held in tx.certificates("dev-0")] == [
            (70.0, "more"),
            (60.0, "so"),
        ]
        tx.cut(["0a"], "dev-0", 80.0)
        assert [held.cut_at for held in tx.certificates("dev-0")] == [None, 80.0]
        tx.uncut(["0a"], [])
        assert [held.cut_at for held in tx.certificates("dev-0")] == [None, None]
        assert tx.revoke_serials(["0a", "0c", "0d"], 90.0, "found") == 1
        assert [(held.revoked_at, held.why) for held in tx.certificates("dev-1")] == [(90.0, "found")]
        assert tx.certificates("dev-0")[1].why == "so", "ended already"
        tx.drop_certificates(["0a", "0c"])
        assert [held.serial for held in tx.certificate_heads()] == ["0b"]


def test_a_revocation_holds_until_it_is_lifted(store: SqlStore) -> None:
    one = Revocation(device="dev-0", at=1.0, why="so")
    with store.begin() as tx:
        tx.save_revocation(one)
        tx.cut([], "dev-0", 2.0)
        assert tx.revocation("dev-0") == tx.revocations()["dev-0"] == replace(one, cut_at=2.0)
        tx.drop_lifted("dev-0")
        assert tx.revocation("dev-0") is not None, "it holds"
        tx.uncut([], ["dev-1"])
        assert tx.revocation("dev-0") == replace(one, cut_at=2.0)
        tx.uncut([], ["dev-0"])
        assert tx.revocation("dev-0") == one
        assert tx.lift_revocation("dev-0", 3.0)
        assert not tx.lift_revocation("dev-0", 4.0)
        assert (tx.revocation("dev-0"), tx.revocations(), tx.lifted()) == (None, {}, {"dev-0"})
        tx.save_revocation(one)
        assert (tx.revocation("dev-0"), tx.lifted()) == (one, set()), "again, and not yet told"
        tx.lift_revocation("dev-0", 5.0)
        tx.drop_lifted("dev-0")
        assert tx.lifted() == set()
