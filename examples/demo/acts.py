"""The acts of the demo, in order; each does one thing an operator would do, and looks whether it happened.

For: telling the story of the main job with the real programs; every figure printed was measured in this run.
Not for: starting processes (`examples.demo.house`), or making the damage (`examples.demo.damage`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from paho.mqtt import publish
from paho.mqtt.enums import MQTTProtocolVersion
from rich.console import Console
from rich.table import Table

from converter.loading import Loadable, opened
from examples.demo.damage import damaged_bundle
from examples.demo.environments import environment
from examples.demo.house import ROOT, House, HouseError, wait_for
from fleet.adapters.embedded_broker import TRYING_OUT
from wire import bundle, codec
from wire.preprocess import preprocess

EXAMPLE = ROOT / "examples" / "fashion"
GATE = ROOT / "examples" / "demo" / "gate.yaml"
MODEL = "fashion"
RUNTIMES = {"roof-1": ("onnxruntime",), "roof-2": ("ai-edge-litert",), "roof-3": ()}
"""What each device has; the last one lives in the environment that runs the demo, which has both."""
DEVICES = tuple(RUNTIMES)
WAVES = "1,50%,100%"


def need(condition: object, what: str) -> None:
    """Stops the demo where something is not as the story says.

    Raises:
        HouseError: `condition` does not hold.
    """
    if not condition:
        raise HouseError(f"this should hold and does not: {what}")


class Acts:
    """The story, over one house."""

    def __init__(self, house: House, console: Console) -> None:
        self.house, self.console = house, console
        self.rollouts: dict[str, dict[str, Any]] = {}
        self.events: list[str] = []
        self.first_back = ""

    def _say(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/]", markup=True)

    def _bundle(self, release: str) -> Path:
        return self.house.folder / "bundles" / release

    # --- convert and start

    def convert_first(self) -> None:
        """Release 1: the example model as its first version."""
        self._say("1. Convert: what will INT8 do to this model? The SLA was written first.")
        self._convert("fashion_v1.onnx", "1")

    def _convert(self, file: str, release: str, candidates: tuple[str, ...] = ()) -> None:
        (self.house.folder / "bundles").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "converter.cli", "convert", str(EXAMPLE / file)]
        command += ["--calibration", str(EXAMPLE / "calibration.npz")]
        command += ["--validation", str(EXAMPLE / "validation.npz"), "--sla", str(EXAMPLE / "sla.yaml")]
        command += ["--target", "host", "--name", MODEL, "--release", release]
        command += ["--output", str(self._bundle(release))]
        if candidates:
            command += ["--candidates", ",".join(candidates)]
        # Its own table and progress go to this terminal: this is what a person would see.
        done = subprocess.run(command, cwd=ROOT, check=False)
        need(done.returncode == 0, f"shallop-convert found a candidate for release {release}")
        self.events.append(f"converted {file} into release {release}")

    def start_everything(self) -> None:
        """Broker, registry and three agents, as processes of their own on loopback."""
        self._say("2. Start a broker, the registry and three agents as processes of their own.")
        self.house.start()
        for device, runtimes in RUNTIMES.items():
            place = self.house.folder / "environments" / device
            python = str(environment(place, runtimes[0])) if runtimes else sys.executable
            self.house.agent(device, python, hooks={})
        with self.console.status("waiting for the devices to say hello"):
            wait_for("three devices", self._all_online, 60)
        self.console.print(f"broker:   127.0.0.1:{self.house.broker_port} ({self.house.broker_kind()})")
        self.console.print(f"          {TRYING_OUT}")
        self.console.print(f"registry: {self.house.server}")
        for view in self.house.fleet("devices"):
            self.console.print(f"agent:    {view['device']} has {', '.join(view['runtimes'])}")

    def _all_online(self) -> bool:
        seen = {view["device"] for view in self.house.fleet("devices") if view["online"]}
        return seen >= set(DEVICES)

    # --- roll out

    def roll_out_first(self) -> None:
        """Release 1 in waves; there is no incumbent yet."""
        self._say(f"3. Publish release 1 and roll it out in waves {WAVES}: one bundle for both runtimes.")
        self._roll_out("1")
        for device, runtimes in RUNTIMES.items():
            runs = self._variant_on(device).runtime
            need(not runtimes or runs in runtimes, f"{device} runs a variant for what it has: {runs}")
        self.events.append("roof-1 runs release 1 in ONNX Runtime, roof-2 the same release in LiteRT")

    def _variant_on(self, device: str) -> bundle.Variant:
        """What runs there, as the bundle has it."""
        info = json.loads((self._current(device) / "release.json").read_text(encoding="utf-8"))
        manifest = self._manifest(info["release"])
        return next(one for one in manifest.variants if one.id == info["variant"])

    def _manifest(self, release: str) -> bundle.Manifest:
        content = (self._bundle(release) / "manifest.json").read_bytes()
        return codec.decode(content, bundle.Manifest, bundle.MANIFEST_BYTES_MAX)

    def _current(self, device: str) -> Path:
        current = self.house.current(device, MODEL)
        need(current is not None, f"{device} has a model")
        return Path(str(current))

    def roll_out_second(self) -> None:
        """Release 2 beside the running release 1."""
        self._say("4. Convert the better trained model, roll it out as release 2 beside the running one.")
        first = self._manifest("1").variants
        # The ways that release 1 carries; FP32 is measured anyway. What was only trained on need not be
        # searched through again.
        again = tuple(one.id for one in first if one.id != "onnxruntime/float_wf32_af32")
        self._convert("fashion_v2.onnx", "2", again)
        self._roll_out("2")

    def _roll_out(self, release: str) -> None:
        shown = self._start(release, codes=(0,))
        need(shown["rollout"]["state"] == "completed", f"release {release} reached every device")
        need(
            all(line["outcome"] == "active" for line in shown["devices"]),
            f"every device itself reported release {release} active, after its soak",
        )
        self._table(shown)
        self.events.append(f"release {release} active on {len(shown['devices'])} devices, in waves {WAVES}")

    def _start(self, release: str, codes: tuple[int, ...]) -> dict[str, Any]:
        self.house.fleet("publish", str(self._bundle(release)))
        arguments = ["rollout", "start", f"{MODEL}@{release}", "--select", "all", "--waves", WAVES]
        arguments += ["--gate", str(GATE), "--soak", "2", "--deadline", "120", "--wait"]
        with self.console.status(f"release {release}: fetch, verify, trial, switch, soak, wave by wave"):
            shown: dict[str, Any] = self.house.fleet(*arguments, codes=codes)
        self.rollouts[release] = shown
        return shown

    def _table(self, shown: dict[str, Any]) -> None:
        table = Table(title=f"{MODEL}@{shown['rollout']['release']}: measured on each device")
        for heading in (
            "device",
            "wave",
            "outcome",
            "runtime",
            "variant",
            "p50 ms",
            "p95 ms",
            "accuracy",
            "agreement",
            "power",
        ):
            table.add_column(
                heading, justify="left" if heading in {"device", "outcome", "runtime", "variant"} else "right"
            )
        for line in shown["devices"]:
            runtime, _, variant = (line["variant"] or "/unknown").rpartition("/")
            table.add_row(
                line["device"], str(line["wave"] + 1), line["outcome"] or "none", runtime, variant,
                _figure(line["latency_ms_p50"], "{:.2f}"), _figure(line["latency_ms_p95"], "{:.2f}"),
                _figure(line["accuracy"], "{:.4f}"), _figure(line["agreement"], "{:.4f}"),
                _figure(line["power_watts"], "{:.2f} W"),
            )  # fmt: skip
        self.console.print(table)

    # --- a release that must not pass

    def refuse_third(self) -> None:
        """A damaged release: right by its hashes, wrong by its answers."""
        self._say(
            "5. Release 3 is damaged: its hashes are right, its answers are not. The canary must refuse it."
        )
        damaged_bundle(self._bundle("2"), self._bundle("3"), "3")
        shown = self._start("3", codes=(3,))
        self._table(shown)
        canary = [line for line in shown["devices"] if line["wave"] == 0]
        need(shown["rollout"]["state"] == "halted", "the rollout of release 3 halted")
        need(len(shown["devices"]) == len(canary) == 1, "no device beyond the canary ever got an order")
        need(canary[0]["outcome"] == "failed", "the canary refused release 3")
        self.console.print(f"halted: {shown['rollout']['reason']}")
        self.console.print(f"{canary[0]['device']} said: {canary[0]['reason']}")
        for device in DEVICES:
            need(self._release_on(device) == "2", f"{device} still runs release 2")
        self.events.append(f"release 3 refused by its canary {canary[0]['device']}; wave 2 never got it")

    def _release_on(self, device: str) -> str:
        info = json.loads((self._current(device) / "release.json").read_text(encoding="utf-8"))
        return str(info["release"])

    # --- back

    def roll_back_one_by_message(self) -> None:
        """One MQTT message with the payload that release 2's rollout made ready.

        To a device that release 3 never reached: its canary has seen a higher order since, and refuses
        the older number as stale.
        """
        canary = self.rollouts["3"]["devices"][0]["device"]
        device = self.first_back = next(d for d in DEVICES if d != canary)
        ready = self.rollouts["2"]["rollback"]
        self._say(f"6. Roll {device} back with one MQTT message, as a person with mosquitto_pub would.")
        url = ready["url_per_device"].replace("DEVICE", device)
        with urllib.request.urlopen(url, timeout=10) as answer:
            payload, topic = answer.read(), answer.headers["X-Topic"]
        file = self.house.folder / f"rollback-{device}.json"
        file.write_bytes(payload)
        link = self.house.state(device) / "models" / MODEL / "current"
        before = link.readlink()
        started = time.perf_counter()
        self._send(topic, file)
        while link.readlink() == before and time.perf_counter() < started + 30:
            time.sleep(0.0005)
        took_ms = (time.perf_counter() - started) * 1000
        need(self._release_on(device) == "1", f"{device} is back on release 1")
        self.console.print(f"mosquitto_pub -p {self.house.broker_port} -q 1 -t {topic} -f {file}")
        self.console.print(
            f"{device}: release 2 -> 1; from starting to send to the switched symlink: {took_ms:.0f} ms"
        )
        self.events.append(
            f"{device} rolled back by one MQTT message in {took_ms:.0f} ms, client start included"
        )

    def _send(self, topic: str, file: Path) -> None:
        tool, port = shutil.which("mosquitto_pub"), self.house.broker_port
        if tool:
            subprocess.run([tool, "-p", str(port), "-q", "1", "-t", topic, "-f", str(file)], check=True)
            return
        publish.single(
            topic,
            file.read_bytes(),
            qos=1,
            port=port,
            hostname="127.0.0.1",
            protocol=MQTTProtocolVersion.MQTTv311,
        )

    def roll_back_the_rest(self) -> None:
        """The registry's command for every device that still runs release 2."""
        self._say("7. Roll the rest back with one command.")
        rest = [device for device in DEVICES if device != self.first_back]
        arguments = [part for device in rest for part in ("--device", device)]
        self.console.print(f"shallop-fleet rollback {MODEL} {' '.join(arguments)} --wait")
        with self.console.status("waiting for the devices to say so"):
            shown = self.house.fleet("rollback", MODEL, *arguments, "--wait")
        for line in shown["devices"]:
            self.console.print(f"{line['device']}: {line['state']} {line['detail']}")
        for device in DEVICES:
            need(self._release_on(device) == "1", f"{device} is back on release 1")
        self.events.append(f"{', '.join(rest)} rolled back by one command")

    def ask_the_old_model(self) -> None:
        """Opens what `current` points to, as an application would, and asks it."""
        self._say("8. The old model answers again, through the same symlink that an application opens.")
        manifest = self._manifest("1")
        with np.load(EXAMPLE / "validation.npz", allow_pickle=False) as data:
            images, labels = data["image"][:200], data["labels"][:200]
        inputs = preprocess(manifest.data["image"], images)
        for device in DEVICES:
            variant = self._variant_on(device)
            content = _model_file(self._current(device)).read_bytes()
            session = opened(Loadable(content=content, runtime=variant.runtime, axes=variant.axes))
            scores = [session.run(["logits"], {"image": one[None]})[0] for one in inputs]
            answers = np.concatenate(scores).argmax(axis=1)
            right = float((answers == labels).mean())
            first = ", ".join(manifest.labels[index] for index in answers[:3])
            self.console.print(
                f"{device}: release 1 in {variant.runtime}: {first} ...; {right:.1%} of 200 images right"
            )
            need(right > 0.8, f"the old model on {device} answers as it should")

    def summary(self, seconds: float) -> None:
        """What happened and where it lies."""
        self._say(f"Done in {seconds:.0f} s. What happened:")
        for event in self.events:
            self.console.print(f"  - {event}")
        self.console.print("Where it lies:")
        for what, where in (
            ("bundles, candidates.json", self.house.folder / "bundles"),
            ("devices' states, current/", self.house.folder / "devices"),
            ("registry's database, blobs", self.house.folder / "registry"),
            ("logs of every process", self.house.logs),
        ):
            self.console.print(f"  {what:<28}{where}", soft_wrap=True)


def _model_file(folder: Path) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.suffix in {".onnx", ".tflite"})
    need(len(found) == 1, f"{folder} holds one model")
    return found[0]


def _figure(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)
