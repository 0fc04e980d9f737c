"""A device is enrolled by a token: over real HTTPS, with answers lost, refused, forged, and the power cut."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import belonging, identity, tls
from agent.adapters import ed25519
from agent.adapters.ed25519 import verify
from agent.adapters.registry_https import HttpsRegistry
from agent.config import BrokerConfig, Config
from agent.deployment import Deployment
from agent.enrolling import PASSING, Complete, ask
from agent.errors import ConfigError, StateError
from agent.identities import CURRENT, ENROLLING, NEXT, Identities
from agent.identity import Identity
from agent.journal import Journal, JournalFile
from agent.tls import TlsConfig
from agent.trust import Trust
from tests.agent.crashing import PowerCut, crash_at, every_crash
from tests.agent.registry import DAY_S, DEVICE, Registry, refusal
from tests.keys import ORDER, ORDER_2, ROOT_1, ROOT_2, root_of, root_sha256, sealed_root
from wire import enrolment
from wire.certificates import Certificate
from wire.enrolment import Enrol
from wire.errors import ShallopError
from wire.messages import Desired

CONFIG = Config()
JUNK_PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture
def registry(house: Registry) -> Registry:
    """The same one for all, as it was at first."""
    house.asked.clear()
    house.refuses, house.loses, house.status, house.life_s = None, 0, 200, 90 * DAY_S
    house.delay_s, house.instead = 0.0, None
    house.changes = lambda certificate: certificate
    house.roots, house.signer = (sealed_root(root_of()),), ORDER
    house.forget()
    return house


def asked(state: Path, registry: Registry, token: str | None = None) -> Complete:
    at_s = registry.now_s
    return ask(
        registry.token() if token is None else token, Identities(state), ed25519, verify,
        HttpsRegistry(lambda: at_s), "1",
    )  # fmt: skip


def take_up(state: Path, config: Config = CONFIG) -> Complete | None:
    return belonging.take_up(config, Identities(state), Trust(state, verify), state, ed25519, verify)


def enrolled(state: Path, registry: Registry, token: str | None = None) -> Identity:
    asked(state, registry, token)
    done = take_up(state)
    assert done is not None
    return done.identity


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(ShallopError) as error:
        act()
    return error.value.code


def test_a_device_comes_to_belong(tmp_path: Path, registry: Registry) -> None:
    found = enrolled(tmp_path, registry)
    assert Identities(tmp_path).read() == found
    assert (found.device, found.home.host, found.home.port, found.home.url) == (
        DEVICE,
        "localhost",
        8883,
        registry.url,
    )
    assert found.not_after_s - registry.now_s == pytest.approx(90 * DAY_S, abs=2)
    assert Trust(tmp_path, verify).state.root == root_of()
    tls.require_usable(found)
    (word,) = registry.asked
    assert isinstance(word, Enrol)
    assert word.public == ed25519.public_of(found.seed).hex() == found.public
    assert take_up(tmp_path) is None


def test_the_key_stays_here_and_is_nobody_elses_to_read(tmp_path: Path, registry: Registry) -> None:
    found = enrolled(tmp_path, registry)
    folder = tmp_path / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {CURRENT}
    assert stat.S_IMODE((folder / CURRENT).stat().st_mode) == 0o600
    assert not any(found.seed.hex() in str(word) for word in registry.asked)
    assert found.seed.hex() not in repr(found)
    assert str(found.seed) not in repr(found)


def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path: Path, registry: Registry) -> None:
    registry.loses = 1
    assert refused(lambda: asked(tmp_path, registry)) == "registry_failed"
    assert take_up(tmp_path) is None
    enrolled(tmp_path, registry)
    first, second = registry.asked
    assert first == second


def test_another_token_has_another_key(tmp_path: Path, registry: Registry) -> None:
    first = enrolled(tmp_path, registry)
    assert enrolled(tmp_path, registry, registry.token(secret=bytes(20))).public != first.public


@pytest.mark.parametrize(
    "code",
    ["token_used", "token_expired", "token_unknown", "revoked", "wrong_device", "too_many", "unavailable"],
)
def test_a_refusal_is_told_by_its_name_and_changes_nothing(
    tmp_path: Path, registry: Registry, code: str
) -> None:
    before = enrolled(tmp_path, registry)
    registry.refuses = refusal(code)
    assert refused(lambda: asked(tmp_path, registry, registry.token(secret=bytes(20)))) == code
    assert take_up(tmp_path) is None
    assert Identities(tmp_path).read() == before
    assert (tmp_path / "identity" / ENROLLING).exists() == (code in PASSING)


def test_another_authority_is_told_nothing(tmp_path: Path, registry: Registry) -> None:
    token = registry.token(ca_sha256=bytes(32))
    assert refused(lambda: asked(tmp_path, registry, token)) == "wrong_ca"
    assert registry.asked == []
    assert not Trust(tmp_path, verify).enrolled


def test_who_shows_the_right_authority_and_is_somebody_else_is_told_nothing(
    tmp_path: Path, registry: Registry
) -> None:
    """The authority's certificate is no secret: a stranger can show it, and cannot be signed by it."""
    with Registry(tmp_path / "stranger") as stranger:
        own = stranger.ca
        stranger.ca = registry.ca
        token = stranger.token()
        assert stranger.ca.sha256 != own.sha256
        assert refused(lambda: asked(tmp_path, stranger, token)) == "wrong_ca"
        assert stranger.asked == []


def test_another_root_is_not_pinned(tmp_path: Path, registry: Registry) -> None:
    assert refused(lambda: asked(tmp_path, registry, registry.token(root_sha256=bytes(32)))) == "wrong_root"
    assert not Trust(tmp_path, verify).enrolled


def test_a_certificate_that_no_order_key_signed_is_refused(tmp_path: Path, registry: Registry) -> None:
    registry.signer = ORDER_2
    assert refused(lambda: asked(tmp_path, registry, registry.token(secret=bytes(20)))) == "bad_signature"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: replace(c, device="roof-18"), "wrong_device"),
        (lambda c: replace(c, public="0" * 64), "wrong_key"),
        (lambda c: replace(c, not_after=c.not_before), "certificate_malformed"),
        (lambda c: replace(c, not_before="soon"), "certificate_malformed"),
        (lambda c: replace(c, pem=JUNK_PEM), "identity_unusable"),
        (lambda c: replace(c, pem=c.authorities_pem), "identity_unusable"),
        (lambda c: replace(c, authorities_pem="none"), "authorities_unusable"),
    ],
)  # fmt: skip
def test_a_signed_certificate_that_does_not_fit_is_refused(
    tmp_path: Path, registry: Registry, change: Callable[[Certificate], Certificate], code: str
) -> None:
    registry.changes = change
    assert refused(lambda: asked(tmp_path, registry)) == code
    assert take_up(tmp_path) is None
    assert not Trust(tmp_path, verify).enrolled


def test_rotations_since_the_token_are_caught_up(tmp_path: Path, registry: Registry) -> None:
    second, third = root_of(2, order=(ORDER_2,)), root_of(3, root=(ROOT_2,), order=(ORDER_2,))
    registry.roots = (sealed_root(root_of()), sealed_root(second, ROOT_1), sealed_root(third, ROOT_1, ROOT_2))
    registry.signer = ORDER_2
    enrolled(tmp_path, registry)
    assert Trust(tmp_path, verify).state.root == third


def test_enrolled_again_in_the_same_fleet_it_forgets_no_number(tmp_path: Path, registry: Registry) -> None:
    enrolled(tmp_path, registry)
    trusted = Trust(tmp_path, verify)
    trusted.obey(Desired(device=DEVICE, number=7, models={}, issued_at="2026-11-21T17:00:00+00:00"))
    before = trusted.state
    registry.roots = (sealed_root(root_of()), sealed_root(root_of(2), ROOT_1))
    enrolled(tmp_path, registry, registry.token(secret=bytes(20)))
    assert Trust(tmp_path, verify).state == replace(before, root=root_of(2))


def test_enrolled_in_another_fleet_it_begins_anew(tmp_path: Path, registry: Registry) -> None:
    trusted = Trust(tmp_path, verify)
    other = root_of(root=(ROOT_2,))
    trusted.pin(sealed_root(other, ROOT_2), root_sha256(other))
    trusted.obey(Desired(device=DEVICE, number=7, models={}))
    enrolled(tmp_path, registry)
    assert Trust(tmp_path, verify).state.document == 0


@pytest.mark.parametrize("text", ["", "shallop1.", "shallop1.AAAA", "https://x"])
def test_what_is_no_token_asks_nobody(tmp_path: Path, registry: Registry, text: str) -> None:
    assert refused(lambda: asked(tmp_path, registry, text)) == "token_malformed"
    assert not (tmp_path / "identity").exists()


def test_nobody_there(tmp_path: Path, registry: Registry) -> None:
    token = registry.token(url="https://localhost:1")
    assert refused(lambda: asked(tmp_path, registry, token)) == "registry_unreachable"


@pytest.mark.parametrize("days", [-366.0, 366.0 * 40])
def test_a_wrong_clock_has_a_name(tmp_path: Path, registry: Registry, days: float) -> None:
    at_s = registry.now_s + days * DAY_S
    ways = HttpsRegistry(lambda: at_s)
    assert (
        refused(lambda: ask(registry.token(), Identities(tmp_path), ed25519, verify, ways, "1"))
        == "clock_wrong"
    )
    assert registry.asked == []


def test_a_server_that_trickles_is_cut_off(registry: Registry) -> None:
    ways = HttpsRegistry(lambda: registry.now_s, whole_s_max=0.3)
    registry.delay_s = 0.6
    assert refused(lambda: ways.authorities(registry.url)) in {"registry_unreachable", "registry_failed"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x" * (enrolment.ANSWER_BYTES_MAX + 1), "registry_oversized"),
        (b"<html>", "registry_failed"),
        (b"{}", "registry_failed"),
        (b"[" * 100_000, "registry_failed"),
    ],
    ids=["large", "page", "empty", "deep"],
)
def test_an_answer_that_is_none_has_a_name(
    tmp_path: Path, registry: Registry, body: bytes, code: str
) -> None:
    registry.instead = body
    assert refused(lambda: asked(tmp_path, registry)) == code


# --- the power is cut ---------------------------------------------------------------------------------


def test_cut_at_any_step_the_old_or_the_new_identity_is_whole(tmp_path: Path, registry: Registry) -> None:
    """Old and new belong to different fleets, so a mixture of the two would show."""
    with Registry(tmp_path / "old") as former:
        former_root = root_of(root=(ROOT_2,))
        former.roots = (sealed_root(former_root, ROOT_2),)
        first = former.token(root_sha256=bytes.fromhex(root_sha256(former_root)))
        token = registry.token(secret=bytes(20))

        def run(step: int, after: bool) -> bool:
            state = tmp_path / f"{step}-{after}"
            state.mkdir()
            old = enrolled(state, former, first)
            cut = False
            try:
                with crash_at(step, after=after):
                    asked(state, registry, token)
                    take_up(state)
            except PowerCut:
                cut = True
            between = Identities(state).read()
            assert between is not None
            tls.require_usable(between)
            assert between == old or between.home.url == registry.url
            # The machine starts again: the daemon takes up what waits, if it is complete.
            config, found = belonging.taken_up(
                CONFIG, Identities(state), Trust(state, verify), state, ed25519, verify
            )
            assert found is not None
            root = Trust(state, verify).state.root
            assert (found == old, root == former_root) in {(True, True), (False, False)}
            assert config.broker.host == found.home.host
            # And whoever runs the command again ends where it should.
            new = found if found != old else enrolled(state, registry, token)
            assert new.home.url == registry.url
            assert {path.name for path in (state / "identity").glob("*.json")} == set()
            return cut

        assert every_crash(run) > 20
    keys = {word.public for word in registry.asked}
    assert len(keys) >= 2


# --- names --------------------------------------------------------------------------------------------


def test_a_configuration_that_says_another_name_is_refused(tmp_path: Path, registry: Registry) -> None:
    asked(tmp_path, registry)
    assert refused(lambda: take_up(tmp_path, Config(device="cellar-1"))) == "device_differs"
    assert not Trust(tmp_path, verify).enrolled


def test_what_runs_here_goes_along_to_the_new_name(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.belonging.hardware.device_id", lambda _root: "board-1")
    kept = Journal(models={"digits": Deployment(model="digits", order_highest=9)})
    JournalFile(tmp_path, "board-1").save(kept)
    enrolled(tmp_path, registry)
    found = JournalFile(tmp_path, DEVICE).load()
    assert found is not None
    assert found.models == kept.models


def test_the_journal_of_another_machine_does_not(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.belonging.hardware.device_id", lambda _root: "board-1")
    JournalFile(tmp_path, "board-2").save(Journal(models={"digits": Deployment(model="digits")}))
    enrolled(tmp_path, registry)
    with pytest.raises(StateError):
        JournalFile(tmp_path, DEVICE).load()


def test_a_damaged_identity_costs_neither_the_name_nor_the_start(tmp_path: Path, registry: Registry) -> None:
    enrolled(tmp_path, registry)
    JournalFile(tmp_path, DEVICE).save(Journal(models={}))
    path = tmp_path / "identity" / CURRENT
    path.write_bytes(path.read_bytes()[:-10])
    config, found = belonging.taken_up(
        CONFIG, Identities(tmp_path), Trust(tmp_path, verify), tmp_path, ed25519, verify
    )
    assert (config.device, found) == (DEVICE, None)


# --- which broker -------------------------------------------------------------------------------------


def home(**fields: object) -> Identity:
    given = {
        "url": "https://registry:8443",
        "host": "broker.fleet",
        "port": 8884,
        "root": "fleet/v1",
        **fields,
    }
    return Identity(
        device=DEVICE, seed=bytes(32), public="0" * 64, pem="x", authorities_pem="y", not_before_s=0.0,
        not_after_s=1.0, home=identity.Home(**given),  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("broker", "where", "won"),
    [
        (BrokerConfig(), ("broker.fleet", 8884, "fleet/v1"), ()),
        (BrokerConfig(host="near.local"), ("near.local", 8884, "fleet/v1"), ("host",)),
        (BrokerConfig(host="broker.fleet"), ("broker.fleet", 8884, "fleet/v1"), ()),
        (BrokerConfig(port=8885), ("broker.fleet", 8885, "fleet/v1"), ("port",)),
        (BrokerConfig(root="mine/v1"), ("broker.fleet", 8884, "mine/v1"), ("root",)),
        (BrokerConfig(tls=TlsConfig()), ("broker.fleet", 8884, "fleet/v1"), ("tls",)),
    ],
)
def test_the_configuration_wins_where_it_says_something(
    broker: BrokerConfig, where: tuple[str, int, str], won: tuple[str, ...]
) -> None:
    config, found = Config(broker=broker), home()
    after = belonging.effective(config, found)
    assert (after.broker.host, after.broker.port, after.broker.root) == where
    assert after.device == DEVICE
    assert belonging.overruled(config, found) == won


def test_a_device_that_is_not_enrolled_keeps_its_configuration() -> None:
    assert belonging.effective(CONFIG, None) is CONFIG
    assert belonging.overruled(Config(broker=BrokerConfig(host="x", tls=TlsConfig())), None) == ()


def test_another_name_in_the_configuration_is_refused() -> None:
    with pytest.raises(ConfigError):
        belonging.effective(Config(device="cellar-1"), home())


# --- the file -----------------------------------------------------------------------------------------


@given(st.integers(0, 7), st.data())
def test_no_flipped_bit_of_the_file_passes(bit: int, data: st.DataObject) -> None:
    kept = identity.encode(home(host="h"))
    assert identity.decode(kept, "f") == home(host="h")
    at = data.draw(st.integers(0, len(kept) - 1))
    hurt = bytearray(kept)
    hurt[at] ^= 1 << bit
    try:
        found = identity.decode(bytes(hurt), "f")
    except StateError as error:
        # One bit makes another version of the head's, which cannot be told from a newer program's file.
        assert error.code in {"identity_damaged", "identity_version"}  # noqa: PT017
    else:
        # A line end that moved within base64 says the same.
        assert found == home(host="h")


@pytest.mark.parametrize("data", [b"", b"\xff", b"-----BEGIN SHALLOP IDENTITY-----\nAAAA\n"])
def test_what_is_no_identity_is_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        identity.decode(data, "f")


def test_no_renewal_of_an_earlier_identity_outlives_an_enrolment(tmp_path: Path, registry: Registry) -> None:
    """Accepted by its broker later, it would take the new identity's place."""
    asked(tmp_path, registry)
    identities = Identities(tmp_path)
    identities.renewing(ed25519, home())
    identities.save(home(host="old"), NEXT)
    assert take_up(tmp_path) is not None
    assert sorted(path.name for path in identities.folder.glob("*.*")) == ["identity.pem"]


def test_a_key_that_is_asked_for_stays_until_it_is_granted(tmp_path: Path) -> None:
    identities, present = Identities(tmp_path), home()
    seed = identities.renewing(ed25519, present)
    assert Identities(tmp_path).renewing(ed25519, present) == seed
    assert stat.S_IMODE((tmp_path / "identity" / "renewing.json").stat().st_mode) == 0o600
    identities.granted(home(host="new"))
    assert Identities(tmp_path).renewing(ed25519, present) != seed
    assert Identities(tmp_path).renewing(ed25519, replace(present, public="1" * 64)) != seed
    assert identities.read(NEXT) == home(host="new")
