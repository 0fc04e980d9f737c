"""What a person sees of a device's certificate and revocation, and of a registry whose database went back.

For: the marks in the list of devices, the facts of one, and the end of `health`.
Not for: tables (`fleet.adapters.console`), or tokens (`fleet.adapters.console_enrolment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from fleet.views import DeviceView

DAY_S = 86400.0


def moment(at: float) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def marks(device: DeviceView, now: float) -> list[str]:
    """What a person should notice about a device; empty where all is well."""
    found = ["two machines!"] if device.duplicate_identity else []
    trust = device.trust
    if trust.revoked_at is not None:
        return [*found, "REVOKED"]
    if trust.certificate is not None and trust.certificate.overdue:
        found.append(f"certificate {_end(trust.certificate.not_after, now)}")
    return found


def trust_facts(device: DeviceView, now: float) -> list[tuple[str, str]]:
    """Rows about a device's certificate; none for one that never enrolled."""
    trust, rows = device.trust, []
    if trust.revoked_at is not None:
        rows.append(("REVOKED", f"{moment(trust.revoked_at)}: {trust.revoked_why or 'no reason was given'}"))
    if trust.certificate is not None:
        one = trust.certificate
        says = "revoked" if one.state == "revoked" else _end(one.not_after, now)
        late = "; it should have been renewed by now" if one.overdue else ""
        rows.append(("certificate", f"{one.serial[:12]}, {says}, {moment(one.not_after)}{late}"))
    return rows


def _end(not_after: float, now: float) -> str:
    days = (not_after - now) / DAY_S
    if days < 0:
        return f"ended {-days:.0f} days ago"
    return f"ends in {days:.0f} days" if days >= 2 else f"ends in {days * 24:.0f} h"


def restored_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What `health` says of a database that went back (`fleet.recalled.RestoredHealth`)."""
    left = found["left"]
    if found["entry"]:
        yield f"RESTORED: {found['at']}: this database is older than it was (audit entry {found['entry']})"
    yield f"  {found['found']}" if found["found"] else "  devices say that this database is older than it was"
    yield from (f"  TO DO: {line}" for line in left)
    if found["entry"] and not left:
        yield "  nothing is left to do that it knows of; what it cannot know: docs/operate.md, 9"
