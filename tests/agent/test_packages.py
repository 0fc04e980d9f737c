"""Versions by folder names are those of `importlib.metadata`; modules that are put off come when needed."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from agent.packages import installed_version

DAEMON = """
import sys, json
sys.modules["dns"] = None  # paho looks for it; a device has none
from agent.packages import put_off
put_off("urllib.request", "ssl", "json") if {late} else None
import agent.app
"""


def test_every_installed_distribution_is_found_with_its_version() -> None:
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    assert len(found) > 20
    wrong = {name: installed_version(name) for name in found if installed_version(name) != found[name]}
    assert wrong == {}


@pytest.mark.parametrize(
    ("folder", "name", "version"),
    [
        ("onnxruntime_gpu-1.20.1.dist-info", "onnxruntime-gpu", "1.20.1"),
        ("ai_edge_litert-2.3.0+local.1.dist-info", "ai.edge.LiteRT", "2.3.0+local.1"),
        ("PyYAML-6.0.egg-info", "pyyaml", "6.0"),
        ("PyYAML-6.0-py3.11-linux-aarch64.egg-info", "pyyaml", "6.0"),
    ],
)
def test_names_are_one_in_any_spelling(tmp_path: Path, folder: str, name: str, version: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second" / folder).mkdir(parents=True)
    path = [str(tmp_path / "nowhere"), str(tmp_path / "first"), str(tmp_path / "second")]
    assert installed_version(name, path) == version
    assert installed_version(f"{name}-x", path) is None
    assert installed_version(name[:-1], path) is None


def test_the_first_folder_that_has_it_says_which(tmp_path: Path) -> None:
    for place, version in (("a", "1.0"), ("b", "2.0")):
        (tmp_path / place / f"one-{version}.dist-info").mkdir(parents=True)
    assert installed_version("one", [str(tmp_path / "b"), str(tmp_path / "a")]) == "2.0"


def _ran(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_daemon_does_without_what_is_put_off() -> None:
    """The modules that these two bring, and `importlib.metadata`, are not in a daemon that was started."""
    heavy = "('email.message', 'http.client', 'zipfile', 'importlib.metadata', '_ssl')"
    shown = f"print(sorted(name for name in {heavy} if name in sys.modules))"
    assert _ran(DAEMON.format(late=True) + shown) == "[]"
    assert "http.client" in _ran(DAEMON.format(late=False) + shown)


def test_the_command_line_imports_none_of_it_before_it_puts_it_off() -> None:
    shown = "print([name for name in ('_ssl', 'ssl', 'urllib.request') if name in sys.modules])"
    assert _ran(f"import sys, agent.cli; {shown}") == "[]"


def test_what_was_put_off_is_all_there() -> None:
    """For whoever imported it while it waited, and for whoever comes later."""
    paho = "import paho.mqtt.client as p; c = p.Client(p.CallbackAPIVersion.VERSION2); "
    use = "c.tls_set(); print(p.ssl.CERT_NONE == 0, c._ssl)"
    assert _ran(DAEMON.format(late=True) + paho + use) == "True True"
    missing = "import paho.mqtt.client as p; print(hasattr(p.ssl, 'nothing'), hasattr(p.ssl, 'SSLError'))"
    assert _ran(DAEMON.format(late=True) + missing) == "False True"
    use = "import ssl, urllib.request; print(ssl.create_default_context().check_hostname)"
    assert _ran(DAEMON.format(late=True) + use) == "True"
    use = "import urllib.request; print(urllib.request.Request('http://a/b').host)"
    assert _ran(DAEMON.format(late=True) + use) == "a"


def test_an_exception_that_nobody_can_raise_yet_wakes_nothing() -> None:
    """Whoever catches it catches nothing, until its module has come."""
    late = """
import sys
from agent.packages import put_off
put_off("ssl", unraised=["SSLWantReadError"])
import ssl
"""
    catch = """
try:
    raise OSError
except ssl.SSLWantReadError:
    print("caught")
except OSError:
    print("passed", "_ssl" in sys.modules)
"""
    assert _ran(late + catch) == "passed False"
    come = """
ssl.SSLContext
try:
    raise ssl.SSLWantReadError
except ssl.SSLWantReadError:
    print("caught")
"""
    assert _ran(late + come) == "caught"


def test_the_import_systems_own_questions_wake_nothing() -> None:
    ask = "import ssl; print(hasattr(ssl, '__path__'), ssl.__spec__, '_ssl' in sys.modules)"
    assert _ran(DAEMON.format(late=True) + ask) == "False None False"


def test_threads_that_look_into_a_module_at_once_all_find_it(tmp_path: Path) -> None:
    """Two models may need `subprocess` for the first time in the same moment."""
    looking = f"""
import sys, threading
from pathlib import Path
from agent.packages import put_off
folder, failed = {str(tmp_path)!r}, []
sys.path.insert(0, folder)
names = [f"late_{{n}}" for n in range(400)]
for name in names:
    Path(folder, name + ".py").write_text("X = 1")
put_off(*names)
sys.setswitchinterval(1e-6)
for name in names:
    module, together = sys.modules[name], threading.Barrier(8)
    def look():
        together.wait()
        try:
            module.X
        except Exception as error:
            failed.append(repr(error))
    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(failed)
"""
    assert _ran(looking) == "[]"
