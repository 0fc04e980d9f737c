"""Keys and files of a renewal: lost and hostile answers, rejected certificates, the power cut."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import identity, tls
from agent.adapters import ed25519
from agent.adapters.ed25519 import verify
from agent.deployment import Deployment
from agent.errors import RetryError, StateError
from agent.identities import CURRENT, NEXT, RENEWING, Identities
from agent.identity import Home, Identity
from agent.renewal import Introduction, Parts, RenewalWork
from agent.renewing import ANSWER_S_MAX, Phase, prefers_new
from agent.statusing import Board
from agent.trust import Trust
from fleet.adapters.authority import Authority
from tests.agent.crashing import PowerCut, crash_at, every_crash
from tests.agent.registry import DAY_S, DEVICE, text_of
from tests.agent.twins import TOPICS, FixedRandom, TestClock
from tests.keys import ORDER, ORDER_2, ROOT_1, Key, root_of, root_sha256, sealed_root
from wire import codec, enrolment, trust
from wire.certificates import Certificate, CertificateRefused, Renewal
from wire.enrolment import BrokerAddress, Enrolled
from wire.messages import Phase as Work
from wire.topics import CERTIFICATE, CERTIFICATE_REFUSED, RENEWAL

NOW_S = 1_800_000_000.0
HOME = Home(url="https://registry:8443", host="localhost", port=8883, root="shallop/v1")
LIFE_S = 90 * DAY_S


class Fleet:
    """The other side: an authority, and what the broker lets in."""

    def __init__(self, folder: Path) -> None:
        self.ca = Authority.create(folder / "keys", "fleet", None, NOW_S - LIFE_S)
        self.asked: list[Renewal] = []
        self.refuses: set[str] = set()
        self.signer: Key = ORDER
        self.changes: Callable[[Certificate], Certificate] = lambda certificate: certificate
        self._issued: dict[str, bytes] = {}

    def certificate(self, public: str, at_s: float = NOW_S) -> bytes:
        if public not in self._issued:
            issued = self.ca.issue_device(DEVICE, bytes.fromhex(public), at_s, LIFE_S)
            made = Certificate(
                device=DEVICE, public=public, pem=issued.pem, authorities_pem=self.ca.certificates_pem,
                not_before=text_of(issued.not_before), not_after=text_of(issued.not_after),
                issued_at=text_of(at_s),
            )  # fmt: skip
            self._issued[public] = trust.seal("certificate", codec.encode(self.changes(made)), [self.signer])
        return self._issued[public]

    def identity(self, seed: bytes, at_s: float) -> Identity:
        public = ed25519.public_of(seed).hex()
        inner, _ = trust.unwrap(self.certificate(public, at_s), "certificate", CERTIFICATE.size_bytes_max)
        return identity.of_certificate(codec.decode(inner, Certificate, 10**5), seed, public, HOME, 0.0)


class Loop:
    """The runner's part, at once."""

    def __init__(self) -> None:
        self.models: dict[str, Deployment] = {}
        self.later: list[Callable[[], object]] = []

    def post(self, item: Callable[[], object]) -> None:
        item()

    def after(self, _delay_s: float, item: Callable[[], object]) -> None:
        self.later.append(item)


class Line:
    """The broker, as far as it matters here."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.connected = False
        self.answers = True

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        assert (qos, retain) == (1, False)
        assert topic == TOPICS.topic(RENEWAL, device=DEVICE)
        word = codec.decode(payload, Renewal, RENEWAL.size_bytes_max)
        statement = enrolment.renewal_statement(DEVICE, word.public)
        before = self._device.identities.read()
        assert before is not None
        assert verify(bytes.fromhex(word.public), statement, bytes.fromhex(word.proof))
        assert verify(bytes.fromhex(before.public), statement, bytes.fromhex(word.proof_before))
        self._device.fleet.asked.append(word)
        if self.answers:
            self._device.work.take(CERTIFICATE, self._device.fleet.certificate(word.public))
        return True

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        raise NotImplementedError

    def unsubscribe(self, topics: list[str]) -> None:
        raise NotImplementedError

    def reconnect(self) -> None:
        self.connected = False
        self._device.connect()


class Web:
    """The registry over HTTPS."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.answer: Callable[[Renewal], bytes] | None = None

    def authorities(self, url: str) -> bytes:
        raise NotImplementedError

    def post(self, url: str, path: str, body: bytes, authorities_pem: str) -> tuple[int, bytes]:
        assert (url, path) == (HOME.url, enrolment.RENEW_PATH)
        assert authorities_pem == self._device.fleet.ca.certificates_pem
        word = enrolment.read_renewal(body)
        newest = self._device.identities.usable(NEXT) or self._device.identities.read()
        assert newest is not None
        statement = enrolment.renewal_statement(DEVICE, word.public)
        assert verify(bytes.fromhex(newest.public), statement, bytes.fromhex(word.proof_before))
        self._device.fleet.asked.append(word)
        if self.answer is None:
            raise RetryError("registry_unreachable", "nobody there")
        return 200, self.answer(word)


class Device:
    """One start of an enrolled device on a state directory."""

    def __init__(self, state: Path, fleet: Fleet, now_s: float) -> None:
        self.state, self.fleet, self.now_s = state, fleet, now_s
        self.identities = Identities(state)
        self.loop, self.clock, self.moved = Loop(), TestClock(), 0
        self.line, self.web = Line(self), Web(self)
        self.trust = Trust(state, verify)
        found = self.identities.read()
        assert found is not None
        self.introduction = Introduction(self.identities, found)
        parts = Parts(
            device=DEVICE, install_id="0" * 32, identities=self.identities, trusted=self.trust, keys=ed25519,
            registry=lambda: self.web, line=self.line, topics=TOPICS, clock=self.clock,
            now_s=lambda: self.now_s, random=FixedRandom(), runner=self.loop,  # type: ignore[arg-type]
            board=Board(state, self.clock), moved=self._move,
        )  # fmt: skip
        self.work = RenewalWork(parts, self.introduction, found)

    def _move(self) -> None:
        self.moved += 1

    def connect(self, attempts: int = 8) -> bool:
        """As the transport does: until one is let in."""
        for _ in range(attempts):
            found = self.introduction.choose()
            tls.require_usable(found)
            if found.public not in self.fleet.refuses:
                self.line.connected = True
                self.work.connected(self.introduction.chosen)
                return True
            self.introduction.barred("certificate revoked")
        return False

    @property
    def phase(self) -> Phase:
        return self.work._state.phase

    @property
    def why(self) -> str:
        why = self.work._state.why
        return why.code if why is not None else ""


OLD_SEED = bytes(range(32))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "fleet")


def new_state(path: Path, fleet: Fleet) -> Path:
    """A device that was enrolled 80 of 90 days before NOW_S."""
    path.mkdir()
    Trust(path, verify).pin(sealed_root(root_of()), root_sha256(root_of()))
    Identities(path).save(fleet.identity(OLD_SEED, NOW_S - 80 * DAY_S))
    return path


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Device:
    return Device(new_state(tmp_path / "state", fleet), fleet, NOW_S)


def old(device: Device) -> bool:
    found = device.identities.read()
    assert found is not None
    return found.seed == OLD_SEED


def test_it_is_renewed_at_once_where_nothing_is_in_the_way(device: Device) -> None:
    device.connect()
    assert not old(device)
    found = device.identities.read()
    assert found is not None
    assert found.not_after_s == NOW_S + LIFE_S
    assert device.phase is Phase.RESTING
    assert not device.identities.path(NEXT).exists()
    assert not device.identities.path(RENEWING).exists()
    assert len(device.fleet.asked) == 1


def test_it_is_not_renewed_before_its_time(tmp_path: Path, fleet: Fleet) -> None:
    device = Device(new_state(tmp_path / "state", fleet), fleet, NOW_S - 40 * DAY_S)
    device.connect()
    assert fleet.asked == []


@pytest.mark.parametrize("phase", [Work.FETCHING, Work.VERIFYING, Work.TRIALING, Work.SWITCHING])
def test_work_in_flight_is_not_disturbed(device: Device, phase: Work) -> None:
    device.loop.models["digits"] = Deployment(model="digits", phase=phase)
    device.connect()
    assert (device.phase, old(device)) == (Phase.HOLDING, True)
    device.loop.models.clear()
    device.work.look()
    assert (device.phase, old(device)) == (Phase.RESTING, False)


def test_a_lost_answer_is_asked_for_again_with_the_same_key(device: Device) -> None:
    device.line.answers = False
    device.connect()
    device.clock.ahead_s += ANSWER_S_MAX
    device.work.look()
    assert device.why == "no_answer"
    device.line.answers = True
    device.clock.ahead_s += 60
    device.work.look()
    first, second = device.fleet.asked
    assert first == second
    assert not old(device)


def test_a_refused_new_certificate_is_put_away_and_another_key_is_asked_for_later(device: Device) -> None:
    publish = device.line.publish

    def refusing(topic: str, payload: bytes, **options: Any) -> bool:  # noqa: ANN401
        device.fleet.refuses.add(codec.decode(payload, Renewal, 10**4).public)
        return publish(topic, payload, **options)

    device.line.publish = refusing  # type: ignore[method-assign]
    device.connect()
    assert (old(device), device.phase, device.why) == (True, Phase.RESTING, "certificate_rejected")
    assert not device.identities.path(NEXT).exists()
    device.line.publish = publish  # type: ignore[method-assign]
    device.clock.ahead_s += 3600
    device.work.look()
    assert not old(device)
    assert len({word.public for word in device.fleet.asked}) == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: replace(c, device="roof-18"), "wrong_device"),
        (lambda c: replace(c, public="0" * 64), "wrong_key"),
        (lambda c: replace(c, pem=c.authorities_pem), "identity_unusable"),
        (lambda c: replace(c, not_after=text_of(NOW_S + 9 * DAY_S)), "certificate_shorter"),
        (lambda c: replace(c, not_after="never"), "certificate_malformed"),
    ],
)
def test_a_certificate_that_does_not_fit_changes_nothing(
    device: Device, change: Callable[[Certificate], Certificate], code: str
) -> None:
    device.fleet.changes = change
    device.connect()
    assert (old(device), device.why, device.phase) == (True, code, Phase.RESTING)
    assert not device.identities.path(NEXT).exists()


def test_a_certificate_that_no_order_key_signed_changes_nothing(device: Device) -> None:
    device.fleet.signer = ORDER_2
    device.connect()
    assert (old(device), device.why) == (True, "bad_signature")


def test_an_answer_that_nobody_asked_for_changes_nothing(device: Device) -> None:
    device.work.take(CERTIFICATE, device.fleet.certificate(ed25519.public_of(bytes(32)).hex()))
    device.work.take(CERTIFICATE_REFUSED, codec.encode(CertificateRefused(code="revoked", detail="")))
    assert (old(device), device.why) == (True, "")


def test_a_registry_that_refuses_is_believed_as_far_as_words_go(device: Device) -> None:
    device.line.answers = False
    device.connect()
    device.work.take(CERTIFICATE_REFUSED, codec.encode(CertificateRefused(code="revoked", detail="stolen")))
    assert (device.why, device.line.connected, old(device)) == ("revoked", True, True)


# --- over HTTPS ---------------------------------------------------------------------------------------


def enrolled_again(device: Device, word: Renewal, **fields: object) -> bytes:
    given: dict[str, Any] = {
        "roots": (), "certificate": device.fleet.certificate(word.public, device.now_s),
        "broker": BrokerAddress(host="localhost", port=8883), "url": HOME.url, **fields,
    }  # fmt: skip
    return enrolment.encode(Enrolled(**given))


def over_https(device: Device, **fields: object) -> None:
    """The certificate has ended; one look, and the request's thread is awaited."""
    device.web.answer = lambda word: enrolled_again(device, word, **fields)
    look_and_wait(device)


def look_and_wait(device: Device) -> None:
    device.work.look()
    for thread in threading.enumerate():
        if thread.name == "renewal":
            thread.join(10)


@pytest.fixture
def ended(tmp_path: Path, fleet: Fleet) -> Device:
    return Device(new_state(tmp_path / "state", fleet), fleet, NOW_S + 400 * DAY_S)


def test_an_ended_certificate_is_renewed_by_the_registry(ended: Device) -> None:
    over_https(ended)
    assert (old(ended), ended.phase, ended.moved) == (False, Phase.RESTING, 0)


def test_roots_that_were_missed_come_along(ended: Device) -> None:
    second, third = root_of(2, order=(ORDER_2,)), root_of(3, order=(ORDER_2,), epoch=1)
    ended.fleet.signer = ORDER_2
    over_https(ended, roots=(sealed_root(second, ROOT_1), sealed_root(third, ROOT_1)))
    assert Trust(ended.state, verify).state.root == third
    assert not old(ended)


def test_another_address_is_kept_and_the_daemon_starts_again(ended: Device) -> None:
    over_https(ended, broker=BrokerAddress(host="elsewhere", port=8884))
    found = ended.identities.read()
    assert found is not None
    assert (found.home.host, found.home.port, ended.moved) == ("elsewhere", 8884, 1)


def test_where_the_broker_takes_neither_the_newest_key_asks_again(ended: Device) -> None:
    """The registry believes no key but the newest certificate's, once all have ended."""
    second = ended.fleet.identity(bytes(32), NOW_S)
    ended.identities.save(second, NEXT)
    present = ended.identities.read()
    assert present is not None
    ended.fleet.refuses |= {second.public, present.public}
    again = Device(ended.state, ended.fleet, ended.now_s)
    assert again.phase is Phase.PROVING
    assert not again.connect()
    again.clock.ahead_s += 3600
    over_https(again)
    found = again.identities.read()
    assert found is not None
    assert found.public not in ended.fleet.refuses


def test_a_registry_that_is_not_there_is_asked_again_later(ended: Device) -> None:
    look_and_wait(ended)
    assert (ended.why, ended.phase) == ("registry_unreachable", Phase.RESTING)
    ended.work.look()
    assert len(ended.fleet.asked) == 1


# --- which certificate --------------------------------------------------------------------------------


def test_new_and_old_take_turns_until_one_is_let_in(device: Device) -> None:
    device.identities.save(device.fleet.identity(bytes(32), NOW_S), NEXT)
    chosen = []
    for _ in range(9):
        device.introduction.choose()
        chosen.append(device.introduction.chosen)
    assert chosen == [NEXT if prefers_new(n) else CURRENT for n in range(9)]


def test_a_damaged_new_identity_costs_nothing(device: Device) -> None:
    device.identities.save(device.fleet.identity(bytes(32), NOW_S), NEXT)
    device.identities.path(NEXT).write_bytes(b"torn")
    again = Device(device.state, device.fleet, NOW_S - 40 * DAY_S)
    assert not again.identities.path(NEXT).exists()
    assert again.connect()
    assert old(again)


def test_without_any_identity_there_is_an_error_by_name(device: Device) -> None:
    device.identities.path(CURRENT).write_bytes(b"torn")
    with pytest.raises(StateError) as lost:
        device.introduction.choose()
    assert lost.value.code == "identity_lost"


# --- the power is cut ---------------------------------------------------------------------------------


def test_cut_at_any_step_the_old_or_the_new_identity_is_whole(tmp_path: Path, fleet: Fleet) -> None:
    def run(step: int, after: bool) -> bool:
        fleet.asked.clear()
        state = new_state(tmp_path / f"{step}-{after}", fleet)
        device = Device(state, fleet, NOW_S)
        cut = False
        try:
            with crash_at(step, after=after):
                device.connect()
        except PowerCut:
            cut = True
        found = Identities(state).read()
        assert found is not None
        tls.require_usable(found)
        asked = {word.public for word in fleet.asked}
        waits = Identities(state).usable(NEXT)
        assert found.seed == OLD_SEED or found.public in asked
        # A certificate that was issued belongs to a key that is still here.
        kept = {found.public, waits.public if waits else ""}
        pending = ed25519.public_of(Identities(state).renewing(ed25519, found)).hex()
        assert asked <= kept | {pending}
        again = Device(state, fleet, NOW_S)
        again.connect()
        assert not old(again)
        assert {path.name for path in (state / "identity").iterdir()} <= {CURRENT, RENEWING}
        return cut

    assert every_crash(run) > 12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.booleans()), max_size=5))
def test_however_often_the_power_goes(cuts: list[tuple[int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        fleet = Fleet(Path(name) / "fleet")
        state = new_state(Path(name) / "state", fleet)
        for step, after in cuts:
            try:
                with crash_at(step, after=after):
                    Device(state, fleet, NOW_S).connect()
            except PowerCut:
                pass
            found = Identities(state).read()
            assert found is not None
            tls.require_usable(found)
        again = Device(state, fleet, NOW_S)
        again.connect()
        assert not old(again)
