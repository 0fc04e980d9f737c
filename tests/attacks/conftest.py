"""One broker that anybody may write to, and scenes on it: one for each module, and new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.attacks.scene import Scene
from tests.brokers import Mosquitto, require_mosquitto
from wire.roots import Root


@pytest.fixture(scope="session")
def open_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    require_mosquitto()
    with Mosquitto(tmp_path_factory.mktemp("open-broker")) as running:
        yield running


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, open_broker: Mosquitto) -> Iterator[Scene]:
    """A device for attacks that leave its trust as it was."""
    made = Scene(tmp_path_factory.mktemp("scene") / "house", open_broker.port)
    yield made
    made.close()


@pytest.fixture
def new_scene(
    tmp_path_factory: pytest.TempPathFactory, open_broker: Mosquitto
) -> Iterator[Callable[..., Scene]]:
    """Makes devices for attacks that change what they trust."""
    made: list[Scene] = []

    def make(root: Root | None = None, **config: Any) -> Scene:  # noqa: ANN401
        made.append(Scene(tmp_path_factory.mktemp("scene") / "house", open_broker.port, root, **config))
        return made[-1]

    yield make
    for one in made:
        one.close()
