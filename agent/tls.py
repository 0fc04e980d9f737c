"""How the agent's connections are encrypted.

For: the configuration's section `broker.tls`, the certificate of an enrolment, and the contexts that both the
daemon and `doctor` use, so that what the one finds is what the other will meet. All are judged at a time that
the caller gives (`agent.judged`).
Not for: connecting (`agent.adapters.mqtt`), or authority, which is in signatures (`wire.trust`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from agent import identity
from agent.errors import ConfigError, StateError
from agent.identity import Identity
from wire.errors import ShallopError

if TYPE_CHECKING:
    import ssl

JudgedAt = Callable[[], float]


class Heard(Struct):
    """Why a connection did not come about, or ended, in the words of who ended it.

    Attributes:
        words: empty where nobody said anything.
        certificate: whether it was this device's certificate that was refused.
    """

    words: str = ""
    certificate: bool = False


class TlsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS 1.2 or newer; the broker's certificate is always checked, its name too.

    Attributes:
        ca_file: certificates that may sign the broker's (PEM); the system's where none is given.
        cert_file: this device's certificate, for a broker that asks for one.
        key_file: its key; in `cert_file` where none is given.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def context(config: TlsConfig, at_s: JudgedAt, heard: Heard | None = None) -> ssl.SSLContext:
    """A client's context by the configuration.

    Args:
        config: the section.
        at_s: the time at which certificates are judged, seconds since 1970.
        heard: takes what the other side says of a connection that it ends.

    Raises:
        ConfigError: `tls_unusable`: a file cannot be read or does not hold what it should.
    """
    import ssl  # noqa: PLC0415 - 1.4 MiB of a daemon whose connection is not encrypted

    from agent.judged import judge  # noqa: PLC0415 - as above

    if config.key_file is not None and config.cert_file is None:
        raise ConfigError("tls_unusable", "broker.tls.key_file is set without broker.tls.cert_file")
    try:
        made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=config.ca_file)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.cert_file is not None:
            made.load_cert_chain(config.cert_file, config.key_file)
    except (OSError, ValueError) as error:
        names = ", ".join(name for name in (config.ca_file, config.cert_file, config.key_file) if name)
        raise ConfigError("tls_unusable", f"broker.tls cannot be used ({names}): {error}") from None
    return judge(made, at_s, heard)


def verifying(authorities_pem: str, at_s: JudgedAt, heard: Heard | None = None) -> ssl.SSLContext:
    """A client's context that believes these authorities alone; TLS 1.3, the server's name checked.

    Raises:
        StateError: `authorities_unusable`.
    """
    import ssl  # noqa: PLC0415 - see context()

    from agent.judged import judge  # noqa: PLC0415 - as above

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        made.load_verify_locations(cadata=authorities_pem)
    except (OSError, ValueError) as error:
        raise StateError(
            "authorities_unusable", f"the authorities' certificates cannot be used: {error}"
        ) from None
    return judge(made, at_s, heard)


def of_identity(found: Identity, at_s: JudgedAt, heard: Heard | None = None) -> ssl.SSLContext:
    """A client's context with this device's certificate, believing its fleet's authorities alone.

    OpenSSL checks that key and certificate belong together.

    Raises:
        StateError: `identity_unusable` or `authorities_unusable`.
    """
    made = verifying(found.authorities_pem, at_s, heard)
    with _as_file(identity.encode(found)) as path:
        try:
            made.load_cert_chain(path)
        except (OSError, ValueError) as error:
            raise StateError(
                "identity_unusable", f"this device's certificate cannot be used with its key: {error}"
            ) from None
    return made


def require_usable(found: Identity) -> None:
    """Returns if key, certificate and authorities are what OpenSSL can use.

    Raises:
        StateError: `identity_unusable` or `authorities_unusable`.
    """
    of_identity(found, lambda: 0.0)


class Fresh:
    """Passes for a context and makes one for every connection, by what is on the disk then.

    Made for paho, which takes a context once and asks it for nothing but this.
    """

    check_hostname = True

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make

    def wrap_socket(
        self, sock: socket.socket, *, server_hostname: str, do_handshake_on_connect: bool = True
    ) -> ssl.SSLSocket:
        """As `ssl.SSLContext.wrap_socket`.

        Raises:
            OSError: it failed, or there is nothing to make a context of; paho tries again then.
        """
        try:
            made = self._make()
        except ShallopError as error:
            raise OSError(str(error)) from None
        return made.wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=do_handshake_on_connect
        )


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL reads these bytes, which lie in memory alone."""
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
