"""Entry of the encoder's process: `python -m fleet.deltas.make BASE NEW DELTA`.

For: making one delta at low priority; exit code 3 where it does not pay.
Not for: people; the registry starts it (`fleet.adapters.delta_maker`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fleet.deltas import NOT_PAYING
from fleet.deltas.encoder import encode

_NICE = 10


def main(arguments: list[str]) -> int:
    """Writes the delta."""
    base, new, target = map(Path, arguments)
    os.nice(_NICE)
    delta = encode(base.read_bytes(), new.read_bytes())
    if delta is None:
        return NOT_PAYING
    target.write_bytes(delta)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
