"""`python -m bench.delta --shared ../shared/models`: prints JSON, progress on standard error.

Needs the peers `zstd bsdiff xdelta3 casync` (Debian packages; the JSON names those that are missing) and, to
make the updates, an environment with torch, which the first run makes under `.bench/` unless one is named.
`--only "fashion v1 to v2"` needs no torch, and `--only "effnet_lite0 head"` trains one update of six.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from bench.delta.pairs import ROOT, PairOfFiles, Workshop, say
from bench.delta.tools import Figures, imports, measured, missing


def main() -> int:
    """Runs every tool on every pair."""
    parser = argparse.ArgumentParser(prog="python -m bench.delta", description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "delta")
    parser.add_argument("--torch", type=Path, help="a Python with torch, onnx and pillow")
    parser.add_argument("--only", default="", help="pairs whose name holds this")
    options = parser.parse_args()
    workshop = Workshop(options.shared, options.work, options.torch)
    pairs = workshop.pairs(options.only)
    if not pairs:
        parser.error(f"no pair has {options.only!r} in its name")
    report: dict[str, Any] = {}
    for pair in pairs:
        report[pair.name] = row(pair, measured(pair))
        say(f"{pair.name}: {json.dumps(report[pair.name]['bytes_by_tool'])}")
    idle, made = imports(), workshop.updates
    updates = json.loads(made.read_text(encoding="utf-8")) if made.exists() else {}
    print(
        json.dumps(
            {
                "delta": report,
                "missing_peers": missing(),
                "decoder_imports": {"cpu_s": round(idle.cpu_s, 3), "memory_bytes_max": idle.memory_bytes_max},
                "updates": updates,
            },
            indent=1,
        )
    )
    return 0


def row(pair: PairOfFiles, figures: dict[str, Figures]) -> dict[str, Any]:
    """What is printed of one pair."""
    new_bytes = pair.new.stat().st_size
    peers = {name: one.bytes for name, one in figures.items() if name != "shallop"}
    best = min(peers, key=lambda name: peers[name]) if peers else None
    ours = figures["shallop"].bytes
    return {
        "old_bytes": pair.old.stat().st_size,
        "new_bytes": new_bytes,
        "bytes_by_tool": {name: one.bytes for name, one in figures.items()},
        "best_peer": best,
        "ratio_to_best_peer": None if best is None else round(ours / peers[best], 4),
        "share_of_new": round(ours / new_bytes, 5),
        "tools": to_builtins(figures),
    }


if __name__ == "__main__":
    raise SystemExit(main())
