"""Looks at owners, modes, journal and slots for `shallop-agent doctor`.

For: facts, without changing anything and without taking the agent's lock.
Not for: judging them (`agent.doctor.places`).
"""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

from agent.adapters.locks import StateLock, state_lock_held
from agent.adapters.probe_machine import size_bytes
from agent.config import Config
from agent.deployment import Deployment
from agent.doctor.places import PathFacts, Person, Role, SlotFacts, StateFacts
from agent.errors import StateError
from agent.journal import JournalFile
from agent.slots import GONE, PART, Slots, directory_name, file_sha256
from wire.messages import Phase

USER = "shallop"
"""That the units under systemd/ run the agent as."""
HASHED_BYTES_MAX = 512 * 1024 * 1024


def person(state_dir: Path) -> Person:
    """The user of the running agent, else the service's, else the owner of what is there, else this one."""
    uid = _uid_of_agent(state_dir)
    if uid is None:
        try:
            uid = pwd.getpwnam(USER).pw_uid
        except KeyError:
            uid = state_dir.stat().st_uid if state_dir.is_dir() else os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Person(uid=uid)
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Person(uid=uid, gids=groups, name=entry.pw_name)


def _uid_of_agent(state_dir: Path) -> int | None:
    if not state_lock_held(state_dir):
        return None
    holder = StateLock(state_dir).holder()
    try:
        return None if holder is None else Path(f"/proc/{holder}").stat().st_uid
    except OSError:
        return None


def paths(config: Config, config_path: Path) -> tuple[PathFacts, ...]:
    """Everything that the agent needs to read, write or run."""
    found = [
        look("config", str(config_path)),
        look("state", config.state_dir),
        look("lock_dir", str(config.trial.lock_path().parent)),
    ]
    files = [config.broker.password_file]
    if config.broker.tls is not None:
        files.append(config.broker.tls.key_file)
    found += [look("secret", path) for path in files if path is not None]
    for model, hook in sorted(config.hooks.items()):
        for label, command in (("activate", hook.activate), ("health", hook.health)):
            if command:
                program = shutil.which(command[0]) or command[0]
                found.append(look("hook", program, f"{model}/{label}"))
    found.append(look("live_dir", config.live_dir))
    if config.trial.socket is not None:
        found.append(look("socket", config.trial.socket))
    return tuple(found)


def look(role: Role, path: str, label: str = "") -> PathFacts:
    """One path, symlinks followed."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return PathFacts(role=role, path=path, label=label, error="missing")
    except OSError as error:
        return PathFacts(role=role, path=path, label=label, error=error.strerror or str(error))
    return PathFacts(
        role=role, path=path, label=label, mode=status.st_mode, uid=status.st_uid, gid=status.st_gid
    )


def state(state_dir: Path) -> StateFacts:
    """The journal and what it names, in one look; a switch in between shows as in flight."""
    try:
        if not state_dir.is_dir():
            return StateFacts(path=str(state_dir), exists=False)
        file = JournalFile(state_dir)
        journal = file.load()
        busy = state_lock_held(state_dir) is not False
        models = journal.models if journal else {}
        in_flight = busy or any(d.phase is not Phase.IDLE for d in models.values())
        slots = tuple(_slot(state_dir, d, may_move=busy) for _, d in sorted(models.items()))
        left = () if in_flight else tuple(_leftovers(state_dir, models))
    except StateError as error:
        return StateFacts(path=str(state_dir), error=str(error), error_code=error.code)
    except OSError as error:
        return StateFacts(path=str(state_dir), error=str(error))
    return StateFacts(
        path=str(state_dir),
        notes=tuple(file.notes),
        journal=journal is not None,
        slots=slots,
        leftovers=left,
        busy=busy,
    )


def _slot(state_dir: Path, d: Deployment, *, may_move: bool) -> SlotFacts:
    expected = directory_name(d.current) if d.current else None
    if not (state_dir / "models").is_dir():
        return SlotFacts(model=d.model, expected=expected, pointed=None)
    slots = Slots(state_dir / "models")
    pointed = slots.pointed(d.model)
    info = slots.info(d.model, expected) if expected else None
    whole = None
    if info is not None and expected is not None:
        model_file = state_dir / "models" / d.model / "releases" / expected / info.model_file
        if model_file.is_file() and model_file.stat().st_size > HASHED_BYTES_MAX:
            whole = None
        else:
            whole = model_file.is_file() and file_sha256(model_file) == info.model_sha256
    return SlotFacts(
        model=d.model,
        expected=expected,
        pointed=pointed,
        in_flight=may_move and d.phase is not Phase.IDLE,
        readable=info is not None or expected is None,
        whole=whole,
    )


def _leftovers(state_dir: Path, models: dict[str, Deployment]) -> list[tuple[str, int]]:
    """What neither the journal names nor an idle agent keeps."""
    keep = {name: {directory_name(slot) for slot in d.kept} for name, d in models.items()}
    found = []
    for entry in sorted((state_dir / "models").glob("*/releases/*")):
        model = entry.parts[-3]
        half = entry.name.endswith((PART, GONE))
        if half or entry.name not in keep.get(model, {entry.name}):
            found.append(entry)
    found += [*sorted((state_dir / "trials").glob("trial-*")), *sorted(state_dir.glob("shallop-doctor-*"))]
    found += [*sorted((state_dir / "blobs").glob("*")), *sorted((state_dir / "shards").glob("*"))]
    return [
        (str(path.relative_to(state_dir)), size_bytes(path) if path.is_dir() else path.lstat().st_size)
        for path in found
    ]
