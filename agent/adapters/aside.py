"""The configuration, read in a child, so that what reading it takes goes away with that.

For: the daemon. The YAML library is 1.1 MiB of memory that it needs once, for some milliseconds, and would
keep for as long as it runs: Python gives no module back.
Not for: a process with threads: a lock that another one holds stays locked in the child.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct

from agent.config import Config, load
from agent.errors import ConfigError

log = logging.getLogger(__name__)


class _Answer(Struct, frozen=True, kw_only=True):
    """What the child found: a configuration, or why there is none."""

    config: Config | None = None
    code: str = ""
    text: str = ""


def load_aside(path: Path) -> Config:
    """As `agent.config.load`; done here where the child dies or none can be had.

    Raises:
        ConfigError: as `agent.config.load`.
    """
    try:
        data = _child(path)
        answer = msgspec.json.decode(data, type=_Answer)
    except (OSError, msgspec.DecodeError) as error:
        log.warning("the configuration is read here, for a child did not: %s", error)
        return load(path)
    if answer.config is None:
        raise ConfigError(answer.code, answer.text)
    return answer.config


def _child(path: Path) -> bytes:
    """All that a child said; empty where it died.

    Raises:
        OSError: there is none.
    """
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if child == 0:
        _answer(path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return data


def _answer(path: Path, writing: int) -> NoReturn:
    """In the child: says what it found and ends without a word to anybody else."""
    with contextlib.suppress(BaseException), os.fdopen(writing, "wb") as pipe:
        try:
            answer = _Answer(config=load(path))
        except ConfigError as error:
            answer = _Answer(code=error.code, text=str(error.args[0]))
        pipe.write(msgspec.json.encode(answer))
    os._exit(0)
