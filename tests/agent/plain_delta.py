"""A small real delta codec, and its worker: `python -m tests.agent.plain_delta ORDER.json`.

For: tests of everything around a codec. A delta is the pieces of the new file that differ from the base at
the same place, compressed.
Not for: saving much; the real codec is `agent.worker.delta`.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import msgspec

from agent.worker import delta_job
from wire.errors import ContentError

PIECE = 256


def encode(base: bytes, new: bytes) -> bytes:
    """The pieces of `new` that `base` does not have in that place."""
    pieces = {
        at: new[at : at + PIECE]
        for at in range(0, len(new), PIECE)
        if base[at : at + PIECE] != new[at : at + PIECE]
    }
    return zlib.compress(msgspec.msgpack.encode((len(new), pieces)))


def apply(base: Path, delta: Path, output: Path, size_bytes: int) -> None:
    """Writes the new file."""
    try:
        length, pieces = msgspec.msgpack.decode(
            zlib.decompress(delta.read_bytes()), type=tuple[int, dict[int, bytes]]
        )
    except (zlib.error, msgspec.DecodeError) as error:
        raise ContentError("delta_malformed", f"the delta cannot be read: {error}") from None
    if length != size_bytes:
        raise ContentError("delta_malformed", f"the delta gives {length} bytes, {size_bytes} are wanted")
    content = bytearray(base.read_bytes()[:length].ljust(length, b"\0"))
    for at, piece in pieces.items():
        content[at : at + PIECE] = piece
    output.write_bytes(content[:length])


if __name__ == "__main__":
    sys.exit(delta_job.main(sys.argv[1:], lambda: apply))
