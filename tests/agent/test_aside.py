"""The daemon's configuration is read in a child, and means the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters.aside import load_aside
from agent.config import load
from agent.errors import ConfigError

ROOT = Path(__file__).parents[2]
FULL = """
device: roof-17
broker: {host: broker.example, port: 8883, tls: {ca_file: /etc/ca.pem}}
labels: {site: "nördlich"}
transfer: {metered_hours: ["07:00-22:00"], rate_bytes_per_s_max: 100000}
admission: {battery_percent_min: 40, window: ["02:00-05:00"]}
hooks: {digits: {activate: [systemctl, restart, digits], unit: digits.service, activate_unit: null}}
soak: {live_latency_factor_max: 2.5}
"""


def _aside(path: Path, before: str = "") -> str:
    """In a process without threads, which a test's own may have."""
    code = f"""
import sys
from pathlib import Path
import agent.adapters.aside as aside
{before}
try:
    print(aside.load_aside(Path(sys.argv[1])).device, "yaml" in sys.modules)
except aside.ConfigError as error:
    print(error.code, "/", error.args[0])
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return said.stdout + said.stderr


def test_what_the_child_read_is_what_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    for text in ("", FULL, (ROOT / "systemd" / "config" / "agent.yaml").read_text()):
        path.write_text(text)
        assert load_aside(path) == load(path)
    path.write_text(FULL)
    assert _aside(path) == "roof-17 False\n"


@pytest.mark.parametrize("text", ["brooker: {}", "a: [", "broker: {port: 0}"])
def test_why_it_cannot_be_used_is_said_in_the_same_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as here:
        load(path)
    with pytest.raises(ConfigError) as aside:
        load_aside(path)
    assert (aside.value.code, aside.value.args) == (here.value.code, here.value.args)
    with pytest.raises(ConfigError, match="config_unreadable"):
        load_aside(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "harm",
    [
        "aside.os.fork = lambda: (_ for _ in ()).throw(BlockingIOError(11, 'no more processes'))",
        "aside._answer = lambda path, writing: aside.os.kill(aside.os.getpid(), 9)",
        "aside._answer = lambda path, writing: (aside.os.write(writing, b'half'), aside.os._exit(0))",
    ],
)
def test_without_a_child_it_is_read_here(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(FULL)
    said = _aside(path, harm)
    assert said.startswith("roof-17 True\n")
    assert "a child did not" in said
