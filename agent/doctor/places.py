"""PURE. Who may read and write what, and whether the state directory agrees with itself.

For: judging owners and modes, the journal, the slots and what was left behind.
Not for: looking (`agent.adapters.probe_places`), or repairing: the daemon does that when it starts.
"""

from __future__ import annotations

import stat
from typing import Literal

from msgspec import Struct

from agent.doctor.finding import Finding, amount, ok, problem, unknown, warning

Role = Literal["state", "config", "secret", "hook", "lock_dir", "live_dir", "socket"]


class Person(Struct, frozen=True, kw_only=True):
    """The user that the agent runs as, or would."""

    uid: int
    gids: tuple[int, ...] = ()
    name: str = ""


class PathFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        role: what the path is for.
        path: as configured.
        label: which one, where there are several.
        error: why it could not be looked at; "missing" where it is not there.
        mode: with the kind of file; 0 where it could not be looked at.
        uid: of its owner.
        gid: of its group.
    """

    role: Role
    path: str
    label: str = ""
    error: str = ""
    mode: int = 0
    uid: int = -1
    gid: int = -1


def may(person: Person, facts: PathFacts, bits: int) -> bool:
    """Whether `person` has all of `bits` (4 read, 2 write, 1 enter or run) by owner, group or others."""
    if person.uid == 0:
        return bool(bits & 1 == 0 or stat.S_ISDIR(facts.mode) or facts.mode & 0o111)
    if facts.uid == person.uid:
        have = facts.mode >> 6
    elif facts.gid in person.gids:
        have = facts.mode >> 3
    else:
        have = facts.mode
    return have & bits == bits


def permissions(paths: tuple[PathFacts, ...], person: Person) -> list[Finding]:
    """One line for each path that is wrong, else one for all."""
    found = [finding for facts in paths if (finding := _path(facts, person)) is not None]
    if found:
        return found
    who = person.name or f"user {person.uid}"
    return [ok("permissions", f"{len(paths)} paths are as {who} needs them")]


def _path(facts: PathFacts, person: Person) -> Finding | None:
    label = f":{facts.label}" if facts.label else ""
    name = f"permissions:{facts.role}{label}"
    if facts.error and facts.error != "missing":
        again = "run this as root or as the agent's user: `sudo shallop-agent doctor`"
        return unknown(name, f"{facts.path}: {facts.error}", again)
    return _RULES[facts.role](name, facts, person)


def _state(name: str, facts: PathFacts, person: Person) -> Finding | None:
    who = person.name or str(person.uid)
    if facts.error:
        fix = f"`install -d -m 0750 -o {who} {facts.path}`, or let systemd/install.sh do it"
        return warning(name, f"{facts.path} is not there yet; the agent makes it when it may", fix)
    if not may(person, facts, 7):
        fix = f"`chown -R {who} {facts.path}`; never run the agent as another user in between"
        return problem(
            name, f"{who} may not write {facts.path} (owner {facts.uid}, {facts.mode & 0o7777:04o})", fix
        )
    if facts.mode & 0o022 and not facts.mode & stat.S_ISVTX:
        return problem(
            name, f"others may write {facts.path} ({facts.mode & 0o7777:04o})", f"`chmod 0750 {facts.path}`"
        )
    return None


def _config(name: str, facts: PathFacts, person: Person) -> Finding | None:
    if facts.error or not may(person, facts, 4):
        who = person.name or str(person.uid)
        fix = f"`chgrp {who} {facts.path} && chmod 0640 {facts.path}`"
        return problem(name, f"{who} may not read {facts.path} ({facts.mode & 0o7777:04o})", fix)
    if facts.mode & 0o002:
        detail = (
            f"anybody may write {facts.path} ({facts.mode & 0o7777:04o}), hooks that run as the "
            "agent included"
        )
        return problem(name, detail, f"`chmod o-w {facts.path}`")
    return None


def _secret(name: str, facts: PathFacts, person: Person) -> Finding | None:
    if facts.error:
        return problem(
            name, f"{facts.path} is missing: the agent does not start", "write the password into it"
        )
    who = person.name or str(person.uid)
    if not may(person, facts, 4):
        fix = f"`chown root:{who} {facts.path} && chmod 0640 {facts.path}`"
        return problem(name, f"{who} may not read {facts.path} ({facts.mode & 0o7777:04o})", fix)
    if facts.mode & 0o007:
        fix = f"`chmod o= {facts.path}`, and change what is in it if others use this machine"
        return problem(name, f"anybody here may read {facts.path} ({facts.mode & 0o7777:04o})", fix)
    return None


def _hook(name: str, facts: PathFacts, person: Person) -> Finding | None:
    if facts.error:
        fix = "write its full path into `hooks`, or install it"
        return problem(name, f"{facts.path} is not there: every switch of this model fails", fix)
    if not stat.S_ISREG(facts.mode) or not may(person, facts, 1):
        detail = f"{facts.path} cannot be run ({facts.mode & 0o7777:04o}): every switch of this model fails"
        return problem(name, detail, f"`chmod +x {facts.path}`")
    if facts.mode & 0o002:
        return problem(
            name, f"anybody may change {facts.path}, which the agent runs", f"`chmod o-w {facts.path}`"
        )
    return None


def _lock_dir(name: str, facts: PathFacts, person: Person) -> Finding | None:
    if facts.error or not may(person, facts, 3):
        detail = f"the trial's lock cannot be made in {facts.path}: every trial waits"
        return problem(name, detail, "set `trial.lock_file` to a path that the agent may write")
    return None


def _live_dir(name: str, facts: PathFacts, _: Person) -> Finding | None:
    if facts.error:
        fix = "systemd/install.sh makes it at each start (tmpfiles.d); or `install -d -m 1777` it"
        return warning(name, f"{facts.path} is not there: applications cannot tell how they fare", fix)
    if facts.mode & 0o002 and not facts.mode & stat.S_ISVTX:
        detail = f"in {facts.path} one application may remove another's file ({facts.mode & 0o7777:04o})"
        return warning(name, detail, f"`chmod 1777 {facts.path}`")
    return None


def _socket(name: str, facts: PathFacts, person: Person) -> Finding | None:
    start = "`systemctl enable --now shallop-worker.socket`, or remove `trial.socket`"
    if facts.error:
        return problem(name, f"{facts.path} is not there: no trial can run", start)
    if not stat.S_ISSOCK(facts.mode):
        return problem(name, f"{facts.path} is no socket: no trial can run", start)
    if not may(person, facts, 6):
        who = person.name or str(person.uid)
        detail = f"{who} may not use {facts.path} ({facts.mode & 0o7777:04o})"
        return problem(name, detail, f"`usermod -aG shallop {who}`; the socket belongs to that group")
    return None


_RULES = {
    "state": _state, "config": _config, "secret": _secret, "hook": _hook, "lock_dir": _lock_dir,
    "live_dir": _live_dir, "socket": _socket,
}  # fmt: skip


class SlotFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        model: its name.
        expected: directory that the journal wants `current` to point to; None for none.
        pointed: directory that it points to; None for none.
        in_flight: a phase that may change it at any moment.
        readable: whether `release.json` there can be read.
        whole: whether the model file has its hash; None where it was not read.
    """

    model: str
    expected: str | None
    pointed: str | None
    in_flight: bool = False
    readable: bool = True
    whole: bool | None = None


class StateFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        path: the state directory.
        exists: whether it is there.
        error: why the journal cannot be read; empty where it can.
        error_code: its name.
        notes: what was wrong with a copy.
        journal: whether there is one.
        slots: of each model.
        leftovers: name and size of what nothing refers to.
        busy: whether an agent is at work, whose business the leftovers are.
    """

    path: str
    exists: bool = True
    error: str = ""
    error_code: str = ""
    notes: tuple[str, ...] = ()
    journal: bool = True
    slots: tuple[SlotFacts, ...] = ()
    leftovers: tuple[tuple[str, int], ...] = ()
    busy: bool = False


def state(facts: StateFacts) -> list[Finding]:
    """The journal, each model's `current`, and what lies around."""
    if not facts.exists:
        return [unknown("journal", f"the agent has never run with {facts.path}")]
    found = [_journal(facts), *(_slot(slot) for slot in facts.slots)]
    if facts.leftovers and not facts.busy:
        size, names = sum(size for _, size in facts.leftovers), [name for name, _ in facts.leftovers]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        detail = f"{amount(size)} that nothing refers to: {shown}"
        found.append(
            warning("leftovers", detail, "the agent removes them when it starts or ends its next order")
        )
    return found


def _journal(facts: StateFacts) -> Finding:
    name = "journal"
    if facts.error_code == "journal_version":
        return problem(name, facts.error, "install the newer version of shallop again")
    if facts.error_code == "journal_lost":
        fix = (
            "start the agent: it rebuilds the journal from the slots, and what runs keeps "
            "running; check the disk (`dmesg`)"
        )
        return problem(name, facts.error, fix)
    if facts.error:
        return unknown(
            name, facts.error, "run this as root or as the agent's user: `sudo shallop-agent doctor`"
        )
    if facts.notes:
        fix = (
            "nothing by hand: the copy before it is used and the next save replaces it; check the "
            "disk (`dmesg`)"
        )
        return warning(name, "; ".join(facts.notes), fix)
    if not facts.journal:
        return ok(name, "none yet: no order was ever taken here")
    return ok(name, f"readable, {len(facts.slots)} model{'' if len(facts.slots) == 1 else 's'}")


def _slot(slot: SlotFacts) -> Finding:
    name = f"slots:{slot.model}"
    if slot.in_flight:
        return ok(name, "an order is in flight")
    restart = "restart the agent: it points `current` to what the journal says"
    if slot.pointed != slot.expected:
        detail = (
            f"`current` points to {slot.pointed or 'nothing'}, the journal says {slot.expected or 'nothing'}"
        )
        return problem(name, detail, restart)
    if slot.expected is None:
        return ok(name, "nothing runs")
    if not slot.readable:
        fix = f"order the release again, or `shallop-agent rollback {slot.model}`"
        return problem(name, f"{slot.expected} has no readable release.json", fix)
    if slot.whole is False:
        fix = f"`shallop-agent rollback {slot.model}`, order the release again, and check the disk (`dmesg`)"
        return problem(name, f"the model file in {slot.expected} is not what was installed", fix)
    checked = "its hash is right" if slot.whole else "its hash was not read"
    return ok(name, f"`current` is {slot.expected[:12]}, {checked}")
