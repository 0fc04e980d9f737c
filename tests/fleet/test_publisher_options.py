"""How a person publishes as the registry while it is down."""

from __future__ import annotations

from fleet.config import BrokerTls, Config


def test_a_broker_without_tls_is_named_by_host_and_port() -> None:
    assert Config(broker="mqtt://127.0.0.1:1884").publisher_options == ("-h", "127.0.0.1", "-p", "1884")
    assert Config(broker="mqtt://localhost").publisher_options == ("-h", "localhost", "-p", "1883")


def test_a_broker_with_tls_gets_the_registrys_own_certificate() -> None:
    where = ("-h", "broker.example", "-p", "8883")
    made = Config(broker="mqtts://broker.example", keys="/keys")
    own = "/keys/registry.pem"
    assert made.publisher_options == (*where, "--cafile", "/keys/ca.pem", "--cert", own, "--key", own)
    given = BrokerTls(ca_file="/tls/ca", cert_file="/tls/cert", key_file="/tls/key")
    other = Config(broker="mqtts://broker.example", broker_tls=given)
    assert other.publisher_options == (
        *where,
        "--cafile",
        "/tls/ca",
        "--cert",
        "/tls/cert",
        "--key",
        "/tls/key",
    )
