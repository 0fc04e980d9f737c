"""The seam between a trial and the library that runs the model.

For: the small Protocols that a runtime's adapter fulfils, and finding the adapter by the runtime's name.
Not for: any library itself; those stand in `agent.adapters` and are imported by the worker alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from agent.errors import FinalError
from agent.hardware import EXTRA_OF
from agent.worker.job import DOES_NOT_FIT

_ADAPTERS = {
    "onnxruntime": ("agent.adapters.ort", "onnxruntime"),
    "ai-edge-litert": ("agent.adapters.litert", "ai_edge_litert"),
    "tflite-runtime": ("agent.adapters.litert", "tflite_runtime"),
}
"""By the name that variants use: a module, and the function in it that imports the library."""
DETAIL_CHARS_MAX = 500
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate memory")


class Session(Protocol):
    """A loaded model."""

    @property
    def version(self) -> str:
        """Of the runtime."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """In the model's order."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the model's order."""

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Samples in the types that the model takes, element by element; once, before anything is timed.

        Raises:
            FinalError: `output_mismatch`: the model takes none of this type.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference on prepared inputs; outputs as the model holds them.

        Raises:
            FinalError: `model_run_failed`, or `output_mismatch` where an input does not fit or an output is
                no array.
        """

    def finish(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of `run` as the values that they stand for, element by element; after what is timed."""


class Runtime(Protocol):
    """An adapter's library, imported."""

    def load(self, model_path: str, threads: int, session_config: Mapping[str, str]) -> Session:
        """The model in the file.

        Raises:
            FinalError: `model_load_failed`.
        """


def find(runtime: str) -> Runtime:
    """A runtime with its library imported, so that loading a model afterwards is loading alone.

    Raises:
        FinalError: `runtime_missing`: it is not installed, or it is and cannot be used.
        MemoryError: its libraries are larger than the process may be.
    """
    if runtime not in _ADAPTERS:
        raise FinalError(
            "runtime_missing", f"no runtime called {runtime!r} is known here, only {', '.join(_ADAPTERS)}"
        )
    module, function = _ADAPTERS[runtime]
    try:
        found: Runtime = getattr(importlib.import_module(module), function)()
    except ImportError as error:
        if DOES_NOT_FIT in str(error):
            raise MemoryError(f"{runtime}: {error}") from None
        raise FinalError(
            "runtime_missing",
            f"{runtime} is not installed for {sys.executable} ({error}); there: "
            f"pip install 'shallop[{EXTRA_OF[runtime]}]'",
        ) from None
    return found


def named(code: str, library: str, error: Exception) -> Exception:
    """A library's error under a name of ours; of a failed allocation they tell in words only.

    Args:
        code: for everything that is not about memory.
        library: its name and version.
        error: what it raised.
    """
    words = f"{library}: {error}"[:DETAIL_CHARS_MAX]
    if isinstance(error, MemoryError) or any(sign in words.lower() for sign in _OUT_OF_MEMORY):
        return MemoryError(words)
    return FinalError(code, words)
