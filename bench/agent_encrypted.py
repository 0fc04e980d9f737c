"""The agent as production has it: an encrypted connection by its own certificate, trials behind a socket.

For: `bench.agent`, what TLS costs a daemon at rest.
Not for: how fast content comes that way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from bench.processes import idle
from examples.demo.house import House, wait_for
from fleet.adapters.broker_process import free_port
from tests.agent.certificates import Authority
from tests.brokers import MOSQUITTO, Mosquitto


def encrypted_idle(
    house: House, device: str, python: str, folder: Path, warm_up_s: float, window_s: float
) -> dict[str, Any] | None:
    """The device that is there, begun anew with a configuration of its own; None without Mosquitto."""
    if MOSQUITTO is None:
        return None
    authority, port = Authority(folder / "authority"), free_port()
    pem, key = authority.sign("broker")
    own_pem, own_key = authority.sign(device)
    extra = (
        f"\nlistener {port} 127.0.0.1\ncafile {authority.pem}\ncertfile {pem}\nkeyfile {key}\n"
        "require_certificate true\n"
    )
    house.agents[device].stop()
    with Mosquitto(folder / "encrypted", extra=extra):
        tls = {"ca_file": str(authority.pem), "cert_file": str(own_pem), "key_file": str(own_key)}
        broker = {"host": "localhost", "port": port, "tls": tls}
        agent = house.agent(device, python, broker=broker, trial={"socket": "/run/shallop/worker.sock"})
        wait_for("an encrypted connection", lambda: f"localhost:{port}" in agent.tail(200) and agent.alive())
        resting = idle(agent.pid, warm_up_s, window_s)
        if "connected as" not in agent.tail(200).rpartition(f"localhost:{port}")[2]:
            raise RuntimeError(f"the agent did not connect by TLS:\n{agent.tail()}")
        agent.stop()
    return asdict(resting) | {"memory_mib": asdict(resting.memory_mib)}
