"""A delta of the registry's own codec through a real broker, a real daemon and its worker process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.slots import file_sha256
from tests.agent.test_transfer_resume import DEVICE, MODEL, Talking, daemon
from tests.integration.bundles import file_of, make_bundle
from tests.integration.hand import Hand
from wire.bundle import Chunk, Manifest
from wire.chunks import cut, digest, pieces
from wire.codec import encode
from wire.deltas import DeltaHint, DeltaIndex
from wire.messages import ContentFetched, OrderOutcome
from wire.topics import BLOB

deltas = pytest.importorskip("fleet.deltas.encoder", reason="the codec of deltas, fleet/deltas, is not here")

pytestmark = pytest.mark.broker
BALLAST = 1_000_000


def publish_delta(hand: Hand, base: bytes, new: bytes) -> DeltaHint:
    data = deltas.encode(base, new)
    assert data is not None, "the codec finds nothing in common"
    chunks = []
    for piece in pieces(data, cut(len(data))):
        chunks.append(Chunk(sha256=digest(piece), size_bytes=len(piece)))
        hand.raw(hand.topics.topic(BLOB, digest=digest(piece)), bytes(piece), retain=True)
    index = msgspec.json.encode(
        DeltaIndex(
            algorithm=deltas.ALGORITHM, delta_bytes=len(data), delta_sha256=digest(data), chunks=tuple(chunks)
        )
    )
    hand.raw(hand.topics.topic(BLOB, digest=digest(index)), index, retain=True)
    return DeltaHint(
        from_file_sha256=digest(base), to_file_sha256=digest(new), algorithm=deltas.ALGORITHM,
        index=digest(index), index_bytes=len(index), size_bytes=len(data),
    )  # fmt: skip


PATH = "variants/float_wf32_af32/model.onnx"


def model_of(folder: Path) -> bytes:
    return (folder / PATH).read_bytes()


def fine_tuned(folder: Path) -> Manifest:
    """A second release with the weights of the first, one in forty of them a little changed."""
    manifest = make_bundle(folder, release="2", ballast_bytes=BALLAST)
    content = bytearray(model_of(folder))
    for at in range(len(content) // 10 // 4 * 4, len(content) * 9 // 10, 160):
        content[at] ^= 1
    file = file_of(folder, PATH, bytes(content))
    variant = replace(manifest.variants[0], files=(file,))
    manifest = replace(manifest, variants=(variant,))
    (folder / "manifest.json").write_bytes(encode(manifest))
    return manifest


@pytest.mark.parametrize("broken", [False, True])
def test_an_update_comes_by_the_registrys_delta_or_by_chunks(tmp_path: Path, broken: bool) -> None:
    models = [make_bundle(tmp_path / "1", ballast_bytes=BALLAST), fine_tuned(tmp_path / "2")]
    old, new = (model_of(tmp_path / str(number)) for number in (1, 2))
    with Talking(tmp_path / "broker") as broker, Hand(broker.port) as hand, daemon(tmp_path, broker):
        hand.desire(DEVICE, MODEL, hand.publish_bundle(tmp_path / "1"), order=1)
        assert hand.wait_ended(DEVICE, MODEL, 1, 60).outcome is OrderOutcome.ACTIVE
        hint = publish_delta(hand, old, new)
        if broken:
            hint = replace(hint, algorithm="tensor-0")
        digest_two, before = hand.publish_bundle(tmp_path / "2"), broker.sent
        hand.desire(DEVICE, MODEL, digest_two, order=2, release="2", deltas=(hint,))
        assert hand.wait_ended(DEVICE, MODEL, 2, 60).outcome is OrderOutcome.ACTIVE
        current = tmp_path / "state" / "models" / MODEL / "current" / "model.onnx"
        assert file_sha256(current) == digest(new)
        sent = (broker.sent - before).keys()
        held, wanted = ({c.sha256 for c in m.variants[0].files[0].chunks} for m in models)
        changed = wanted - held
        (told,) = [r.event for r in hand.reports if isinstance(r.event, ContentFetched) and r.order == 2]
        assert len(told.deltas) == 1
        assert (told.deltas[0].failure is not None) == broken
        assert (sent >= changed) == broken
        assert bool(sent & changed) == broken
