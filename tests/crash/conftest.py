"""The house of the integration tests, for the tests here that need real processes."""

from tests.integration.conftest import bare_house, broker, hand

__all__ = ["bare_house", "broker", "hand"]
