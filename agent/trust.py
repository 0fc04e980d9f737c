"""The trust of one device: its state on the disk, and the port by which everything else asks.

For: loading and saving what `agent.believing` decides, and verifying signatures against it.
Not for: the decisions themselves, or cryptography (`agent.adapters.ed25519`).

The state is one file, replaced and fsynced before anything that it allows is done. Empty or damaged it
means *refuse*: nothing is believed until a person enrols the device again. What runs goes on running,
and a way back that a person asks for at the machine needs no trust.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent import believing
from agent.believing import TrustState
from agent.durable import write_file
from agent.errors import UNREADABLE, StateError
from agent.headed import body_of, headed
from wire import codec, roots, trust
from wire.errors import TrustError
from wire.messages import Bars, Desired
from wire.roots import Root
from wire.topics import BARS
from wire.trust import Policy, Role, SignatureCheck

VERSION = 1
FILE_NAME = "trust.json"
FILE_BYTES_MAX = 1024 * 1024


# Made by the thread that imports this, as in `wire.codec`.
_STATE = msgspec.json.Decoder(TrustState)


def encode(state: TrustState) -> bytes:
    """The state as it stands on disk: JSON below a header."""
    return headed("trust", VERSION, msgspec.json.encode(state))


def decode(data: bytes, name: str) -> TrustState:
    """A state from disk; `name` is what its file is called in an error.

    Raises:
        StateError: `trust_damaged`, or `trust_version` where a newer program wrote it.
    """
    body = body_of(data, "trust", VERSION, name)
    try:
        state = _STATE.decode(body)
        roots.checked(state.root)
    except (*UNREADABLE, TrustError) as error:
        raise StateError("trust_damaged", f"{name} cannot be read: {error}") from None
    return state


def read(path: Path) -> TrustState | None:
    """The state in a file; None where there is no file: this device was never enrolled.

    Raises:
        StateError: `trust_damaged`, or `trust_version` where a newer program wrote it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError("trust_damaged", f"{path} cannot be read: {error}") from error
    return decode(data, str(path))


class Trust:
    """Fulfils `wire.trust.Verifier`. Any thread may verify; only the runner's thread changes the state.

    Raises:
        StateError: `trust_version`.
    """

    def __init__(self, state_dir: Path, check: SignatureCheck) -> None:
        self._path = state_dir / FILE_NAME
        self._check = check
        self._lock = threading.Lock()
        self._damage: str | None = None
        self._state: TrustState | None = None
        try:
            self._state = read(self._path)
        except StateError as error:
            if error.code == "trust_version":
                raise
            self._damage = str(error.args[0])

    @property
    def enrolled(self) -> bool:
        """Whether there is, or once was, a trusted root: unsigned words are believed never again."""
        return self._state is not None or self._damage is not None

    @property
    def believes(self) -> bool:
        """Whether there is a trusted root to judge by."""
        return self._state is not None

    @property
    def signed_at(self) -> str:
        """The highest time that anybody signed, below which no clock is right; empty where nobody did."""
        return "" if self._state is None else self._state.signed_at

    @property
    def state(self) -> TrustState:
        """What is believed now.

        Raises:
            TrustError: `trust_damaged` or `not_enrolled`.
        """
        state = self._state
        if state is not None:
            return state
        if self._damage is not None:
            raise TrustError(
                "trust_damaged",
                f"{self._damage}; nothing is believed until `shallop-agent trust` is run again",
            )
        raise TrustError(
            "not_enrolled",
            "this device has no trusted root; run `shallop-agent trust ROOT.json --sha256 DIGEST`",
        )

    def policy(self, *, insecure_unsigned: bool) -> Policy:
        """How envelopes are opened here; once enrolled, signatures are checked whatever is configured."""
        return Policy(verifier=self) if self.enrolled else Policy(insecure_unsigned=insecure_unsigned)

    def verify(self, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
        """Returns if enough keys of `role` signed `message`.

        Raises:
            TrustError: they did not, or nothing is believed here.
        """
        roots.require_signatures(self.state.root, role, message, signatures, self._check)

    def require_not_barred(self, release: str) -> None:
        """Returns if orders may bring this release here; any may where nothing is believed. Any thread.

        Raises:
            TrustError: `release_barred`.
        """
        state = self._state
        if state is not None:
            believing.require_not_barred(state, release)

    # --- changes: saved before they hold

    def pin(self, data: bytes, root_sha256: str) -> Root:
        """Begins anew with a root whose digest is known by another way.

        The numbers begin anew too, since it may be another fleet's; each model's highest order, which the
        journal keeps, does not.

        Raises:
            WireError, TrustError: it is not that root.
            OSError: the disk's.
        """
        state = believing.pinned(data, root_sha256, self._check)
        self._change(lambda: state)
        self._damage = None
        return state.root

    def enrol(self, state: TrustState) -> None:
        """Takes up what an enrolment led to (`agent.believing.enrolled`), in one step.

        Raises:
            OSError: the disk's; what was believed before stands.
        """
        self._change(lambda: state)
        self._damage = None

    def rotate(self, data: bytes) -> Root:
        """Takes the next root document up.

        Raises:
            WireError, TrustError: it cannot follow.
            OSError: the disk's; the old root stands.
        """
        return self._change(lambda: believing.rotated(self.state, data, self._check)).root

    def obey(self, desired: Desired) -> None:
        """Takes note of a believed desired document.

        Raises:
            TrustError: `stale_document` or `future_epoch`.
            OSError: the disk's.
        """
        self._change(lambda: believing.obeyed(self.state, desired))

    def bar(self, data: bytes) -> None:
        """Takes a list of barred releases up.

        Raises:
            WireError, TrustError: it cannot be believed.
            OSError: the disk's.
        """
        inner = trust.open_envelope(data, "bars", Policy(verifier=self), BARS.size_bytes_max)
        bars = codec.decode(inner, Bars, BARS.size_bytes_max)
        self._change(lambda: believing.barring(self.state, bars))

    @property
    def before(self) -> TrustState | None:
        """What is believed now; None where nothing is, or can be read."""
        return self._state

    def _change(self, decide: Callable[[], TrustState]) -> TrustState:
        with self._lock:
            after = decide()
            if after != self._state:
                write_file(self._path, encode(after))
                self._state = after
        return after
