"""What one model file is, by this process: for the one that ends after it (`converter.look_child`).

For: describing an ONNX or a TFLite file from its bytes, and what the runtime here makes of it, one by one:
where the second ends the process, the first was told already.
Not for: bundles and the process (`converter.inspect`, `converter.confined`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from msgspec import Struct

from converter import litert
from converter.candidates import Fusion
from converter.errors import InputError
from converter.fusion import audit
from converter.graph_summary import GraphSummary, summarize
from converter.limits import MODEL_BYTES_MAX
from converter.measured import reason_of
from converter.model import read_bytes
from converter.opening import loaded
from converter.tflite_summary import TFLiteModel, summarize_tflite
from wire.tflite_walk import IDENTIFIER


class Model(Struct, frozen=True, kw_only=True):
    """One ONNX file.

    Attributes:
        graph: what it holds.
        fusion: what this host's runtime really executes; None where it cannot run the graph.
        fusion_note: why it cannot; empty where it can.
    """

    path: str
    size_bytes: int
    sha256: str
    graph: GraphSummary
    fusion: Fusion | None
    fusion_note: str = ""


class Job(Struct, frozen=True, kw_only=True):
    """One file to look into.

    Attributes:
        path: where it lies.
        name: that it is called by.
        tflite: whether it is a TFLite file whatever its first bytes say.
        config: session entries with which ONNX Runtime opens it.
    """

    path: str
    name: str
    tflite: bool = False
    config: dict[str, str] = {}


class Ran(Struct, frozen=True, kw_only=True):
    """What the runtime makes of a file: kernels where it is ONNX, and why it cannot run it."""

    fusion: Fusion | None = None
    note: str = ""


class Look:
    """One file that is open for looking."""

    def __init__(self, job: Job) -> None:
        """Raises InputError: `model_missing`, `model_too_large`."""
        self._job = job
        self._content = read_bytes(Path(job.path), MODEL_BYTES_MAX, "model")
        self.tflite = job.tflite or self._content[4:8] == IDENTIFIER

    def described(self) -> Model | TFLiteModel:
        """What the file says of itself, as one that no runtime opened.

        Raises:
            InputError: `model_not_onnx`, `model_external_data`, `model_too_large`, `model_not_tflite`.
        """
        if self.tflite:
            return summarize_tflite(self._content, self._job.name)
        return Model(
            path=self._job.name,
            size_bytes=len(self._content),
            sha256=hashlib.sha256(self._content).hexdigest(),
            graph=summarize(_proto(self._content, self._job.name)),
            fusion=None,
        )

    def ran(self) -> Ran:
        """What the runtime here makes of it."""
        return _opened(self._content) if self.tflite else _fused(self._content, self._job.config)


def _proto(content: bytes, name: str) -> onnx.ModelProto:
    def refused(error: Exception) -> InputError:
        why = error.args[0] if isinstance(error, InputError) else reason_of(error)
        return _not_onnx(name, f"({why})")

    proto = loaded(content, name, refused, values=False)
    if not proto.graph.node:
        raise InputError("model_not_onnx", f"{name} holds no graph; name an .onnx file or a bundle")
    return proto


def _not_onnx(name: str, why: str) -> InputError:
    return InputError("model_not_onnx", f"{name} is no ONNX file {why}; name an .onnx file or a bundle")


def _fused(content: bytes, config: Mapping[str, str]) -> Ran:
    try:
        return Ran(fusion=audit(content, config, None).fusion)
    except Exception as error:  # noqa: BLE001 - a graph that does not run here is still worth a look
        return Ran(note=reason_of(error))


def _opened(content: bytes) -> Ran:
    try:
        litert.open_session(content)
    except Exception as error:  # noqa: BLE001 - a file that does not run here is still worth a look
        return Ran(note=reason_of(error))
    return Ran()
