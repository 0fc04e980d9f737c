"""Junk on every topic, broken content, models that do harm: refused by name, the active model untouched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from examples.demo.house import House, wait_for
from tests.brokers import Mosquitto, require_mosquitto
from tests.integration.bundles import Harm, make_bundle
from tests.integration.hand import Hand
from wire import bundle, chunks, codec, messages, topics, trust
from wire.messages import MessageRefused, OrderOutcome

pytestmark = [pytest.mark.broker, pytest.mark.slow]
MODEL, DEVICE = "tiny", "roof-1"


class Roof:
    """One device with release 1 active, and the hand that talks to it."""

    def __init__(self, house: House, hand: Hand, folder: Path) -> None:
        self.house, self.hand, self.folder = house, hand, folder
        self.order = 1
        make_bundle(folder / "one", release="1", seed=1)
        self.first = hand.publish_bundle(folder / "one")
        hand.desire(DEVICE, MODEL, self.first, order=1)
        house.agent(DEVICE, trial={"lock_file": str(folder / "trial.lock"), "wall_s_max": 6.0})
        assert hand.wait_ended(DEVICE, MODEL, 1).outcome is OrderOutcome.ACTIVE
        self.current = house.current(DEVICE, MODEL)

    def untouched(self) -> None:
        """The daemon lives, the active model is the first one, and it still takes an order."""
        assert self.house.agents[DEVICE].alive(), self.house.agents[DEVICE].tail()
        assert self.house.current(DEVICE, MODEL) == self.current

    def next_order(self) -> int:
        self.order += 1
        return self.order

    def refused_codes(self) -> set[str]:
        return {r.event.reason.code for r in self.hand.reports if isinstance(r.event, MessageRefused)}


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roof]:
    require_mosquitto()
    folder = tmp_path_factory.mktemp("roof")
    with (
        Mosquitto(folder / "mosquitto") as broker,
        House(folder / "house", broker_port=broker.port) as house,
        Hand(broker.port) as hand,
    ):
        yield Roof(house, hand, folder)


def envelope(kind: str, payload: bytes) -> bytes:
    return trust.seal(kind, payload)


def desired_with(**changes: object) -> bytes:
    document = json.loads(codec.encode(messages.Desired(device=DEVICE, models={}))) | changes
    return envelope("desired", json.dumps(document).encode())


JUNK = {
    "truncated": (desired_with()[:-7], "malformed"),
    "no envelope": (codec.encode(messages.Desired(device=DEVICE, models={})), "malformed"),
    "oversized": (b"x" * (topics.DESIRED.size_bytes_max + 1), "oversized"),
    "wrong type": (desired_with(models=[1, 2]), "invalid_field"),
    "wrong version": (desired_with(version=2), "unsupported_version"),
    "wrong kind": (desired_with(kind="command"), "unknown_kind"),
    "another type of envelope": (envelope("release", b"{}"), "wrong_type"),
    "binary": (bytes(range(256)), "malformed"),
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_as_desired_document(roof: Roof, name: str) -> None:
    payload, code = JUNK[name]
    roof.hand.raw(roof.hand.topics.topic(topics.DESIRED, device=DEVICE), payload)
    wait_for(f"a report of {code}", lambda: code in roof.refused_codes(), 30)
    roof.untouched()


@pytest.mark.parametrize("channel", [topics.COMMAND, topics.COMMAND_ALL, topics.ACK], ids=lambda c: c.name)
@pytest.mark.parametrize("payload", [b"{", b"\xff\xfe", b'{"kind":"x","version":1}', b"[" * 9000])
def test_junk_on_the_other_topics(roof: Roof, channel: topics.Channel, payload: bytes) -> None:
    params = {"device": DEVICE} if "{device}" in channel.pattern else {}
    roof.hand.raw(roof.hand.topics.topic(channel, **params), payload)
    roof.hand.raw(roof.hand.topics.topic(topics.SEED), payload)
    wait_for("a report", lambda: roof.refused_codes() & {"malformed", "unknown_kind"}, 30)
    roof.untouched()


def test_an_unsigned_order_for_another_device_is_refused(roof: Roof) -> None:
    wanted = messages.DesiredModel(order=90, digest="ef" * 32, release="9")
    document = codec.encode(messages.Desired(device="somebody-else", models={MODEL: wanted}))
    roof.hand.raw(roof.hand.topics.topic(topics.DESIRED, device=DEVICE), envelope("desired", document))
    wait_for("a refusal", lambda: "wrong_device" in roof.refused_codes(), 30)
    roof.untouched()


def test_a_command_for_another_device_is_refused(roof: Roof) -> None:
    command = messages.Command(
        id="other",
        to=messages.ToDevice(device="somebody-else"),
        action=messages.Rollback(model=MODEL, from_=roof.first, order=91),
    )
    topic = roof.hand.topics.topic(topics.COMMAND, device=DEVICE)
    roof.hand.raw(topic, envelope("command", codec.encode(command)))
    roof.hand.raw(roof.hand.topics.topic(topics.COMMAND_ALL), envelope("command", codec.encode(command)))
    wait_for("a refusal", lambda: "wrong_device" in roof.refused_codes(), 30)
    roof.untouched()


def ended(roof: Roof, digest: str) -> messages.ModelState:
    """Orders `digest` and waits for the end; the active model must not have moved."""
    order = roof.next_order()
    roof.hand.desire(DEVICE, MODEL, digest, order=order, release="2", deadline_s=25.0)
    state = roof.hand.wait_ended(DEVICE, MODEL, order, 60)
    assert state.outcome is OrderOutcome.FAILED
    roof.untouched()
    return state


@pytest.mark.parametrize(
    ("harm", "codes"),
    [
        ("garbage", {"model_malformed"}),
        ("wrong", {"sla_missed", "accuracy_below_limit"}),
        ("hang", {"trial_timeout"}),
    ],
)
def test_a_harmful_model_is_refused_by_name(roof: Roof, harm: Harm, codes: set[str]) -> None:
    make_bundle(roof.folder / harm, release="2", seed=5, harm=harm)
    state = ended(roof, roof.hand.publish_bundle(roof.folder / harm))
    assert state.reason is not None
    assert state.reason.code in codes, state.reason
    assert state.reason.lasting == "final"


def test_a_corrupted_chunk_is_never_used(roof: Roof) -> None:
    manifest = make_bundle(roof.folder / "corrupt", release="2", seed=6, ballast_bytes=200_000)
    digest = roof.hand.publish_bundle(roof.folder / "corrupt")
    chunk = manifest.variants[0].files[0].chunks[1]
    topic = roof.hand.topics.topic(topics.BLOB, digest=chunk.sha256)
    roof.hand.raw(topic, b"x" * chunk.size_bytes, retain=True)
    state = ended(roof, digest)
    assert state.reason is not None
    assert "deadline" in state.reason.code or "hash" in state.reason.code or "chunk" in state.reason.code


def test_a_manifest_that_names_a_missing_blob_ends_at_its_deadline(roof: Roof) -> None:
    make_bundle(roof.folder / "missing", release="2", seed=7, ballast_bytes=200_000)
    digest = roof.hand.publish_bundle(roof.folder / "missing", leave_out=2)
    state = ended(roof, digest)
    assert state.reason is not None
    assert state.reason.code == "chunks_missing"
    assert "deadline" in state.reason.detail
    lacked = [said.models[MODEL].missing for said in roof.hand.reported_so_far if MODEL in said.models]
    assert max(len(missing) for missing in lacked) == 2


def publish_manifest(roof: Roof, raw: bytes, name: str | None = None) -> str:
    digest = name or chunks.digest(raw)
    topic = roof.hand.topics.topic(topics.RELEASE, digest=digest)
    roof.hand.raw(topic, envelope("release", raw), retain=True)
    return digest


def test_a_manifest_under_another_name_is_refused(roof: Roof) -> None:
    raw = (roof.folder / "one" / "manifest.json").read_bytes()
    state = ended(roof, publish_manifest(roof, raw, "12" * 32))
    assert state.reason is not None


def test_a_manifest_for_another_model_is_refused(roof: Roof) -> None:
    manifest = make_bundle(roof.folder / "another", model="another", release="2")
    digest = roof.hand.publish_bundle(roof.folder / "another")
    assert manifest.model == "another"
    state = ended(roof, digest)
    assert state.reason is not None
    assert state.reason.lasting == "final"


def test_a_manifest_that_contradicts_itself_is_refused(roof: Roof) -> None:
    whole = codec.decode(
        (roof.folder / "one" / "manifest.json").read_bytes(), bundle.Manifest, bundle.MANIFEST_BYTES_MAX
    )
    bent = msgspec.structs.replace(
        whole, variants=(msgspec.structs.replace(whole.variants[0], model_path="elsewhere.onnx"),)
    )
    state = ended(roof, publish_manifest(roof, codec.encode(bent)))
    assert state.reason is not None
    assert state.reason.code == "manifest_incoherent"


def test_an_old_order_is_refused_with_the_highest_one(roof: Roof) -> None:
    roof.next_order()
    roof.hand.desire(DEVICE, MODEL, roof.first, order=roof.order, release="1")
    roof.hand.wait_ended(DEVICE, MODEL, roof.order)
    roof.hand.desire(DEVICE, MODEL, roof.first, order=1, release="1")

    def stale() -> list[messages.Report]:
        return [
            r for r in roof.hand.reports
            if isinstance(r.event, messages.OrderRefused) and r.event.reason.code == "stale_order"
        ]  # fmt: skip

    report = wait_for("stale_order", stale, 30)[-1]
    assert isinstance(report.event, messages.OrderRefused)
    assert report.event.order_highest >= roof.order
    roof.untouched()


def test_after_all_that_a_good_release_is_taken(roof: Roof) -> None:
    make_bundle(roof.folder / "good", release="3", seed=8)
    digest = roof.hand.publish_bundle(roof.folder / "good")
    order = roof.next_order()
    roof.hand.desire(DEVICE, MODEL, digest, order=order, release="3")
    state = roof.hand.wait_ended(DEVICE, MODEL, order)
    assert state.outcome is OrderOutcome.ACTIVE
