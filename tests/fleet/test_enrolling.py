"""Enrolment, renewal and revocation on the real store with a real authority: what is written, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.audit import By
from fleet.doorman import Doorman
from fleet.enrolling import Enrolling
from fleet.enrolment_views import EnrolAsk
from fleet.people import RollbackAsk, RolloutAsk
from fleet.ports import ConflictError, DesiredRow, NotFoundError
from fleet.rollout import FailureAction
from tests.fleet.bundles import write_bundle
from tests.fleet.enrolment import (
    BY,
    DAY_S,
    DEVICE,
    INSTALL,
    Barrier,
    Registry,
    code_of,
    enrol_word,
    public,
    renewal_word,
)
from tests.fleet.processes import wait_for
from tests.fleet.twins import TOPICS, Harness, Killed
from tests.keys import ROOT_1, ROOT_2, Key, root_of, root_sha256, sealed_root
from wire import topics as wt
from wire.certificates import CertificateRefused, Renewal
from wire.codec import decode, encode
from wire.enrolment import Enrolled
from wire.errors import ShallopError
from wire.messages import DesiredModel, Hardware, Identity, Status

FIRST, SECOND, THIRD = Key("one"), Key("two"), Key("three")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "keys")
    yield made
    made.harness.store.close()


# --- tokens -------------------------------------------------------------------------------------------


def test_a_token_says_all_that_a_device_needs(registry: Registry) -> None:
    token = registry.token()
    assert (token.url, token.device) == ("https://fleet.example:8471", DEVICE)
    assert token.ca_sha256.hex() == registry.authority.sha256
    assert token.expires_at - token.issued_at == DAY_S
    root = registry.desk.root
    assert root is not None
    assert token.root_sha256.hex() == root_sha256(root)


def test_no_secret_is_kept_or_shown_again(registry: Registry) -> None:
    token = registry.token()
    with registry.harness.store.begin() as tx:
        dump = "\n".join(tx.connection.connection.driver_connection.iterdump())  # type: ignore[attr-defined]
    assert token.secret.hex() not in dump.lower()
    assert "en-" in dump
    (listed,) = registry.enrolling.tokens()
    assert token.secret.hex() not in str(listed)


def test_a_newer_token_ends_an_older_unused_one(registry: Registry) -> None:
    older = registry.token()
    registry.clock.time += 1
    newer = registry.token()
    assert code_of(registry.enrolling.enrol(enrol_word(older, FIRST))) == "token_cancelled"
    assert registry.certificate(registry.enrolling.enrol(enrol_word(newer, FIRST)))
    assert [row.state for row in registry.enrolling.tokens()] == ["cancelled", "used"]
    other = registry.token("roof-18")
    registry.token()
    assert registry.certificate(registry.enrolling.enrol(enrol_word(other, SECOND))), "another's stays"


def test_a_token_is_cancelled_by_its_id_or_its_device(registry: Registry) -> None:
    shown = registry.shown()
    assert [row.state for row in registry.enrolling.cancel(shown.id, BY)] == ["cancelled"]
    registry.token()
    (ended,) = registry.enrolling.cancel(DEVICE, By(who="anna", why="lost paper"))
    assert ended.why == "lost paper"
    with pytest.raises(NotFoundError, match="no unused token"):
        registry.enrolling.cancel(DEVICE, BY)
    assert registry.audit() == ["enrol.make", "enrol.cancel"] * 2


@pytest.mark.parametrize(
    ("office", "keys", "code", "brings"),
    [
        ({"authority": lambda: None}, True, "no_ca", "shallop-fleet broker init"),
        ({"url": lambda: None}, True, "enrolment_off", "enrol_listen"),
        ({}, False, "no_keys", "shallop-fleet keys init"),
    ],
)
def test_what_is_missing_is_named_with_what_brings_it(
    tmp_path: Path, office: dict[str, object], keys: bool, code: str, brings: str
) -> None:
    registry = Registry(tmp_path / "keys", 1_000_000.0, **office)
    harness = registry.harness if keys else Harness(office=registry.office)
    with pytest.raises(ConflictError, match=brings) as told:
        harness.enrolling.make(EnrolAsk(devices=(DEVICE,)), BY)
    assert told.value.code == code
    harness.store.close()


def test_many_tokens_at_once_one_for_each_device(registry: Registry) -> None:
    ask = EnrolAsk(devices=("a", "b", "a"))
    assert [token.device for token in registry.enrolling.make(ask, BY)] == ["a", "b"]


# --- enrolment ----------------------------------------------------------------------------------------


def test_a_device_enrols_once_and_hears_the_same_again(registry: Registry) -> None:
    token = registry.token()
    answer = registry.enrolling.enrol(enrol_word(token, FIRST))
    certificate = registry.certificate(answer)
    assert (certificate.device, certificate.public) == (DEVICE, public(FIRST))
    assert isinstance(answer, Enrolled)
    assert answer.roots == registry.desk.roots
    again = registry.certificate(registry.enrolling.enrol(enrol_word(token, FIRST)))
    assert again.pem == certificate.pem
    assert code_of(registry.enrolling.enrol(enrol_word(token, SECOND))) == "token_used"
    assert registry.audit() == ["enrol.make", "enrol.use"]
    (view,) = registry.harness.people.devices("all")
    assert (view.device, view.seen_at) == (DEVICE, None)
    assert view.trust.certificate is not None
    assert view.trust.certificate.state == "living"


def test_a_refused_try_spends_nothing(registry: Registry) -> None:
    token = registry.token()
    enrolling = registry.enrolling
    assert code_of(enrolling.enrol(enrol_word(token, FIRST, signer=SECOND))) == "bad_proof"
    assert code_of(enrolling.enrol(enrol_word(token, FIRST, device="roof-18"))) == "wrong_device"
    wrong = replace(enrol_word(token, FIRST), secret="00" * 20)
    assert code_of(enrolling.enrol(wrong)) == "token_unknown"
    assert enrolling.refused == {"bad_proof": 1, "wrong_device": 1, "token_unknown": 1}
    assert registry.certificate(enrolling.enrol(enrol_word(token, FIRST)))


def test_a_token_ends_by_the_registrys_clock(registry: Registry) -> None:
    token = registry.token(valid_s=60.0)
    registry.clock.time += 60.0
    assert code_of(registry.enrolling.enrol(enrol_word(token, FIRST))) == "token_expired"


def test_a_kill_before_the_commit_spends_nothing(registry: Registry) -> None:
    token = registry.token()

    def kill() -> None:
        raise Killed

    registry.harness.store.before_commit = kill
    with pytest.raises(Killed):
        registry.enrolling.enrol(enrol_word(token, FIRST))
    registry.harness.store.before_commit = lambda: None
    assert registry.certificate(registry.enrolling.enrol(enrol_word(token, SECOND)))


def test_a_fleet_that_is_full_enrols_nobody_new(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "keys", devices_max=1)
    registry.enrolled(FIRST)
    token = registry.token("roof-18")
    assert code_of(registry.enrolling.enrol(enrol_word(token, SECOND))) == "too_many"
    assert registry.enrolled(SECOND).public == public(SECOND), "who is known already comes back"
    registry.harness.store.close()


def test_a_new_token_ends_the_stolen_key(registry: Registry) -> None:
    registry.enrolled(FIRST)
    assert registry.shown().replaces
    registry.enrolled(SECOND)
    assert code_of(registry.enrolling.renew(renewal_word(DEVICE, THIRD, FIRST))) == "revoked"
    old = registry.serials(FIRST)
    assert registry.barrier.told == [(DEVICE, old), ("in", DEVICE)], "by its name too, and that is lifted"
    assert registry.certificate(registry.enrolling.renew(renewal_word(DEVICE, THIRD, SECOND)))
    registry.clock.time += 1
    assert registry.enrolling.revoke(DEVICE, By(who="anna", why="stolen")).certificates == 2
    with registry.harness.store.begin() as tx:
        whys = {held.public: held.why.split()[0] for held in tx.certificates(DEVICE)}
    assert whys == {public(FIRST): "replaced", public(SECOND): "stolen", public(THIRD): "stolen"}


def test_an_enrolment_brings_the_roots_from_the_pinned_one_on(registry: Registry) -> None:
    token = registry.token()
    second = sealed_root(root_of(2, root=(ROOT_2,)), ROOT_1, ROOT_2)
    desk = replace(registry.desk, roots=(*registry.desk.roots, second))
    rotated = registry.with_desk(desk)
    answer = rotated.enrol(enrol_word(token, FIRST))
    assert isinstance(answer, Enrolled)
    assert answer.roots == desk.roots
    for known, brought in ((1, (second,)), (2, ()), (9, ())):
        answer = rotated.renew(renewal_word(DEVICE, SECOND, FIRST, root_number=known))
        assert isinstance(answer, Enrolled)
        assert answer.roots == brought


# --- renewal ------------------------------------------------------------------------------------------


def said(registry: Registry, channel: wt.Channel) -> list[bytes]:
    """What the registry published to the device on that channel."""
    topic = TOPICS.topic(channel, device=DEVICE)
    return [payload for where, payload in registry.harness.broker.log if where == topic]


def ask(registry: Registry, word: Renewal, topic_of: str = DEVICE) -> None:
    """A device's word at the broker, and the registry's step."""
    registry.harness.conductor.tick()
    topic = TOPICS.topic(wt.RENEWAL, device=topic_of)
    registry.harness.broker._route(topic, encode(word), retain=False)
    registry.harness.settle(2)


def test_a_certificate_is_renewed_over_mqtt(registry: Registry) -> None:
    before = registry.enrolled(FIRST)
    registry.clock.time += 60 * DAY_S
    word = renewal_word(DEVICE, SECOND, FIRST)
    ask(registry, word)
    (envelope,) = said(registry, wt.CERTIFICATE)
    certificate = registry.opened(envelope)
    assert (certificate.public, certificate.device) == (public(SECOND), DEVICE)
    assert certificate.not_after > before.not_after
    assert certificate.authorities_pem == registry.authority.certificates_pem
    ask(registry, word)
    assert [registry.opened(data).pem for data in said(registry, wt.CERTIFICATE)] == [certificate.pem] * 2
    assert registry.audit()[-1] == "certificate.renew"
    assert registry.audit().count("certificate.renew") == 1
    assert registry.harness.broker.retained.get(TOPICS.topic(wt.CERTIFICATE, device=DEVICE)) is None


def test_a_renewal_without_proof_is_answered_and_counted(registry: Registry) -> None:
    registry.enrolled(FIRST)
    ask(registry, renewal_word(DEVICE, SECOND, THIRD))
    (payload,) = said(registry, wt.CERTIFICATE_REFUSED)
    assert decode(payload, CertificateRefused, 4096).code == "bad_proof"
    assert said(registry, wt.CERTIFICATE) == []


def test_a_renewal_on_another_devices_topic_is_refused(registry: Registry) -> None:
    registry.enrolled(FIRST)
    ask(registry, renewal_word(DEVICE, SECOND, FIRST), topic_of="roof-18")
    assert registry.harness.ingest.refused["wrong_device"] == 1
    assert said(registry, wt.CERTIFICATE) == []


def test_a_device_that_asks_without_end_is_answered_a_few_times(registry: Registry) -> None:
    registry.enrolled(FIRST)
    for i in range(30):
        ask(registry, renewal_word(DEVICE, Key(f"k{i}"), THIRD))
    assert 6 <= len(said(registry, wt.CERTIFICATE_REFUSED)) <= 13, "six at once, and six a minute"
    assert registry.enrolling.refused["too_many"] >= 17


def test_a_device_whose_certificate_ended_comes_back_by_https(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.clock.time += 300 * DAY_S
    answer = registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))
    assert registry.certificate(answer).public == public(SECOND)
    registry.clock.time += 491 * DAY_S
    refused = registry.enrolling.renew(renewal_word(DEVICE, THIRD, SECOND))
    assert code_of(refused) == "expired_too_long"


def test_a_registry_without_authority_refuses_renewals_by_name(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "keys", authority=lambda: None)
    ask(registry, renewal_word(DEVICE, SECOND, FIRST))
    assert registry.enrolling.refused == {"no_ca": 1}
    with pytest.raises(ConflictError, match="broker init"):
        registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))
    registry.harness.store.close()


# --- revocation ---------------------------------------------------------------------------------------


def status(online: bool = True, number: int = 1) -> bytes:
    return encode(Status(device=DEVICE, install_id=INSTALL, number=number, online=online, agent_version="1"))


def speak(registry: Registry, payload: bytes) -> None:
    registry.harness.conductor.tick()
    registry.harness.broker._route(TOPICS.topic(wt.STATUS, device=DEVICE), payload, retain=True)
    registry.harness.settle(2)


def test_a_revoked_device_is_out_everywhere(registry: Registry) -> None:
    registry.enrolled(FIRST)
    speak(registry, status())
    assert registry.harness.people.device(DEVICE).online
    token = registry.token()
    revoked = registry.enrolling.revoke(DEVICE, By(who="anna", why="stolen"))
    assert (revoked.certificates, revoked.in_force, revoked.detail) == (1, True, "done")
    assert registry.barrier.told == [(DEVICE, registry.serials(FIRST))]
    assert TOPICS.topic(wt.STATUS, device=DEVICE) in registry.harness.broker.retained
    registry.harness.settle(2)
    assert [topic for topic in registry.harness.broker.retained if DEVICE in topic] == []
    view = registry.harness.people.device(DEVICE)
    assert (view.online, view.trust.revoked_why) == (False, "stolen")
    assert view.trust.certificate is not None
    assert view.trust.certificate.state == "revoked"
    speak(registry, status(number=2))
    assert registry.harness.ingest.refused["device_revoked"] == 1
    assert code_of(registry.enrolling.enrol(enrol_word(token, SECOND))) == "token_cancelled"
    assert code_of(registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))) == "revoked"
    assert registry.harness.broker.retained.get(TOPICS.topic(wt.DESIRED, device=DEVICE)) is None
    with pytest.raises(ConflictError, match="revoked"):
        registry.harness.people.roll_back(RollbackAsk(model="m", devices=(DEVICE,)), BY)
    assert registry.audit()[-1] == "device.revoke"


def test_only_a_newer_token_brings_a_device_back(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, By(who="anna", why="stolen"))
    registry.harness.settle(2)
    registry.clock.time += 1
    shown = registry.shown()
    assert shown.reinstates == "stolen"
    assert code_of(registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))) == "revoked", "not yet"
    assert registry.enrolled(SECOND).public == public(SECOND)
    assert registry.harness.people.device(DEVICE).trust.revoked_at is None
    assert registry.barrier.told[1:] == [("in", DEVICE)], "before it has its answer"
    speak(registry, status(number=5))
    assert registry.harness.people.device(DEVICE).online
    again = registry.token()
    assert code_of(registry.enrolling.enrol(enrol_word(again, FIRST))) == "revoked", "the old key stays out"


def test_forgetting_a_device_does_not_lift_its_revocation(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    registry.harness.people.forget(DEVICE, BY)
    speak(registry, status(number=3))
    assert registry.harness.ingest.refused["device_revoked"] == 1
    assert registry.harness.people.devices("all") == []


def test_revoking_twice_changes_nothing_and_a_stranger_cannot_be(registry: Registry) -> None:
    registry.enrolled(FIRST)
    first = registry.enrolling.revoke(DEVICE, By(who="anna", why="stolen"))
    registry.clock.time += 10
    second = registry.enrolling.revoke(DEVICE, By(who="bert", why="again"))
    assert (second.at, second.why, second.certificates) == (first.at, "stolen", 0)
    with pytest.raises(NotFoundError):
        registry.enrolling.revoke("roof-99", BY)


@pytest.mark.parametrize("trouble", ["broken", "deaf"])
def test_what_the_broker_does_not_do_yet_it_is_told_again(registry: Registry, trouble: str) -> None:
    registry.enrolled(FIRST)
    setattr(registry.barrier, trouble, True)
    revoked = registry.enrolling.revoke(DEVICE, BY)
    assert not revoked.in_force
    assert revoked.detail in {"the disk is full [key_unwritable]", "it does not listen"}
    assert registry.enrolling.health().not_in_force == (DEVICE,)
    assert not registry.enrolling.revoke(DEVICE, BY).in_force, "nor does asking again help"
    setattr(registry.barrier, trouble, False)
    after = Doorman(registry.harness.store, registry.clock, registry.barrier)
    assert after.see_to_all()
    assert registry.barrier.told[-1] == (DEVICE, registry.serials(FIRST))
    assert registry.enrolling.health().not_in_force == ()
    told = len(registry.barrier.told)
    assert after.see_to_all()
    assert len(registry.barrier.told) == told


def test_a_restarted_registry_tells_the_broker_by_itself(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.barrier.broken = True
    registry.enrolling.revoke(DEVICE, BY)
    registry.barrier.broken = False
    after = Doorman(registry.harness.store, registry.clock, registry.barrier)
    after.start()
    wait_for("the broker to be told", lambda: registry.enrolling.health().not_in_force == ())
    after.stop()


def test_a_device_that_the_broker_does_not_let_in_yet_is_named(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    registry.clock.time += 1
    registry.barrier.deaf = True
    registry.enrolled(SECOND)
    assert registry.enrolling.health().not_in_force == (DEVICE,)
    assert registry.harness.people.device(DEVICE).trust.revoked_at is None, "the registry believes it"
    registry.barrier.deaf = False
    assert registry.harness.doorman.see_to_all()
    assert registry.enrolling.health().not_in_force == ()


def test_a_device_that_is_revoked_while_it_is_let_in_stays_out(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.enrolling.revoke(DEVICE, BY)
    registry.clock.time += 1
    told: list[str] = []

    class Slow(Barrier):
        def let_in(self, device: str) -> bool:
            told.append(device)
            with registry.harness.store.begin() as tx:
                registry.enrolling.shut_out(tx, device, BY, registry.clock.now() + 1)
            return True

    doorman = Doorman(registry.harness.store, registry.clock, Slow())
    enrolling = Enrolling(
        registry.harness.store, registry.clock, registry.harness.current, registry.office, doorman
    )
    enrolling.enrol(enrol_word(registry.token(), SECOND))
    assert told == [DEVICE]
    assert registry.enrolling.health().not_in_force == (DEVICE,)
    assert registry.harness.doorman.see_to_all()
    assert registry.barrier.told[-1] == (DEVICE, registry.serials(SECOND))


def test_of_certificates_that_ended_the_broker_hears_nothing(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.clock.time += 91 * DAY_S
    registry.enrolled(SECOND)
    assert registry.barrier.told == [("in", DEVICE)]
    registry.clock.time += 91 * DAY_S
    registry.enrolling.revoke(DEVICE, BY)
    assert registry.barrier.told[1:] == [(DEVICE, set())], "its name is refused all the same"


def test_a_revoked_device_gets_no_orders_and_holds_up_nobody(tmp_path: Path) -> None:
    harness = Harness()
    for name in ("roof-1", "roof-2"):
        harness.device(name)
    write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
    harness.publish(tmp_path / "b")
    harness.settle(2)
    harness.enrolling.revoke("roof-2", BY)
    rollout = harness.people.start(RolloutAsk(model="camera", release="v1", waves="100%", soak_s=0.0), BY)
    harness.settle(30)
    assert harness.people.rollout(rollout.id).rollout.state == "completed"
    desired = {d: TOPICS.topic(wt.DESIRED, device=d) for d in ("roof-1", "roof-2")}
    assert desired["roof-1"] in harness.broker.retained
    assert desired["roof-2"] not in harness.broker.retained
    harness.people.group("roof-2", ("north",), BY)
    harness.people.roll_back(RollbackAsk(model="camera", all=True), BY)
    harness.settle(3)
    assert desired["roof-2"] not in harness.broker.retained, "whatever a person does"
    with harness.store.begin() as tx:
        assert {row.device for row in tx.rollback_rows()} == {"roof-1"}
    harness.store.close()


def test_a_device_that_is_revoked_in_the_midst_of_it_is_sent_nothing_more(tmp_path: Path) -> None:
    """It runs the release, and every way back leads around it: by name, by fleet, by rollout, ready."""
    harness, people = (made := Harness()), made.people
    for name in ("roof-1", "roof-2", "roof-3"):
        harness.device(name)
    for name, pace in (("v1", None), ("v2", 2)):
        write_bundle(tmp_path / name, name, size_bytes=20_000)
        harness.publish(tmp_path / name)
        harness.settle(2)
        ask = RolloutAsk(model="camera", release=name, waves="100%", soak_s=0.0, pace_per_minute=pace)
        rollout = people.start(ask, BY)
        harness.settle(30 if pace is None else 45)
    assert people.rollout(rollout.id).rollout.state == "running"
    other, thiefs = (line.device for line in people.rollout(rollout.id).devices if line.outcome == "active")
    asked = people.roll_back(RollbackAsk(model="camera", devices=(thiefs,)), BY)
    harness.enrolling.revoke(thiefs, BY)
    (ended,) = people.rollback(asked.id).devices
    assert (ended.state, ended.detail) == ("failed", "the device was revoked")
    harness.settle(3)
    before = len(harness.broker.log)

    with pytest.raises(ConflictError) as by_name:
        people.roll_back(RollbackAsk(model="camera", devices=(other, thiefs)), BY)
    with pytest.raises(ConflictError) as ready:
        people.rollback_payload(rollout.id, thiefs, BY)
    assert (by_name.value.code, ready.value.code) == ("device_revoked", "device_revoked")
    everybody = people.roll_back(RollbackAsk(model="camera", all=True), BY)
    assert thiefs not in {line.device for line in people.rollback(everybody.id).devices}
    people.abort(rollout.id, FailureAction.ROLLBACK_ALL, BY)
    harness.settle(10)
    sent = [topic for topic, payload in harness.broker.log[before:] if f"{thiefs}/down/" in topic and payload]
    assert sent == []
    harness.store.close()


def test_a_device_that_is_back_gets_the_orders_that_stood(registry: Registry) -> None:
    registry.enrolled(FIRST)
    entry = DesiredModel(order=3, digest="d" * 64, release="v1")
    with registry.harness.store.begin() as tx:
        tx.save_desired(DesiredRow(device=DEVICE, model="m", rollout=None, entry=entry))
    registry.enrolling.revoke(DEVICE, BY)
    registry.clock.time += 1
    registry.enrolled(SECOND)
    registry.harness.settle(2)
    assert TOPICS.topic(wt.DESIRED, device=DEVICE) in registry.harness.broker.retained


# --- upkeep -------------------------------------------------------------------------------------------


def test_devices_that_should_have_renewed_are_named(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.enrolled(SECOND, "roof-18")
    assert registry.enrolling.health().overdue == ()
    registry.clock.time += 60 * DAY_S
    registry.enrolling.renew(renewal_word("roof-18", THIRD, SECOND))
    registry.clock.time += 9 * DAY_S
    health = registry.enrolling.health()
    assert [(late.device, late.seen_at) for late in health.overdue] == [(DEVICE, None)]
    assert (health.certificates, health.revoked) == (2, 0)
    registry.enrolling.revoke(DEVICE, BY)
    assert registry.enrolling.health().overdue == (), "nobody waits for a revoked one"


def test_what_is_long_over_is_dropped(registry: Registry) -> None:
    registry.enrolled(FIRST)
    registry.clock.time += 60 * DAY_S
    registry.enrolling.renew(renewal_word(DEVICE, SECOND, FIRST))
    registry.harness.settle(2)
    registry.clock.time += 400 * DAY_S
    registry.harness.settle(2)
    with registry.harness.store.begin() as tx:
        assert [held.public for held in tx.certificates(DEVICE)] == [public(SECOND)], "the newest stays"
    assert registry.enrolling.tokens() == []


def test_the_identity_of_a_device_is_still_its_own_matter(registry: Registry) -> None:
    """Nothing of enrolment stands in the way of a device without certificate where there is no TLS."""
    identity = Identity(
        device=DEVICE, install_id=INSTALL, number=1, agent_version="0.1.0",
        hardware=Hardware(arch="aarch64"),
    )  # fmt: skip
    registry.harness.conductor.tick()
    registry.harness.broker._route(TOPICS.topic(wt.IDENTITY, device=DEVICE), encode(identity), retain=True)
    registry.harness.settle(2)
    view = registry.harness.people.device(DEVICE)
    assert (view.arch, view.trust.certificate) == ("aarch64", None)


def test_an_error_of_the_authority_reaches_no_device_as_a_certificate(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "keys")
    token = registry.token()

    class Broken:
        certificates_pem = ""
        sha256 = "0" * 64

        def issue_device(self, *_arguments: object) -> None:
            raise ShallopError("device_key", "no")

    office = replace(registry.office, authority=Broken)
    harness = registry.harness
    broken = Enrolling(harness.store, registry.clock, registry.harness.current, office, harness.doorman)
    with pytest.raises(ShallopError):
        broken.enrol(enrol_word(token, FIRST))
    assert registry.certificate(registry.enrolling.enrol(enrol_word(token, FIRST)))
    registry.harness.store.close()
