"""Settings that every test shares: Hypothesis without deadlines, and where subprocesses find the code."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import HealthCheck, settings
from paho.mqtt.enums import MQTTErrorCode

ROOT = Path(__file__).parent.parent

# A loaded CI machine must not turn a slow example into a failure: timings are never asserted here.
settings.register_profile("shallop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shallop")

# Tests start real programs with `python -m`; they must find this tree whatever folder they start in.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# What a shell starts in the background ignores SIGINT, and so would every program under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A developer's own fleet is none of the tests' business.
for name in ("SHALLOP_SERVER", "SHALLOP_TOKEN", "SHALLOP_TOKEN_FILE"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="session")
def _mqtt_clients_close_what_wakes_them() -> Iterator[None]:
    """Paho leaves the two sockets that wake its thread to `__del__`.

    A client stands in a cycle with its callbacks; where the collector comes to the sockets first, that is a
    ResourceWarning in whichever test happens to run then.
    """
    stop = paho.Client.loop_stop

    def stop_and_close(client: paho.Client) -> MQTTErrorCode:
        result = stop(client)
        client._reset_sockets(sockpair_only=True)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paho.Client, "loop_stop", stop_and_close)
        yield


@pytest.fixture(scope="session")
def tflite_runtime_python() -> str:
    """The Python of the environment in which `tflite-runtime` has the numpy 1 that it needs."""
    python = ROOT / ".venv-tflite-runtime" / "bin" / "python"
    if not python.exists():
        pytest.skip("tflite-runtime has no environment of its own: make tflite-runtime (with Python 3.11)")
    return str(python)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole matrices too (make test-full)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whole matrices run only where they are asked for."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:  # noqa: ANN401 - pytest-xdist's
    """Which worker runs which test, where `-n` asks for several."""
    from tests.scheduling import MachineScheduling  # noqa: PLC0415 - pytest-xdist may not be installed

    return MachineScheduling(config, log)
