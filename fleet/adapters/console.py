"""What the command line prints, on rich: tables, progress and the words for unknown figures.

For: one look for every command, and JSON in its place where asked for.
Not for: calling the registry, or exit codes (`fleet.cli`).
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from fleet.adapters.console_trust import marks, trust_facts
from fleet.audit import AuditEntry
from fleet.bars import BarsShow
from fleet.tokens import TokenView
from fleet.views import DeviceLine, DeviceView, ReleaseView, RollbackShow, RolloutShow, RolloutView

T = TypeVar("T")

UNKNOWN = "unknown"
WIDTH_WITHOUT_TERMINAL = 180


def console() -> Console:
    """Standard output; wide where it is no terminal, so that nothing is cut in a file."""
    plain = not sys.stdout.isatty()
    return Console(width=WIDTH_WITHOUT_TERMINAL if plain else None, highlight=False, soft_wrap=plain)


def print_json(value: object) -> None:
    """The value as JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def figure(value: float | None, form: str = "{:.2f}", unit: str = "") -> str:
    """A figure, or that it is unknown."""
    return UNKNOWN if value is None else form.format(value) + unit


def size(size_bytes: int | None) -> str:
    """Bytes in KB or MB."""
    if size_bytes is None:
        return UNKNOWN
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} KB"


def ago(at: float | None) -> str:
    """How long ago."""
    if at is None:
        return "never"
    seconds = max(0.0, time.time() - at)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def utc(at: float) -> str:
    """A moment, as people and logs write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")


def harmless(text: str) -> str:
    """Words of a device without what would move a terminal's cursor, set its title or hide other words."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(harmless(cell)) for cell in row))
    return table


def releases_table(releases: Sequence[ReleaseView]) -> Table:
    """Releases."""
    rows = [
        (r.model, r.release, r.state, size(r.size_bytes), str(len(r.variants)), r.target, r.digest[:12])
        for r in releases
    ]
    return _table(("model", "release", "state", "size", "variants", "target", "digest"), rows)


def tokens_table(tokens: Sequence[TokenView]) -> Table:
    """Tokens."""
    rows = [
        (
            token.id,
            token.name,
            ", ".join(token.scopes),
            token.state,
            ago(token.used_at),
            "never" if token.expires_at is None else utc(token.expires_at),
            f"{token.created_by}, {ago(token.created_at)}",
        )
        for token in tokens
    ]
    return _table(("id", "name", "scopes", "state", "used", "expires", "made by"), rows)


def bars_table(show: BarsShow) -> Table:
    """Barred releases."""
    rows = [(row.release, row.digest, utc(row.at), row.who, row.why) for row in show.barred]
    title = f"list {show.number}" if show.number else "nothing was ever barred"
    return _table(("release", "digest", "since", "by", "why"), rows, title)


def audit_table(entries: Sequence[AuditEntry]) -> Table:
    """Entries of the audit log."""
    rows = [
        (str(entry.number), utc(entry.at_ms / 1000), entry.who, entry.what, entry.subject, entry.why)
        for entry in entries
    ]
    return _table(("", "when", "who", "what", "subject", "why"), rows)


def devices_table(devices: Sequence[DeviceView]) -> Table:
    """Devices with what they run."""
    rows = []
    for device in devices:
        runs = ", ".join(
            f"{model}@{state.active.release}" if state.active else f"{model}: none"
            for model, state in sorted(device.models.items())
        )
        flags = ", ".join(marks(device, time.time()))
        labels = ",".join(f"{key}={value}" for key, value in sorted(device.labels.items()))
        rows.append(
            (
                device.device,
                "online" if device.online else "offline",
                ago(device.seen_at),
                device.arch or UNKNOWN,
                runs or "nothing",
                ",".join(device.groups),
                labels,
                flags,
            )
        )
    return _table(("device", "state", "seen", "arch", "runs", "groups", "labels", ""), rows)


def device_tables(device: DeviceView) -> list[Table]:
    """One device: what it is, then each model."""
    facts = [
        ("state", "online" if device.online else "offline"),
        ("seen", ago(device.seen_at)),
        *trust_facts(device, time.time()),
        ("board", device.board or UNKNOWN),
        ("arch", device.arch or UNKNOWN),
        ("cores", UNKNOWN if device.cores is None else str(device.cores)),
        ("memory", size(device.memory_bytes)),
        ("agent", device.agent_version or UNKNOWN),
        ("runtimes", ", ".join(device.runtimes) or UNKNOWN),
        ("free disk", size(device.disk_free_bytes)),
        ("groups", ", ".join(device.groups)),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(device.labels.items()))),
        ("identity", "two machines answer under this id" if device.duplicate_identity else "unique"),
    ]
    rows = []
    for model, state in sorted(device.models.items()):
        latency = None if state.trial is None else state.trial.result.latency
        rows.append(
            (
                model,
                state.active.release if state.active else "none",
                state.active.variant if state.active else "",
                state.previous.release if state.previous else "none",
                state.phase.value,
                state.outcome.value if state.outcome else "",
                figure(None if latency is None else latency.ms_p95, "{:.2f}", " ms"),
                "" if state.reason is None else f"{state.reason.code}: {state.reason.detail}",
            )
        )
    columns = ("model", "active", "variant", "previous", "phase", "last outcome", "latency p95", "reason")
    tables = [_table(("", device.device), facts), _table(columns, rows)]
    return [*tables, _live_table(device)] if device.live else tables


def _live_table(device: DeviceView) -> Table:
    """What the applications count themselves since the switch."""
    columns = ("live", "told", "inferences", "p50", "p95", "slower", "confidence", "shift (PSI)", "drift")
    rows = []
    for model, seen in sorted(device.live.items()):
        told = seen.figures
        rows.append(
            (
                model,
                ago(seen.seen_at),
                str(max(told.latency_n, told.confidence_n)),
                figure(told.latency_ms_p50, "{:.2f}", " ms"),
                figure(told.latency_ms_p95, "{:.2f}", " ms"),
                figure(told.latency_ratio, "{:.2f}", " x"),
                figure(told.confidence_mean, "{:.3f}", ""),
                figure(told.confidence_psi, "{:.3f}", ""),
                UNKNOWN if told.drift is None else ", ".join(told.drifted) or "no",
            )
        )
    return _table(columns, rows)


def rollouts_table(rollouts: Sequence[RolloutView]) -> Table:
    """Rollouts."""
    rows = [
        (
            r.id,
            f"{r.model}@{r.release}",
            r.state,
            _wave(r),
            str(r.devices),
            ago(r.created_at),
            r.waiting_for or r.reason,
        )
        for r in rollouts
    ]
    return _table(("rollout", "release", "state", "wave", "devices", "made", "why"), rows)


def _wave(rollout: RolloutView) -> str:
    count = rollout.waves.count(",") + 1
    return f"- of {count}" if rollout.wave is None else f"{rollout.wave + 1} of {count}"


def rollout_tables(show: RolloutShow) -> list[Table | str]:
    """One rollout: its state, its devices, its gate, and the way back."""
    lines = _table(
        (
            "device", "wave", "phase", "outcome", "variant", "p50", "p95", "of old",
            "accuracy", "agreement", "power", "reason",
        ),
        [_device_row(line) for line in show.devices],
    )  # fmt: skip
    parts: list[Table | str] = [rollouts_table([show.rollout]), *_people(show.rollout), "", lines]
    if show.gate:
        parts += ["", _table(("gate", "says", "because"), show.gate)]
    if show.left_out:
        parts += ["", _table(("left out", "because"), sorted(show.left_out.items()))]
    ready = show.rollback
    parts += [
        "",
        "Ready rollback, also while the registry is down:",
        "  " + shlex.join(["mosquitto_pub", *ready.broker, "-q", "1", "-t", ready.topic, "-f", ready.file]),
        "The same payload by HTTP, for all and for one device:",
        f"  curl -o rollback.json '{ready.url}'",
        f"  curl -o rollback.json '{ready.url_per_device}'",
    ]
    return parts


def _people(rollout: RolloutView) -> list[str]:
    """Who started it, and what became of the second person, where it is known."""
    if not rollout.started_by:
        return []
    asked = f", {rollout.approved_by or 'nobody yet'} approved" if rollout.approval else ""
    return [f"{rollout.started_by} started it{asked}"]


def _device_row(line: DeviceLine) -> tuple[str, ...]:
    inherited = " (host)" if line.accuracy_source == "inherited" else ""
    estimated = " (estimate)" if line.power_source == "estimated" else ""
    held_back = " (throttled)" if line.throttled and line.latency_ms_p95 is not None else ""
    return (
        line.device,
        str(line.wave + 1),
        line.phase or "",
        line.outcome or "",
        line.variant or "",
        figure(line.latency_ms_p50, "{:.2f}", " ms"),
        figure(line.latency_ms_p95, "{:.2f}", " ms") + held_back,
        figure(line.latency_ratio_to_incumbent, "{:.2f}"),
        figure(line.accuracy, "{:.4f}") + inherited,
        figure(line.agreement, "{:.4f}"),
        figure(line.power_watts, "{:.2f}", " W") + estimated,
        line.reason,
    )


def rollback_table(show: RollbackShow) -> Table:
    """One rollback."""
    rows = [(d.device, d.model, d.from_digest[:12], str(d.order), d.state, d.detail) for d in show.devices]
    return _table(("device", "model", "from", "order", "state", "detail"), rows)


def with_upload_bar(work: Callable[[Callable[[int, int], None]], T]) -> T:
    """Runs an upload with a bar on standard error, and gives what it gives."""
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("upload", total=None)
        return work(lambda sent, total: progress.update(task, completed=sent, total=total))


@contextmanager
def check_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, told what is looked at, how many bytes are done, and of how many."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None)
        yield lambda what, done, total: progress.update(
            task, description=escape(f"checking {what}"), completed=done, total=total
        )


def watch(look: Callable[[], tuple[str, bool]], every_s: float) -> None:
    """Calls `look` until its second answer is true, showing its first on standard error."""
    with Console(stderr=True).status("waiting") as status:
        while True:
            words, ended = look()
            status.update(escape(harmless(words)))
            if ended:
                return
            time.sleep(every_s)


def facts(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """One line a fact, a nested one under its name's path; what is empty or unknown is left out."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from facts(value, f"{before}{key}.")
        elif value not in (None, [], ""):
            text = msgspec.json.encode(value).decode() if isinstance(value, list) else str(value)
            yield f"{before}{key}", text
