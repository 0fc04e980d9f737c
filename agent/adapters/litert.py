"""TFLite files, for the worker only: by LiteRT (`ai-edge-litert`) or by the older `tflite-runtime`.

For: loading a `.tflite` file on the CPU with the kernels that an application gets, and feeding it by the
names of its signature. One adapter, for both libraries have one interface; which of them runs a variant is
the variant's word, for the two compute different numbers (FACTS.md section 1, Parity).
Not for: the daemon, which must never import this; delegates; or axes, which the worker lays out.

Neither library writes a file, opens a socket or reports anything (seen with strace: LiteRT 2.3 and
tflite-runtime 2.14). With one thread neither starts any; with more, one less when it loads a model.

tflite-runtime 2.14 under numpy 2 can be imported and fails when an interpreter is built (FACTS.md section 1,
trap 14), so one is built of an empty model before any file is blamed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker import runtimes

Array = NDArray[Any]
Details = dict[str, dict[str, Any]]
"""What the interpreter tells of its inputs or outputs, by name."""

SIGNATURE = "serving_default"
EMPTY_MODEL = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c0000005000000003000000010000000800"
    "0000040004000400000001000000100000000c00140010000c00080004000c00000010000000100000001000000010000000"
) + bytes(20)
"""A .tflite file of one subgraph without tensors."""


class LitertSession:
    """A loaded .tflite file; fulfils `agent.worker.runtimes.Session`."""

    def __init__(self, interpreter: Any, library: str, version: str) -> None:  # noqa: ANN401 - has no types
        self._interpreter, self._library = interpreter, library
        self.version = version
        self._inputs, self._outputs = _edges(interpreter)
        self._places_in = {name: one["index"] for name, one in self._inputs.items()}
        self._places_out = {name: one["index"] for name, one in self._outputs.items()}
        self.input_names = tuple(self._inputs)
        self.output_names = tuple(self._outputs)

    def prepare(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Samples in the types of the file's inputs; real values are quantized where those are integers.

        Raises:
            FinalError: `output_mismatch`: the file takes another type, or cannot hold a value.
        """
        return {name: _typed(name, values, self._inputs[name]) for name, values in inputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference: arrays as `prepare` gave them, outputs as the file holds them.

        A file that takes several samples at once is filled with copies of the one, and gives its answer.

        Raises:
            FinalError: `output_mismatch`: an input is not of the file's shape; `model_run_failed`.
            MemoryError: it needs more than the process may use.
        """
        interpreter = self._interpreter
        try:
            for name, place in self._places_in.items():
                interpreter.set_tensor(place, self._filled(name, inputs[name]))
            interpreter.invoke()
            found = {name: interpreter.get_tensor(place) for name, place in self._places_out.items()}
        except Exception as error:  # noqa: BLE001 - the library raises what its C++ code meets
            raise self._explained(inputs, error) from None
        alone = [name for name, given in inputs.items() if given.ndim and len(given) == 1]
        copies = max((self._batch(name) for name in alone), default=1)
        return found if copies == 1 else {name: _first(values, copies) for name, values in found.items()}

    def _batch(self, name: str) -> int:
        shape = self._inputs[name]["shape"]
        return int(shape[0]) if len(shape) else 1

    def _filled(self, name: str, values: Array) -> Array:
        alone = values.ndim > 0 and len(values) == 1 < self._batch(name)
        return np.repeat(values, self._batch(name), axis=0) if alone else values

    def finish(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Real values where the file's outputs are quantized integers."""
        return {name: _real(values, self._outputs[name]) for name, values in outputs.items()}

    def _explained(self, inputs: Mapping[str, Array], error: Exception) -> Exception:
        """Which input does not fit, if that is what it was: a file's shapes are fixed."""
        for name, one in self._inputs.items():
            given, takes = list(inputs[name].shape), [int(size) for size in one["shape"]]
            if given != takes:
                return FinalError(
                    "output_mismatch",
                    f"input {name} is {given}, the file takes {takes} and nothing else; a variant's axes say "
                    "how its tensors lie",
                )
        return runtimes.named("model_run_failed", f"{self._library} {self.version}", error)


class TFLiteRuntime:
    """One of the two libraries, imported; fulfils `agent.worker.runtimes.Runtime`."""

    def __init__(self, name: str, interpreter: Callable[..., Any]) -> None:
        self._name, self._interpreter = name, interpreter
        self._version = importlib.metadata.version(name)

    def load(self, model_path: str, threads: int, session_config: Mapping[str, str]) -> LitertSession:
        """The model in the file.

        Args:
            model_path: of the .tflite file.
            threads: within one operator.
            session_config: must be empty: these libraries have no such entries, and a model that ran without
                what it was measured with would be another one.

        Raises:
            FinalError: `model_load_failed`.
            MemoryError: it needs more than the process may use.
        """
        if session_config:
            raise FinalError(
                "model_load_failed",
                f"{self._name} knows no session entry {min(session_config)!r}, it has none at all; the "
                "variant must not name any",
            )
        try:
            interpreter = self._interpreter(model_path=model_path, num_threads=threads)
            interpreter.allocate_tensors()
            return LitertSession(interpreter, self._name, self._version)
        except Exception as error:  # noqa: BLE001 - the library raises what its C++ code meets
            raise runtimes.named("model_load_failed", f"{self._name} {self._version}", error) from None


def ai_edge_litert() -> TFLiteRuntime:
    """LiteRT.

    Raises:
        ImportError: it is not installed.
        FinalError: `runtime_missing`: it is, and cannot be used.
    """
    return _usable("ai-edge-litert", "ai_edge_litert.interpreter")


def tflite_runtime() -> TFLiteRuntime:
    """The older library.

    Raises:
        ImportError: it is not installed.
        FinalError: `runtime_missing`: it is, and cannot be used, as beside numpy 2.
    """
    return _usable("tflite-runtime", "tflite_runtime.interpreter")


def _usable(name: str, module: str) -> TFLiteRuntime:
    interpreter = importlib.import_module(module).Interpreter
    try:
        interpreter(model_content=EMPTY_MODEL)
    except Exception as error:  # noqa: BLE001 - compiled code fails in ways of its own
        raise FinalError("runtime_missing", _useless(name, error)) from None
    return TFLiteRuntime(name, interpreter)


def _useless(name: str, error: Exception) -> str:
    said = f"{name} {importlib.metadata.version(name)} is installed here and builds no interpreter"
    if name == "tflite-runtime" and int(np.__version__.partition(".")[0]) >= 2:
        return (
            f"{said}: it was made for numpy 1, here is {np.__version__}; pip install 'numpy<2', or give it "
            "an environment of its own and name its Python in `trial.python`"
        )
    return f"{said}: {type(error).__name__}: {error}"


def _edges(interpreter: Any) -> tuple[Details, Details]:  # noqa: ANN401 - has no types
    """Inputs and outputs in the file's order, by the signature's names; without one by the tensors' own."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if SIGNATURE not in interpreter.get_signature_list():
        return {one["name"]: one for one in inputs}, {one["name"]: one for one in outputs}
    runner = interpreter.get_signature_runner(SIGNATURE)
    return _in_order(runner.get_input_details(), inputs), _in_order(runner.get_output_details(), outputs)


def _in_order(named: Details, details: Sequence[Mapping[str, Any]]) -> Details:
    """A signature's entries, which come in any order, as the file has them."""
    places = [one["index"] for one in details]
    return dict(sorted(named.items(), key=lambda one: places.index(one[1]["index"])))


def _first(values: Array, copies: int) -> Array:
    """The one sample's answer among those of its copies."""
    return values[:1] if values.ndim and len(values) == copies else values


def _typed(name: str, values: Array, one: Mapping[str, Any]) -> Array:
    """One input's samples in the type of the file's tensor."""
    dtype = np.dtype(one["dtype"])
    if values.dtype == dtype:
        return values
    scale, zero_point = one["quantization"]
    if values.dtype.kind == "f" and dtype.kind in "iu" and scale:
        return quantized(values, scale, zero_point, dtype)
    if values.dtype.kind != dtype.kind:
        raise FinalError("output_mismatch", f"input {name} is {values.dtype}, the file takes {dtype}")
    cast: Array = values.astype(dtype)
    if values.dtype.kind in "iu" and not np.array_equal(cast, values):
        raise FinalError(
            "output_mismatch", f"input {name} holds values that {dtype}, the file's type, cannot"
        )
    return cast


def quantized(values: Array, scale: float, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Reals as the integers that stand for them: `round(x / scale) + zero_point`, ties to even, clipped.

    As TFLite's operator QUANTIZE and ONNX's QuantizeLinear; sample by sample, so that memory holds one
    sample more and not all of them twice.

    Args:
        values: real, of any shape; first axis samples.
        scale: of the file's tensor, float32.
        zero_point: of the file's tensor.
        dtype: integers.
    """
    limits = np.iinfo(dtype)
    result = np.empty(values.shape, dtype)
    for index, sample in enumerate(values):
        steps = np.rint(sample / np.float32(scale)) + zero_point
        result[index] = np.clip(steps, limits.min, limits.max).astype(dtype)
    return result


def _real(values: Array, one: Mapping[str, Any]) -> Array:
    """`(q - zero_point) * scale` in float32, where the file's tensor is quantized."""
    scale, zero_point = one["quantization"]
    if not scale or values.dtype.kind not in "iu":
        return values
    real: Array = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real
