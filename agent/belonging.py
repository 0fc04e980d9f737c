"""Which name, broker and TLS this device uses: the configuration's word, else the enrolment's.

For: one rule, written once, for the daemon, `status` and `doctor`. A key of the section `broker` that differs
from its default wins; what is left at its default comes from the enrolment. The section `broker.tls` wins
as a whole, where there is one. An enrolment that waits complete is taken up here, before all else begins.
Not for: making connections, or what an enrolment is (`agent.enrolling`).
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent import hardware
from agent.config import BrokerConfig, Config
from agent.errors import ConfigError, StateError
from agent.identities import CURRENT, ENROLLING, Identities
from agent.identity import Identity
from agent.journal import JournalFile
from agent.ports import Clock, Keys
from agent.signed_time import SignedTime, seconds_of, text_of
from agent.statusing import Noted
from agent.trust import Trust
from wire.errors import ShallopError
from wire.trust import SignatureCheck

if TYPE_CHECKING:
    from agent.enrolling import Complete
    from agent.renewal import Introduction
    from agent.status_view import IdentityPicture

log = logging.getLogger(__name__)

_ADDRESS = ("host", "port", "root")
_DEFAULT = BrokerConfig()


def require_device(config: Config, enrolled: str) -> None:
    """Returns if the configuration gives this device no other name than its enrolment does.

    Raises:
        ConfigError: `device_differs`.
    """
    if config.device is not None and config.device != enrolled:
        raise ConfigError(
            "device_differs",
            f"the enrolment is for {enrolled}, `device` in the configuration says {config.device}: take that "
            "line out, or make a token for this name",
        )


def effective(config: Config, found: Identity | None) -> Config:
    """The configuration with what the enrolment adds to it.

    Raises:
        ConfigError: `device_differs`.
    """
    if found is None:
        return config
    require_device(config, found.device)
    mine = config.broker
    added = {
        name: getattr(found.home, name) for name in _ADDRESS if getattr(mine, name) == getattr(_DEFAULT, name)
    }
    return replace(config, device=found.device, broker=replace(mine, **added))


def overruled(config: Config, found: Identity | None) -> tuple[str, ...]:
    """Keys of the section `broker` by which the configuration wins over the enrolment."""
    if found is None:
        return ()
    mine, home = config.broker, found.home
    names = [
        name for name in _ADDRESS if getattr(mine, name) not in {getattr(_DEFAULT, name), getattr(home, name)}
    ]
    return (*names, "tls") if mine.tls is not None else tuple(names)


def taken_up(
    config: Config, identities: Identities, trusted: Trust, folder: Path, keys: Keys, check: SignatureCheck
) -> tuple[Config, Identity | None]:
    """The configuration that the daemon works by and who it is, once an enrolment that waits is taken up.

    What cannot be used is told and does not keep the daemon from guarding what runs.

    Raises:
        ConfigError: `device_differs`.
    """
    if identities.path(ENROLLING).exists():
        try:
            take_up(config, identities, trusted, folder, keys, check)
        except (ShallopError, OSError) as error:
            log.error("an enrolment that waits cannot be taken up: %s", error)  # noqa: TRY400
    try:
        found = identities.read()
    except StateError as error:
        log.error("this device has lost its identity: %s; enrol it again", error)  # noqa: TRY400
        # Its name was the enrolment's; under another one the journal would not be believed.
        return replace(config, device=config.device or _device_in(folder)), None
    after, won = effective(config, found), overruled(config, found)
    if found is not None:
        whose = (
            f"the configuration's for {', '.join(won)}, else the enrolment's" if won else "the enrolment's"
        )
        log.info("the broker's address and TLS are %s", whose)
    return after, found


def take_up(
    config: Config, identities: Identities, trusted: Trust, folder: Path, keys: Keys, check: SignatureCheck
) -> Complete | None:
    """Takes an enrolment that waits up; whoever holds the lock of the state directory.

    The journal, if it is this machine's own, goes along to the new name first: what runs here passed its
    trials here.

    Raises:
        ConfigError, StateError, WireError, TrustError: it cannot be used, and is put away.
        OSError: the disk's; it waits on.
    """
    from agent.enrolling import device_of, finish  # noqa: PLC0415 - once in a device's life

    device = device_of(identities)
    if device is None:
        return None
    require_device(config, device)
    before = identities.usable(CURRENT)
    former = config.device or (before.device if before is not None else hardware.device_id(Path("/")))
    if former is not None and _device_in(folder) == former != device:
        kept = JournalFile(folder, former).load()
        if kept is not None:
            JournalFile(folder, device).save(kept)
    return finish(identities, trusted, keys, check)


def _device_in(folder: Path) -> str | None:
    try:
        found = JournalFile(folder).load()
    except (StateError, OSError):
        return None
    return found.device if found is not None else None


def pictured(
    config: Config, identities: Identities, alive: Noted | None
) -> tuple[Config, IdentityPicture | None]:
    """The configuration that a daemon works by, and what `status` shows of the identity."""
    from agent.status_view import IdentityPicture  # noqa: PLC0415 - not needed by the daemon

    try:
        found = identities.read()
        after = effective(config, found)
    except (StateError, ConfigError) as error:
        return config, IdentityPicture(error=str(error))
    if found is None:
        return config, None
    note = alive.identity if alive is not None else None
    picture = IdentityPicture(
        device=found.device, url=found.home.url, ends_at=text_of(found.not_after_s),
        renewed_at=found.issued_at, due_at=note.due_at if note else None,
        renewal=note.phase if note else None,
        failures=note.failures if note else 0, why=note.why if note else None,
        overruled=overruled(config, found),
    )  # fmt: skip
    return after, picture


def introduction(config: Config, identities: Identities, found: Identity | None) -> Introduction | None:
    """With what the daemon introduces itself; None where that is the configuration's."""
    if found is None or config.broker.tls is not None:
        return None
    from agent.renewal import Introduction  # noqa: PLC0415 - only a device that is enrolled

    return Introduction(identities, found)


def judged_time(trusted: Trust, known: Introduction | None, clock: Clock) -> SignedTime:
    """The time at which this device judges certificates.

    What was signed counts up to a ceiling that no order key moves: with a stolen one, or by a registry whose
    clock stood wrong for a minute, a document of the year 2999 would else end every certificate, and with
    them the way by which the next root comes.
    """

    def signed_s() -> float:
        document = seconds_of(trusted.state.signed_at) if trusted.believes else None
        signed = max(document or 0.0, known.signed_s if known is not None else 0.0)
        return min(signed, _ceiling_s(trusted, known))

    return SignedTime(wall_s=time.time, boot_s=clock.boot_s, signed_s=signed_s)


def _ceiling_s(trusted: Trust, known: Introduction | None) -> float:
    """How far a signed time may move the judged one, seconds since 1970.

    With a certificate of its own: two thirds of its life, when the next is due. Without one, and with a
    clock that knows of the root, which only root keys sign: not at all.
    """
    if known is not None:
        return known.ceiling_s
    root_s = seconds_of(trusted.state.root.issued_at) if trusted.believes else None
    return 0.0 if root_s is not None and time.time() >= root_s else math.inf
