"""PURE. What the fleet's broker is told: its configuration, and who may read and write which topics.

For: the access list of Mosquitto, made from the contract's channels so that a new one cannot be forgotten,
and the configuration with which Mosquitto asks everybody for a certificate.
Not for: writing files (`fleet.adapters.broker_files`), or cutting a device off (`fleet.adapters.gate`).

The names at the broker: a device's id; `fleet.registry`; `fleet.watch` (reads the broker's own figures);
`fleet.probe` (the registry's test of the door); `fleet.home-assistant` (where it was asked for). A dot stands
in none of the device ids, so no device can have one of the fleet's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct

from wire.topics import CHANNELS, ROOT_DEFAULT, Channel, Topics
from wire.types import DeviceId

REGISTRY, WATCH, PROBE, HOME = "fleet.registry", "fleet.watch", "fleet.probe", "fleet.home-assistant"

PORT_DEFAULT = 8883
DIRECTORY_DEFAULT = "/var/lib/shallop-broker"
PACKET_BYTES_MAX = 6 * 1024 * 1024
"""Of one packet: the contract's largest, a signed release, is 5,608,789 bytes."""

CA, SERVER, REVOKED, ACCESS, CONFIG = "ca.pem", "server.pem", "crl.pem", "access.acl", "mosquitto.conf"

Host = Annotated[str, Meta(min_length=1, max_length=253)]
Address = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:_%-]{1,253}(?!\n)$")]
Folder = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]{1,1000}(?!\n)$")]
"""In a line of Mosquitto's configuration: a line's end in it would begin another line."""
HomePrefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,63}(/[A-Za-z0-9_-]{1,63}){0,3}(?!\n)$")]


class Setup(Struct, frozen=True, kw_only=True):
    """How a broker was set up; kept beside its files, so that they can be made again.

    Attributes:
        hosts: names and addresses by which devices and registry know it; the first is the one to tell.
        port: where it listens.
        bind: the address to listen on; None is every one of the machine.
        root: of the topic tree.
        home_assistant: prefix of Home Assistant's discovery; None where it has no access.
        directory: where the broker finds its files, on its own machine.
    """

    hosts: Annotated[tuple[Host, ...], Meta(min_length=1, max_length=32)]
    port: Annotated[int, Meta(ge=1, le=65535)] = PORT_DEFAULT
    bind: Address | None = None
    root: str = ROOT_DEFAULT
    home_assistant: HomePrefix | None = None
    directory: Folder = DIRECTORY_DEFAULT


# --- who may do what ----------------------------------------------------------------------------------


def access_list(setup: Setup, denied: Iterable[DeviceId] = ()) -> str:
    """Mosquitto's `acl_file`; what it does not name is refused.

    Mosquitto 2.0 judges messages by it, and not subscriptions: whoever subscribes to `#` is told "granted"
    and gets what it may read.

    Args:
        setup: the root, and whether Home Assistant looks on.
        denied: devices that were cut off: nothing, whatever the patterns say.

    Raises:
        ValueError: the root is none, or a device writes on a channel without its name in it.
    """
    root = Topics(setup.root).root
    lines = ["# Made by shallop-fleet from the contract (wire/topics.py). Do not edit: it is made anew."]
    lines += _user(REGISTRY, f"topic readwrite {root}/#")
    # Denied comes first: the patterns below would show it content and group commands.
    lines += _user(WATCH, "topic read $SYS/#", f"topic deny {root}/#")
    if setup.home_assistant is not None:
        prefix = setup.home_assistant
        lines += _user(HOME, f"topic readwrite {prefix}/#", f"topic read {root}/device/+/up/#")
    for device in sorted(set(denied)):
        lines += _user(device, "topic deny #")
    lines += ["", "# Every device; %u is the name in its certificate."]
    lines += [_pattern(root, channel) for channel in CHANNELS]
    if setup.home_assistant is not None:
        # What `agent.home_assistant` publishes.
        lines += [
            f"pattern write {setup.home_assistant}/device/shallop-%u/{leaf}" for leaf in ("config", "state")
        ]
    return "\n".join(lines) + "\n"


def _user(name: str, *topics: str) -> list[str]:
    return ["", f"user {name}", *topics]


def _pattern(root: str, channel: Channel) -> str:
    own = channel.pattern.replace("{device}", "%u")
    topic = re.sub(r"\{\w+\}", "+", own)
    if channel.sender == "fleet":
        return f"pattern read {root}/{topic}"
    if not channel.pattern.startswith("device/{device}/up/"):
        raise ValueError(f"a device writes to {channel.pattern}, which is not below device/{{device}}/up/")
    # Its own it may read too: an agent looks whether its retained status is an older session's.
    return f"pattern readwrite {root}/{topic}"


# --- the broker ---------------------------------------------------------------------------------------


def mosquitto_config(setup: Setup) -> str:
    """The configuration for Debian's /etc/mosquitto/conf.d/."""
    return _CONFIG.format(
        listener=f"listener {setup.port} {setup.bind}" if setup.bind else f"listener {setup.port}",
        at=setup.directory, ca=CA, server=SERVER, revoked=REVOKED, access=ACCESS, packet=PACKET_BYTES_MAX,
    )  # fmt: skip


_CONFIG = """\
# Shallop's Mosquitto, for production: made by `shallop-fleet broker init`, which makes what it needs too.
# It goes to /etc/mosquitto/conf.d/shallop.conf of a Debian system (written for and tried with Debian 12's
# Mosquitto 2.0.11), in the place of the one for trying out; then `systemctl restart mosquitto`.
# What each line is for, what was tried, and what to watch: docs/broker.md.
#
# Not here, because Debian's own /etc/mosquitto/mosquitto.conf sets it and Mosquitto refuses it twice:
# persistence_location (/var/lib/mosquitto/).

# --- Who may connect ---------------------------------------------------------------------------------
# There is no listener without TLS. Whoever comes shows a certificate of the fleet's authority that was not
# revoked; the name in it is user name and client id, whatever the client says, so that nobody can take
# another's place. All five files are read again on `systemctl reload mosquitto`, for live sessions too.
{listener}
allow_anonymous false
cafile {at}/{ca}
# The certificate and its key in one file, so that a reload never finds one without the other.
certfile {at}/{server}
keyfile {at}/{server}
# The oldest version that is spoken.
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true

# Certificates that are refused. Reloaded when it cannot be read, Mosquitto 2.0.11 takes *everybody* in whose
# certificate the authority signed; the same holds for the access list. So files are only ever replaced whole,
# shallop-broker-reload.service looks at them first, and the registry tries the door (`broker check`).
crlfile {at}/{revoked}

# --- Who may read and write what ---------------------------------------------------------------------
acl_file {at}/{access}

# --- What is remembered ------------------------------------------------------------------------------
# Releases, chunks and desired documents are retained messages; they must survive a restart.
persistence true

# Seconds between two saves. After a crash or a power cut the broker remembers its last save only, and the
# registry publishes again what is missing (system/seed). Each save writes the whole memory, whether anything
# changed or not: with 100 MB of releases every 300 s is 29 GB a day.
autosave_interval 300

# A device that was given up leaves a session behind, which would collect messages for ever. One that comes
# back later than this only loses queued commands: its desired document is retained.
persistent_client_expiration 30d

# --- How much ----------------------------------------------------------------------------------------
# Connections at one time, below the unit's LimitNOFILE: one more is refused in order.
max_connections 60000

# Bytes of one packet: the largest of the contract is a signed release (5,608,789). A client that sends more
# is disconnected. Not message_size_limit: 2.0.11 acknowledges what that refuses, and throws it away.
max_packet_size {packet}

# Messages of QoS 1 sent to one client and not yet acknowledged (20 if not set), and waiting for one that is
# away or slow (1000 if not set): the registry must find the reports of a whole fleet after its own restart.
max_inflight_messages 100
max_queued_messages 10000
max_queued_bytes 268435456

# Send small packets at once. With Nagle's algorithm a fetch of chunks ran at 83 instead of 155 MB/s.
set_tcp_nodelay true

# Mosquitto has no limit on messages a second, none on retained messages of one client, and max_keepalive
# holds for MQTT 5 only. A client can take no more than its share of one core; the unit's MemoryMax bounds
# the memory, and the list of topics above bounds what one device can leave behind.
"""
