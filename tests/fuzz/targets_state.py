"""Targets: what a program finds on its own disk, which a bad block or another program may have written.

For: the agent's journal, trust, identity, reports, notes, live figures, local wishes and release directories;
the registry's records; what an application reads of a release.
Not for: configurations (`tests.fuzz.targets_yaml`), or what the worker leaves (`tests.fuzz.targets_worker`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec

from agent import believing, drift, identity, install, journal, live, outbox, requests, statusing, trust
from agent.adapters import ed25519, live_files
from agent.deployment import Deployment
from agent.home_assistant_link import FILE as HOME_ASSISTANT
from agent.home_assistant_link import Remembered, remembered
from agent.identities import ENROLLING, RENEWING, Identities, PendingEnrolment, PendingKey
from agent.installed import damage, directory_name, release_info
from agent.live_watch import _load, _Saved
from agent.shortcuts import index_of
from agent.slots import Slots
from shallop_client.model import _json
from tests import keys
from tests.fuzz.mutate import bent_json, bytes_with, havoc
from tests.fuzz.places import emptied, filed, scratch
from tests.fuzz.target import Mutate, Target
from tests.wire.samples import DIGEST, INSTALL, MANIFEST, MESSAGES, OTHER, SLOT, TRIAL
from wire import codec
from wire.bundle import Chunk
from wire.deltas import DeltaHint, DeltaIndex
from wire.messages import DesiredModel, Phase, Reason, Report

_MODEL = "fashion"


# --- files with a header that holds the checksum of the rest


def _headed(kind: str, version: int, body: bytes) -> bytes:
    header = {"kind": kind, "version": version, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(header).encode() + b"\n" + body


def _journals() -> dict[str, bytes]:
    wanted = DesiredModel(order=3, digest=DIGEST, release="2")
    working = Deployment(
        model=_MODEL, phase=Phase.SOAKING, order=3, order_highest=3, desired=wanted, active=SLOT, trial=TRIAL
    )
    models = {_MODEL: working, "other": Deployment(model="other")}
    full = journal.Journal(models=models, groups=("north",), device="roof-17")
    return {"full": journal.encode(full), "empty": journal.encode(journal.Journal())}


def _trusts() -> dict[str, bytes]:
    state = believing.TrustState(
        root=keys.root_of(), document=7, signed_at="2026-11-21T17:00:00+00:00", bars=1, barred=(DIGEST,)
    )
    return {"state": trust.encode(state)}


def _bodies(files: Callable[[], dict[str, bytes]]) -> Callable[[], dict[str, bytes]]:
    return lambda: {name: data.partition(b"\n")[2] for name, data in files().items()}


def _lined(random: Random, data: bytes) -> bytes:
    """One of the two lines bent as JSON."""
    head, newline, body = data.partition(b"\n")
    return bent_json(random, head) + newline + body if random.random() < 0.7 else havoc(random, data)


def _checksummed() -> list[Target]:
    def read_trust(data: bytes) -> object:
        return trust.decode(data, "trust.json")

    return [
        Target(name="state.journal", run=journal.decode, seeds=_journals, mutate=_lined,
        again=journal.encode),
        Target(
            name="state.journal.body", seeds=_bodies(_journals), mutate=bent_json,
            run=lambda data: journal.decode(_headed("agent-journal", journal.VERSION, data)),
        ),
        Target(name="state.trust", run=read_trust, seeds=_trusts, mutate=_lined, again=trust.encode),

        Target(
            name="state.trust.body", seeds=_bodies(_trusts), mutate=bent_json,
            run=lambda data: read_trust(_headed("agent-trust", trust.VERSION, data)),
        ),
    ]  # fmt: skip


# --- other files of the agent


def _identity(data: bytes) -> object:
    """As the daemon reads it, and as the command line does beside it."""
    folder = emptied("install")
    (folder / "install.json").write_bytes(data)
    seen = install.saved_install_id(folder)
    saved = install.Install(folder)._saved
    # Where nothing could be read the id is a new one, and random.
    return seen, saved if saved.install_id == seen else None


def _identities() -> dict[str, bytes]:
    saved = install._Saved(install_id=INSTALL, connections=3, reserved=2000)
    return {
        "new": install._encode(saved),
        "old": msgspec.json.encode(saved).replace(b'"version":2', b'"version":1'),
    }


def _report(data: bytes) -> object:
    folder = emptied("outbox")
    name = f"{4:016d}.json"
    (folder / name).write_bytes(data)
    box = outbox.Outbox(folder, 100)
    return [codec.encode(report) for report in box.pending(10)], len(box), outbox.pending(folder)


def _names(data: bytes) -> object:
    """Files that others left in the folders of reports and of wishes, one name a line."""
    found = []
    for folder, take in ((emptied("names"), _outbox_numbers), (emptied("wishes"), _wishes)):
        for line in data.split(b"\n")[:64]:
            name = line.replace(b"/", b"_").replace(b"\0", b"_")[:200]
            if name not in {b"", b".", b".."}:
                place = folder / name.decode("utf-8", "surrogateescape")
                place.mkdir(exist_ok=True) if name.endswith(b"D") else place.touch()
        found.append(take(folder))
    return found


def _outbox_numbers(folder: Path) -> object:
    return outbox.Outbox(folder, 100).next_number(), outbox.pending(folder)


def _wishes(folder: Path) -> object:
    asked = requests.Requests(folder)
    return asked.take(str), asked.take(str)


def _noted(data: bytes) -> object:
    filed(f"notes/{statusing.FILE}", data)
    return statusing.read(scratch() / "notes")


def _shown(data: bytes) -> object:
    filed(f"shown/{HOME_ASSISTANT}", data)
    return remembered(scratch() / "shown")


def _tracks(data: bytes) -> object:
    return _load(filed("tracks.json", data))


def _live(data: bytes) -> object:
    """A file of live figures, and what follows from it."""
    found = live.parse(data, _MODEL)
    moment = drift.Moment(slot=directory_name(SLOT), variant=SLOT.variant, soaking=True, elapsed_s=30.0)
    track, first = drift.observe(None, {"a": found}, moment, drift.DriftRules())
    more = msgspec.structs.replace(
        found, latency=_doubled(found.latency), confidence=_doubled(found.confidence)
    )
    after = msgspec.structs.replace(moment, soaking=False, elapsed_s=1000.0)
    events = [first]
    for files in ({"a": more}, {"a": found}, {"a": more, "b": more}):
        track, event = drift.observe(track, files, after, drift.DriftRules())
        events.append(event)
    for event in events:
        if event is not None:
            message = Report(device="roof-17", install_id=INSTALL, number=1, model=_MODEL, event=event)
            codec.decode(codec.encode(message), Report, 64 * 1024)
    return found, track, events


def _doubled(pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    return tuple((bucket, 2 * count) for bucket, count in pairs)


def _lives() -> dict[str, bytes]:
    figures = live.LiveFile(
        version=1, model=_MODEL, pid=12, epoch=1, release=directory_name(SLOT),
        latency=tuple((bucket, 40) for bucket in range(60, 70)), confidence=((99, 300), (50, 100)),
    )  # fmt: skip
    return {"figures": msgspec.json.encode(figures)}


def _live_folder(data: bytes) -> object:
    folder = emptied("live")
    (folder / f"{_MODEL}@1.json").write_bytes(data)
    (folder / f"{_MODEL}@2.json").symlink_to("/etc/passwd")
    return live_files.LiveFiles(folder).read([_MODEL])


# --- who this device is: its key, its certificate, and an enrolment under way


def _one() -> identity.Identity:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    home = identity.Home(url="https://a.example:1", host="b.example", port=8883, root="shallop/v1")
    return identity.Identity(
        device="roof-17", seed=b"s" * 32, public=DIGEST, pem=pem, authorities_pem=pem, not_before_s=1.0,
        not_after_s=2.0, issued_at="", signed_s=1.0, home=home,
    )  # fmt: skip


def _identity_file(data: bytes) -> object:
    return identity.encode(identity.decode(data, "identity.pem"))


def _identity_body(data: bytes) -> object:
    """Our own block as `data` has it, with the checksum that it should have."""
    rest = identity.encode(_one()).partition(b"-----END SHALLOP IDENTITY-----\n")[2]
    head = {"kind": "agent-identity", "version": 1, "sha256": hashlib.sha256(data + rest).hexdigest()}
    block = identity._block("SHALLOP IDENTITY", json.dumps(head).encode() + b"\n" + data).encode()
    return _identity_file(block + rest)


def _identity_bodies() -> dict[str, bytes]:
    block = identity.encode(_one()).partition(b"-----END SHALLOP IDENTITY-----\n")[0]
    plain = base64.b64decode(block.partition(b"\n")[2])
    return {"kept": plain.partition(b"\n")[2]}


def _pending(data: bytes) -> object:
    """A key and an enrolment that wait, as the daemon finds them when it starts."""
    folder = emptied("identities")
    known = Identities(folder)
    for name in (RENEWING, ENROLLING):
        known.path(name).parent.mkdir(parents=True, exist_ok=True)
        known.path(name).write_bytes(data)
    present = _one()
    return known.enrolling(), known.complete, len(known.renewing(ed25519, present))


def _pendings() -> dict[str, bytes]:
    return {
        "enrolling": msgspec.json.encode(PendingEnrolment(token="t", seed=b"s" * 32, answer=b"{}")),
        "renewing": msgspec.json.encode(PendingKey(seed=b"s" * 32, after=DIGEST)),
    }


# --- a release's directory


def _installed(data: bytes) -> object:
    """`release.json` that is not what was installed: shown damaged, never believed."""
    variant = MANIFEST.variants[0]
    slot = msgspec.structs.replace(
        SLOT, digest=hashlib.sha256(codec.encode(MANIFEST)).hexdigest(), variant=variant.id
    )
    folder = emptied("models")
    directory = folder / _MODEL / "releases" / directory_name(slot)
    directory.mkdir(parents=True)
    for name in ("release.json", "labels.json", "preprocessing.json"):
        (directory / name).write_bytes(data)
    (directory / "manifest.json").write_bytes(codec.encode(MANIFEST))
    (directory / "model.onnx").write_bytes(b"")
    known = Slots(folder)
    told = damage(directory, slot)
    (directory / "manifest.json").write_bytes(data)
    return (
        told,
        damage(directory, slot),
        known.slot(_MODEL, directory.name),
        known.info(_MODEL, directory.name),
    )


def _infos() -> dict[str, bytes]:
    variant = MANIFEST.variants[0]
    slot = msgspec.structs.replace(SLOT, variant=variant.id)
    return {
        "info": msgspec.json.encode(release_info(slot, variant, MANIFEST)),
        "manifest": codec.encode(MANIFEST),
        "labels": msgspec.json.encode(MANIFEST.labels),
        "data": msgspec.json.encode(MANIFEST.data),
    }


def _client(data: bytes) -> object:
    return _json(filed("client.json", data), None)


# --- the index of a delta


_HINT = DeltaHint(
    from_file_sha256=OTHER, to_file_sha256=DIGEST, algorithm="tensor-1", index=DIGEST, index_bytes=500,
    size_bytes=90,
)  # fmt: skip
_FILE = MANIFEST.variants[0].files[0]


def _index(data: bytes) -> object:
    return index_of(data, _HINT, _FILE)


def _indexes() -> dict[str, bytes]:
    chunk = Chunk(sha256=OTHER, size_bytes=90)
    index = DeltaIndex(algorithm="tensor-1", delta_bytes=90, delta_sha256=OTHER, chunks=(chunk,))
    return {"index": msgspec.json.encode(index)}


def _noteds() -> dict[str, bytes]:
    noted = statusing.Noted(
        pid=12, boot_id="b", connected=False, retries={_MODEL: statusing.Retry(at_boot_s=3.0,
        reason=Reason(code="disk_full"))},
    )  # fmt: skip
    return {"noted": msgspec.json.encode(noted)}


def _savedtracks() -> dict[str, bytes]:
    track = drift.Track(
        slot=directory_name(SLOT), reference=live.Counts(latency={60: 500}, confidence={99: 500})
    )
    return {"tracks": msgspec.json.encode(_Saved(tracks={_MODEL: track}))}


def _shownonce() -> dict[str, bytes]:
    kept = Remembered(discovery_topic="a/b", state_topic="c/d", components={"x": "sensor"})
    return {"kept": msgspec.json.encode(kept)}


def _reports() -> dict[str, bytes]:
    honest = next(one for one in MESSAGES if isinstance(one, Report))
    return {"report": codec.encode(honest)}


_NAME_WORDS = (b"rollback-fashion", b"rollback-", b"0000000000000004.json", b"\xc2\xb2.json", b"12.mark",
b"D", b"\n",
               b"9" * 60 + b".json", b"\xd9\xa3.mark", b"\xd9\xa3.json", b"-1.json")  # fmt: skip


def _plain(
    name: str,
    run: Callable[[bytes], object],
    seeds: Callable[[], dict[str, bytes]],
    weight: int = 60,
    mutate: Mutate = bent_json,
) -> Target:
    return Target(name=f"state.{name}", run=run, seeds=seeds, mutate=mutate, weight=weight)


TARGETS: tuple[Target, ...] = (
    *_checksummed(),
    _plain("install", _identity, _identities, weight=30),
    _plain("identity", _identity_file, lambda: {"identity": identity.encode(_one())}, mutate=havoc),
    _plain("identity.body", _identity_body, _identity_bodies),
    _plain("enrolling", _pending, _pendings, weight=30),
    _plain("outbox", _report, _reports, weight=20),
    _plain(
        "names", _names, lambda: {"names": b"rollback-fashion\n0000000000000004.json\n0000000000000003.mark"},
        weight=20, mutate=bytes_with(*_NAME_WORDS),
    ),
    _plain("status", _noted, _noteds),
    _plain("home_assistant", _shown, _shownonce),
    _plain("live", _live, _lives),
    _plain("live_folder", _live_folder, _lives, weight=20),
    _plain("tracks", _tracks, _savedtracks),
    _plain("installed", _installed, _infos, weight=20),
    _plain("delta_index", _index, _indexes),
    Target(
        name="client.json", run=_client, seeds=_infos, mutate=bent_json,
        refuse=(ValueError, OSError), weight=60,
    ),
)  # fmt: skip
