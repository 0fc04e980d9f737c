"""A Mosquitto of production's configuration, a house on it and the registry's hand, for one test each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.house import House
from tests.brokers import Mosquitto, require_mosquitto
from tests.integration.hand import Hand


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    require_mosquitto()
    with Mosquitto(tmp_path / "mosquitto") as running:
        yield running


@pytest.fixture
def bare_house(tmp_path: Path, broker: Mosquitto) -> Iterator[House]:
    """Nothing runs in it yet but the broker."""
    with House(tmp_path / "house", broker_port=broker.port) as made:
        yield made


@pytest.fixture
def hand(broker: Mosquitto) -> Iterator[Hand]:
    with Hand(broker.port) as made:
        yield made
