"""A .tflite file of any tool, asked as the ONNX model is asked.

For: answers and timed calls, through the converter's own door to LiteRT, one thread.
Not for: judging the answers (`bench.tflite.judging`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.tflite.files import Outline, placed
from converter.litert import Prepared, open_session

Array = NDArray[Any]
Feeds = dict[str, Array]


class Runner:
    """One open file."""

    def __init__(
        self, content: bytes, found: Outline, feed: Feeds, answer: tuple[str, Sequence[int]]
    ) -> None:
        """Opens it.

        Args:
            content: of the file.
            found: its outline.
            feed: one sample as the ONNX model takes it.
            answer: name and shape of the output that is judged.

        Raises:
            ValueError: an input or the answer is not to be found in the file.
        """
        self._inputs = placed({name: array.shape for name, array in feed.items()}, found.inputs)
        name, axes = placed({answer[0]: answer[1]}, found.outputs)[answer[0]]
        self._answer = name
        layouts = dict([*self._inputs.values(), (name, axes)])
        changed = {edge: axes for edge, axes in layouts.items() if axes != tuple(range(len(axes)))}
        self._session = open_session(content, axes=changed)

    def prepare(self, feed: Feeds) -> Prepared:
        """The sample in the file's axes; outside what is timed."""
        return self._session.prepare(self._renamed(feed))

    def invoke(self, prepared: Prepared) -> object:
        """What is timed: inputs in, all outputs out."""
        return self._session.invoke(prepared)

    def answers(self, feeds: Sequence[Feeds]) -> Array:
        """The judged output of every sample, stacked: `[n, ...]`."""
        rows = [self._session.run([self._answer], self._renamed(feed))[0] for feed in feeds]
        return np.stack([row[0] if row.shape[0] == 1 else row for row in rows])

    def _renamed(self, feed: Feeds) -> Feeds:
        return {self._inputs[name][0]: array for name, array in feed.items()}
