"""Opens a candidate in the runtime that it is for.

For: `opened()`: one way to ask either runtime; `calls_of()`: the calls that are timed, with all that is no
inference done before them.
Not for: the runtimes themselves (`converter.runtime`, `converter.litert`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct
from numpy.typing import NDArray

from converter.attempts import TFLITE, TFLITE_RUNTIME
from converter.neighbour import Neighbour
from converter.runtime import VERSION, open_session

Feeds = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """An open model, of either runtime."""

    def run(self, names: Any, feeds: Any, /) -> Any:  # noqa: ANN401 - ONNX Runtime's own, without types
        """One inference, by the ONNX model's names and in its axes: a list of arrays."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A session that lays samples out before it is asked."""

    def prepare(self, feeds: Feeds, /) -> object:
        """What `invoke` takes."""
        ...

    def invoke(self, prepared: Any, /) -> object:  # noqa: ANN401 - each runtime's own
        """One inference."""
        ...


class Loadable(Struct, frozen=True, kw_only=True):
    """A model file and how it is opened.

    Attributes:
        content: the file.
        runtime: that opens it.
        config: session entries of ONNX Runtime.
        axes: by name of an input or output of a `.tflite` file: its tensor is ONNX's, transposed by these.
        python: of the environment where tflite-runtime is.
    """

    content: bytes
    runtime: str
    config: Mapping[str, str] = {}
    axes: Mapping[str, tuple[int, ...]] = {}
    python: str = ""

    @property
    def shared(self) -> bool:
        """Whether several threads may ask one session at once."""
        return self.runtime not in TFLITE


def opened(one: Loadable, threads: int = 1) -> Session:
    """An open session on the CPU.

    Raises:
        Exception: what the runtime raises; ImportError where LiteRT is not installed.
    """
    if one.runtime not in TFLITE:
        session: Session = open_session(one.content, threads=threads, config=one.config)
        return session
    from converter import litert  # noqa: PLC0415 - where no TFLite is wanted none is needed

    if one.runtime == TFLITE_RUNTIME:
        return litert.LitertSession(Neighbour(one.python, one.content, threads), one.axes)
    return litert.open_session(one.content, threads=threads, axes=one.axes)


def version_of(runtime: str) -> str:
    """Of the runtime as it is installed here; a neighbour's is the conversion's (`Inputs.neighbour`)."""
    if runtime not in TFLITE:
        return VERSION
    from converter import litert  # noqa: PLC0415 - as above

    return litert.VERSION


def calls_of(session: Session, feeds: Sequence[Feeds]) -> list[Callable[[], object]]:
    """One call for each sample, which does an inference and nothing else."""
    if isinstance(session, Prepares):
        return [partial(session.invoke, session.prepare(one)) for one in feeds]
    return [partial(session.run, None, one) for one in feeds]
