"""The agent's configuration: one YAML file, read once, every limit with its unit.

For: turning the file into a frozen `Config` or refusing it with the key's name.
Not for: anything that changes while the daemon runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from agent.config_life import Above0, HookConfig, LiveConfig, SoakConfig
from agent.deployment import Bounds
from agent.errors import ConfigError
from agent.fetch import TransferLimits
from agent.home_assistant import HomeAssistantConfig
from agent.metering import hours_of, windows
from agent.tls import TlsConfig
from agent.worker.job import TrialSettings
from agent.worker.limits import WorkerLimits
from wire.errors import WireError
from wire.topics import ROOT_DEFAULT, Topics
from wire.types import DeviceId, ModelName

if TYPE_CHECKING:
    from agent.preconditions import Rules as AdmissionRules

CONFIG_BYTES_MAX = 256 * 1024
SECRET_BYTES_MAX = 4096


class BrokerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the broker is.

    Attributes:
        host: name or address.
        port: TCP port.
        root: first levels of every topic.
        username: with `password_file`; none where the broker does not ask.
        password_file: file whose first line is the password.
        keepalive_s: silence after which the broker publishes the last will.
        client_id: the device id where none is given.
        reconnect_s_max: ceiling of the wait between two attempts.
        tls: encrypt, and check who the broker is; `{}` does so with the system's certificates.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 1883
    root: str = ROOT_DEFAULT
    username: str | None = None
    password_file: str | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    client_id: str | None = None
    reconnect_s_max: Above0 = 60.0
    tls: TlsConfig | None = None


class LimitsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent allows itself.

    Attributes:
        disk_free_bytes_min: kept free by disk admission.
        window_chunks_max: chunks asked for at once.
        reports_max: reports kept until they are acknowledged.
        boots_max: starts without progress before it gives up to the last good release.
        backoff_s_max: ceiling of the wait between two tries of a piece of work.
        switching_s_max: for a switch, its hook included.
    """

    disk_free_bytes_min: Annotated[int, Meta(ge=0)] = 16 * 1024**2
    window_chunks_max: Annotated[int, Meta(ge=1, le=256)] = 32
    reports_max: Annotated[int, Meta(ge=10, le=100_000)] = 1000
    boots_max: Annotated[int, Meta(ge=1, le=100)] = 3
    backoff_s_max: Above0 = 300.0
    switching_s_max: Above0 = 300.0


class TransferConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent takes of its line.

    Attributes:
        rate_bytes_per_s_max: of content, all transfers together; no limit where none is given.
        metered_hours: windows of local time such as "07:00-22:00" in which nothing is fetched; judged with a
            synchronised clock only.
        reconnect_spread_s: over which agents that lost their connection at once come back.
    """

    rate_bytes_per_s_max: Annotated[int, Meta(ge=1024)] | None = None
    metered_hours: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    reconnect_spread_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 30.0

    def limits(self) -> TransferLimits:
        """The same, parsed.

        Raises:
            ValueError: `metered_hours` that are no windows, or the whole day.
        """
        return TransferLimits(
            rate_bytes_per_s_max=self.rate_bytes_per_s_max, metered_hours=windows(self.metered_hours)
        )


class AdmissionConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an order waits for before anything is begun; nothing where nothing is set.

    Attributes:
        battery_percent_min: charge, on a machine that has a battery and is not on mains.
        temperature_c_max: of the hottest thermal zone, in degrees Celsius.
        window: of local time, such as "02:00-05:00", in which an order may begin; judged with a synchronised
            clock only.
    """

    battery_percent_min: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None
    temperature_c_max: Annotated[float, Meta(ge=0.0, le=150.0)] | None = None
    window: Annotated[tuple[str, ...], Meta(max_length=16)] = ()

    def __post_init__(self) -> None:
        """Refuses what is no window.

        Raises:
            ValueError: with the key.
        """
        hours_of(self.window, "admission.window")

    @property
    def asked(self) -> bool:
        """Whether anything is."""
        return self != AdmissionConfig()

    def rules(self) -> AdmissionRules:
        """The same, parsed."""
        from agent.preconditions import Rules  # noqa: PLC0415 - few devices ask for it

        return Rules(
            battery_percent_min=self.battery_percent_min,
            temperature_c_max=self.temperature_c_max,
            window=hours_of(self.window, "admission.window"),
        )


class TrialConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How trials run.

    Attributes:
        threads: of the runtime.
        warmup: inferences not counted.
        latency_runs: inferences timed.
        energy_windows: load windows.
        energy_window_s: length of each.
        throttled_repeats_max: further runs where heat or a weak supply held the machine back in one.
        cooling_s_max: waited before each of them.
        wall_s_max: after which a trial is killed.
        cpu_s_max: processor seconds.
        memory_bytes_max: address space.
        lock_file: agents of one machine name the same file; /run/lock, else the temporary directory.
        python: interpreter that has the runtimes, such as that of an environment in which `tflite-runtime`
            has the numpy 1 that it needs; this one where none is given. It runs every trial, so it needs
            each runtime that releases are to be tried with, and what `shallop` needs.
        socket: of a worker that systemd starts, `/run/shallop/worker.sock`; none: the agent starts it itself.
    """

    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    warmup: Annotated[int, Meta(ge=0, le=10_000)] = 10
    latency_runs: Annotated[int, Meta(ge=1, le=100_000)] = 200
    energy_windows: Annotated[int, Meta(ge=5, le=100)] = 5
    energy_window_s: Annotated[float, Meta(ge=0.05, le=600.0)] = 30.0
    throttled_repeats_max: Annotated[int, Meta(ge=0, le=10)] = 2
    cooling_s_max: Annotated[float, Meta(ge=0.0, le=3600.0)] = 60.0
    wall_s_max: Above0 = 900.0
    cpu_s_max: Annotated[int, Meta(ge=1, le=86400)] = 900
    memory_bytes_max: Annotated[int, Meta(ge=64 * 1024**2)] = 4 * 1024**3
    lock_file: str | None = None
    python: str | None = None
    socket: str | None = None

    def settings(self) -> TrialSettings:
        """How much is measured."""
        return TrialSettings(
            threads=self.threads,
            warmup=self.warmup,
            latency_runs=self.latency_runs,
            energy_windows=self.energy_windows,
            energy_window_s=self.energy_window_s,
            throttled_repeats_max=self.throttled_repeats_max,
            cooling_s_max=self.cooling_s_max,
            wall_s_max=self.wall_s_max,
        )

    def worker_limits(self) -> WorkerLimits:
        """What one worker may use."""
        return WorkerLimits(
            memory_bytes_max=self.memory_bytes_max, cpu_s_max=self.cpu_s_max, wall_s_max=self.wall_s_max
        )

    def lock_path(self) -> Path:
        """The machine's trial lock."""
        if self.lock_file is not None:
            return Path(self.lock_file)
        shared = Path("/run/lock")
        if not shared.is_dir():
            import tempfile  # noqa: PLC0415 - 0.4 MiB, and systemd always makes /run/lock

            shared = Path(tempfile.gettempdir())
        return shared / "shallop-trial.lock"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the agent can be told.

    Attributes:
        device: its id; else from the board's serial number, else from the machine id.
        state_dir: where models, blobs and the journal lie.
        insecure_unsigned: believe unsigned releases and orders; for trying out only.
        labels: suggestions to the registry, whose own labels decide.
        live_dir: where applications leave their live figures; nothing is read where it is missing.
    """

    device: DeviceId | None = None
    state_dir: Annotated[str, Meta(min_length=1)] = "/var/lib/shallop"
    broker: BrokerConfig = BrokerConfig()
    insecure_unsigned: bool = False
    labels: Annotated[dict[str, str], Meta(max_length=64)] = {}
    limits: LimitsConfig = LimitsConfig()
    transfer: TransferConfig = TransferConfig()
    admission: AdmissionConfig = AdmissionConfig()
    trial: TrialConfig = TrialConfig()
    hooks: dict[ModelName, HookConfig] = {}
    soak: SoakConfig = SoakConfig()
    home_assistant: HomeAssistantConfig = HomeAssistantConfig()
    live_dir: Annotated[str, Meta(min_length=1)] = "/run/shallop/live"
    live: LiveConfig = LiveConfig()

    def bounds(self) -> Bounds:
        """The lifecycle's own limits."""
        return Bounds(
            boots_max=self.limits.boots_max,
            backoff_s_max=self.limits.backoff_s_max,
            switching_s_max=self.limits.switching_s_max,
            soaking_s_grace=self.soak.grace_s,
        )

    def password(self) -> str | None:
        """The broker's password.

        Raises:
            ConfigError: `password_unreadable`.
        """
        if self.broker.password_file is None:
            return None
        path = Path(self.broker.password_file)
        try:
            with path.open(encoding="utf-8") as file:
                return file.readline(SECRET_BYTES_MAX).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("password_unreadable", f"cannot read broker.password_file: {error}") from None


def parse(text: str) -> Config:
    """A configuration from YAML.

    Raises:
        ConfigError: `config_malformed`: not YAML, an unknown key, a wrong type or a value out of range.
    """
    import yaml  # noqa: PLC0415 - 1.1 MiB, which the daemon leaves in a child (`agent.adapters.aside`)

    from wire import plain_yaml  # noqa: PLC0415 - as above

    try:
        mapping = plain_yaml.read(yaml, text)
        config = msgspec.convert({} if mapping is None else mapping, Config)
        Topics(config.broker.root)
        config.transfer.limits()
    except (WireError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ConfigError("config_malformed", f"the configuration cannot be used: {error}") from None
    return config


def load(path: Path) -> Config:
    """A configuration from a file.

    Raises:
        ConfigError: `config_unreadable` or `config_malformed`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise ConfigError("config_unreadable", f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("config_unreadable", f"cannot read {path}: {error}") from None
    return parse(text)
