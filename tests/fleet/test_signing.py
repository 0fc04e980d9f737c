"""What a registry signs anew after its keys changed: real keys, a real registry process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from fleet.adapters import key_files, keychain
from fleet.adapters.broker_process import free_port
from fleet.cli import main
from tests.fleet.bundles import write_bundle
from tests.fleet.processes import RegistryProcess
from wire import roots, trust
from wire.trust import Role


def run(*arguments: str, env: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(main, list(arguments), env=env)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_ready_rollback_of_every_rollout_is_signed_anew_on_disk(tmp_path: Path) -> None:
    """A person sends that file when the registry is down; an ended rollout is taken back too."""
    data, offline = tmp_path / "data", tmp_path / "offline"
    where = ["--keys", str(data / "keys"), "--root-keys", str(offline)]
    run("keys", "init", *where)
    registry = RegistryProcess(data, free_port())
    env = {"SHALLOP_SERVER": registry.url}
    registry.start()
    try:
        write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
        run("publish", str(tmp_path / "b"), env=env)
        start = ["rollout", "start", "camera@v1", "--json"]
        ended, going = (json.loads(run(*start, env=env))["id"] for _ in range(2))
        run("rollout", "abort", ended, env=env)
        registry.stop()
        run("keys", "rotate", "order", *where, "--with", str(next(offline.glob("*.pem"))))
        registry.start()
    finally:
        registry.stop()
    root = keychain.load_chain(data / "keys").root
    assert root.number == 2
    for rollout in (ended, going):
        sealed = (data / "rollbacks" / f"{rollout}.json").read_bytes()
        payload, signatures = trust.unwrap(sealed, "command", 2**16)
        message = trust.pae("command", payload)
        roots.require_signatures(root, Role.ORDER, message, signatures, key_files.verify)
