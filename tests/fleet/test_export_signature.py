"""`shallop-fleet export-signature`: the real library signs, and verifies what was signed."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from fleet.adapters import model_signature
from fleet.adapters.broker_process import free_port
from fleet.adapters.model_signature import SignatureExportError
from fleet.cli import main
from fleet.verify_statement import statement_fault
from tests.fleet.processes import RegistryProcess
from tests.fleet.verifying import Release, sha256

Curve = ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1 | ec.SECP256K1


def library() -> Any:  # noqa: ANN401 - an extra, which mypy does not follow
    """The verifier; without it the test is skipped, but fails in CI, where skipping would hide it."""
    try:
        from model_signing import verifying  # noqa: PLC0415 - as said
    except ImportError:
        missing = "model-signing is not installed: pip install 'shallop[signature]'"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return verifying


def write_key(folder: Path, curve: Curve | None = None, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """A new key pair's two files; without a curve it is Ed25519."""
    private = ed25519.Ed25519PrivateKey.generate() if curve is None else ec.generate_private_key(curve)
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    paths = folder / "signing.pem", folder / "signing.pub"
    paths[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    public = private.public_key()
    paths[1].write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return paths


def run(*arguments: object, code: int = 0, **env: str) -> Result:
    result = CliRunner().invoke(main, ["export-signature", *map(str, arguments)], env=env)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = Release(tmp_path).write(tmp_path / "bundle")
    (directory / "report.html").write_text("beside the release, and no part of it")
    return directory


def believed(directory: Path, signature: Path, public: Path) -> bool:
    """Whether the library verifies it."""
    try:
        library().Config().use_elliptic_key_verifier(public_key=public).verify(directory, signature)
    except Exception:  # noqa: BLE001 - the library raises whatever its parts do
        return False
    return True


def _alter(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda one: one.name)
def test_the_library_verifies_what_was_signed_and_no_other_file(
    bundle: Path, tmp_path: Path, curve: Curve
) -> None:
    library()
    private, public = write_key(tmp_path, curve, b"secret")
    signature = tmp_path / "model.sig"
    result = run(bundle, "--key", private, "--out", signature, SHALLOP_PASSPHRASE="secret")
    assert f"net@v1 {sha256(bundle / 'manifest.json')}" in result.output
    assert f"model_signing verify key {bundle} --signature {signature}" in result.output
    assert believed(bundle, signature, public)
    (bundle / "report.html").write_text("rendered anew")
    assert believed(bundle, signature, public)
    for name in ("manifest.json", "a/model.onnx", "v/0.npz"):
        whole = (bundle / name).read_bytes()
        _alter(bundle / name)
        assert not believed(bundle, signature, public), name
        (bundle / name).write_bytes(whole)
    (bundle / "extra.onnx").write_bytes(b"smuggled in")
    assert not believed(bundle, signature, public)
    (bundle / "extra.onnx").unlink()
    assert believed(bundle, signature, public)
    assert not believed(bundle, signature, write_key(tmp_path, curve)[1])


def test_a_relative_path_is_as_good(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    _, public = write_key(tmp_path, ec.SECP256R1())
    monkeypatch.chdir(tmp_path)
    run("bundle", "--key", "signing.pem", "--out", "model.sig")
    assert believed(bundle, tmp_path / "model.sig", public)


def test_the_statement_names_every_file_of_the_release(bundle: Path, tmp_path: Path) -> None:
    library()
    private, _ = write_key(tmp_path, ec.SECP256R1())
    run(bundle, "--key", private, "--out", tmp_path / "model.sig")
    envelope = json.loads((tmp_path / "model.sig").read_text())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    names = ("manifest.json", "a/model.onnx", "b/model.tflite", "v/0.npz")
    signed = {one["name"]: one["digest"] for one in statement["predicate"]["resources"]}
    assert signed == {name: sha256(bundle / name) for name in names}
    assert (tmp_path / "model.sig").stat().st_mode & 0o777 == 0o644


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    folder = tmp_path_factory.mktemp("signature")
    made = CliRunner().invoke(
        main, ["keys", "init", "--keys", str(folder / "keys"), "--root-keys", str(folder / "offline")]
    )
    assert made.exit_code == 0
    process = RegistryProcess(folder / "data", free_port(), "--keys", str(folder / "keys"))
    process.start()
    directory = Release(folder).write(folder / "bundle")
    result = CliRunner().invoke(main, ["publish", str(directory), "--server", process.url])
    assert result.exit_code == 0, result.output
    yield process
    process.stop()


def test_a_release_of_the_registry_is_written_out_and_signed(
    registry: RegistryProcess, tmp_path: Path
) -> None:
    library()
    private, public = write_key(tmp_path, ec.SECP256R1())
    files, signature = tmp_path / "net-v1", tmp_path / "model.sig"
    options = ("--server", registry.url, "--key", private, "--out", signature, "--files", files)
    run("net@v1", *options)
    assert believed(files, signature, public)
    # What was written out is the release itself: its manifest is the registry's, and all of it holds.
    verified = CliRunner().invoke(main, ["verify", str(files), "--json"])
    listed = CliRunner().invoke(main, ["releases", "--json", "--server", registry.url])
    assert json.loads(verified.stdout)["holds"]
    assert json.loads(verified.stdout)["digest"] == json.loads(listed.stdout)[0]["digest"]
    assert "out_exists" in run("net@v1", *options, code=2).output
    other = [word if word != signature else tmp_path / "other.sig" for word in options]
    assert "name a directory that is not" in run("net@v1", *other, code=2).output
    pinned = ("--root-sha256", "ab" * 32)
    assert "nothing is signed" in run("net@v1", *other, *pinned, code=1).output
    assert not (tmp_path / "other.sig").exists()


def test_what_does_not_hold_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    library()
    private, _ = write_key(tmp_path, ec.SECP256R1())
    _alter(bundle / "a" / "model.onnx")
    result = run(bundle, "--key", private, "--out", tmp_path / "model.sig", code=1)
    assert "size_mismatch" in result.output
    assert "nothing is signed" in result.output
    assert not (tmp_path / "model.sig").exists()


def no_key(folder: Path) -> Path:
    return folder / "nowhere.pem"


def junk(folder: Path) -> Path:
    path = folder / "junk.pem"
    path.write_text("no key")
    return path


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (lambda folder: write_key(folder)[0], "wrong_key_kind"),
        (lambda folder: write_key(folder, ec.SECP256K1())[0], "wrong_key_kind"),
        (lambda folder: write_key(folder, ec.SECP256R1(), b"secret")[0], "passphrase_needed"),
        (no_key, "key_unreadable"),
        (junk, "key_unreadable"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_by_name(
    bundle: Path, tmp_path: Path, key: Callable[[Path], Path], code: str
) -> None:
    library()
    result = run(bundle, "--key", key(tmp_path), "--out", tmp_path / "model.sig", code=2)
    assert f"[{code}]" in result.output
    if code == "wrong_key_kind":
        assert "openssl ecparam -name prime256v1" in result.output
    assert not (tmp_path / "model.sig").exists()


def test_a_wrong_passphrase_is_refused(bundle: Path, tmp_path: Path) -> None:
    library()
    private, _ = write_key(tmp_path, ec.SECP256R1(), b"secret")
    out = tmp_path / "model.sig"
    assert (
        "key_unreadable" in run(bundle, "--key", private, "--out", out, code=2, SHALLOP_PASSPHRASE="x").output
    )


def test_a_link_in_the_directory_is_refused_by_the_library(bundle: Path, tmp_path: Path) -> None:
    library()
    private, _ = write_key(tmp_path, ec.SECP256R1())
    (bundle / "a" / "model.onnx").rename(bundle / "a" / "real.onnx")
    (bundle / "a" / "model.onnx").symlink_to("real.onnx")
    assert "not_signed" in run(bundle, "--key", private, "--out", tmp_path / "model.sig", code=2).output


def test_a_release_needs_a_place_for_its_files_and_a_directory_none(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path, ec.SECP256R1())
    options = ("--key", private, "--out", tmp_path / "model.sig")
    assert "--files DIR is for a release" in run("net@v1", *options, code=2).output
    assert "--files DIR is for a release" in run(bundle, *options, "--files", tmp_path / "f", code=2).output


def test_without_the_library_the_extra_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(model_signature, "import_module", missing)
    private, _ = write_key(tmp_path, ec.SECP256R1())
    result = run(bundle, "--key", private, "--out", tmp_path / "model.sig", code=2)
    assert "model_signing_missing" in result.output
    assert "shallop[signature]" in result.output


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SignatureExportError) as refused:
        model_signature.write_new(tmp_path / "nowhere" / "model.sig", b"x")
    assert refused.value.code == "out_unwritable"
    model_signature.write_new(tmp_path / "model.sig", b"first")
    with pytest.raises(SignatureExportError) as refused:
        model_signature.write_new(tmp_path / "model.sig", b"second")
    assert refused.value.code == "out_exists"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


# --- reading back what was signed ------------------------------------------------------------------


def bundle_of(resources: list[dict[str, str]]) -> bytes:
    payload = base64.b64encode(json.dumps({"predicate": {"resources": resources}}).encode()).decode()
    return json.dumps({"dsseEnvelope": {"payload": payload}}).encode()


def resource(name: str, digest: str, algorithm: str = "sha256") -> dict[str, str]:
    return {"name": name, "digest": digest, "algorithm": algorithm}


A, B = "a" * 64, "b" * 64
_files = st.dictionaries(st.sampled_from(["x", "y", "z"]), st.sampled_from([A, B]))


@given(_files, _files)
def test_a_statement_is_right_exactly_where_it_names_the_same(
    signed: dict[str, str], expected: dict[str, str]
) -> None:
    fault = statement_fault(bundle_of([resource(*one) for one in signed.items()]), expected)
    assert (fault == "") == (signed == expected)


@pytest.mark.parametrize(
    "bundle",
    [
        b"", b"{}", b'{"dsseEnvelope": {"payload": "?"}}', bundle_of([resource("x", A), resource("x", B)]),
        # What is listed last is no truer than what is listed first.
        bundle_of([resource("x", B), resource("x", A)]),
        bundle_of([resource("x", A), resource("x", B, "blake2b")]),
        bundle_of([resource("x", A, "blake2b")]), bundle_of([resource("x", "short")]),
        b" " * (16 * 2**20 + 1),
    ],
)  # fmt: skip
def test_a_statement_that_cannot_be_read_is_wrong(bundle: bytes) -> None:
    assert statement_fault(bundle, {"x": A})
