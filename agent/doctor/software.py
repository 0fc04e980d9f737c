"""PURE. Runtimes, the service, and whom the agent believes.

For: judging what is installed and how it is set up.
Not for: asking (`agent.adapters.probe_runtimes`, `agent.adapters.probe_systemd`).
"""

from __future__ import annotations

from msgspec import Struct

from agent.doctor.finding import Finding, ok, problem, unknown, warning


class RuntimeTry(Struct, frozen=True, kw_only=True):
    """A runtime that was asked to run a tiny model in a worker.

    Attributes:
        name: as variants name it.
        version: of the installed package.
        load_ms: how long the model took to load; None where it failed.
        code: of the failure.
        detail: of the failure.
    """

    name: str
    version: str
    load_ms: float | None = None
    code: str = ""
    detail: str = ""


class RuntimeFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        python: the interpreter that runs trials.
        error: why it did not answer; empty where it did.
        python_version: its own.
        packages: versions of numpy and of what Shallop needs there; None where it is missing.
        tries: one for each runtime.
    """

    python: str
    error: str = ""
    python_version: str = ""
    packages: dict[str, str | None] = {}
    tries: tuple[RuntimeTry, ...] = ()


def runtimes(facts: RuntimeFacts) -> list[Finding]:
    """Whether releases can be tried here, by really running something."""
    name, python = "runtimes", facts.python
    pip = f"`{python} -m pip install 'shallop[onnx]'` (or 'shallop[tflite]'; docs/devices.md)"
    if facts.error:
        detail = f"{python} does not answer: {facts.error}"
        return [problem(name, detail, "name a Python that is there in `trial.python`, or leave it out")]
    missing = sorted(package for package, version in facts.packages.items() if version is None)
    if missing:
        return [
            problem(
                name, f"{python} lacks {', '.join(missing)}: no trial can run there", f"install it: {pip}"
            )
        ]
    if not facts.tries:
        return [
            problem(
                name, f"{python} has no inference runtime: every release is refused", f"install one: {pip}"
            )
        ]
    numpy = facts.packages.get("numpy") or "unknown"
    where = f"Python {facts.python_version} at {python}, numpy {numpy}"
    return [ok(name, where), *(_tried(one, python, numpy) for one in facts.tries)]


def _tried(one: RuntimeTry, python: str, numpy: str) -> Finding:
    name = f"runtime:{one.name}"
    if one.load_ms is not None:
        return ok(name, f"{one.version}; a tiny model loaded in {one.load_ms:.1f} ms and ran in a worker")
    detail = f"{one.version} is installed and a tiny model does not run: {one.code}: {one.detail}"
    if one.name == "tflite-runtime" and not numpy.startswith("1."):
        fix = (
            f"it needs numpy 1, here is {numpy}: an environment of its own, named in "
            "`trial.python` (docs/devices.md)"
        )
    elif one.code == "trial_out_of_memory":
        fix = "raise `trial.memory_bytes_max`: it limits the address space, libraries included"
    elif one.code == "trial_timeout":
        fix = "the machine is very busy or its disk very slow; try again, then look at `dmesg`"
    else:
        fix = f"install it anew: `{python} -m pip install --force-reinstall {one.name}`"
    return problem(name, detail, fix)


class SystemdFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        booted: whether systemd runs this machine.
        properties: of the unit, as `systemctl show` names them; empty where it did not answer.
    """

    booted: bool
    properties: dict[str, str] = {}


def systemd(facts: SystemdFacts, unit: str) -> list[Finding]:
    """The service, where there is systemd."""
    name, known = "systemd", facts.properties
    if not facts.booted:
        return [unknown(name, "skipped: systemd does not run this machine")]
    if not known:
        return [unknown(name, "systemctl did not answer", f"`systemctl status {unit}`")]
    if known.get("LoadState") != "loaded":
        detail = f"{unit} is not installed: nothing starts the agent after a restart"
        return [warning(name, detail, "`systemd/install.sh` installs it")]
    found = []
    if known.get("UnitFileState") not in {"enabled", "enabled-runtime", "static", "generated"}:
        detail = (
            f"{unit} is {known.get('UnitFileState') or 'not enabled'}: it does not start with the machine"
        )
        found.append(problem(name, detail, f"`systemctl enable --now {unit}`"))
    if known.get("ActiveState") != "active":
        detail = (
            f"{unit} is {known.get('ActiveState') or 'not active'} ({known.get('SubState') or 'unknown'})"
        )
        found.append(
            problem(name, detail, f"`systemctl start {unit}`; `journalctl -u {unit} -n 50` says why not")
        )
    if known.get("WatchdogUSec", "0") in {"0", "infinity"}:
        detail = f"{unit} has no watchdog: an agent that hangs is not started again"
        found.append(warning(name, detail, "set WatchdogSec=60 in the unit"))
    restarts = known.get("NRestarts", "0")
    if restarts.isdigit() and int(restarts) > 0:
        detail = f"{unit} was started again {restarts} times since it was last started by hand"
        found.append(warning(name, detail, f"`journalctl -u {unit} -p warning` says why"))
    return found or [ok(name, f"{unit} is enabled and active, with a watchdog")]


class TrustFacts(Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        insecure_unsigned: as configured.
        enrolled: whether there is a trusted root; None where that may not be read.
        root: number of that root.
        error: why it cannot be used.
    """

    insecure_unsigned: bool
    enrolled: bool | None
    root: int | None = None
    error: str = ""


def trust(facts: TrustFacts) -> list[Finding]:
    """Whom the agent believes."""
    name = "trust"
    enrol = "`shallop-agent trust ROOT.json --sha256 DIGEST`, both from `shallop-fleet keys show`"
    if facts.error:
        return [problem(name, f"{facts.error}: nothing is believed, what runs goes on running", enrol)]
    if facts.enrolled is None:
        return [unknown(name, "the trusted root may not be read", "run this as root or as the agent's user")]
    if facts.enrolled:
        spare = "; `insecure_unsigned` has no effect any more, remove it" if facts.insecure_unsigned else ""
        return [ok(name, f"enrolled, root {facts.root}: only signed releases and orders are believed{spare}")]
    if facts.insecure_unsigned:
        detail = "insecure_unsigned: whoever may write to the broker decides what runs here"
        return [warning(name, detail, f"for anything but trying out: {enrol}")]
    return [problem(name, "not enrolled: there is nobody whose orders would be believed", enrol)]
