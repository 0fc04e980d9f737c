"""PURE. The agent's own failures, split by whether waiting helps.

For: saying in a word (`code`) what went wrong on this device and whether it heals by itself.
Not for: what the other side sent wrongly; that is `wire.errors`.
"""

from __future__ import annotations

import errno
from typing import Literal

import msgspec

from wire.errors import ShallopError
from wire.messages import Reason

DETAIL_CHARS_MAX = 1500
DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
"""Of a disk that is full, broken or read-only; other errors of a file system call have other causes."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be; a flipped bit may be the middle one."""


class AgentError(ShallopError):
    """Base of everything that the agent raises on purpose."""

    lasting: Literal["retry", "final"] = "final"


class RetryError(AgentError):
    """The work may succeed later: disk, network, maintenance window, heat."""

    lasting = "retry"


class NotYetError(RetryError):
    """A precondition of an order does not hold yet, or it is no time to go on; nothing failed.

    Attributes:
        again_s_max: the next look is no later than this; None where the usual wait will do.
    """

    def __init__(self, code: str, message: str, *, again_s_max: float | None = None) -> None:
        super().__init__(code, message)
        self.again_s_max = again_s_max


class FinalError(AgentError):
    """The work can never succeed as it was ordered: damage, limits, load, health."""


class ConfigError(AgentError):
    """The configuration file cannot be used; the message names the key."""


class StateError(AgentError):
    """The state directory is not what this program left there, or another process holds it."""


class LifecycleError(AgentError):
    """An event that this phase does not know: a mistake in this program, never in a message."""


def reason_of(error: ShallopError) -> Reason:
    """The error as it is reported; an error of the wire is final."""
    lasting = error.lasting if isinstance(error, AgentError) else "final"
    return Reason(code=error.code, detail=str(error.args[0])[:DETAIL_CHARS_MAX], lasting=lasting)


def disk_error(what: str, error: OSError) -> RetryError:
    """A disk's refusal by the name that a person needs: a full disk is not a broken one."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return RetryError(
        "disk_full" if full else "disk_failed", f"cannot write {what}: {error}"[:DETAIL_CHARS_MAX]
    )


class Cancelled(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The piece of work was called off."""
