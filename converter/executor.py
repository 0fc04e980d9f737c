"""Where the candidates of a sweep are made: here, in processes, or on a Dask cluster.

For: `open_executor()`: making and answering candidates side by side. `processes:N` is this machine's cores,
`dask:HOST:PORT` a scheduler's address (extra `shallop[dask]`, the workers with the same Shallop installed).
Not for: timing. Latency is measured here, one candidate at a time, whatever made it.

What all items share (the model, the data sets) is sent to each worker once and not with every item.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from converter.errors import InputError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

PROCESSES_MAX = 64
_CONNECT_SECONDS_MAX = 10


class Executor(Protocol):
    """Runs work on items; results come in the items' order."""

    def run(
        self, work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item]
    ) -> Iterator[Result]:
        """`work(shared, item)` for each item; what it raises is raised here."""
        ...


class Serial:
    """One after another, in this process."""

    def run(
        self, work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item]
    ) -> Iterator[Result]:
        """As the protocol says."""
        return (work(shared, item) for item in items)


class Processes:
    """On this machine's cores.

    Processes are started afresh (`spawn`): a fork of a process that holds a runtime's threads may hang.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def run(
        self, work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item]
    ) -> Iterator[Result]:
        """As the protocol says."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(self._count, max(1, len(items))), context, initializer=_keep, initargs=(shared,)
        ) as pool:
            yield from pool.map(_work_on_kept, [work] * len(items), items)


_kept: list[Any] = []


def _keep(shared: object) -> None:
    """In a worker: what all items share."""
    _kept[:] = [shared]


def _work_on_kept(work: Callable[[Any, Item], Result], item: Item) -> Result:
    return work(_kept[0], item)


class Dask:
    """On a cluster that the user runs."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 - distributed carries no types
        self._client = client

    def run(
        self, work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item]
    ) -> Iterator[Result]:
        """As the protocol says."""
        held = self._client.scatter(shared, broadcast=True)
        futures = [self._client.submit(work, held, item, pure=False) for item in items]
        for future in futures:
            yield future.result()


def open_executor(name: str | None) -> AbstractContextManager[Executor]:
    """The executor of that name; None is this process alone.

    Raises:
        InputError: `executor_malformed`; on entering `executor_missing` (Dask is not installed) or
            `executor_unreachable`.
    """
    kind, _, rest = (name or "serial").partition(":")
    if kind == "serial" and not rest:
        return _plain(Serial())
    if kind == "processes" and rest.isascii() and rest.isdigit() and 1 <= int(rest) <= PROCESSES_MAX:
        return _plain(Processes(int(rest)))
    if kind == "dask" and rest:
        return _dask(rest)
    raise InputError(
        "executor_malformed",
        f"{name!r} is no executor; one is processes:N with N up to {PROCESSES_MAX}, or dask:HOST:PORT",
    )


@contextmanager
def _plain(executor: Executor) -> Iterator[Executor]:
    yield executor


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        import distributed  # noqa: PLC0415 - an extra that few need
    except ImportError as error:
        raise InputError(
            "executor_missing", "Dask is not installed here; pip install 'shallop[dask]', or use processes:N"
        ) from error
    try:
        client: Any = distributed.Client(address, timeout=_CONNECT_SECONDS_MAX)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            "executor_unreachable",
            f"no Dask scheduler answers at {address} ({type(error).__name__}: {error}); "
            "start one with `dask scheduler`, or use processes:N",
        ) from error
    try:
        yield Dask(client)
    finally:
        client.close()
