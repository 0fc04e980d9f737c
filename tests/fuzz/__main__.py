"""The long run: `make fuzz`, which is `python -m tests.fuzz --seconds 60`.

For: each target in a process of its own under a limit of memory, so that an input that kills or stops the
process is found, too; a table, a JSON file, and the inputs that broke a promise below `.fuzz/`.
Not for: the ordinary run (`tests/fuzz/test_fuzz.py`).

    python -m tests.fuzz --seconds 600 yaml worker.delta     ten minutes for each target of these names
    python -m tests.fuzz --seconds 60 --keep                 what breaks becomes a file of the corpus
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct

from tests.fuzz import corpus_files, engine, registry
from tests.fuzz.guide import Guide
from tests.fuzz.places import scratch

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / ".fuzz"
ADDRESS_BYTES_MAX = 4 * 1024**3
GROWTH_BYTES_MAX = 64 * 1024**2
SETTLED_EXECUTIONS = 500
"""After so many, caches are full: from here memory may not grow."""
GRACE_S = 300.0
"""To start and to end on a busy machine; who takes longer hangs in a call that Python cannot end."""
SEED_MAX = 2**32


class Row(Struct, kw_only=True):
    """One target's result; what was not measured is None."""

    target: str
    executions: int = 0
    per_s: float = 0.0
    seconds: float = 0.0
    ends: int = 0
    edges: int = 0
    kept: int = 0
    growth_bytes: int | None = None
    peak_bytes: int | None = None
    crashes: int = 0
    hangs: int = 0
    found: list[str] = []


def rss_bytes() -> int:
    """What this process holds now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def one(name: str, seconds: float, seed: int) -> int:
    """In the child: runs one target and leaves its row."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES_MAX, ADDRESS_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    target, place = registry.TARGETS[name], OUT / name
    place.mkdir(parents=True, exist_ok=True)
    settled: list[int] = []
    count = 0
    with (place / "current").open("wb", buffering=0) as current:

        def before(data: bytes) -> None:
            nonlocal count
            count += 1
            if count == SETTLED_EXECUTIONS:
                settled.append(rss_bytes())
            current.seek(0)
            current.truncate()
            current.write(data)

        guide = Guide() if target.guided else None
        saved = registry.saved(target)
        done = engine.run(target, saved, seed=seed, seconds=seconds, guide=guide, before=before)
    for found in done.found:
        (place / found.name).write_bytes(found.data)
    for number, data in enumerate(done.queue):
        (place / f"queue-{number:04d}").write_bytes(data)
    row = Row(
        target=name,
        executions=done.executions,
        per_s=round(done.executions / max(done.took_s, 1e-9), 1),
        seconds=round(done.took_s, 1),
        ends=len(done.words),
        edges=done.edges,
        kept=len(done.queue),
        growth_bytes=rss_bytes() - settled[0] if settled else None,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        crashes=sum(found.kind != "hang" for found in done.found),
        hangs=sum(found.kind == "hang" for found in done.found),
        found=[f"{found.name}: {found.detail[:400]}" for found in done.found],
    )
    (place / "row.json").write_bytes(msgspec.json.encode(row))
    return 0


def watched(name: str, seconds: float, seed: int) -> Row:
    """In the parent: forks the child, everything imported, and tells of an end that it could not itself."""
    place = OUT / name
    for left in ("row.json", "current"):
        (place / left).unlink(missing_ok=True)
    began_s = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _in_the_child(name, seconds, seed)
    code = _waited(child, began_s + seconds + GRACE_S)
    if code is None:
        return _ended(name, "hang", "a call into C that did not come back", time.monotonic() - began_s)
    if code == 0:
        row = msgspec.json.decode((place / "row.json").read_bytes(), type=Row)
        if (row.growth_bytes or 0) > GROWTH_BYTES_MAX:
            row.crashes += 1
            row.found.append(f"growth: {row.growth_bytes} bytes more after {row.executions} executions")
        return row
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return _ended(name, "crash", f"the process ended with {how}", time.monotonic() - began_s)


def _in_the_child(name: str, seconds: float, seed: int) -> NoReturn:
    code = 1
    try:
        code = one(name, seconds, seed)
    except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
        traceback.print_exc()
    finally:
        shutil.rmtree(scratch(), ignore_errors=True)
        os._exit(code)


def _waited(child: int, until_s: float) -> int | None:
    """How it ended, as `subprocess` says it; None where it had to be killed."""
    while time.monotonic() < until_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _ended(name: str, kind: str, why: str, took_s: float) -> Row:
    place = OUT / name / "current"
    data = place.read_bytes() if place.exists() else b""
    found = engine.Found(kind, why, data)
    (OUT / name).mkdir(parents=True, exist_ok=True)
    (OUT / name / found.name).write_bytes(data)
    return Row(
        target=name, seconds=round(took_s, 1), crashes=int(kind == "crash"), hangs=int(kind == "hang"),
        found=[f"{found.name}: {why}"],
    )  # fmt: skip


def _line(row: Row) -> str:
    growth = "unknown" if row.growth_bytes is None else f"{row.growth_bytes / 2**20:+.1f}"
    peak = "unknown" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
    return (
        f"{row.target:<32} {row.executions:>9} {row.per_s:>9.0f} {row.ends:>5} {row.edges:>6} {row.kept:>5} "
        f"{growth:>8} {peak:>7} {row.crashes:>8} {row.hangs:>6}"
    )


_HEAD = (
    f"{'target':<32} {'runs':>9} {'runs/s':>9} {'ends':>5} {'edges':>6} {'kept':>5} "
    f"{'grew MiB':>8} {'peak':>7} {'crashes':>8} {'hangs':>6}"
)


def main() -> int:
    """The command; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes every reader of bytes.")
    parser.add_argument("names", nargs="*", help="parts of targets' names; all of them where none is given")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (60)")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run; drawn and printed without it")
    parser.add_argument("--json", type=Path, default=OUT / "fuzz.json", help="where the figures go")
    parser.add_argument("--keep", action="store_true", help="put what breaks into tests/fuzz/corpus")
    given = parser.parse_args()
    seed = secrets.randbelow(SEED_MAX) if given.seed is None else given.seed
    names = [
        name for name in registry.TARGETS if not given.names or any(part in name for part in given.names)
    ]
    sys.stdout.write(f"seed {seed}, {given.seconds:g} s for each of {len(names)} targets\n{_HEAD}\n")
    rows = []
    for name in names:
        row = watched(name, given.seconds, seed)
        rows.append(row)
        sys.stdout.write(f"{_line(row)}\n{''.join(f'    {found}' + chr(10) for found in row.found)}")
        sys.stdout.flush()
        if given.keep:
            _keep(row)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_bytes(msgspec.json.format(msgspec.json.encode({"seed": seed, "rows": rows})))
    broken = sum(row.crashes + row.hangs for row in rows)
    total = sum(row.executions for row in rows)
    sys.stdout.write(f"{total} executions over {len(rows)} targets, {broken} broken promises; {given.json}\n")
    return 1 if broken else 0


def _keep(row: Row) -> None:
    for found in row.found:
        name = found.partition(":")[0]
        source = OUT / row.target / name
        if source.is_file():
            corpus_files.keep(row.target, name, source.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
