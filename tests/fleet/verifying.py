"""Releases to be checked, and places that hold them: honest ones and liars.

For: bundles whose model files are real ONNX and TFLite files, with files that went in; a place in memory; a
proxy before a real registry that alters what it says.
Not for: the checks themselves.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from fleet.adapters.key_files import verify as check
from fleet.verification import Asked, verify
from fleet.verify import Named, Outcome, Row
from fleet.verify_content import true_blob
from tests.converter.tiny_tflite import scaled
from tests.keys import RELEASE, root_of, sealed_root
from wire import trust
from wire.bundle import Chunk, File, Ingredient, Manifest, Provenance, Shard, TensorSpec, Variant
from wire.chunks import cut, digest, pieces
from wire.codec import encode
from wire.deltas import DeltaHint
from wire.encodings import decoded, packed
from wire.errors import ContentError
from wire.roots import Root
from wire.sla import Limits

ONNX, LITE = "onnxruntime/float_wf32_af32", "ai_edge_litert/float_wf32_af32"
INGREDIENTS = ("model", "calibration", "validation", "search", "dataset", "sla")
CHUNK_BYTES = 4096


def onnx_file(name: str = "x", dtype: int = TensorProto.FLOAT, channels: int = 3) -> bytes:
    """`y = x * by`, `x [N, C, 2, 2]`."""
    by = np.random.default_rng(1).normal(size=(channels, 40, 20)).astype(np.float32)
    edges = [
        helper.make_tensor_value_info(one, dtype, [None, channels, 2, 2]) for one in (name, "y")
    ]  # fmt: skip
    node = helper.make_node("Mul", [name, "by"], ["y"])
    graph = helper.make_graph([node], "g", edges[:1], edges[1:], [numpy_helper.from_array(by, "by")])
    content: bytes = helper.make_model(graph, ir_version=9).SerializeToString()
    return content


def lite_file() -> bytes:
    """The same as TFLite: `x [1, 2, 2, C]`."""
    return scaled(np.ones(3, np.float32))


def file_of(path: str, content: bytes, *, compress: bool = False) -> tuple[File, dict[str, bytes]]:
    """A file's entry and its blobs."""
    chunks, blobs = [], {}
    for piece in pieces(content, cut(len(content), chunk_bytes_max=CHUNK_BYTES)):
        chunk = Chunk(sha256=digest(piece), size_bytes=len(piece))
        chunk, blob = packed(piece) if compress else (chunk, bytes(piece))
        chunks.append(chunk)
        blobs[chunk.sha256] = blob
    whole = hashlib.sha256(content).hexdigest()
    return File(path=path, size_bytes=len(content), sha256=whole, chunks=tuple(chunks)), blobs


PLACES = {"a/model.onnx": ONNX, "b/model.tflite": LITE, "v/0.npz": "validation"}


class Release:
    """A release in memory, to be spoilt; fulfils `fleet.verification.Holder` after `hold()`."""

    def __init__(self, folder: Path, *, compress: bool = False) -> None:
        self.folder = folder
        self.given = {kind: folder / f"{kind}.bin" for kind in INGREDIENTS}
        for kind, path in self.given.items():
            path.write_bytes(f"the {kind} that went in".encode())
        self.contents = {
            "a/model.onnx": onnx_file(), "b/model.tflite": lite_file(), "v/0.npz": b"shard" * 2000,
        }  # fmt: skip
        self.blobs: dict[str, bytes] = {}
        files: dict[str, File] = {}
        for name, content in self.contents.items():
            files[name], blobs = file_of(name, content, compress=compress)
            self.blobs |= blobs
        self.value = self._manifest(files)
        self.chain: list[Root] = [root_of()]
        self.signers: tuple[trust.Signer, ...] = (RELEASE,)
        self.hints: list[DeltaHint] | None = []
        self.hold()

    def _manifest(self, files: dict[str, File]) -> Manifest:
        x = TensorSpec(name="x", dtype="float32", shape=(None, 3, 2, 2))

        def variant(name: str, path: str, axes: dict[str, tuple[int, ...]]) -> Variant:
            return Variant(
                id=name, runtime=name.split("/", maxsplit=1)[0].replace("_", "-"), recipe="float_wf32_af32",
                precision="fp32",
                model_path=path, files=(files[path],), axes=axes,
            )  # fmt: skip

        listed = [
            Ingredient(kind=kind, name=path.name, size_bytes=path.stat().st_size, sha256=sha256(path))
            for kind, path in self.given.items()
        ]
        return Manifest(
            model="net", release="v1", created_at="2026-01-01T00:00:00Z", task="classification",
            target="rpi5", sla=Limits(), inputs=(x,), outputs=(structs.replace(x, name="y"),),
            variants=(
                variant(ONNX, "a/model.onnx", {}),
                variant(LITE, "b/model.tflite", {"x": (0, 2, 3, 1), "y": (0, 2, 3, 1)}),
            ),
            validation=(Shard(file=files["v/0.npz"], n_samples=5),),
            provenance=Provenance(
                source_model_sha256=sha256(self.given["model"]), files=tuple(listed),
                calibration_sha256=sha256(self.given["calibration"]),
                validation_sha256=sha256(self.given["validation"]), sla_sha256=sha256(self.given["sla"]),
                tools={"shallop": "1"}, options={"seed": "1"},
            ),
        )  # fmt: skip

    def replace_file(self, path: str, content: bytes) -> None:
        """Other content, honestly named: what a manifest says of it may be untrue."""
        file, blobs = file_of(path, content)
        self.blobs |= blobs
        self.value = structs.replace(
            self.value,
            variants=tuple(
                structs.replace(v, files=(file,)) if v.model_path == path else v for v in self.value.variants
            ),
        )
        self.hold()

    def hold(self) -> None:
        """Takes up what was changed."""
        self.data = encode(self.value)
        self.sealed: bytes | Exception | None = trust.seal("release", self.data, self.signers)
        self.named = Named(digest=digest(self.data), model="net", release="v1")
        self.sealed_roots = [sealed_root(root) for root in self.chain]

    def write(self, directory: Path) -> Path:
        """The same as a bundle's directory."""
        for path, content in self.contents.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        (directory / "manifest.json").write_bytes(self.data)
        return directory

    # --- the port -----------------------------------------------------------------------------------

    def manifest(self) -> bytes:
        return self.data

    def envelope(self) -> bytes | None:
        if isinstance(self.sealed, Exception):
            raise self.sealed
        return self.sealed

    def roots(self) -> Sequence[bytes]:
        return self.sealed_roots

    def deltas(self) -> Sequence[DeltaHint] | None:
        return self.hints

    def blob(self, chunk: Chunk) -> bytes:
        if chunk.sha256 not in self.blobs:
            raise ContentError("blob_lost", "it is gone")
        return true_blob(chunk, self.blobs[chunk.sha256])

    def content(self, file: File) -> Iterator[bytes]:
        for chunk in file.chunks:
            yield decoded(self.blob(chunk), chunk)


def rows_of(release: Release, asked: Asked | None = None) -> dict[str, Row]:
    found = verify(release, asked or Asked(subject="net@v1"), check)
    assert found.holds == all(row.outcome is not Outcome.FAILED for row in found.rows)
    assert len({row.check for row in found.rows}) == len(found.rows)
    return {row.check: row for row in found.rows}


def assert_only(rows: dict[str, Row], failing: str, *words: str) -> None:
    """That row fails and no other, saying these words."""
    assert {name for name, row in rows.items() if row.outcome is Outcome.FAILED} == {failing}, rows
    for word in words:
        assert word in rows[failing].reason, rows[failing].reason


def blob_of(release: Release, path: str) -> str:
    files = {file.path: file for file in release.value.all_files()}
    return files[path].chunks[-1].sha256


def alter(release: Release, blob: str) -> None:
    release.blobs[blob] = release.blobs[blob][:-1] + bytes([release.blobs[blob][-1] ^ 1])


def have_no_envelope(release: Release) -> None:
    release.sealed = ContentError("release_unsigned", "it carries none")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


Lie = Callable[[str, bytes], bytes | None]


class Liar:
    """A real HTTP server that asks a registry and alters its answers.

    Args:
        registry: URL.
        lie: given path and answer, another answer; None for 404; ConnectionAbortedError for none at all.
    """

    def __init__(self, registry: str, lie: Lie) -> None:
        asking = self._asking = httpx.Client(trust_env=False)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet, else the client waits for the second one

            def do_GET(self) -> None:
                answer = asking.get(registry + self.path)
                body = lie(self.path, answer.content)
                self.send_response(answer.status_code if body is not None else 404)
                content = body if body is not None else b'{"error": {"code": "gone", "message": "gone"}}'
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:  # noqa: ANN401 - as the standard library has it
                """Nothing is told."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # noqa: ANN401 - as the standard library has it
                """A connection that is dropped on purpose needs no words."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._asking.close()
