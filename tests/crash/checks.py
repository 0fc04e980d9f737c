"""What must be true of a state directory at every moment, and once a deployment is at rest.

For: judging what a crash left, from outside and by reading files only (DESIGN.md section 1).
Not for: making it so.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import StateError
from agent.journal import Journal, JournalFile
from agent.slots import ReleaseInfo, directory_name, file_sha256, placed
from tests.crash.device import Heard
from wire.bundle import Manifest
from wire.chunks import digest
from wire.messages import ContentFetched, OrderEnded, OrderOutcome, Phase, Report, Reported

MODEL = "digits"
KNOWN = {"blobs", "install.1", "install.json", "journal.1", "journal.json", "lock", "models", "reports",
         "requests", "reserve", "shards", "trials"}  # fmt: skip


def incomplete(directory: Path) -> str | None:
    """What is wrong with an installed release; None if every file is what the manifest says."""
    try:
        raw = (directory / "manifest.json").read_bytes()
        manifest = msgspec.json.decode(raw, type=Manifest)
        info = msgspec.json.decode((directory / "release.json").read_bytes(), type=ReleaseInfo)
        variant = manifest.variant(info.variant)
        if digest(raw) != info.digest or variant is None or directory.name != directory_name(info.slot):
            return f"{directory.name[:12]} is not the release that it says it is"
        for file in variant.files:
            if file_sha256(directory / placed(variant, file.path)) != file.sha256:
                return f"{file.path} of {directory.name[:12]} is damaged"
        for name in ("labels.json", "preprocessing.json"):
            msgspec.json.decode((directory / name).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        return f"{directory.name[:12]} is incomplete: {error}"
    return None


class Judge:
    """Follows one device through crashes and restarts.

    Args:
        root: the state directory.
        was_good: whether a release went through before it all began.
        harmed: the disk was damaged before it all began: a release may be incomplete until it is at rest.
        before: what the witness heard before.
    """

    def __init__(self, root: Path, *, was_good: bool, before: list[Heard], harmed: bool = False) -> None:
        self._root = root
        self._was_good = was_good
        self._before = before
        self._harmed = harmed
        self._highest = 0

    def standing(self, heard: list[Heard], *, at_rest: bool = False) -> list[str]:
        """What is wrong at this very moment."""
        wrong: list[str] = []
        model = self._root / "models" / MODEL
        tried = {h.what for h in (*self._before, *heard) if h.kind == "trialed"}
        for name in ("current", "previous"):
            link = model / name
            if not link.is_symlink():
                continue
            target = link.resolve()
            why = incomplete(target)
            if why and (at_rest or not self._harmed):
                wrong.append(f"{name}: {why}")
            if target.name[:64] not in tried:
                wrong.append(f"{name} is a release that passed no trial here")
        journal = self._journal(wrong)
        d = journal.models.get(MODEL) if journal else None
        good = self._was_good or (d is not None and d.phase is Phase.IDLE and d.active is not None)
        if good and not (model / "current").is_symlink():
            wrong.append("a device that had a good release has no current")
        highest = d.order_highest if d else 0
        said = max((_highest(h) for h in heard), default=0)
        if highest < max(self._highest, said):
            wrong.append(f"the highest order fell from {max(self._highest, said)} to {highest}")
        self._highest = max(highest, self._highest)
        return wrong

    def _journal(self, wrong: list[str]) -> Journal | None:
        try:
            return JournalFile(self._root).load()
        except StateError as error:
            wrong.append(f"the journal: {error}")
            return None

    def at_rest(self, heard: list[Heard], running: str | None, order: int, ends: OrderOutcome) -> list[str]:
        """What is wrong once the deployment is through: what runs, what was told, what was left."""
        wrong = [*self.standing(heard, at_rest=True), *self._left(), *numbers_reused(heard)]
        link = self._root / "models" / MODEL / "current"
        now = link.resolve().name[:64] if link.is_symlink() else None
        if now != running:
            wrong.append(f"{now and now[:12]} runs, {running and running[:12]} was to run")
        reports = [msgspec.json.decode(h.more, type=Report) for h in heard if h.what.endswith("/up/report")]
        told = {r.event.outcome for r in reports if r.order == order and isinstance(r.event, OrderEnded)}
        if ends not in told and not self._harmed:
            wrong.append(f"nobody was told that order {order} ended as {ends}, only {sorted(told)}")
        return wrong

    def _left(self) -> list[str]:
        """What a deployment must not leave behind."""
        wrong = [f"{p.name} is nobody's" for p in self._root.iterdir() if p.name not in KNOWN]
        for name in ("blobs", "shards", "trials", "requests"):
            folder = self._root / name
            if folder.is_dir():
                wrong += [f"{name}/{p.name} was left" for p in folder.iterdir()]
        journal = self._journal(wrong)
        d = journal.models.get(MODEL) if journal else None
        kept = {directory_name(slot) for slot in d.kept} if d else set()
        model = self._root / "models" / MODEL
        releases = model / "releases"
        if releases.is_dir():
            wrong += [f"releases/{p.name[-12:]} was left" for p in releases.iterdir() if p.name not in kept]
        if model.is_dir():
            names = {p.name for p in model.iterdir()} - {"releases", "current", "previous"}
            wrong += [f"{name} was left" for name in names]
        reports = (self._root / "reports").iterdir()
        wrong += [f"reports/{p.name} was left" for p in reports if p.suffix != ".acked"]
        return wrong


def _highest(heard: Heard) -> int:
    if not heard.what.endswith("/up/reported"):
        return 0
    known = msgspec.json.decode(heard.more, type=Reported).models.get(MODEL)
    return known.order_highest if known else 0


def came_by_delta(heard: Heard) -> bool:
    """Whether this is the report of content that came by deltas, each of which worked."""
    if not heard.what.endswith("/up/report"):
        return False
    event = msgspec.json.decode(heard.more, type=Report).event
    return (
        isinstance(event, ContentFetched) and bool(event.deltas) and not any(d.failure for d in event.deltas)
    )


def numbers_reused(heard: list[Heard]) -> list[str]:
    """Whether a report's number ever named two things, or another counter went back."""
    wrong: list[str] = []
    reports: defaultdict[int, set[str]] = defaultdict(set)
    last: dict[str, int] = {}
    for line in heard:
        if line.kind == "started":
            last["status before"] = last.get("status", 0)
        channel = line.what.rpartition("/up/")[2]
        if line.kind != "said" or channel not in {"report", "reported", "identity", "status"}:
            continue
        if channel == "report":
            reports[msgspec.json.decode(line.more, type=Report).number].add(line.more)
            continue
        value = msgspec.json.decode(line.more, type=dict[str, Any])["number"]
        counter = "status" if channel == "status" else "message"
        if value < last.get(counter, 0) or (counter == "message" and value == last.get(counter)):
            wrong.append(f"a {counter} number went from {last[counter]} to {value}")
        if counter == "status" and value <= last.get("status before", 0):
            wrong.append(f"connection {value} has the number of one before it")
        last[counter] = value
    wrong += [f"report {n} said {len(said)} different things" for n, said in reports.items() if len(said) > 1]
    given = sorted(reports)
    if given and given != list(range(given[0], given[-1] + 1)):
        wrong.append(f"the reports' numbers leave some out: {given}")
    return wrong
