"""What the daemon tells a delta's worker, and how that worker begins and ends.

For: the order and the outcome of one delta as files, and the frame around `agent.worker.delta.apply`: limits
first, then the work, then one small file that says how it went.
Not for: reading deltas (`agent.worker.delta`), or watching the worker (`agent.adapters.delta_process`).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import UNREADABLE
from agent.worker.limits import WorkerLimits, restrict
from agent.worker.sandbox import confine
from wire.errors import ShallopError
from wire.types import Code, Count, Text

Apply = Callable[[Path, Path, Path, int], None]
"""`apply(base, delta, output, size_bytes)`; raises ContentError by name."""

DETAIL_CHARS_MAX = 1500
OUTCOME_BYTES_MAX = 64 * 1024


class DeltaOrder(Struct, frozen=True, kw_only=True):
    """The file that the worker is started with; paths are absolute.

    Attributes:
        output: to be written; exactly `size_bytes` long.
        result_path: where the outcome goes.
        parent_pid: the process it must not outlive; None where a person starts it by hand.
    """

    base: str
    delta: str
    output: str
    size_bytes: Count
    result_path: str
    limits: WorkerLimits = WorkerLimits()
    parent_pid: Count | None = None


class DeltaOutcome(Struct, frozen=True, kw_only=True):
    """How it went; no code means that the output was written."""

    code: Code | None = None
    detail: Text = ""


# Made by the thread that imports this, as in `wire.codec`: outcomes of several models are read at once.
_ORDER = msgspec.json.Decoder(DeltaOrder)
_OUTCOME = msgspec.json.Decoder(DeltaOutcome)


def main(arguments: list[str], load: Callable[[], Apply]) -> int:
    """Follows the order in the file; 0 where an outcome was left, be it a failure.

    Args:
        arguments: the path of the order.
        load: gives `apply` once the limits stand, so that numpy is loaded under them.
    """
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agent.worker.delta ORDER.json\n")
        return 2
    order = _ORDER.decode(Path(arguments[0]).read_bytes())
    restrict(order.limits, order.parent_pid)
    result = Path(order.result_path)
    # A delta comes from outside; what reads it reaches its own files and nothing else.
    confine([Path(order.base).parent, Path(order.delta).parent], {Path(order.output).parent, result.parent})
    part = result.with_name(result.name + ".part")
    part.write_bytes(msgspec.json.encode(_outcome(order, load)))
    part.replace(result)
    return 0


def _outcome(order: DeltaOrder, load: Callable[[], Apply]) -> DeltaOutcome:
    try:
        load()(Path(order.base), Path(order.delta), Path(order.output), order.size_bytes)
    except ShallopError as error:
        return _failure(error.code, str(error.args[0]))
    except MemoryError:
        return _failure("delta_out_of_memory", "the delta needs more memory than its worker may use")
    except ImportError as error:
        return _failure("delta_no_numpy", f"the worker's Python lacks what deltas need: {error}")
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return _failure("disk_full" if full else "delta_io", str(error))
    return DeltaOutcome()


def _failure(code: str, detail: str) -> DeltaOutcome:
    return DeltaOutcome(code=code, detail=detail[:DETAIL_CHARS_MAX])


def read_outcome(path: Path) -> DeltaOutcome:
    """What a worker left; it may have left anything.

    Raises:
        ValueError: no readable outcome.
        OSError: no file.
    """
    with path.open("rb") as file:
        data = file.read(OUTCOME_BYTES_MAX + 1)
    if len(data) > OUTCOME_BYTES_MAX:
        raise ValueError(f"{path.name} is larger than {OUTCOME_BYTES_MAX} bytes")
    try:
        return _OUTCOME.decode(data)
    except UNREADABLE as error:
        raise ValueError(f"{path.name} is no outcome: {error}") from None
