"""The command `shallop-agent enrol`.

For: the token from an argument, a file or standard input, the conversation with the registry, and what
happens next, in words: a running agent takes the enrolment up by itself and connects with it.
Not for: the conversation itself (`agent.enrolling`), or taking it up (`agent.belonging`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent import belonging, statusing
from agent.adapters import ed25519
from agent.adapters.ed25519 import verify
from agent.adapters.locks import StateLock
from agent.adapters.registry_https import HttpsRegistry
from agent.adapters.system import SystemClock
from agent.app import opened, version
from agent.config import Config
from agent.enrolling import Complete, ask
from agent.errors import ConfigError, StateError
from agent.identities import Identities
from agent.signed_time import SignedTime, text_of
from agent.trust import Trust
from wire import enrolment
from wire.enrolment import TOKEN_BYTES_MAX, Token
from wire.errors import WireError

TAKEN_UP_S_MAX = 30.0


def enrol(config: Config, arguments: argparse.Namespace) -> int:
    """Enrols this device; see the module.

    Raises:
        ConfigError: `token_malformed`, `token_url`, `token_unreadable`, `device_differs`.
        StateError: `state_unusable`, `enrolling`.
        AgentError, WireError, TrustError, OSError: by name; nothing has changed.
    """
    text = _text(arguments)
    try:
        token = enrolment.read_token(text)
    except WireError as error:
        raise ConfigError(error.code, str(error.args[0])) from None
    belonging.require_device(config, token.device)
    state_dir = Path(config.state_dir)
    identities = Identities(state_dir)
    with _alone(identities):
        registry = HttpsRegistry(_time_of(token, state_dir).now_s)
        found = ask(text, identities, ed25519, verify, registry, version())
        taken_up = _take_up(config, identities)
    sys.stdout.write(_words(config, found, taken_up=taken_up))
    return 0


def _text(arguments: argparse.Namespace) -> str:
    """The token, wherever it is."""
    given, path = arguments.token, arguments.token_file
    if (given is None) == (path is None):
        raise ConfigError("token_unreadable", "give the token, or - for standard input, or --token-file FILE")
    if given not in {None, "-"}:
        return str(given)
    try:
        if path is None:
            return sys.stdin.read(TOKEN_BYTES_MAX)
        with path.open(encoding="ascii") as file:
            return str(file.read(TOKEN_BYTES_MAX))
    except (OSError, UnicodeDecodeError) as error:
        where = "standard input" if path is None else path
        raise ConfigError("token_unreadable", f"cannot read the token from {where}: {error}") from None


def _time_of(token: Token, state_dir: Path) -> SignedTime:
    """When the registry's certificate is judged: no earlier than the token was made, or anything believed."""
    trusted = Trust(state_dir, verify)
    before = belonging.judged_time(trusted, None, SystemClock())
    return SignedTime(
        wall_s=before.now_s, boot_s=SystemClock().boot_s, signed_s=lambda: float(token.issued_at)
    )


@contextlib.contextmanager
def _alone(identities: Identities) -> Iterator[None]:
    """One enrolment at a time."""
    try:
        identities.folder.parent.mkdir(parents=True, exist_ok=True)
        identities.folder.mkdir(mode=0o700, exist_ok=True)
        lock = StateLock(identities.folder)
        lock.acquire()
    except OSError as error:
        raise StateError("state_unusable", f"cannot use {identities.folder}: {error}") from error
    except StateError as error:
        raise StateError("enrolling", f"another enrolment is at work: {error.args[0]}") from None
    try:
        yield
    finally:
        lock.release()


def _take_up(config: Config, identities: Identities) -> str:
    """Lets the answer hold: here, where no agent runs, else by the running one.

    Returns:
        `here`, `agent`, or `restart` where the agent that runs did not take it up.
    """
    try:
        with opened(config) as state:
            belonging.take_up(config, identities, Trust(state.root, verify), state.root, ed25519, verify)
            return "here"
    except StateError as error:
        if error.code != "state_locked":
            raise
    state_dir = Path(config.state_dir)
    noted, holder = statusing.read(state_dir), StateLock(state_dir).holder()
    # Another command holds the lock for a moment; only an agent knows the signal.
    if noted is None or holder is None or noted.pid != holder:
        return "restart"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(holder, signal.SIGHUP)
        until_s = time.monotonic() + TAKEN_UP_S_MAX
        while time.monotonic() < until_s:
            if not identities.complete:
                return "agent"
            time.sleep(0.1)
    return "restart"


def _words(config: Config, found: Complete, *, taken_up: str) -> str:
    identity = found.identity
    after = belonging.effective(config, identity)
    ends, where = text_of(identity.not_after_s), f"{after.broker.host}:{after.broker.port}"
    root = found.state.root.number
    lines = [
        f"{identity.device} is enrolled: root {root} is trusted, its certificate ends {ends}, broker {where}"
    ]
    won = belonging.overruled(config, identity)
    if won:
        keys = ", ".join(f"broker.{name}" for name in won)
        home = f"{identity.home.host}:{identity.home.port}"
        lines.append(
            f"the configuration wins over the enrolment's {home} by {keys}; take it out if not meant so"
        )
    if config.insecure_unsigned:
        lines.append("`insecure_unsigned` in the configuration has no effect any more")
    lines.append(
        {
            "here": "next: start the agent, `systemctl restart shallop-agent`",
            "agent": "the running agent took it up and connects with it; see `shallop-agent status`",
            "restart": "next: the agent that runs has to start again, `systemctl restart shallop-agent`",
        }[taken_up]
    )
    return "\n".join(lines) + "\n"
