"""What `shallop-agent doctor` finds out about this device's identity.

For: its files, their modes, whether key and certificate fit, and one request to the enrolment's address.
Not for: judging it (`agent.doctor.identity`).
"""

from __future__ import annotations

import stat
from pathlib import Path

from agent import belonging, statusing, tls
from agent.adapters.registry_https import HttpsRegistry
from agent.config import Config
from agent.doctor.identity import IdentityFiles
from agent.errors import ConfigError, StateError
from agent.identities import CURRENT, Identities
from wire.enrolment import CA_PATH
from wire.errors import ShallopError


def files(config: Config, state_dir: Path, at_s: tls.JudgedAt) -> IdentityFiles:
    """Everything about the identity; `config` as it was read, without the enrolment."""
    identities, now_s = Identities(state_dir), at_s()
    path = identities.path(CURRENT)
    try:
        waits = identities.path("enrolling.json").exists() and identities.complete
        there = path.exists()
    except OSError as error:
        return IdentityFiles(there=None, error=str(error), now_s=now_s)
    if not there:
        return IdentityFiles(there=False, waits=waits, now_s=now_s)
    try:
        found = identities.read()
        if found is None:
            return IdentityFiles(there=False, waits=waits, now_s=now_s)
        belonging.require_device(config, found.device)
        tls.require_usable(found)
    except (StateError, ConfigError) as error:
        unreadable = error.code == "identity_unreadable"
        return IdentityFiles(there=None if unreadable else True, error=str(error), waits=waits, now_s=now_s)
    noted = statusing.read(state_dir)
    note = noted.identity if noted is not None and not noted.connected else None
    refused = f"{note.why.code}: {note.why.detail}" if note is not None and note.why else ""
    return IdentityFiles(
        there=True, device=found.device, url=found.home.url, not_before_s=found.not_before_s,
        not_after_s=found.not_after_s, now_s=now_s, open_to=_open_to(identities), waits=waits,
        overruled=belonging.overruled(config, found), refused=refused,
        registry=_registry(found.home.url, found.authorities_pem, at_s),
    )  # fmt: skip


def _open_to(identities: Identities) -> tuple[str, ...]:
    """Files with a key in them, and their folder, that others may use."""
    found = [identities.folder, *(p for p in sorted(identities.folder.iterdir()) if p.name != "lock")]
    return tuple(str(path) for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077)


def _registry(url: str, authorities_pem: str, at_s: tls.JudgedAt) -> str:
    """Why the enrolment's address cannot be used; a question that changes nothing there."""
    try:
        status, _ = HttpsRegistry(at_s, whole_s_max=10.0).get(url, CA_PATH, authorities_pem)
    except ShallopError as error:
        return str(error)
    return "" if status == 200 else f"{url} answers {status}"
