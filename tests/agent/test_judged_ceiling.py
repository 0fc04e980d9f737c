"""Signed times move the time at which certificates are judged, but not beyond what no order key can say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import belonging
from agent.adapters.ed25519 import verify
from agent.adapters.system import SystemClock
from agent.identities import Identities
from agent.identity import Home, Identity
from agent.renewal import Introduction
from agent.trust import Trust
from tests.keys import root_of, root_sha256, sealed_root
from wire.messages import Desired

DAY_S = 86400.0


def at(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()


ISSUED_S, LIFE_S = at("2026-11-21"), 90 * DAY_S
NEVER, THIEF = "", "2999-01-01T00:00:00+00:00"
IDENTITY = Identity(
    device="roof-1", seed=bytes(32), public="ab" * 32, pem="pem", authorities_pem="pem",
    not_before_s=ISSUED_S, not_after_s=ISSUED_S + LIFE_S, signed_s=ISSUED_S,
    home=Home(url="https://fleet:8471", host="broker", port=8883, root="shallop/v1"),
)  # fmt: skip


def judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, clock: str, signed: str, enrolled: bool, root: str = ""
) -> str:
    """The day at which a device with that clock judges certificates."""
    monkeypatch.setattr("time.time", lambda: at(clock))
    trusted = Trust(folder, verify)
    begun = replace(root_of(), issued_at=root)
    trusted.pin(sealed_root(begun), root_sha256(begun))
    trusted.obey(Desired(device="roof-1", number=1, models={}, issued_at=signed))
    known = Introduction(Identities(folder), IDENTITY) if enrolled else None
    now_s = belonging.judged_time(trusted, known, SystemClock()).now_s()
    return datetime.fromtimestamp(now_s, UTC).date().isoformat()


@pytest.mark.parametrize(
    ("clock", "signed", "day"),
    [
        ("2026-12-01", NEVER, "2026-12-01"),
        ("1970-01-02", NEVER, "2026-11-21"),
        ("1970-01-02", "2026-12-24T00:00:00+00:00", "2026-12-24"),
        ("2026-12-01", THIEF, "2027-01-20"),
        ("1970-01-02", THIEF, "2027-01-20"),
        ("2027-02-01", THIEF, "2027-02-01"),
        ("2040-01-01", "2026-12-24T00:00:00+00:00", "2040-01-01"),
    ],
)
def test_an_enrolled_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str, signed: str, day: str
) -> None:
    assert judged(tmp_path, monkeypatch, clock=clock, signed=signed, enrolled=True) == day


@pytest.mark.parametrize(
    ("clock", "signed", "root", "day"),
    [
        ("2026-12-01", THIEF, "2026-11-01T00:00:00+00:00", "2026-12-01"),
        ("1970-01-02", "2026-12-24T00:00:00+00:00", "2026-11-01T00:00:00+00:00", "2026-12-24"),
        ("1970-01-02", THIEF, "2026-11-01T00:00:00+00:00", "2999-01-01"),
        ("2026-12-01", "2026-12-24T00:00:00+00:00", "", "2026-12-24"),
    ],
)
def test_a_device_with_a_root_and_tls_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str, signed: str, root: str, day: str
) -> None:
    assert judged(tmp_path, monkeypatch, clock=clock, signed=signed, root=root, enrolled=False) == day
