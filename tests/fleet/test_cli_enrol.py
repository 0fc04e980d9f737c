"""What a person sees of enrolment: the token with what to do with it, its QR code, marks on devices."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import segno
from click.testing import CliRunner

from fleet import cli_enrol
from fleet.adapters import console, console_enrolment, console_trust
from fleet.cli import main
from fleet.config import ConfigError, load
from fleet.enrolment_views import CertificateView, DeviceTrust, TokenShow, device_trust
from fleet.enrolments import Held, Revocation
from fleet.inventory import Device
from fleet.views import device_view
from tests.wire.test_enrolment import TOKEN
from wire.enrolment import write_token

NOW = 1_700_000_000.0
DAY_S = 86_400.0
TEXT = write_token(TOKEN)
SHOWN = TokenShow(id="en-1", device="roof-17", token=TEXT, url=TOKEN.url, expires_at=NOW)


def test_a_token_comes_with_what_to_type() -> None:
    words = "\n".join(console_enrolment.token_words(SHOWN))
    assert f"sudo shallop-agent enrol {TEXT}" in words
    assert "before 2023-11-14 22:13:20 UTC" in words
    assert "revoked" not in words
    assert "certificate" not in words


def test_a_token_says_what_using_it_ends() -> None:
    back = TokenShow(
        id="en-1",
        device="roof-17",
        token=TEXT,
        url=TOKEN.url,
        expires_at=NOW,
        reinstates="stolen",
        replaces=True,
    )
    words = "\n".join(console_enrolment.token_words(back))
    assert "was revoked (stolen)" in words
    assert "has a certificate; using this token ends it" in words


def modules(drawn: str) -> list[list[bool]]:
    """The dark modules of a drawn code, row by row."""
    rows = []
    for line in drawn.splitlines():
        cells = re.sub(r"\x1b\[[0-9;]*m", "", line)
        rows.append([cell in "▀█" for cell in cells])
        rows.append([cell in "▄█" for cell in cells])
    return rows


def test_the_qr_code_is_the_tokens_and_stands_in_its_quiet_zone() -> None:
    drawn = modules(console_enrolment.qr_text(TEXT))
    code = [
        [bool(cell) for cell in row]
        for row in segno.make(TEXT, error="l", micro=False, boost_error=False).matrix
    ]
    size = len(code)
    assert [row[4 : 4 + size] for row in drawn[4 : 4 + size]] == code
    assert {len(row) for row in drawn} == {size + 8}
    border = [*drawn[:4], *drawn[4 + size :], *(row[:4] + row[4 + size :] for row in drawn)]
    assert not any(cell for row in border for cell in row)
    assert size + 8 <= 80, "a usual terminal is wide enough"


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("15m", 900.0), ("24h", 86400.0), ("30d", 30 * DAY_S)]
)
def test_durations(text: str, seconds: float) -> None:
    assert cli_enrol._Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "59s", "31d", "1y", "24h ", "9999999999s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    if text == "24h ":
        assert cli_enrol._Duration().convert(text, None, None) == DAY_S
        return
    with pytest.raises(click.BadParameter):
        cli_enrol._Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["enrol"], "Commands:"),
        (["enrol", "--help"], "cancel"),
        (["enrol", "make", "--help"], "--qr"),
        (["enrol", "--qr", "--help"], "--valid"),
        (["enrol", "make"], "say a DEVICE, or --from FILE"),
        (["enrol", "roof-17", "--from", "x"], "say a DEVICE, or --from FILE"),
        (["enrol", "--from", "/nowhere/at/all"], "list_unreadable"),
        (["enrol", "Roof 17"], "no_device_id"),
        (["enrol", "make", "list", "--server", "http://127.0.0.1:1"], "server_unreachable"),
        (["enrol", "roof-17", "--server", "http://127.0.0.1:1"], "server_unreachable"),
        (["enrol", "--valid", "1h", "roof-17", "--server", "http://127.0.0.1:1"], "server_unreachable"),
        (["devices", "revoke", "roof-17", "--server", "http://127.0.0.1:1"], "server_unreachable"),
    ],
)
def test_the_words_of_the_command(words: list[str], says: str) -> None:
    result = CliRunner().invoke(main, words)
    assert says in result.output + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_list_is_read_whole_before_anything_is_made(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("a\n#\n b # c\na\n")
    assert cli_enrol._listed(listed) == ["a", "b"]
    for bad in ("a\nB\n", "a b\n", "\n#x\n", "a\n" * 5_000_000, "ä\n"):
        listed.write_text(bad)
        with pytest.raises(ConfigError) as told:
            cli_enrol._listed(listed)
        assert told.value.code == "list_unreadable"


# --- devices ------------------------------------------------------------------------------------------


def trust(end_days: float, revoked_at: float | None = None) -> DeviceTrust:
    start = NOW + (end_days - 90) * DAY_S
    held = Held(
        serial="ab" * 10, device="d", public="", issued_at=start, not_before=start, pem="",
        not_after=start + 90 * DAY_S, revoked_at=revoked_at,
    )  # fmt: skip
    revocation = None if revoked_at is None else Revocation(device="d", at=revoked_at, why="stolen")
    return device_trust(held, revocation, NOW)


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [
        (DeviceTrust(), []),
        (trust(60), []),
        (trust(10), ["certificate ends in 10 days"]),
        (trust(1), ["certificate ends in 24 h"]),
        (trust(-3), ["certificate ended 3 days ago"]),
        (trust(60, NOW), ["REVOKED"]),
    ],
)
def test_what_is_marked_in_the_list_of_devices(trusted: DeviceTrust, expected: list[str]) -> None:
    view = device_view(Device(id="d"), trusted)
    assert console_trust.marks(view, NOW) == expected
    assert console.devices_table([view]).row_count == 1


def test_one_device_tells_of_its_certificate() -> None:
    facts = dict(console_trust.trust_facts(device_view(Device(id="d"), trust(60, NOW)), NOW))
    assert facts["REVOKED"] == "2023-11-14 22:13:20 UTC: stolen"
    assert facts["certificate"].startswith("abababababab, revoked, ")
    late = dict(console_trust.trust_facts(device_view(Device(id="d"), trust(10)), NOW))
    assert "should have been renewed" in late["certificate"]
    assert console_trust.trust_facts(device_view(Device(id="d")), NOW) == []
    assert console.device_tables(device_view(Device(id="d"), trust(60)))
    assert isinstance(trust(60).certificate, CertificateView)


# --- configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"enrol_listen": "0.0.0.0:8471"}, "enrol_hosts_missing"),
        ({"enrol_listen": "8471", "enrol_hosts": ["a"]}, "listen_malformed"),
        ({"enrol_listen": "h:99999", "enrol_hosts": ["a"]}, "listen_malformed"),
        ({"enrol_broker": "broker"}, "listen_malformed"),
        ({"certificate_days": 0}, "config_malformed"),
        ({"enrol_hosts": "a"}, "config_malformed"),
        ({"enrol_listens": "a:1"}, "config_malformed"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(keys: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(None, keys)
    assert told.value.code == code


def test_what_devices_are_told_of_the_registry() -> None:
    config = load(None, {"enrol_listen": "0.0.0.0:8471", "enrol_hosts": ["fleet.example", "2001:db8::7"]})
    assert config.enrol_address == ("0.0.0.0", 8471)
    assert config.enrol_address_told(8471) == "https://fleet.example:8471"
    assert config.broker_told == ("fleet.example", 8883)
    six = load(
        None, {"enrol_listen": "[::]:0", "enrol_hosts": ["2001:db8::7"], "enrol_broker": "[2001:db8::8]:8884"}
    )
    assert six.enrol_address == ("::", 0)
    assert six.enrol_address_told(5) == "https://[2001:db8::7]:5"
    assert six.broker_told == ("2001:db8::8", 8884)
    outside = {
        "enrol_listen": "0.0.0.0:8471",
        "enrol_hosts": ["a.example"],
        "enrol_url": "https://a.example:443",
    }
    assert load(None, outside).enrol_address_told(8471) == "https://a.example:443"
    for url in ("https://b.example:443", "http://a.example:443", "https://a.example"):
        with pytest.raises(ConfigError, match="enrol_url"):
            load(None, {**outside, "enrol_url": url}).enrol_address_told(8471)
