"""Two machines' answers of one model, number by number.

For: the fraction that is equal bit by bit, the fraction within one step of the output's scale, and the worst.
Not for: deciding what is good enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import numpy_helper

from wire.bundle import Manifest, Variant


class Compared(Struct, frozen=True, kw_only=True):
    """One model's answers on a board beside those of this machine.

    Attributes:
        numbers: how many were compared.
        equal: fraction of them that is the same bit by bit.
        within_step: fraction that differs by one step of the output's scale at most; None where the output
            is not quantized and so has no steps.
        worst: the largest difference, in the output's own unit.
        same_class: fraction of the pictures whose largest number is the same one.
    """

    numbers: int
    equal: float
    within_step: float | None
    worst: float
    same_class: float


def compared(board: NDArray[Any], host: NDArray[Any], step: float | None) -> Compared:
    """The figures.

    Args:
        board: answers there, a row a picture.
        host: answers here, of the same shape and type.
        step: distance of two neighbouring values of the output; None where it is not quantized.

    Raises:
        ValueError: they cannot be compared.
    """
    if board.shape != host.shape or board.dtype != host.dtype or not board.size:
        raise ValueError(f"{board.dtype}{board.shape} there, {host.dtype}{host.shape} here")
    apart = np.abs(board.astype(np.float64) - host.astype(np.float64))
    same = np.frombuffer(board.tobytes(), np.uint8) == np.frombuffer(host.tobytes(), np.uint8)
    return Compared(
        numbers=board.size,
        equal=float(same.reshape(board.size, -1).all(axis=1).mean()),
        within_step=None if step is None else float((apart < 1.5 * step).mean()),
        worst=float(apart.max()),
        same_class=float((board.argmax(axis=1) == host.argmax(axis=1)).mean()),
    )


def step_of(manifest: Manifest, variant: Variant, folder: Path) -> float | None:
    """The scale of a model's only output, which a .tflite file shares with its twin; None without one."""
    source = variant
    if variant.runtime != "onnxruntime":
        source = next(one for one in manifest.variants if one.id == variant.twin_of)
    graph = onnx.load(folder / source.model_path).graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type != "DequantizeLinear":
        return None
    (scale,) = (numpy_helper.to_array(one) for one in graph.initializer if one.name == last.input[1])
    return float(scale.item())


def table(rows: dict[str, Compared]) -> str:
    """For people."""
    width = max(map(len, rows))
    lines = [f"{'':<{width}}  numbers   equal  within a step    worst  same class"]
    for name, row in rows.items():
        within = "no steps" if row.within_step is None else f"{row.within_step:.1%}"
        figures = f"{row.numbers:>7}  {row.equal:>6.1%}  {within:>13}  {row.worst:>7.2g}"
        lines.append(f"{name:<{width}}  {figures}  {row.same_class:>10.1%}")
    return "\n".join(lines)
