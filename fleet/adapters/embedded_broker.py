"""A broker for trying Shallop out: Mosquitto if the machine has it, else the one from PyPI, on loopback.

For: the demo, the benchmarks, a first look on a laptop without root, and tests.
Not for: production or devices on a network. It is open to every local user, knows no TLS and no access
list, and for that reason listens on 127.0.0.1 only; production is Mosquitto as `shallop-fleet broker init`
sets it up (docs/broker.md).
Why these two brokers, and what the one from PyPI forgets: docs/adr/0002-embedded-broker.md.

`python -m fleet.adapters.embedded_broker --port 1883 --data DIR` runs it until SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from fleet.adapters.broker_process import HOST, BrokerProcess, BrokerStartError, free_port
from wire.topics import CHANNELS

__all__ = ["BrokerKind", "BrokerStartError", "EmbeddedBroker", "find_broker"]

START_S_MAX = 15.0
TRYING_OUT = "for trying out: no encryption, open to every user of this machine; devices: docs/broker.md"
TOPIC_BYTES_MAX = 1024
PAYLOAD_BYTES_MAX = max(channel.size_bytes_max for channel in CHANNELS) + TOPIC_BYTES_MAX


class BrokerKind(StrEnum):
    """The brokers that we start, the preferred one first."""

    MOSQUITTO = "mosquitto"
    NATS = "nats"


def find_broker(kind: BrokerKind) -> Path | None:
    """Where that broker's program is on this machine."""
    name, folders = {
        # Debian puts it where the PATH of an ordinary user does not look.
        BrokerKind.MOSQUITTO: ("mosquitto", ["/usr/sbin", "/usr/local/sbin"]),
        # The wheel puts it beside this environment's Python, which need not be on PATH.
        BrokerKind.NATS: ("nats-server", [sysconfig.get_path("scripts")]),
    }[kind]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


class EmbeddedBroker:
    """A broker on loopback whose memory is the folder `data`.

    Args:
        data: made if missing; holds the configuration, the log and what the broker remembers.
        port: 0 chooses a free one, and keeps it when the broker is started again.
        kind: None takes the first that is installed.
        dies_with_us: see `BrokerProcess`.

    Raises:
        BrokerStartError: no such broker is installed.
    """

    host = HOST

    def __init__(
        self, data: Path, *, port: int = 0, kind: BrokerKind | None = None, dies_with_us: bool = False
    ) -> None:
        self.data = data.resolve()
        self.port = port or free_port()
        self.kind, program = _choose(BrokerKind if kind is None else [kind])
        self._config = self.data / f"{self.kind}.conf"
        self._process = BrokerProcess(
            [str(program), "-c", str(self._config)],
            self.port, self.data / "broker.log", dies_with_us=dies_with_us,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it accepts MQTT connections.

        Raises:
            BrokerStartError: it cannot; the message holds the end of the broker's log.
        """
        memory = self.data / f"{self.kind}.d"
        try:
            memory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._config.write_text(_CONFIGS[self.kind](self.port, memory))
        except OSError as error:
            raise BrokerStartError(
                f"no broker was started: its data folder {self.data} cannot be written ({error}); "
                "make it writable or name another one"
            ) from error
        self._process.start(START_S_MAX)
        time.sleep(_SETTLE_S[self.kind])

    def stop(self) -> None:
        """Ends it in order: what it remembers is on disk afterwards. Nothing happens if it does not run."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL: it remembers what its kind remembers after a crash."""
        self._process.kill()

    def wait(self) -> int:
        """Waits until it ends by itself; its exit status."""
        return self._process.wait()


def _choose(kinds: Iterable[BrokerKind]) -> tuple[BrokerKind, Path]:
    kinds = list(kinds)
    for kind in kinds:
        program = find_broker(kind)
        if program is not None:
            return kind, program
    raise BrokerStartError(
        f"no broker was started: none is installed (looked for {' and '.join(kinds)}); "
        "`apt-get install mosquitto`, or without root `pip install 'shallop[broker]'`"
    )


def _mosquitto_config(port: int, memory: Path) -> str:
    """Mosquitto takes the rest of a line as it is, so a folder with a space needs no quotes."""
    # Started as root it would become the user mosquitto, who cannot write the caller's folder.
    user = "user root\n" if os.geteuid() == 0 else ""
    return (
        f"{user}listener {port} {HOST}\nallow_anonymous true\n"
        f"persistence true\npersistence_location {memory}/\nautosave_interval 10\n"
        "max_inflight_messages 100\nmax_queued_messages 10000\nset_tcp_nodelay true\n"
        # Not message_size_limit: 2.0.11 acknowledges what that refuses, and throws it away.
        f"max_packet_size {PAYLOAD_BYTES_MAX}\nlog_dest stderr\n"
    )


def _nats_config(port: int, memory: Path) -> str:
    """NATS reads JSON; MQTT needs a server name and a store.

    It insists on a port for its own protocol too. That one takes any free port of loopback and lets
    nobody in: its only user may come over MQTT alone, where no password is asked for.
    """
    user = {"user": "mqtt", "password": secrets.token_hex(16), "allowed_connection_types": ["MQTT"]}
    return json.dumps(
        {
            "server_name": "shallop",
            "listen": f"{HOST}:-1",
            "max_payload": PAYLOAD_BYTES_MAX,
            "jetstream": {"store_dir": str(memory)},
            "authorization": {"users": [user]},
            "mqtt": {"listen": f"{HOST}:{port}", "no_auth_user": "mqtt"},
        },
        indent=1,
    )


_CONFIGS: dict[BrokerKind, Callable[[int, Path], str]] = {
    BrokerKind.MOSQUITTO: _mosquitto_config,
    BrokerKind.NATS: _nats_config,
}

# NATS answers a CONNECT before it can hand out what it retained: in 19 of 220 restarts the first subscription
# got nothing, and nothing later either. After 0.2 s it was 0 of 60; nothing it says tells when it is ready.
_SETTLE_S: dict[BrokerKind, float] = {BrokerKind.MOSQUITTO: 0.0, BrokerKind.NATS: 0.5}


class _Terminated(BaseException):
    """SIGTERM or SIGINT came."""


def _terminated_once() -> Callable[[int, FrameType | None], None]:
    """A handler that raises at the first signal only: a second one would break into what the first began."""
    came = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise _Terminated

    return handle


def main(arguments: list[str] | None = None) -> int:
    """Runs a broker in the foreground until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m fleet.adapters.embedded_broker", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; a free one if omitted")
    parser.add_argument("--data", type=Path, required=True, help="the folder of its log and memory")
    parser.add_argument(
        "--kind", type=BrokerKind, choices=list(BrokerKind), help="the first found by default"
    )
    options = parser.parse_args(arguments)
    handle = _terminated_once()
    broker = None
    try:
        # `timeout` and terminals signal the program and its group, so signals come in twos.
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
        broker = EmbeddedBroker(options.data, port=options.port, kind=options.kind, dies_with_us=True)
        broker.start()
        sys.stderr.write(f"{TRYING_OUT}\n")
        sys.stdout.write(f"{broker.kind} on mqtt://{broker.host}:{broker.port}\n")
        sys.stdout.flush()
        status = broker.wait()
        sys.stderr.write(f"the broker ended by itself with status {status}; see {broker.data}/broker.log\n")
    except BrokerStartError as error:
        sys.stderr.write(f"{error}\n")
    except _Terminated:
        return 0
    finally:
        # The interpreter's own end puts handlers back to what kills; it leaves what is ignored.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if broker is not None:
            broker.stop()
    return 1


if __name__ == "__main__":
    sys.exit(main())
