"""The other end of `converter.neighbour`: runs in the other environment's Python.

For: loading a .tflite file with the runtime that is installed there and doing as it is told.
Not for: import by anyone; it has the standard library, numpy and that runtime, and nothing of Shallop.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any

import numpy as np


def _interpreter_class() -> tuple[Any, str]:
    """The class and its version; tflite-runtime first, for that is what a neighbour is for."""
    for package, module in (("tflite-runtime", "tflite_runtime"), ("ai-edge-litert", "ai_edge_litert")):
        try:
            version = importlib.metadata.version(package)
            return importlib.import_module(f"{module}.interpreter").Interpreter, version
        except (ImportError, importlib.metadata.PackageNotFoundError):
            continue
    raise SystemExit(f"{sys.executable} has neither tflite-runtime nor ai-edge-litert")


def _detail(one: dict[str, Any]) -> dict[str, Any]:
    scale, zero = one["quantization"]
    return {
        "index": int(one["index"]), "name": str(one["name"]), "shape": [int(x) for x in one["shape"]],
        "dtype": np.dtype(one["dtype"]).name, "scale": float(scale), "zero": int(zero),
    }  # fmt: skip


class _Child:
    """One file, once it is loaded."""

    def __init__(self, maker: Any) -> None:  # noqa: ANN401 - a class of another environment
        self._maker = maker
        self._loaded: Any = None

    def answer(self, asked: dict[str, Any], arrays: list[Any]) -> tuple[dict[str, Any], list[Any]]:
        """What is told back."""
        what = asked["ask"]
        if what == "load":
            content = arrays[0].tobytes()
            self._loaded = self._maker(model_content=content, num_threads=asked["threads"])
            self._loaded.allocate_tensors()
        elif what == "details":
            inputs = asked["which"] == "inputs"
            found = self._loaded.get_input_details() if inputs else self._loaded.get_output_details()
            return {"details": [_detail(one) for one in found]}, []
        elif what == "signatures":
            return {"names": list(self._loaded.get_signature_list())}, []
        elif what == "signature":
            return self._signature(asked["name"]), []
        elif what == "set":
            self._loaded.set_tensor(asked["index"], arrays[0])
        elif what == "invoke":
            self._loaded.invoke()
        elif what == "get":
            return {}, [self._loaded.get_tensor(asked["index"])]
        return {}, []

    def _signature(self, name: str) -> dict[str, Any]:
        runner = self._loaded.get_signature_runner(name)
        return {
            "inputs": {name: _detail(one) for name, one in runner.get_input_details().items()},
            "outputs": {name: _detail(one) for name, one in runner.get_output_details().items()},
        }


def main() -> None:
    """Says hello, then answers until the pipe is closed."""
    # The runtime prints greetings; what it prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    maker, version = _interpreter_class()
    child = _Child(maker)
    _tell(answers, {"version": version}, [])
    while True:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        asked = json.loads(line)
        given = []
        for dtype, shape in asked["arrays"]:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            given.append(np.frombuffer(sys.stdin.buffer.read(size), dtype=dtype).reshape(shape))
        try:
            told, arrays = child.answer(asked, given)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises is told
            told, arrays = {"error": f"{type(error).__name__}: {error}"}, []
        _tell(answers, told, arrays)


def _tell(answers: Any, told: dict[str, Any], arrays: list[Any]) -> None:  # noqa: ANN401 - a binary file
    whole = [np.asarray(one, order="C") for one in arrays]
    line = {**told, "arrays": [[one.dtype.name, list(one.shape)] for one in whole]}
    answers.write(json.dumps(line).encode() + b"\n")
    for one in whole:
        answers.write(one.tobytes())
    answers.flush()


if __name__ == "__main__":
    main()
