"""The command line against a real registry process that has no broker: exit codes, JSON, help."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from fleet.adapters import console
from fleet.adapters.broker_process import free_port
from fleet.cli import main
from fleet.inventory import Device, fold
from fleet.views import device_view
from tests.fleet.bundles import write_bundle
from tests.fleet.processes import RegistryProcess
from wire.messages import Hardware, Identity


def run(*arguments: str, server: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"SHALLOP_SERVER": server})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    made = RegistryProcess(tmp_path_factory.mktemp("registry") / "data", free_port(), "--insecure-unsigned")
    made.start()
    yield made
    assert made.stop() == 0, made.log.read_text()
    assert "Traceback" not in made.log.read_text()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(path, "v1", size_bytes=60_000)
    return path


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))


@pytest.mark.parametrize("command", list(_commands(main)), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example: shallop-fleet" in result.output


def test_the_help_says_how_to_complete_and_what_exit_codes_mean() -> None:
    output = run("--help").output
    assert "_SHALLOP_FLEET_COMPLETE=bash_source" in output
    assert "4 no registry" in " ".join(output.split())


def test_nobody_there_is_exit_4() -> None:
    result = run("releases", server=f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 4
    assert "server_unreachable" in result.output
    assert "shallop-fleet serve" in result.output
    assert run("releases", "--server", "nonsense").exit_code == 4


def test_a_bundle_is_published_twice_and_listed(registry: RegistryProcess, bundle: Path) -> None:
    first = run("publish", str(bundle), "--json", server=registry.url)
    assert first.exit_code == 0, first.output
    answer = json.loads(first.stdout)
    assert (answer["model"], answer["release"], answer["state"]) == ("camera", "v1", "published")
    again = run("publish", str(bundle), server=registry.url)
    assert again.exit_code == 0
    assert answer["digest"] in again.output
    listed = json.loads(run("releases", "--json", server=registry.url).stdout)
    assert [(r["model"], r["release"]) for r in listed] == [("camera", "v1")]
    table = run("releases", server=registry.url).output
    assert "camera" in table
    assert answer["digest"][:12] in table


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("publish", "/nowhere"), "file_missing"),
        (("rollout", "start", "camera@v9"), "unknown_release"),
        (("rollout", "start", "camera@v1", "--select", "colour=blue"), "selector_malformed"),
        (("rollout", "start", "camera@v1", "--waves", "9,1"), "waves_malformed"),
        (("rollout", "start", "camera@v1", "--gate", "/nowhere.yaml"), "config_unreadable"),
        (("rollout", "show", "ro-0"), "unknown_rollout"),
        (("rollout", "pause", "ro-0"), "unknown_rollout"),
        (("devices", "show", "nobody"), "unknown_device"),
        (("devices", "forget", "nobody"), "unknown_device"),
        (("devices", "label", "nobody", "a=b"), "unknown_device"),
        (("rollback", "camera"), "rollback_scope"),
        (("rollback", "camera", "--all"), "nothing_to_roll_back"),
        (("rollback", "camera", "--device", "nobody"), "unknown_device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_exit_2_with_its_name(
    registry: RegistryProcess, bundle: Path, arguments: tuple[str, ...], code: str
) -> None:
    run("publish", str(bundle), server=registry.url)
    result = run(*arguments, server=registry.url)
    assert result.exit_code == 2, result.output
    assert f"[{code}]" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("rollout", "start", "camera"),
        ("devices", "label", "d", "nolabel"),
        ("rollout", "start"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_misuse_is_exit_2(registry: RegistryProcess, arguments: tuple[str, ...]) -> None:
    assert run(*arguments, server=registry.url).exit_code == 2


def assert_addresses_are_whole(registry: RegistryProcess, rollout_id: str) -> None:
    """What `rollout show` prints for curl can be fetched as it stands; `--json` says the same."""
    page = run("rollout", "show", rollout_id, server=f"{registry.url}/").output
    (address, of_one) = re.findall(r"curl -o rollback.json '(.*)'$", page, re.MULTILINE)
    fetched = httpx.get(address, trust_env=False)
    assert fetched.status_code == 200, fetched.text
    assert fetched.json()["payloadType"] == "application/vnd.shallop.command.v1+json"
    assert of_one == f"{address}?device=DEVICE"
    shown = json.loads(run("rollout", "show", rollout_id, "--json", server=registry.url).stdout)
    assert (shown["rollback"]["url"], shown["rollback"]["url_per_device"]) == (address, of_one)


def test_a_rollout_without_devices_waits_and_is_aborted(
    registry: RegistryProcess, bundle: Path, tmp_path: Path
) -> None:
    run("publish", str(bundle), server=registry.url)
    gate = tmp_path / "gate.yaml"
    gate.write_text("failures_max: 1\n")
    started = run("rollout", "start", "camera@v1", "--gate", str(gate), "--json", server=registry.url)
    assert started.exit_code == 0, started.output
    rollout_id = json.loads(started.stdout)["id"]
    listed = json.loads(run("rollout", "list", "--json", server=registry.url).stdout)
    assert rollout_id in {r["id"] for r in listed}
    shown = run("rollout", "show", rollout_id, server=registry.url).output
    ready = Path(registry.data).resolve() / "rollbacks" / f"{rollout_id}.json"
    command = rf"mosquitto_pub -h 127\.0\.0\.1 -p \d+ -q 1 -t shallop/v1/all/down/command -f {ready}\n"
    assert re.search(command, shown), shown
    assert json.loads(ready.read_bytes())["payloadType"] == "application/vnd.shallop.command.v1+json"
    assert_addresses_are_whole(registry, rollout_id)
    assert run("rollout", "pause", rollout_id, "--why", "lunch", server=registry.url).exit_code == 0
    waited = run("rollout", "show", rollout_id, "--wait", server=registry.url)
    assert waited.exit_code == 3, "paused for a person"
    assert run("rollout", "resume", rollout_id, server=registry.url).exit_code == 0
    aborted = run("rollout", "abort", rollout_id, "--json", server=registry.url)
    assert json.loads(aborted.stdout)["state"] == "aborted"


def test_health_says_that_the_broker_is_not_there(registry: RegistryProcess) -> None:
    found = json.loads(run("health", "--json", server=registry.url).stdout)
    assert (found["status"], found["broker_connected"], found["signed"]) == (
        "waiting_for_broker",
        False,
        False,
    )


def test_a_second_registry_on_the_same_data_is_refused(registry: RegistryProcess) -> None:
    result = run("serve", "--data", str(registry.data), "--listen", "127.0.0.1:0")
    assert result.exit_code == 2
    assert "[already_running]" in result.output


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("tick_seconds: 1", "config_malformed"),
        ("tick_s: fast", "config_malformed"),
        ("root: a/#", "config_malformed"),
        ("- a", "config_malformed"),
        ("a: [", "config_unreadable"),
        ("listen: here", "listen_malformed"),
        ("broker: http://x", "broker_url"),
        ("database: nonsense", "database_url"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path: Path, text: str, code: str) -> None:
    config = tmp_path / "fleet.yaml"
    config.write_text(text)
    result = run("serve", "--data", str(tmp_path / "d"), "--config", str(config))
    assert result.exit_code == 2
    assert f"[{code}]" in result.output


def test_an_unsigned_registry_publishes_nothing(tmp_path: Path, bundle: Path) -> None:
    registry = RegistryProcess(tmp_path / "data", free_port())
    registry.start()
    try:
        result = run("publish", str(bundle), server=registry.url)
    finally:
        registry.stop()
    assert result.exit_code == 2
    assert "[unsigned_refused]" in result.output


def test_figures_that_nobody_measured_read_unknown() -> None:
    assert console.figure(None) == "unknown"
    assert console.figure(0.0, "{:.1f}", " ms") == "0.0 ms"
    assert console.size(None) == "unknown"
    assert console.size(5_074_000) == "5.1 MB"
    assert console.ago(None) == "never"


@pytest.mark.parametrize(
    ("hardware", "cores", "memory"),
    [
        (Hardware(arch="aarch64"), "unknown", "unknown"),
        (Hardware(arch="aarch64", cores=0, memory_bytes=0), "unknown", "unknown"),
        (Hardware(arch="aarch64", cores=4, memory_bytes=2_000_000_000), "4", "2000.0 MB"),
    ],
    ids=["new", "old", "known"],
)
def test_what_a_device_does_not_know_of_itself_reads_unknown(
    hardware: Hardware, cores: str, memory: str
) -> None:
    said = Identity(device="roof-1", install_id="0" * 32, number=1, agent_version="1", hardware=hardware)
    view = device_view(fold(Device(id="roof-1"), said, 1.0))
    out = io.StringIO()
    Console(file=out, width=200).print(console.device_tables(view)[0])
    cells = {line[:10].strip(): line[10:].strip() for line in out.getvalue().splitlines()}
    assert (cells["cores"], cells["memory"], cells["free disk"]) == (cores, memory, "unknown")


def test_a_file_that_cannot_be_used_ends_a_command_in_words() -> None:
    result = CliRunner().invoke(main, ["verify", "x" * 300])
    assert (result.exit_code, "[file_unusable]" in result.output) == (2, True), result.output
    assert isinstance(result.exception, SystemExit)
