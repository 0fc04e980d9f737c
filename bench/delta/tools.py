"""Every tool on one pair: bytes to send, time to encode, and what decoding costs the device.

For: running each as its users would, strongest setting, each in a process of its own, and checking that the
result is the new file.
Not for: making pairs (`bench.delta.pairs`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from bench.delta.pairs import ROOT, PairOfFiles

PACKAGES = {"zstd": "zstd", "bsdiff": "bsdiff", "xdelta3": "xdelta3", "casync": "casync"}
"""What brings each peer: `apt-get install` it."""

_LAUNCH = """
import json, os, sys, time
began = time.perf_counter()
child = os.fork()
if child == 0:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - began, cpu, usage.ru_maxrss]))
"""
"""A small process between: a fork of a large one counts as its child's peak."""

_APPLY = "import sys;from pathlib import Path as P;from agent.worker.delta import apply as a;"
_OURS_OUT = _APPLY + "a(P(sys.argv[1]),P(sys.argv[2]),P(sys.argv[3]),int(sys.argv[4]))"
_IMPORTS = "import agent.worker.delta_apply"

Command = list[str]


class Cost(Struct, frozen=True):
    """Of one process."""

    wall_s: float
    cpu_s: float
    memory_bytes_max: int


class Figures(Struct, frozen=True, kw_only=True):
    """Of one tool on one pair."""

    bytes: int
    encode_s: float
    decode_cpu_s: float
    decode_memory_bytes_max: int


def run(command: Command) -> Cost:
    """Runs a program and says what it cost.

    Raises:
        RuntimeError: it failed.
    """
    told = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    code, wall_s, cpu_s, kib = json.loads(told.stdout)
    if code != 0:
        raise RuntimeError(f"{command[0]} ended with {code}")
    return Cost(wall_s, cpu_s, kib * 1024)


def missing() -> dict[str, str]:
    """Peers that are not installed, with the package that brings each."""
    return {tool: package for tool, package in PACKAGES.items() if shutil.which(tool) is None}


def measured(pair: PairOfFiles) -> dict[str, Figures]:
    """Every tool that is there.

    Raises:
        RuntimeError: a tool failed, or its result is not the new file.
    """
    found = {}
    for name, tool in _TOOLS.items():
        if name in PACKAGES and shutil.which(name) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = tool(pair, Path(folder))
            if (Path(folder) / "out").read_bytes() != pair.new.read_bytes():
                raise RuntimeError(f"{name} did not give back {pair.new}")
    return found


def _simple(encode: Callable[[str, str, str], Command], decode: Callable[[str, str, str], Command]) -> Tool:
    def tool(pair: PairOfFiles, folder: Path) -> Figures:
        old, new, delta, out = str(pair.old), str(pair.new), str(folder / "delta"), str(folder / "out")
        encoding, decoding = run(encode(old, new, delta)), run(decode(old, delta, out))
        return _figures(Path(delta).stat().st_size, encoding, decoding)

    return tool


def _figures(size: int, encoding: Cost, decoding: Cost) -> Figures:
    return Figures(
        bytes=size,
        encode_s=round(encoding.wall_s, 3),
        decode_cpu_s=round(decoding.cpu_s, 3),
        decode_memory_bytes_max=decoding.memory_bytes_max,
    )


def _ours(pair: PairOfFiles, folder: Path) -> Figures:
    delta, out = folder / "delta", folder / "out"
    python = sys.executable
    encoding = run([python, "-m", "fleet.deltas.make", str(pair.old), str(pair.new), str(delta)])
    size = str(pair.new.stat().st_size)
    decoding = run([python, "-c", _OURS_OUT, str(pair.old), str(delta), str(out), size])
    return _figures(delta.stat().st_size, encoding, decoding)


def _casync(pair: PairOfFiles, folder: Path) -> Figures:
    """Chunks that the old file does not have, as its store holds them, and the new file's index."""
    store, index = folder / "store.castr", folder / "new.caibx"
    make = ["casync", "make", f"--store={store}"]
    run([*make, str(folder / "old.caibx"), str(pair.old)])
    before = _tree_bytes(store)
    encoding = run([*make, str(index), str(pair.new)])
    size = _tree_bytes(store) - before + index.stat().st_size
    decoding = run(["casync", "extract", f"--store={store}", str(index), str(folder / "out")])
    return _figures(size, encoding, decoding)


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def imports() -> Cost:
    """What our decoder costs before it has read a byte: Python, numpy, our modules."""
    return run([sys.executable, "-c", _IMPORTS])


Tool = Callable[[PairOfFiles, Path], Figures]

_ZSTD = ["zstd", "-q", "--ultra", "--long=27"]
_TOOLS: dict[str, Tool] = {
    "shallop": _ours,
    "zstd": _simple(
        lambda old, new, delta: [
            "zstd",
            "-q",
            "-19",
            "--ultra",
            "--long=27",
            f"--patch-from={old}",
            new,
            "-o",
            delta,
        ],
        lambda old, delta, out: [*_ZSTD, "-d", f"--patch-from={old}", delta, "-o", out],
    ),
    "bsdiff": _simple(
        lambda old, new, delta: ["bsdiff", old, new, delta],
        lambda old, delta, out: ["bspatch", old, out, delta],
    ),
    "xdelta3": _simple(
        lambda old, new, delta: ["xdelta3", "-q", "-9", "-S", "lzma", "-e", "-s", old, new, delta],
        lambda old, delta, out: ["xdelta3", "-q", "-d", "-s", old, delta, out],
    ),
    "casync": _casync,
}
