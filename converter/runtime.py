"""The one door to ONNX Runtime.

For: switching its telemetry off before it is imported (the Linux wheel otherwise writes under the home
directory and starts a thread: FACTS.md, trap 9) and building sessions in one way. No other module of the
converter imports onnxruntime by itself.
Not for: deciding what to run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import calibrate as ort_calibrate
from onnxruntime.quantization import onnx_quantizer as ort_onnx_quantizer
from onnxruntime.quantization import registry as ort_registry
from onnxruntime.transformers import float16 as ort_float16

__all__ = [
    "NAME",
    "VERSION",
    "Session",
    "open_session",
    "ort_calibrate",
    "ort_float16",
    "ort_onnx_quantizer",
    "ort_quantization",
    "ort_registry",
    "profile_session",
]

NAME = "onnxruntime"
VERSION: str = onnxruntime.__version__

_ERRORS_ONLY = 3

Session = Any
"""`onnxruntime.InferenceSession`; the wheel carries no types."""


def open_session(
    model: bytes,
    *,
    threads: int = 1,
    config: Mapping[str, str] | None = None,
    optimized_path: Path | None = None,
    optimization: str = "ALL",
) -> Session:
    """A CPU session of the serialized `model`.

    Args:
        model: the ONNX file's bytes.
        threads: within one operator; operators run one after another.
        config: session configuration entries, such as `session.x64quantprecision`.
        optimized_path: where the runtime saves the graph that it really runs.
        optimization: `ALL`, `EXTENDED`, `BASIC` or `DISABLE_ALL`.

    Raises:
        Exception: whatever the runtime raises for a graph that it cannot run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = getattr(
        levels, "ORT_DISABLE_ALL" if optimization == "DISABLE_ALL" else f"ORT_ENABLE_{optimization}"
    )
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def profile_session(model: bytes, prefix: Path) -> Session:
    """A session on one thread that notes each kernel's time; `end_profiling()` gives the file's path.

    Optimized at the level EXTENDED, where a kernel still bears the name of the node that it was made of.

    Raises:
        Exception: whatever the runtime raises for a graph that it cannot run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
