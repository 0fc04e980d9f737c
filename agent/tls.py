"""How the connection to the broker is encrypted.

For: the configuration's section `broker.tls`, and the one context that both the daemon and `doctor` use, so
that what the one finds is what the other will meet.
Not for: connecting (`agent.adapters.mqtt`), or authority, which is in signatures (`wire.trust`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from agent.errors import ConfigError

if TYPE_CHECKING:
    import ssl


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


def context(config: TlsConfig) -> ssl.SSLContext:
    """A client's context.

    Raises:
        ConfigError: `tls_unusable`: a file cannot be read or does not hold what it should.
    """
    import ssl  # noqa: PLC0415 - 1.4 MiB of a daemon whose connection is not encrypted

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
    return made
