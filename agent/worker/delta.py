"""Entry of a delta's worker: `python -m agent.worker.delta ORDER.json`.

For: `apply()`, and running it under the limits that `agent.worker.delta_job` puts on this process first.
Not for: reading deltas; that is `agent.worker.delta_apply`, which is imported once the limits stand, for it
needs numpy. Where the worker's Python lacks numpy, the outcome is `delta_no_numpy`, and the device takes
chunks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.worker.delta_job import Apply, main


def apply(base: Path, delta: Path, output: Path, size_bytes: int) -> None:
    """Writes `output`, exactly `size_bytes` long, from `base` and `delta`.

    Raises:
        ContentError: `delta_invalid`, `delta_wrong_base`, `delta_wrong_size` or `delta_truncated`; there is
            no output then.
        ImportError: numpy is missing.
        OSError: of the files.
    """
    from agent.worker.delta_apply import apply_delta  # noqa: PLC0415 - numpy, under the limits

    apply_delta(base, delta, output, size_bytes)


def _load() -> Apply:
    from agent.worker.delta_apply import apply_delta  # noqa: PLC0415 - as above

    return apply_delta


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], _load))
