"""A transformer's block: two heads, LayerNormalization, Softmax, a perceptron with Gelu."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from converter.tflite import Options, write
from tests.converter.quantizing import Line, floats, graph, inputs, run, sqnr_db
from tests.converter.tflite.harness import Session, check_float, compare_int8, quantized

_WIDTH, _TOKENS, _HEADS = 16, 6, 2
_MOVED = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}


def _block(*, opset: int = 17, mask: bool = False) -> onnx.ModelProto:
    constants = {
        "root": np.array(2**0.5, np.float32), "half": np.array(0.5, np.float32),
        "one": np.array(1, np.float32), "scale": np.array((_WIDTH // _HEADS) ** 0.5, np.float32),
        "cut": np.array([0, 0, _HEADS, -1]), "joined": np.array([0, 0, -1]),
    }  # fmt: skip
    for name, shape in (("up", (_WIDTH, 32)), ("down", (32, _WIDTH)), *((n, (_WIDTH,) * 2) for n in "qkvo")):
        constants |= {f"{name}_w": floats(len(constants), *shape), f"{name}_b": floats(7, shape[1])}
    for name in ("n1", "n2"):
        constants |= {f"{name}_s": floats(3, _WIDTH) + 1, f"{name}_b": floats(4, _WIDTH)}
    lines: list[Line] = [("LayerNormalization", "x n1_s n1_b", "n1")]
    for name, order in _MOVED.items():
        lines += [
            ("MatMul", f"n1 {name}_w", f"{name}_m"), ("Add", f"{name}_b {name}_m", name),
            ("Reshape", f"{name} cut", f"{name}_r"), ("Transpose", f"{name}_r", f"{name}_t", {"perm": order}),
        ]  # fmt: skip
    lines += [("MatMul", "q_t k_t", "qk"), ("Div", "qk scale", "scores")]
    if mask:
        constants["mask"] = np.triu(np.full((_TOKENS, _TOKENS), -1e4, np.float32), 1)
        lines.append(("Add", "scores mask", "masked"))
    lines += [
        ("Softmax", "masked" if mask else "scores", "p", {"axis": -1}), ("MatMul", "p v_t", "pv"),
        ("Transpose", "pv", "pv_t", {"perm": [0, 2, 1, 3]}), ("Reshape", "pv_t joined", "ctx"),
        ("MatMul", "ctx o_w", "o_m"), ("Add", "o_m o_b", "o"), ("Add", "o x", "a"),
        ("LayerNormalization", "a n2_s n2_b", "n2"), ("MatMul", "n2 up_w", "u_m"), ("Add", "u_m up_b", "u"),
        ("Div", "u root", "e1"), ("Erf", "e1", "e2"), ("Add", "e2 one", "e3"), ("Mul", "u e3", "e4"),
        ("Mul", "e4 half", "g"), ("MatMul", "g down_w", "d_m"), ("Add", "d_m down_b", "d"),
        ("Add", "d a", "y"),
    ]  # fmt: skip
    return graph(lines, constants, outputs={"y": [None] * 3}, shape=(_TOKENS, _WIDTH), opset=opset)


@pytest.mark.parametrize("mask", [False, True])
def test_four_transposes_and_no_more_operators_than_needed(*, mask: bool) -> None:
    """Queries, keys and values go to their heads, and what comes of them back; nothing else moves."""
    operators = check_float(_block(mask=mask), 1e-4).operators
    assert operators.pop("RESHAPE") == 4
    assert operators == {
        "TRANSPOSE": 4, "FULLY_CONNECTED": 6, "BATCH_MATMUL": 2, "DIV": 1, "SOFTMAX": 1, "GELU": 1,
        "MEAN": 4, "SQUARED_DIFFERENCE": 2, "RSQRT": 2, "SUB": 2, "MUL": 4, "ADD": 2 + 4 + mask,
    }  # fmt: skip


@pytest.mark.parametrize("weights", ["float16", "dynamic_int8"])
def test_small_weights_are_near_float(weights: str) -> None:
    made = _block()
    x = inputs(made)[:1]
    written = write(made, Options(weights=weights))  # type: ignore[arg-type]
    assert sqnr_db(run(made, x)[0], Session(written).run({"x": x})["y"]) > 30


def test_int8_agrees_with_onnx_runtime() -> None:
    made = _block()
    graph_int8, x = quantized(made), inputs(made)
    steps = compare_int8(graph_int8, x, Options(edge="int8"))
    assert steps.worst <= 8
    assert steps.equal > 0.5
    assert steps.written.operators["TRANSPOSE"] == 4
