"""Barred releases: the list, its signature here or elsewhere, its way through a rotation, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import believing
from agent.adapters.ed25519 import verify
from agent.trust import Trust
from fleet.adapters.broker_process import free_port
from fleet.adapters.signing_desk import Keyring
from fleet.adapters.sql_store import SqlStore
from fleet.audit import By
from fleet.bars import Bars, BarsAsk, sealed_bars
from fleet.cli import main
from fleet.current import Current
from fleet.orders import Desk
from fleet.ports import ConflictError
from fleet.scopes import Scope
from fleet.signing import renew
from tests.fleet.bundles import write_bundle
from tests.fleet.processes import RegistryProcess
from tests.fleet.site import Site, site_with_a_release
from tests.fleet.twins import TOPICS, FakeClock
from tests.keys import ORDER, ORDER_2, RELEASE, RELEASE_2, ROOT_1, Key, root_of, root_sha256, sealed_root
from wire.codec import decode
from wire.errors import ShallopError, TrustError
from wire.messages import BARRED_MAX
from wire.messages import Bars as Message
from wire.roots import Root
from wire.trust import Envelope, Policy, open_envelope

ADA = By(who="ada", why="crashes")
ONE, TWO = "1" * 64, "2" * 64
ROOT = root_of()
NEXT = root_of(2, release=(RELEASE_2,))
LAST = root_of(3, release=(RELEASE_2,), order=(ORDER_2,), epoch=1)
TOPIC = "shallop/v1/system/bars"


def desk(root: Root, *release: Key) -> Desk:
    sealed = {1: sealed_root(ROOT), 2: sealed_root(NEXT), 3: sealed_root(LAST)}
    return Desk(
        TOPICS, signers=(ORDER,), release_signers=release, policy=Policy(verifier=Keyring(root)),
        roots=tuple(sealed[n] for n in range(1, root.number + 1)), root=root,
    )  # fmt: skip


class Signed:
    """A registry that signs, on twins."""

    def __init__(self) -> None:
        self.store = SqlStore("sqlite://", "a" * 32)
        self.clock = FakeClock()
        self.under(ROOT, RELEASE)

    def under(self, root: Root, *release: Key) -> tuple[str, ...]:
        """Starts it with these keys; what lost its signature."""
        self.desk = desk(root, *release)
        self.bars = Bars(self.store, self.clock, Current(self.desk), insecure_unsigned=False)
        with self.store.begin() as tx:
            return renew(tx, self.desk, 1.0).unsigned

    def bar(self, *digests: str, by: By = ADA) -> None:
        self.bars.change(BarsAsk(bar=digests), by)

    def unbar(self, *digests: str) -> None:
        self.bars.change(BarsAsk(unbar=digests), ADA)

    def published(self) -> bytes:
        """What the broker is given."""
        with self.store.begin() as tx:
            (post,) = [row.post for row in tx.pending(100) if row.post.topic == TOPIC]
        assert post.retain
        assert post.payload is not None
        return post.payload


@pytest.fixture
def signed() -> Iterator[Signed]:
    made = Signed()
    yield made
    made.store.close()


class Device:
    """The agent's own belief, on disk."""

    def __init__(self, folder: Path) -> None:
        self.trust = Trust(folder, verify)
        self.trust.pin(sealed_root(ROOT), root_sha256(ROOT))

    def refuses(self, digest: str) -> bool:
        try:
            believing.require_not_barred(self.trust.state, digest)
        except TrustError:
            return True
        return False


@pytest.fixture
def device(tmp_path: Path) -> Device:
    (tmp_path / "device").mkdir()
    return Device(tmp_path / "device")


def code_of(error: pytest.ExceptionInfo[ShallopError]) -> str:
    return error.value.code


def test_a_device_refuses_what_is_barred_and_takes_it_again_once_it_is_not(
    signed: Signed, device: Device
) -> None:
    signed.bar(ONE, TWO)
    device.trust.bar(signed.published())
    assert device.refuses(ONE)
    assert device.refuses(TWO)
    old = signed.published()
    signed.unbar(ONE)
    device.trust.bar(signed.published())
    assert not device.refuses(ONE)
    assert device.refuses(TWO)
    with pytest.raises(TrustError, match="stale_bars"):
        device.trust.bar(old)


def test_a_list_nobody_has_to_sign_for_is_refused(signed: Signed) -> None:
    signed.under(ROOT)
    with pytest.raises(ConflictError) as caught:
        signed.bar(ONE)
    assert code_of(caught) == "bars_unsigned"
    assert (signed.bars.show().number, signed.bars.show().signed_here) == (0, False)


def elsewhere(number: int, digests: Sequence[str], *keys: Key) -> Envelope:
    return msgspec.json.decode(sealed_bars(number, digests, 1.0, keys or (RELEASE,)), type=Envelope)


def test_a_list_signed_elsewhere_is_taken_if_it_is_the_next(signed: Signed, device: Device) -> None:
    signed.under(ROOT)
    signed.bars.change(BarsAsk(bar=(TWO, ONE), envelope=elsewhere(1, (ONE, TWO))), ADA)
    device.trust.bar(signed.published())
    assert device.refuses(ONE)
    for envelope, code in (
        (elsewhere(1, (TWO,)), "stale_bars"),
        (elsewhere(3, (TWO,)), "stale_bars"),
        (elsewhere(2, ()), "stale_bars"),
        (elsewhere(2, (ONE, TWO)), "stale_bars"),
        (elsewhere(2, (TWO,), ORDER), "bad_signature"),
        (elsewhere(2, (TWO,), RELEASE_2), "bad_signature"),
        (elsewhere(2, (TWO,), ROOT_1), "bad_signature"),
        (replace(elsewhere(2, (TWO,)), payload="e30="), "bad_signature"),
        (replace(elsewhere(2, (TWO,)), payload="???"), "malformed"),
        (msgspec.json.decode(sealed_root(ROOT), type=Envelope), "wrong_type"),
    ):
        with pytest.raises(ShallopError) as caught:
            signed.bars.change(BarsAsk(unbar=(ONE,), envelope=envelope), ADA)
        assert code_of(caught) == code
    assert signed.bars.show().number == 1
    assert [row.digest for row in signed.bars.show().barred] == [ONE, TWO]
    signed.bars.change(BarsAsk(unbar=(ONE,), envelope=elsewhere(2, (TWO,))), ADA)
    assert signed.bars.show().number == 2


def test_what_cannot_follow_is_refused_by_name(signed: Signed) -> None:
    signed.bar(ONE)
    for ask, by, code in (
        (BarsAsk(bar=(ONE,)), ADA, "already_barred"),
        (BarsAsk(unbar=(TWO,)), ADA, "not_barred"),
        (BarsAsk(bar=(TWO,)), By(who="ada", why=" "), "why_missing"),
        (BarsAsk(bar=tuple(f"{n:064x}" for n in range(BARRED_MAX))), ADA, "bars_full"),
    ):
        with pytest.raises(ShallopError) as caught:
            signed.bars.change(ask, by)
        assert code_of(caught) == code
    assert signed.bars.show().number == 1


def test_the_largest_list_fits_into_its_message(signed: Signed, device: Device) -> None:
    signed.bar(*(f"{n:064x}" for n in range(BARRED_MAX)))
    device.trust.bar(signed.published())
    assert device.refuses(f"{BARRED_MAX - 1:064x}")


# --- through a rotation


def test_a_rotation_signs_the_list_anew_under_its_number(signed: Signed, device: Device) -> None:
    signed.bar(ONE)
    before = signed.published()
    assert signed.under(NEXT, RELEASE_2) == ()
    assert signed.published() != before
    device.trust.rotate(sealed_root(NEXT))
    with pytest.raises(TrustError, match="bad_signature"):
        device.trust.bar(before)
    device.trust.bar(signed.published())
    assert device.refuses(ONE)
    assert signed.bars.show().number == 1
    after = signed.published()
    assert signed.under(NEXT, RELEASE_2) == ()
    assert signed.published() == after, "a second start does nothing"
    assert signed.under(LAST) == (), "the new key went offline, and what it signed still counts"
    assert signed.published() == after


def test_a_rotation_of_other_keys_leaves_the_list_as_it_is(signed: Signed) -> None:
    signed.bar(ONE)
    before = signed.published()
    other = root_of(2, order=(Key("order-9"),), epoch=1)
    signed.desk = replace(desk(ROOT, RELEASE), policy=Policy(verifier=Keyring(other)), root=other)
    with signed.store.begin() as tx:
        assert renew(tx, signed.desk, 1.0).unsigned == ()
    assert signed.published() == before


def test_a_list_that_nobody_here_can_sign_anew_is_named_and_signed_elsewhere(
    signed: Signed, device: Device
) -> None:
    signed.bar(ONE)
    assert signed.under(NEXT) == ("the list of barred releases",)
    signed.bars.change(BarsAsk(envelope=elsewhere(2, (ONE,), RELEASE_2)), ADA)
    device.trust.rotate(sealed_root(NEXT))
    device.trust.bar(signed.published())
    assert device.refuses(ONE)


_STEPS = st.lists(
    st.tuples(st.sampled_from(["bar", "unbar", "rotate"]), st.integers(0, 4).map(lambda n: f"{n:064x}")),
    max_size=12,
)


@settings(max_examples=12, deadline=None)
@given(_STEPS)
def test_whatever_happens_the_signed_list_is_what_is_barred(steps: list[tuple[str, str]]) -> None:
    signed, barred, number = Signed(), set[str](), 0
    try:
        for step, digest in steps:
            if step == "rotate":
                signed.under(NEXT, RELEASE_2)
            elif (step == "bar") == (digest in barred):
                with pytest.raises(ShallopError):
                    signed.bar(digest) if step == "bar" else signed.unbar(digest)
            else:
                signed.bar(digest) if step == "bar" else signed.unbar(digest)
                barred ^= {digest}
                number += 1
        if number:
            envelope = signed.published()
            state = believing.pinned(sealed_root(ROOT), root_sha256(ROOT), verify)
            keyring = Keyring(NEXT if any(step == "rotate" for step, _ in steps) else ROOT)
            inner = decode(open_envelope(envelope, "bars", Policy(verifier=keyring), 2**17), Message, 2**17)
            after = believing.barring(state, inner)
            assert (set(after.barred), after.bars) == (barred, number)
    finally:
        signed.store.close()


# --- what it refuses here


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_with_a_release(tmp_path) as made:
        yield made


def test_a_rollout_of_a_barred_release_is_neither_started_nor_let_on(site: Site) -> None:
    digest = site.ask("GET", "/api/releases")[1][0]["digest"]
    site.token = site.made("ada", Scope.OPERATE, Scope.PUBLISH)
    ask = {"model": "camera", "release": "v1", "waves": "1,100%", "soak_s": 0}
    paused = site.ask("POST", "/api/rollouts", json=ask)[1]["id"]
    site.ask("POST", f"/api/rollouts/{paused}/pause")
    held = site.ask("POST", "/api/rollouts", json={**ask, "approval": True})[1]["id"]
    site.harness.settle()
    status, show = site.ask("POST", "/api/bars", json={"bar": [digest], "why": "crashes"})
    assert (status, show["number"], show["barred"][0]["release"]) == (200, 1, "camera@v1")
    assert set(show["open_rollouts"]) == {paused, held}
    assert site.code("POST", "/api/rollouts", json=ask) == (409, "release_barred")
    assert site.code("POST", f"/api/rollouts/{paused}/resume") == (409, "release_barred")
    site.token = site.made("bob", Scope.OPERATE)
    assert site.code("POST", f"/api/rollouts/{held}/approve", json={"why": "x"}) == (409, "release_barred")
    assert site.ask("POST", f"/api/rollouts/{held}/reject", json={"why": "barred"})[0] == 200
    assert site.code("POST", "/api/bars", json={"unbar": [digest], "why": "x"}) == (403, "scope_missing")
    site.token = site.made("ada", Scope.PUBLISH)
    assert site.ask("POST", "/api/bars", json={"unbar": [digest], "why": "it was the camera"})[0] == 200
    assert site.ask("GET", "/api/bars")[1] == {
        "number": 2, "signed_here": True, "barred": [], "open_rollouts": [],
    }  # fmt: skip
    said = [(e.what, e.subject, e.why) for e in site.entries() if "bar" in e.what]
    assert said == [
        ("release.bar", "camera@v1", "crashes"),
        ("release.unbar", "camera@v1", "it was the camera"),
    ]


def test_bars_are_signed_where_the_release_key_is(tmp_path: Path) -> None:
    """A real registry without the release key; the person's machine has it."""
    runner, data = CliRunner(), tmp_path / "data"
    runner.invoke(
        main, ["keys", "init", "--keys", str(data / "keys"), "--root-keys", str(tmp_path / "offline")]
    )
    key = next((data / "keys").glob("release-*.pem"))
    key = key.rename(tmp_path / key.name)
    registry = RegistryProcess(data, free_port())
    registry.start()
    env = {"SHALLOP_SERVER": registry.url}

    def run(*arguments: str, code: int = 0) -> str:
        result = runner.invoke(main, list(arguments), env=env)
        assert result.exit_code == code, result.output
        return result.output if code else result.stdout

    try:
        write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
        run("publish", str(tmp_path / "b"), "--release-key", str(key))
        why = ["--why", "crashes"]
        assert "[bars_unsigned]" in run("bar", "camera@v1", *why, code=2)
        assert "[unknown_release]" in run("bar", "camera@v9", *why, "--release-key", str(key), code=2)
        shown = json.loads(run("bar", "camera@v1", *why, "--release-key", str(key), "--json"))
        assert (shown["number"], shown["barred"][0]["release"]) == (1, "camera@v1")
        assert "[release_barred]" in run("rollout", "start", "camera@v1", code=2)
        assert "[already_barred]" in run("bar", "camera@v1", *why, "--release-key", str(key), code=2)
        assert "crashes" in run("bars")
        assert json.loads(run("bars", "--sign", "--release-key", str(key), "--json"))["number"] == 2
        run("unbar", "camera@v1", *why, "--release-key", str(key))
        run("rollout", "start", "camera@v1")
        run("bar", "f" * 64, *why, "--release-key", str(key))
    finally:
        registry.stop()
