"""The one door to LiteRT on the host.

For: opening a `.tflite` file and asking it as ONNX Runtime is asked, by the names and in the axes of the ONNX
model. No other module of the converter imports the interpreter.
Not for: deciding what to run, or writing such files (`converter.tflite`).

The kernels are those that an application gets: LiteRT's default ones with XNNPACK, never BUILTIN_REF, which
computes something else (FACTS.md, Parity).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from converter.errors import RecipeError

__all__ = ["NAME", "VERSION", "LitertSession", "Prepared", "open_session"]

Array = NDArray[Any]
Prepared = list[tuple[int, Array]]
"""Places of the inputs with what stands in them: laid out, of the file's type, and of its batch."""

NAME = "ai-edge-litert"
VERSION: str = metadata.version(NAME)

_STANDARD_ERROR = 2
_first = threading.Lock()
_opened: list[bool] = []


class LitertSession:
    """A loaded `.tflite` file. Not for two threads at once: each opens its own."""

    def __init__(self, interpreter: Any, axes: Mapping[str, Sequence[int]]) -> None:  # noqa: ANN401 - no types
        self._interpreter = interpreter
        self._inputs, self._outputs = _edges(interpreter)
        self._axes = {name: tuple(places) for name, places in axes.items()}
        self._back = {name: tuple(np.argsort(places)) for name, places in self._axes.items()}

    @property
    def input_names(self) -> tuple[str, ...]:
        """In the file's order."""
        return tuple(self._inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the file's order."""
        return tuple(self._outputs)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """As ONNX Runtime's.

        Args:
            names: of the outputs wanted; None for all, in the file's order.
            feeds: by ONNX name, in ONNX's axes and types; of as many samples as the file takes, or of one,
                which then fills the file's batch.

        Returns:
            Outputs in ONNX's axes, float where the file's are quantized, of as many samples as were given.

        Raises:
            RecipeError: `tflite_inputs`: the file has no such input, or none of this shape or type;
                `tflite_outputs`: it has no such output.
            Exception: what LiteRT raises.
        """
        prepared = self.prepare(feeds)
        copies = self._copies(feeds, prepared)
        answers = dict(zip(self._outputs, self.invoke(prepared), strict=True))
        wanted = self.output_names if names is None else names
        missing = [name for name in wanted if name not in answers]
        if missing:
            raise RecipeError(
                "tflite_outputs", f"the file has no output {missing[0]}; it has {', '.join(answers)}"
            )
        return [self._finished(name, answers[name], copies) for name in wanted]

    def prepare(self, feeds: Mapping[str, Array]) -> Prepared:
        """Samples as the file wants them; done once, outside what is timed.

        Raises:
            RecipeError: `tflite_inputs`.
        """
        if set(feeds) != set(self._inputs):
            raise RecipeError(
                "tflite_inputs", f"the file takes {', '.join(self._inputs)}, given were {', '.join(feeds)}"
            )
        return [(one["index"], self._laid(name, one, feeds[name])) for name, one in self._inputs.items()]

    def invoke(self, prepared: Prepared) -> list[Array]:
        """One inference: inputs in, all outputs out, as the file holds them."""
        for place, array in prepared:
            self._interpreter.set_tensor(place, array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(one["index"]) for one in self._outputs.values()]

    def _laid(self, name: str, one: Mapping[str, Any], given: Array) -> Array:
        """One input in the file's axes, type and batch."""
        array = given.transpose(self._axes[name]) if name in self._axes else given
        wanted = tuple(int(size) for size in one["shape"])
        batch_differs = array.ndim and array.shape != wanted and array.shape[0] == 1
        if batch_differs and array.shape[1:] == wanted[1:]:
            array = np.repeat(array, wanted[0], axis=0)
        array = _typed(array, one)
        if array.shape != wanted or array.dtype != one["dtype"]:
            raise RecipeError(
                "tflite_inputs",
                f"input {name} is {array.dtype} {list(array.shape)} there, the file takes "
                f"{np.dtype(one['dtype'])} {list(wanted)}",
            )
        # Not ascontiguousarray, which gives a scalar an axis.
        return np.asarray(array, order="C")

    def _copies(self, feeds: Mapping[str, Array], prepared: Prepared) -> int:
        """How often the one sample that was given stands in the file's batch; 1 where nothing was copied."""
        wanted = [array.shape[0] for _, array in prepared if array.ndim]
        given = [feeds[name].shape[0] for name in self._inputs if feeds[name].ndim]
        return max((much for much, one in zip(wanted, given, strict=True) if one == 1), default=1)

    def _finished(self, name: str, found: Array, copies: int) -> Array:
        """One output as the ONNX model gives it, of one sample where copies of it were asked."""
        scale, zero = self._outputs[name]["quantization"]
        if scale and found.dtype.kind in "iu":
            found = (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        back = found.transpose(self._back[name]) if name in self._back else found
        return back[:1] if back.ndim and 1 < copies == back.shape[0] else back


def _edges(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401 - the wheel has no types
    """Details of inputs and outputs in the file's order, by the signature's names, which are ONNX's.

    Without a signature by the tensors' names.
    """
    details = (interpreter.get_input_details(), interpreter.get_output_details())
    signatures = interpreter.get_signature_list()
    if not signatures:
        inputs, outputs = ({one["name"]: one for one in found} for found in details)
        return inputs, outputs
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    named = (runner.get_input_details(), runner.get_output_details())
    inputs, outputs = (_in_order(mine, found) for mine, found in zip(named, details, strict=True))
    return inputs, outputs


def _in_order(named: Mapping[str, Any], details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The signature's entries, which come in any order, in the file's."""
    places = [one["index"] for one in details]
    return dict(sorted(named.items(), key=lambda one: places.index(one[1]["index"])))


def _typed(array: Array, one: Mapping[str, Any]) -> Array:
    """Quantized with the tensor's own scale and zero point, to the nearest; integers as the file's are."""
    dtype = np.dtype(one["dtype"])
    if array.dtype == dtype:
        return array
    scale, zero = one["quantization"]
    if scale and array.dtype.kind == "f" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        steps: Array = np.clip(np.rint(array / np.float32(scale)) + zero, limits.min, limits.max)
        return steps.astype(dtype)
    return array.astype(dtype) if array.dtype.kind == dtype.kind else array


def open_session(
    content: bytes, *, threads: int = 1, axes: Mapping[str, Sequence[int]] | None = None
) -> LitertSession:
    """A CPU session of the `.tflite` file's bytes.

    Args:
        content: the whole file.
        threads: within one operator.
        axes: by name of an input or output: the file's tensor is ONNX's, transposed by these.

    Raises:
        Exception: what LiteRT raises for a file that it cannot run.
    """
    with _hushed():
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    return LitertSession(interpreter, axes or {})


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps the runtime's greeting ("Created TensorFlow Lite XNNPACK delegate") off standard error.

    It is printed by C++ code, once in a process, when the first delegate is made; there is no switch for it.
    Only then the descriptor leads elsewhere, for it is the whole process's.
    """
    with _first:
        if _opened:
            first = False
        else:
            first = True
            sys.stderr.flush()
            kept = os.dup(_STANDARD_ERROR)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, _STANDARD_ERROR)
        try:
            yield
            _opened[:] = [True]
        finally:
            if first:
                os.dup2(kept, _STANDARD_ERROR)
                os.close(kept)
                os.close(nowhere)
