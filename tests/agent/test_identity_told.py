"""What `doctor`, `status` and the command line say of an identity."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import cli, status_view
from agent.adapters import ed25519
from agent.adapters.probe_identity import files
from agent.config import Config
from agent.doctor.finding import Status
from agent.doctor.identity import IdentityFiles, identity
from agent.identities import CURRENT, Identities, PendingEnrolment
from agent.identity import Home, Identity
from agent.statusing import Board, IdentityNote, read
from tests.agent.twins import TestClock
from wire.messages import Reason

DAY_S = 86400.0
WELL = IdentityFiles(
    there=True, device="roof-17", url="https://registry:8471", not_before_s=0.0, not_after_s=90 * DAY_S,
    now_s=10 * DAY_S, registry="",
)  # fmt: skip


def judged(**fields: object) -> list[tuple[str, Status, str, str]]:
    return [(f.name, f.status, f.detail, f.remedy) for f in identity(replace(WELL, **fields))]


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({}, Status.OK, "ends 1970-04-01"),
        ({"overruled": ("host", "tls")}, Status.OK, "broker.host, broker.tls"),
        ({"there": None, "error": "denied"}, Status.UNKNOWN, "denied"),
        ({"there": False}, Status.UNKNOWN, "not enrolled"),
        ({"there": False, "waits": True}, Status.WARNING, "waits"),
        ({"error": "torn"}, Status.PROBLEM, "torn"),
        ({"open_to": ("/x/identity.pem",)}, Status.PROBLEM, "/x/identity.pem"),
        ({"refused": "revoked: stolen"}, Status.PROBLEM, "stolen"),
        ({"now_s": 90 * DAY_S}, Status.PROBLEM, "has ended"),
        ({"now_s": 68 * DAY_S}, Status.WARNING, "should have been renewed"),
        ({"now_s": 67 * DAY_S}, Status.OK, "is renewed by"),
        ({"not_before_s": 20 * DAY_S}, Status.PROBLEM, "begins"),
    ],
)
def test_doctor_says_what_to_do_about_an_identity(
    fields: dict[str, object], status: Status, says: str
) -> None:
    name, found, detail, remedy = judged(**fields)[0]
    assert (name, found) == ("identity", status)
    assert says in detail
    assert bool(remedy) == (status is not Status.OK)


@pytest.mark.parametrize(
    ("registry", "status"), [("", Status.OK), ("nobody there", Status.WARNING), (None, Status.UNKNOWN)]
)
def test_doctor_tries_the_enrolments_address(registry: str | None, status: Status) -> None:
    name, found, detail, _ = judged(registry=registry)[1]
    assert (name, found) == ("enrolment", status)
    assert (registry or "") in detail


def test_a_key_that_others_can_read_is_found(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    seed = bytes(32)
    identities.save(
        Identity(
            device="roof-17", seed=seed, public=ed25519.public_of(seed).hex(), pem="x", authorities_pem="y",
            not_before_s=0.0, not_after_s=1.0, home=Home(url="https://h:1", host="h", port=1, root="r"),
        )
    )  # fmt: skip
    found = files(Config(), tmp_path, lambda: 0.0)
    assert "authorities_unusable" in found.error
    path = identities.path(CURRENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "device_differs" in files(Config(device="cellar-1"), tmp_path, lambda: 0.0).error


def test_status_shows_who_the_device_is_and_why_it_is_refused() -> None:
    why = Reason(code="revoked", detail="stolen\x1b[2J")
    shown = status_view.IdentityPicture(
        device="roof-17", ends_at="2027-01-01T00:00:00+00:00", renewed_at="2026-11-01", due_at="2026-12-01",
        renewal="resting", failures=2, why=why, overruled=("port",),
    )  # fmt: skip
    text = status_view.text(status_view.Picture(device="roof-17", broker="b:1", running=True, identity=shown))
    assert "ends 2027-01-01" in text
    assert "revoked: stolen?[2J" in text
    assert "after 2 failures in a row" in text
    assert "broker.port" in text
    broken = status_view.IdentityPicture(error="identity_damaged")
    text = status_view.text(status_view.Picture(device=None, broker="b:1", running=None, identity=broken))
    assert "identity  unknown: identity_damaged" in text


def test_the_agents_notes_hold_identity_and_the_latest_reason(tmp_path: Path) -> None:
    board = Board(tmp_path, TestClock())
    board.connection(up=False, detail="first")
    board.connection(up=False, detail="second")
    board.identity(IdentityNote(phase="resting", ends_at="a", due_at="b"))
    noted = read(tmp_path)
    assert noted is not None
    assert noted.identity is not None
    assert (noted.detail, noted.identity.ends_at) == ("second", "a")
    board.connection(up=False)
    again = read(tmp_path)
    assert again is not None
    assert again.detail == "second"


# --- the command line ---------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(f"state_dir: {tmp_path / 'state'}\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "token_unreadable"), (["x", "--token-file", "y"], "token_unreadable"),
        (["--token-file", "/none"], "token_unreadable"), (["shallop1.AAAA"], "token_malformed"),
        (["-"], "token_malformed"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_meant_asks_nobody(
    config: Path,
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("junk\n"))
    assert cli.main(["enrol", *arguments, "--config", str(config)]) == 2
    assert says in capsys.readouterr().err
    assert not (config.parent / "state").exists()


def test_a_pending_enrolment_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    identities = Identities(tmp_path)
    identities.enrol(ed25519, "t")
    assert not identities.complete
    identities.answered(PendingEnrolment(token="t", seed=bytes(32)), b"x")
    assert identities.enrolling() is not None
    identities.path("enrolling.json").write_bytes(b"torn")
    assert identities.enrolling() is None
