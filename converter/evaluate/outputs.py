"""What one candidate answers.

For: outputs of a whole set of samples, computed one sample at a time as a device computes them.
Not for: how good they are (`converter.evaluate.quality`), or latency (`converter.latency`).

An interpreter of LiteRT may not be asked by two threads at once: there each has its own.

One at a time matters: dynamic quantization takes its scale from the whole batch, and float kernels round
differently for other batch sizes (docs/adr/0003).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import numpy as np

from converter.dataset import Array, Samples
from converter.errors import InputError, RecipeError
from converter.limits import EVALUATION_WORKERS_MAX
from converter.loading import Loadable, Session, opened
from converter.runtime import NAME

Outputs = dict[str, Array]
Progress = Callable[[int, int], None]


def outputs_of(
    model: bytes,
    config: Mapping[str, str],
    samples: Samples,
    names: tuple[str, ...],
    progress: Progress | None = None,
) -> Outputs:
    """As `answers_of`, of an ONNX model.

    Args:
        model: the serialized graph.
        config: session entries.
        samples: as there, like all that follows.
        names: outputs wanted.
        progress: told (samples done, samples in all).

    Raises:
        RecipeError: `outputs_not_finite`.
        Exception: what the runtime raises.
    """
    return answers_of(Loadable(content=model, runtime=NAME, config=config), samples, names, progress)


def answers_of(
    one: Loadable, samples: Samples, names: tuple[str, ...], progress: Progress | None = None
) -> Outputs:
    """Every output of every sample, first axis samples.

    Where a stored sample is the model's whole tensor (`wire.bundle.InputData.whole`), so is an output.

    Args:
        one: the candidate.
        samples: to run, one at a time, spread over the cores with one thread each.
        names: outputs wanted.
        progress: told (samples done, samples in all).

    Raises:
        RecipeError: `outputs_not_finite`: NaN or infinity came out.
        Exception: what the runtime raises.
    """
    shared = opened(one)
    workers = max(1, min(os.cpu_count() or 1, EVALUATION_WORKERS_MAX, samples.n))
    edges = [samples.n * i // workers for i in range(workers + 1)]
    done = count(1)
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(
                _run_span,
                shared if one.shared or i == 0 else opened(one),
                samples,
                names,
                span,
                (done, progress),
            )
            for i, span in enumerate(pairwise(edges))
        ]
        rows = [row for future in futures for row in future.result()]
    outputs = {name: _stacked([row[i] for row in rows], name) for i, name in enumerate(names)}
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RecipeError("outputs_not_finite", f"output {name} holds NaN or infinity")
    return outputs


def _run_span(
    session: Session,
    samples: Samples,
    names: tuple[str, ...],
    span: tuple[int, int],
    told: tuple[count[int], Progress | None],
) -> list[list[Array]]:
    """Samples `span[0]` to `span[1]`; the runtime lets other threads run meanwhile."""
    done, progress = told
    rows: list[list[Array]] = []
    for feeds in samples.singles(*span):
        row = session.run(list(names), feeds)
        rows.append([array[None] for array in row] if samples.whole else row)
        if progress is not None:
            progress(next(done), samples.n)
    return rows


def filled(rows: list[Array]) -> list[Array]:
    """Rows `[1,k,...]` of one `k`, the largest; zeros are put behind. Others are returned as they are."""
    if any(row.ndim < 2 for row in rows) or len({row.shape[1] for row in rows}) == 1:
        return rows
    longest = max(row.shape[1] for row in rows)
    return [
        np.pad(row, [(0, 0), (0, longest - row.shape[1]), *[(0, 0)] * (row.ndim - 2)])
        if row.shape[1] < longest
        else row
        for row in rows
    ]


def _stacked(rows: list[Array], name: str) -> Array:
    """Rows of one output; where their second axis varies, as a detector's may, zeros fill it.

    Raises:
        InputError: `model_outputs`.
    """
    try:
        return np.concatenate(filled(rows))
    except ValueError as error:
        raise InputError(
            "model_outputs",
            f"output {name} changes its shape or has no first axis for samples ({error}); "
            "export the model with one row per sample",
        ) from error
