"""What a layer costs in float and in integers.

For: the price of an island, by weight of the FP32 model: measured kernel by kernel with the runtime's
profiler where both graphs can be followed, else by multiplications, and saying which.
Not for: the latency of a candidate (`converter.latency`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import onnx
from msgspec import Struct

from converter.dataset import Feeds
from converter.fusion import multiplications
from converter.limits import PROFILE_RUNS
from converter.runtime import profile_session

_ADDED_BY_THE_RUNTIME = re.compile(r"(_token_\d+|_nchwc)+$")
_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Costs(Struct, frozen=True, kw_only=True):
    """By weight, what its layer costs more in float.

    Attributes:
        by_weight: in microseconds, or in multiplications.
        measured: whether they are times.
        words: how they were found, for people.
    """

    by_weight: Mapping[str, float]
    measured: bool
    words: str


def costs(plain: onnx.ModelProto, quantized: onnx.ModelProto | None, feeds: Feeds) -> Costs:
    """Costs of the FP32 graph's layers.

    Args:
        plain: cleaned FP32 graph.
        quantized: all of it quantized; None where this host's times say nothing of the target.
        feeds: one sample.
    """
    layers = {n.name: n.input[1] for n in plain.graph.node if n.op_type in _MULTIPLIES and len(n.input) > 1}
    if quantized is not None:
        times = [kernel_times(graph, feeds) for graph in (plain, quantized)]
        if all(name in found for found in times for name in layers):
            # A kernel that integers do not make faster costs nothing to leave in float.
            saved = {weight: max(0.0, times[0][name] - times[1][name]) for name, weight in layers.items()}
            words = f"measured by kernel in the runtime's profile, median of {PROFILE_RUNS} runs on this host"
            return Costs(by_weight=saved, measured=True, words=f"cost of islands {words}")
    work = multiplications(plain)
    if work is None:
        return Costs(
            by_weight=dict.fromkeys(layers.values(), 1.0), measured=False,
            words="cost of islands unknown: every layer counts the same",
        )  # fmt: skip
    return Costs(
        by_weight={name: float(value) for name, value in work.items()}, measured=False,
        words="cost of islands by multiplications: their times cannot be followed, or are not the target's",
    )  # fmt: skip


def kernel_times(model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """Median microseconds of each kernel by the name of the node that it was made of, one thread.

    Fusion keeps the name of the layer and may append to it; what the runtime invented has names of its own.

    Raises:
        Exception: what the runtime raises.
    """
    with tempfile.TemporaryDirectory(prefix="shallop-profile-") as folder:
        path = Path(folder) / "profile"
        session = profile_session(model.SerializeToString(), path)
        for _ in range(PROFILE_RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            stem = _ADDED_BY_THE_RUNTIME.sub("", name.removesuffix("_kernel_time"))
            found[stem].append(float(event["dur"]))
    return {name: median(values) for name, values in found.items()}
