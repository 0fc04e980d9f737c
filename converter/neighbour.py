"""A TFLite runtime that lives in an environment of its own.

For: `Neighbour`: the interpreter of another Python's `tflite-runtime` (it needs numpy 1 and Python 3.11 or
older), asked over pipes as if it were here. It computes other numbers than LiteRT (FACTS.md section 1,
Parity), so whoever ships to devices that have it needs its own answers and accuracy.
Not for: timing, which the pipes would spoil; or laying samples out (`converter.litert.LitertSession` does).

Both ends speak frames: a JSON line with the arrays' types and shapes, then their bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from converter.errors import InputError, RecipeError

Array = NDArray[Any]

_CHILD = Path(__file__).with_name("neighbour_child.py")
_ANSWER_SECONDS_MAX = 300.0
_LINE_BYTES_MAX = 1 << 20
_ARRAY_BYTES_MAX = 1 << 31
_TAIL_BYTES = 4096
_SAID_CHARS_MAX = 300


def version_at(python: str) -> str:
    """Of the TFLite runtime in that Python's environment.

    Raises:
        InputError: `neighbour_missing`: it cannot be started or has none.
    """
    with Neighbour(python) as neighbour:
        return neighbour.version


class Signature:
    """Details of a file's inputs and outputs by a signature's names."""

    def __init__(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def get_input_details(self) -> dict[str, Any]:
        """By name."""
        return self._inputs

    def get_output_details(self) -> dict[str, Any]:
        """By name."""
        return self._outputs


class Neighbour:
    """An interpreter in another process; has the methods of LiteRT's `Interpreter` that a session needs."""

    def __init__(self, python: str, content: bytes | None = None, threads: int = 1) -> None:
        """Starts the process and loads the file.

        Args:
            python: the other environment's interpreter.
            content: the .tflite file; None to load one later.
            threads: within one operator.

        Raises:
            InputError: `neighbour_missing`: that Python cannot be started or has no such runtime.
            RecipeError: `neighbour_failed`: its runtime refuses the file, or the process ended.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(
                [python, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._errors.close()
            raise InputError(
                "neighbour_missing",
                f"{python} cannot be started: {error}; name the Python of an environment with tflite-runtime",
            ) from error
        self.version = ""
        try:
            hello = self._heard("neighbour_missing")
            self.version = str(hello[0]["version"])
            if content is not None:
                self.load(content, threads)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Ends the process."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()
        self._errors.close()

    def load(self, content: bytes, threads: int = 1) -> None:
        """Another file in place of the one that is open.

        Raises:
            RecipeError: `neighbour_failed`: the runtime refuses it.
        """
        self._asked("load", {"threads": threads}, [np.frombuffer(content, dtype=np.uint8)])

    def get_input_details(self) -> list[dict[str, Any]]:
        """Of the inputs: index, name, shape, dtype, quantization."""
        return self._details("inputs")

    def get_output_details(self) -> list[dict[str, Any]]:
        """Of the outputs."""
        return self._details("outputs")

    def get_signature_list(self) -> dict[str, list[str]]:
        """Names of the file's signatures."""
        told, _ = self._asked("signatures", {}, [])
        return {str(name): [] for name in told["names"]}

    def get_signature_runner(self, name: str) -> Signature:
        """What a signature calls the file's tensors."""
        told, _ = self._asked("signature", {"name": name}, [])
        inputs, outputs = (
            {key: _detail(one) for key, one in told[which].items()} for which in ("inputs", "outputs")
        )
        return Signature(inputs, outputs)

    def _details(self, which: str) -> list[dict[str, Any]]:
        told, _ = self._asked("details", {"which": which}, [])
        return [_detail(one) for one in told["details"]]

    def set_tensor(self, index: int, array: Array) -> None:
        """Puts an input in place."""
        self._asked("set", {"index": int(index)}, [array])

    def invoke(self) -> None:
        """One inference."""
        self._asked("invoke", {}, [])

    def get_tensor(self, index: int) -> Array:
        """A copy of a tensor."""
        _, arrays = self._asked("get", {"index": int(index)}, [])
        return arrays[0]

    def _asked(self, what: str, settings: dict[str, Any], arrays: list[Array]) -> tuple[Any, list[Array]]:
        stdin = self._process.stdin
        if stdin is None:
            raise RecipeError("neighbour_failed", "the neighbour has no pipe")
        arrays = [np.asarray(one, order="C") for one in arrays]
        line = {"ask": what, **settings, "arrays": [[str(one.dtype), list(one.shape)] for one in arrays]}
        try:
            stdin.write(json.dumps(line).encode() + b"\n")
            for one in arrays:
                stdin.write(one.tobytes())
            stdin.flush()
        except (OSError, ValueError) as error:
            raise RecipeError("neighbour_failed", f"it ended: {self._last_words() or error}") from error
        return self._heard("neighbour_failed")

    def _heard(self, code: str) -> tuple[Any, list[Array]]:
        """One answer; a process that says nothing for too long is ended."""
        guard = threading.Timer(_ANSWER_SECONDS_MAX, self._process.kill)
        guard.start()
        try:
            return self._read(code)
        finally:
            guard.cancel()

    def _read(self, code: str) -> tuple[Any, list[Array]]:
        stdout = self._process.stdout
        line = b"" if stdout is None else stdout.readline(_LINE_BYTES_MAX)
        if stdout is None or not line:
            self._process.wait()
            said = self._last_words() or f"it ended with {self._process.returncode}"
            if code == "neighbour_missing":
                raise InputError(code, f"no tflite-runtime answers there: {said}")
            raise RecipeError(code, f"the neighbour's runtime failed: {said}")
        try:
            told = json.loads(line)
            arrays = [_array(stdout, dtype, shape) for dtype, shape in told.get("arrays", [])]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # Its runtime prints, or was taken over: what follows on the pipe means nothing any more.
            self._process.kill()
            words = f"what the neighbour says cannot be read: {str(error)[:_SAID_CHARS_MAX]}"
            raise RecipeError("neighbour_failed", words) from error
        if "error" in told:
            raise RecipeError("neighbour_failed", str(told["error"])[:_SAID_CHARS_MAX])
        return told, arrays

    def _last_words(self) -> str:
        """The end of what it said on standard error, in one line."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = self._errors.read(_TAIL_BYTES)
        lines = [one for one in tail.decode(errors="replace").splitlines() if one.strip()]
        return lines[-1].strip()[:_SAID_CHARS_MAX] if lines else ""


def _array(pipe: IO[bytes], dtype: str, shape: Sequence[int]) -> Array:
    """The next array, as large as it was announced.

    Raises:
        ValueError, TypeError: it is none of numbers, is larger than any tensor here, or is cut short.
    """
    kind, size = np.dtype(dtype), prod(shape)
    if kind.hasobject or not 0 <= size * kind.itemsize <= _ARRAY_BYTES_MAX or any(n < 0 for n in shape):
        raise ValueError(f"an array of {str(shape)[:80]} {str(dtype)[:40]}")
    return np.frombuffer(pipe.read(size * kind.itemsize), dtype=kind).reshape(shape)


def _detail(told: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": int(told["index"]),
        "name": str(told["name"]),
        "shape": np.array(told["shape"], dtype=np.int64),
        "dtype": np.dtype(told["dtype"]).type,
        "quantization": (float(told["scale"]), int(told["zero"])),
    }
