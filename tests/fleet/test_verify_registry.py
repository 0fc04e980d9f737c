"""`shallop-fleet verify` against a real registry, honest or behind a liar, and on a real broker."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from click.testing import CliRunner, Result
from paho.mqtt.enums import CallbackAPIVersion

from fleet.adapters import key_files, retained
from fleet.adapters.broker_process import free_port
from fleet.adapters.client import Client
from fleet.adapters.keychain import load_chain
from fleet.cli import main
from fleet.verify import Outcome
from tests.brokers import Mosquitto
from tests.fleet.processes import RegistryProcess, wait_for
from tests.fleet.verifying import INGREDIENTS, ONNX, Liar, Release
from wire.chunks import digest
from wire.trust import Role, seal

FLAGS = {kind: "--source" if kind == "model" else f"--{kind}" for kind in INGREDIENTS}


def run(*arguments: str, server: str | None = None, code: int | None = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments), env={"SHALLOP_SERVER": server})
    assert code in {None, result.exit_code}, result.output
    return result


class Scene:
    """A registry with keys whose order and release keys were rotated, on a broker, with one release."""

    def __init__(self, folder: Path) -> None:
        self.keys, offline = folder / "keys", folder / "offline"
        where = ["--keys", str(self.keys), "--root-keys", str(offline)]
        run("keys", "init", *where)
        self.first_release_key = next(self.keys.glob("release-*.pem")).rename(folder / "retired.pem")
        (root,) = offline.glob("*.pem")
        for role in ("release", "order"):
            run("keys", "rotate", role, *where, "--with", str(root))
        self.release = Release(folder)
        self.directory = self.release.write(folder / "bundle")
        self.broker = Mosquitto(folder / "broker")
        self.broker.start()
        self.registry = RegistryProcess(folder / "data", self.broker.port, "--keys", str(self.keys))
        self.registry.start()
        run("publish", str(self.directory), server=self.registry.url)
        self.digest = self.listed()
        with Client(self.registry.url) as client:
            wait_for("everything to be published", lambda: client.health()["outbox_pending"] == 0)

    def listed(self) -> str:
        (one,) = json.loads(run("releases", "--json", server=self.registry.url).stdout)
        return str(one["digest"])

    @property
    def broker_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.broker.port}"

    def rows(self, *options: str, server: str | None = None, code: int = 0) -> dict[str, tuple[str, str]]:
        """Outcome and reason by check."""
        url = server or self.registry.url
        found = json.loads(run("verify", "net@v1", "--json", *options, server=url, code=code).stdout)
        assert found["holds"] == (code == 0)
        return {row["check"]: (row["outcome"], row["reason"]) for row in found["rows"]}

    def close(self) -> None:
        assert self.registry.stop() == 0
        self.broker.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("verify"))
    yield made
    made.close()


@pytest.mark.broker
def test_an_honest_registry_holds_in_every_row(scene: Scene) -> None:
    chain = load_chain(scene.keys)
    given = [word for kind, flag in FLAGS.items() for word in (flag, str(scene.release.given[kind]))]
    rows = scene.rows("--root-sha256", chain.first_sha256, "--broker", scene.broker_url, *given)
    assert {name: row for name, row in rows.items() if row[0] != "ok"} == {
        "deltas": ("not checked", "none is offered for this release")
    }  # fmt: skip
    assert rows["roots"][1] == f"roots 1 to 3, one by one, from the pinned root {chain.first_sha256[:12]}"
    assert "under root 3" in rows["signature"][1]
    # Publishing compressed what pays, so the release is another than the directory's manifest, and still made
    # of the same files.
    assert "compressed" in rows["content validation"][1]
    assert scene.digest != digest(scene.release.data)


@pytest.mark.broker
@pytest.mark.parametrize("name", ["{digest}", "{digest:.8}", "net@v1"])
def test_a_release_goes_by_name_digest_or_the_beginning_of_one(scene: Scene, name: str) -> None:
    output = run("verify", name.format(digest=scene.digest), server=scene.registry.url).output
    assert f"root-sha256 {load_chain(scene.keys).first_sha256}" in output, "what to pin, where nothing is"
    assert "holds: 15 ok, 8 not checked" in output


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def other_roots(content: bytes) -> bytes:
    """The last root, signed by a stranger."""
    roots = [base64.b64decode(one) for one in json.loads(content)]
    last = json.loads(roots[-1])
    roots[-1] = seal("root", base64.b64decode(last["payload"]), [key_files.generate()])
    return json.dumps([base64.b64encode(one).decode() for one in roots]).encode()


def without_roots(_content: bytes) -> bytes:
    return b"[]"


def resigned(content: bytes) -> bytes:
    payload = base64.b64decode(json.loads(content)["payload"])
    return seal("release", payload, [key_files.generate()])


@pytest.mark.broker
@pytest.mark.parametrize(
    ("path", "lie", "failing", "words"),
    [
        ("/api/blobs/", flip, "content validation", "hash_mismatch"),
        ("/api/blobs/", lambda _: None, "content validation", "gone"),
        ("/api/blobs/", lambda content: content + b"x" * 9000, "content validation", "oversized"),
        ("/manifest", flip, "manifest", "other bytes"),
        ("/envelope", resigned, "signature", "bad_signature"),
        ("/envelope", lambda _: None, "signature", "gone"),
        ("/envelope", lambda content: content * 9_000, "signature", "oversized"),
        ("/api/roots", other_roots, "roots", "after root 2"),
        ("/api/roots", without_roots, "roots", "no root"),
    ],
)
def test_a_lying_registry_is_found_out(
    scene: Scene, path: str, lie: Callable[[bytes], bytes | None], failing: str, words: str
) -> None:
    shard = scene.release.value.validation[0].file
    lies = {"told": 0}

    def alter(asked: str, content: bytes) -> bytes | None:
        if path not in asked or (path == "/api/blobs/" and lies["told"]):
            return content
        # One chunk is enough: the first that is asked for of the shard, which is asked for last.
        lies["told"] += 1
        return lie(content)

    pin = load_chain(scene.keys).first_sha256
    blobs = blobs_of(scene)
    assert shard.path in blobs
    target = blobs[shard.path]

    def of_the_shard(asked: str, content: bytes) -> bytes | None:
        if path == "/api/blobs/" and asked.rsplit("/", 1)[-1] not in target:
            return content
        return alter(asked, content)

    with Liar(scene.registry.url, of_the_shard) as liar:
        rows = scene.rows("--root-sha256", pin, server=liar.url, code=1)
    assert lies["told"]
    assert rows[failing][0] == "failed"
    assert words in rows[failing][1]


def blobs_of(scene: Scene) -> dict[str, set[str]]:
    """By path: the blobs of the release as the registry has it."""
    with Client(scene.registry.url) as client:
        manifest = json.loads(client.fetch(f"/api/releases/{scene.digest}/manifest", 10**7))
    files = [file for variant in manifest["variants"] for file in variant["files"]]
    files += [shard["file"] for shard in manifest["validation"]]
    return {file["path"]: {chunk["sha256"] for chunk in file["chunks"]} for file in files}


@pytest.mark.broker
def test_what_rots_on_the_registry_s_disk_is_found(scene: Scene) -> None:
    (blob, *_) = sorted(blobs_of(scene)["a/model.onnx"])
    place = scene.registry.data / "blobs" / blob[:2] / blob
    whole = place.read_bytes()
    try:
        place.write_bytes(flip(whole))
        rows = scene.rows(code=1)
        assert {name for name, row in rows.items() if row[0] == "failed"} == {f"content {ONNX}"}
        assert "damaged on disk" in rows[f"content {ONNX}"][1]
        place.unlink()
        assert "unknown_blob" in scene.rows(code=1)[f"content {ONNX}"][1]
    finally:
        place.write_bytes(whole)


@pytest.mark.broker
def test_another_fleet_s_registry_is_told_by_the_pin(scene: Scene) -> None:
    rows = scene.rows("--root-sha256", "ab" * 32, code=1)
    assert rows["roots"][0] == rows["signature"][0] == "failed"


def publish(scene: Scene, topic: str, payload: bytes) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", scene.broker.port)
    client.loop_start()
    client.publish(topic, payload, 1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


@pytest.mark.broker
def test_what_the_broker_retains_is_compared(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retained, "STALL_S_MAX", 0.5)  # a message that is not there is waited for twice
    (blob, *_) = sorted(blobs_of(scene)["v/0.npz"])
    topic, content = f"shallop/v1/blob/{blob}", (scene.registry.data / "blobs" / blob[:2] / blob).read_bytes()
    broker = ("--broker", scene.broker_url)
    try:
        publish(scene, topic, flip(content))
        assert scene.rows(*broker, code=1)["broker"] == ("failed", f"retains other content: {topic}")
        publish(scene, topic, b"")
        rows = scene.rows(*broker, code=1)
        assert rows["broker complete"][0] == "failed"
        assert topic in rows["broker complete"][1]
    finally:
        publish(scene, topic, content)
    assert scene.rows(*broker)["broker complete"][0] == "ok"
    nobody = scene.rows("--broker", f"mqtt://127.0.0.1:{free_port()}", code=1)["broker"]
    assert (nobody[0], "broker_unreachable" in nobody[1]) == ("failed", True)
    nonsense = scene.rows("--broker", "carrier-pigeon", code=1)["broker"]
    assert "broker_url" in nonsense[1]


@pytest.mark.broker
def test_bad_usage_and_nobody_there_have_codes_of_their_own(scene: Scene, tmp_path: Path) -> None:
    for arguments, words in (
        (("verify", "net@v9"), "unknown_release"),
        (("verify", "net"), "unknown_release"),
        (("verify", "ab" * 32), "unknown_release"),
        (("verify", "net@v1", "--root-sha256", "abc"), "64 hexadecimal digits"),
        (("verify", "net@v1", "--source", "/nowhere"), "does not exist"),
        (("verify", str(tmp_path)), "file_missing"),
        (("verify",), "Missing argument"),
    ):
        assert words in run(*arguments, server=scene.registry.url, code=2).output
    nobody = f"http://127.0.0.1:{free_port()}"
    assert "server_unreachable" in run("verify", "net@v1", server=nobody, code=4).output
    with Liar(scene.registry.url, lambda path, content: b"{}" if "roots" in path else content) as liar:
        assert "not_a_registry" in run("verify", "net@v1", server=liar.url, code=4).output


@pytest.mark.broker
@pytest.mark.parametrize("path", ["/manifest", "/envelope", "/api/roots", "/api/blobs/", "/deltas"])
def test_a_registry_that_goes_away_meanwhile_is_no_finding(scene: Scene, path: str) -> None:
    def drop(asked: str, content: bytes) -> bytes:
        if path in asked:
            raise ConnectionAbortedError
        return content

    with Liar(scene.registry.url, drop) as liar:
        assert "server_unreachable" in run("verify", "net@v1", server=liar.url, code=4).output


@pytest.mark.broker
def test_a_directory_needs_no_registry(scene: Scene) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    output = run("verify", str(scene.directory), server=nobody).output
    assert f"{scene.directory} holds: 13 ok" in output
    other = scene.release.given["sla"]
    output = run("verify", str(scene.directory), "--source", str(other), server=nobody, code=1).output
    assert "does NOT hold" in output
    assert "failed        same model" in output


@pytest.mark.broker
def test_the_routes_refuse_what_is_not_there(scene: Scene) -> None:
    with Client(scene.registry.url) as client:
        for path, code in (
            ("/api/blobs/../../etc/passwd", "no_such_path"),
            ("/api/blobs/" + "zz" * 32, "unknown_blob"),
            ("/api/blobs/" + "ab" * 32, "unknown_blob"),
            ("/api/releases/nothing/manifest", "unknown_release"),
            ("/api/releases/nothing/envelope", "unknown_release"),
            ("/api/releases/nothing/deltas", "unknown_release"),
        ):
            with pytest.raises(Exception, match=code) as refused:
                client.fetch(path, 10**6)
            assert f"[{code}]" in str(refused.value)


@pytest.mark.broker
def test_a_release_that_only_a_retired_key_signed_is_told(scene: Scene, tmp_path: Path) -> None:
    """Signed elsewhere, then the key was retired: the registry has no key of the role and says so."""
    keys = tmp_path / "keys"
    keys.mkdir()
    for path in scene.keys.iterdir():
        if not path.name.startswith("release-"):
            (keys / path.name).write_bytes(path.read_bytes())
    held = next(scene.keys.glob("release-*.pem"))
    registry = RegistryProcess(tmp_path / "data", free_port(), "--keys", str(keys))
    registry.start()
    try:
        run("publish", str(scene.directory), "--release-key", str(held), server=registry.url)
        assert run("verify", "net@v1", server=registry.url).exit_code == 0
        registry.stop()
        offline = tmp_path.parent
        (root,) = next(one for one in scene.keys.parent.iterdir() if one.name == "offline").glob("*.pem")
        where = ["--keys", str(keys), "--root-keys", str(offline / "none"), "--with", str(root)]
        run("keys", "rotate", "release", *where)
        for path in keys.glob(f"{Role.RELEASE}-*.pem"):
            path.unlink()
        registry.start()
        output = run("verify", "net@v1", server=registry.url, code=1).output
        assert "release_unsigned" in output
        assert "under root" not in output
    finally:
        registry.stop()


@pytest.mark.broker
def test_a_registry_that_asks_for_tokens_is_read_with_one_of_scope_view(scene: Scene, tmp_path: Path) -> None:
    registry = RegistryProcess(tmp_path / "data", free_port(), "--keys", str(scene.keys))
    registry.start()
    try:
        run("publish", str(scene.directory), server=registry.url)
        made = run("tokens", "create", "auditor", "--data", str(tmp_path / "data"), "--json")
        file = tmp_path / "auditor.token"
        file.write_text(json.loads(made.stdout)["token"])
        file.chmod(0o600)
        assert "token" in run("verify", "net@v1", server=registry.url, code=2).output
        output = run("verify", "net@v1", "--token-file", str(file), server=registry.url).output
        assert "net@v1 holds: 15 ok" in output
    finally:
        registry.stop()


def test_outcomes_are_told_by_name() -> None:
    assert [one.value for one in Outcome] == ["ok", "failed", "not recorded", "not checked"]
