"""The seam between a trial and the library that runs the model.

For: the small Protocol that a runtime's adapter fulfils, and finding the adapter by the runtime's name.
Not for: any library itself; those stand in `agent.adapters` and are imported by the worker alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from agent.errors import FinalError

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
            FinalError: `model_run_failed`.
        """


def load(runtime: str, model_path: str, threads: int, session_config: Mapping[str, str]) -> Session:
    """The model, loaded by its runtime.

    Raises:
        FinalError: `runtime_missing`, `model_load_failed`.
    """
    name = _ADAPTERS.get(runtime)
    if name is None:
        raise FinalError("runtime_missing", f"no runtime called {runtime!r} is known to this agent")
    try:
        adapter = importlib.import_module(name)
    except ImportError as error:
        raise FinalError(
            "runtime_missing", f"{runtime} is not installed here ({error}); pip install 'shallop[onnx]'"
        ) from None
    session: Session = adapter.load(model_path, threads, session_config)
    return session
