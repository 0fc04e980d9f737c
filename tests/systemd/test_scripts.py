"""The installer and its helpers: what they say when something is wrong, before they change anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.systemd.conftest import INSTALL
from tests.systemd.machine import SHARED, Machine
from tests.systemd.units import SYSTEMD, require

machine_test = [pytest.mark.timeout(300), pytest.mark.slow]
SCRIPTS = sorted(path.name for path in SYSTEMD.glob("*.sh"))
# Answers what install.sh asks an interpreter, but for one question.
PYTHON = """#!/bin/sh
case "$*" in
  *{question}*) {answer} ;;
  -V) echo "Python 3.9.2" ;;
  *base_prefix*) echo /usr ;;
esac
"""


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SYSTEMD / name, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_the_scripts_are_known() -> None:
    assert {"install.sh", "wheels.sh", "shallop-agent.sh", "arguments.sh"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    checked = subprocess.run(
        [require("shellcheck", "shellcheck"), "--external-sources", SYSTEMD / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", ["install.sh", "wheels.sh", "deb.sh"])
def test_help_names_every_option_and_an_example(name: str) -> None:
    shown = script(name, "--help")
    assert shown.returncode == 0
    text = (SYSTEMD / name).read_text()
    for option in (
        "--help",
        *(["--purge", "--wheels", "--restarts"] if name == "install.sh" else ["--arch"]),
    ):
        assert option in shown.stdout
    assert f"systemd/{name} --a" in shown.stdout
    assert "exit codes:" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--agent or --fleet"),
        (["--agent", "--fleet"], "two installations"),
        (["--agent", "--purge"], "--purge goes with --uninstall"),
        (["--agent", "--wheel"], "unknown argument --wheel"),
        (["--agent", "--wheels"], "--wheels needs a value"),
        (["--fleet", "--runtime", "onnx"], "--runtime goes with --agent"),
        (["--agent", "--runtime", "tensorrt"], "onnx, tflite or none"),
        (["--agent", "--broker", "mqtt://host"], "--broker is HOST"),
        (["--agent", "--broker", "a;rm -rf /"], "--broker is HOST"),
        (["--agent", "--device", "Roof 17"], "--device is lower-case"),
        (["--agent", "--restarts", 'x";evil.service'], "--restarts is a unit"),
        (["--agent", "--restarts", "camera"], "--restarts is a unit"),
    ],
)
def test_wrong_usage_is_refused_by_name(arguments: list[str], said: str) -> None:
    refused = script("install.sh", *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("install.sh: ")
    assert said in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which folder"),
        (["--arch", "mips", "x"], "--arch is"),
        (["a", "b"], "one folder"),
        (["-x"], "unknown"),
    ],
)
@pytest.mark.parametrize("name", ["wheels.sh", "deb.sh"])
def test_wrong_usage_of_the_builders_is_refused_by_name(name: str, arguments: list[str], said: str) -> None:
    refused = script(name, *arguments)
    assert refused.returncode == 2
    assert said in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: sudo make test")
def test_who_is_not_root_is_told_so() -> None:
    text = (SYSTEMD / "install.sh").read_text()
    refused = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-s", "--", "--agent"],
        input=text, cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "this needs root" in refused.stderr


def python(machine: Machine, question: str, answer: str) -> str:
    path = machine.shared / "python-stub"
    path.write_text(PYTHON.format(question=question, answer=answer))
    path.chmod(0o755)
    return f"{SHARED}/{path.name}"


class TestInTheMachine:
    pytestmark = machine_test

    @pytest.mark.parametrize(
        ("question", "answer", "said"),
        [
            ("version_info", "exit 1", "3.11 or newer"),
            ("ensurepip", "exit 1", "apt-get install python3-venv"),
            ("base_prefix", "echo /root/.pyenv/versions/3.12", "home directory"),
        ],
    )
    def test_a_python_that_will_not_do(self, bare: Machine, question: str, answer: str, said: str) -> None:
        found = bare.run(INSTALL, "--agent", "--python", python(bare, question, answer), check=False)
        assert found.returncode == 2
        assert said in found.stderr

    def test_a_machine_without_systemd(self, bare: Machine) -> None:
        few = bare.shared / "few"
        few.mkdir()
        for program in ("bash", "dirname", "id"):
            (few / program).symlink_to(f"/usr/bin/{program}")
        found = bare.run("/usr/bin/bash", INSTALL, "--agent", check=False, PATH=f"{SHARED}/few")
        assert found.returncode == 2
        assert "no systemd on this machine" in found.stderr

    def test_sources_that_are_not_there(self, bare: Machine) -> None:
        (bare.shared / "empty").mkdir()
        for arguments, said in (
            (["--wheels", "/srv/none"], "no folder /srv/none"),
            (["--wheels", f"{SHARED}/empty"], "no shallop-*.whl"),
            (["--from", "/srv/none.whl"], "no /srv/none.whl"),
            (["--python", "/usr/bin/python4"], "apt-get install python3"),
        ):
            found = bare.run(INSTALL, "--agent", *arguments, check=False)
            assert (found.returncode, said in found.stderr) == (2, True), found.stderr

    def test_two_at_once(self, bare: Machine) -> None:
        lock = "/run/lock/shallop-install.lock"
        found = bare.run("flock", lock, INSTALL, "--agent", check=False)
        assert found.returncode == 1
        assert "another install.sh is at work" in found.stderr

    def test_none_of_that_left_anything(self, bare: Machine) -> None:
        left = bare.shell("ls -d /opt/shallop/*-* 2>/dev/null || true").split()
        assert [Path(path).name.split("-")[0] for path in left] in ([], ["agent"])
