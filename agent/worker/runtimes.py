"""The seam between a trial and the library that runs the model.

For: the small Protocols that a runtime's adapter fulfils, and finding the adapter by the runtime's name.
Not for: any library itself; those stand in `agent.adapters` and are imported by the worker alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from agent.errors import FinalError
from agent.worker.job import DOES_NOT_FIT

_ADAPTERS = {"onnxruntime": "agent.adapters.ort"}


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

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference; first axis samples.

        Raises:
            FinalError: `model_run_failed`, or `output_mismatch` where an output is no array.
        """


class Runtime(Protocol):
    """An adapter's module."""

    def load(self, model_path: str, threads: int, session_config: Mapping[str, str]) -> Session:
        """The model in the file.

        Raises:
            FinalError: `model_load_failed`.
        """


def find(runtime: str) -> Runtime:
    """The adapter of a runtime, imported, so that loading a model afterwards is loading alone.

    Raises:
        FinalError: `runtime_missing`.
        MemoryError: its libraries are larger than the process may be.
    """
    name = _ADAPTERS.get(runtime)
    if name is None:
        raise FinalError(
            "runtime_missing", f"no runtime called {runtime!r} is known here, only {', '.join(_ADAPTERS)}"
        )
    try:
        return cast("Runtime", importlib.import_module(name))
    except ImportError as error:
        if DOES_NOT_FIT in str(error):
            raise MemoryError(f"{runtime}: {error}") from None
        raise FinalError(
            "runtime_missing", f"{runtime} is not installed here ({error}); pip install 'shallop[onnx]'"
        ) from None
