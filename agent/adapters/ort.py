"""ONNX Runtime, for the worker only.

For: loading an ONNX model on the CPU with the threads and session entries that the manifest asks for.
Not for: the daemon, which must never import this; nor for other execution providers.

The Linux wheel of onnxruntime starts a telemetry thread and writes below `~/.cache` unless
`ORT_DISABLE_TELEMETRY=1` is set before the import (FACTS.md, trap 9); it is set here as well as by the
process that starts the worker.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.runtimes import named

_FATAL_ONLY = 4
_LIBRARY = f"onnxruntime {ort.__version__}"


class OrtSession:
    """A loaded ONNX model; fulfils `agent.worker.runtimes.Session`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.version: str = ort.__version__
        self.input_names = tuple(value.name for value in session.get_inputs())
        self.output_names = tuple(value.name for value in session.get_outputs())

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """They are what an ONNX model takes already; `run` refuses what is not."""
        return dict(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference.

        Raises:
            FinalError: `model_run_failed`; `output_mismatch`: an output is a list or a map, not a tensor.
            MemoryError: it needs more than the process may use.
        """
        try:
            values = self._session.run(None, dict(inputs))
        except Exception as error:  # noqa: BLE001 - the runtime raises classes of its own and bare ones
            raise named("model_run_failed", _LIBRARY, error) from None
        outputs = dict(zip(self.output_names, values, strict=True))
        for name, value in outputs.items():
            if not isinstance(value, np.ndarray):
                raise FinalError("output_mismatch", f"output {name} is a {type(value).__name__}, no tensor")
        return outputs

    def finish(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """They are values already."""
        return dict(outputs)


class OrtRuntime:
    """The library; fulfils `agent.worker.runtimes.Runtime`."""

    def load(self, model_path: str, threads: int, session_config: Mapping[str, str]) -> OrtSession:
        """The model in the file.

        Raises:
            FinalError: `model_load_failed`.
            MemoryError: it needs more than the process may use.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _FATAL_ONLY
        try:
            for key, value in session_config.items():
                options.add_session_config_entry(key, value)
            session = ort.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - the runtime raises classes of its own and bare ones
            raise named("model_load_failed", _LIBRARY, error) from None
        return OrtSession(session)


def onnxruntime() -> OrtRuntime:
    """The library, which importing this module has imported."""
    return OrtRuntime()
