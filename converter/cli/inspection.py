"""An inspection for people, within eighty columns.

For: `shallop-convert inspect`.
Not for: inspecting (`converter.inspect`).
"""

from __future__ import annotations

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converter.inspect import Bundle
from converter.look import Model
from converter.report import words
from converter.tflite_summary import Edge, TFLiteModel
from wire.bundle import Manifest, TensorSpec


def show_inspection(found: Bundle | Model | TFLiteModel, screen: Console) -> None:
    """Prints all of it."""
    if isinstance(found, Bundle):
        _show_bundle(found, screen)
    else:
        screen.print(f"[bold]{escape(found.path)}[/bold], {words.size(found.size_bytes)}")
        screen.print(f"SHA-256 {found.sha256}")
        _show_any(found, screen)


def _show_bundle(found: Bundle, screen: Console) -> None:
    manifest = found.manifest
    screen.print(f"[bold]{manifest.model}@{manifest.release}[/bold] for {escape(manifest.target)}")
    screen.print(f"digest {found.digest}")
    screen.print(f"made {escape(manifest.created_at)}, task {manifest.task}")
    screen.print(f"takes {_specs(manifest.inputs)}")
    screen.print(f"gives {_specs(manifest.outputs)}")
    screen.print(f"SLA   {escape(_sla(manifest))}")
    for i, one in enumerate(found.variants, start=1):
        chosen = " (chosen)" if i == 1 else ""
        screen.print(f"\n[bold]{escape(one.variant.id)}[/bold]{chosen}, {words.size(one.variant.size_bytes)}")
        accuracy = one.variant.host.accuracy
        if accuracy is not None:
            screen.print(f"accuracy on the host {accuracy.value:.4f}, {accuracy.n:,} samples")
        if one.model is not None:
            _show_any(one.model, screen)
    samples = sum(shard.n_samples for shard in manifest.validation)
    screen.print(f"\nvalidation: {samples:,} samples in {len(manifest.validation)} shards")
    _show_files(found, screen)


def _show_any(model: Model | TFLiteModel, screen: Console) -> None:
    if isinstance(model, TFLiteModel):
        _show_tflite(model, screen)
    else:
        _show_model(model, screen)


def _show_tflite(model: TFLiteModel, screen: Console) -> None:
    if model.description:
        screen.print(escape(model.description))
    for word, edges in (("takes", model.inputs), ("gives", model.outputs)):
        screen.print(f"{word} {escape('; '.join(_edge(one) for one in edges))}")
    weights = _counted(model.weight_types) if model.weight_types else "none, not quantized"
    screen.print(f"quantized constants: {weights}")
    if model.metadata:
        held = ", ".join(f"{name} ({words.size(size)})" for name, size in model.metadata.items())
        screen.print(f"metadata {escape(held)}")
    fused = model.fusion
    kernels = f"{fused.integer} integer and {fused.float} float operators"
    screen.print(f"{kernels}, and {fused.qdq_left} QUANTIZE or DEQUANTIZE of data")
    if not model.runs:
        screen.print(f"LiteRT here cannot run it: {escape(model.runs_note)}")
    table = Table("operator", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("version", "integer", "float"):
        table.add_column(heading, justify="right")
    for one in model.operators:
        versions = ", ".join(map(str, one.versions))
        counts = (str(count) if count else "" for count in (one.integer, one.float))
        table.add_row(escape(one.operator), versions, *counts)
    screen.print(table)


def _edge(one: Edge) -> str:
    shape = ", ".join(map(str, one.shape))
    scaled = "" if one.scale is None else f" scale {one.scale:.6g}, zero point {one.zero_point}"
    return f"{one.name} {one.dtype} [{shape}]{scaled}"


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    shapes = (", ".join("?" if size is None else str(size) for size in spec.shape) for spec in specs)
    return escape("; ".join(f"{s.name} {s.dtype} [{shape}]" for s, shape in zip(specs, shapes, strict=True)))


def _sla(manifest: Manifest) -> str:
    """Every limit in words, those that are not set left out."""
    limits = msgspec.to_builtins(manifest.sla)
    return "; ".join(f"{key} {_set(value)}" for key, value in limits.items()) or "no limits"


def _set(value: object) -> str:
    if isinstance(value, dict):
        return words.plain({key: one for key, one in value.items() if one is not None})
    return words.plain(value)


def _show_model(model: Model, screen: Console) -> None:
    graph = model.graph
    if graph.quantized:
        weights = _counted(graph.weight_types)
        granularity = f"{graph.per_channel} per channel, {graph.per_tensor} per tensor"
        if graph.scale_unknown:
            granularity += f", {graph.scale_unknown} scaled at run time"
        screen.print(f"weights {weights} ({granularity}); activations {_counted(graph.activation_types)}")
    else:
        screen.print("not quantized")
    if model.fusion is None:
        screen.print(f"this host's runtime cannot run it: {escape(model.fusion_note)}")
    else:
        fused = model.fusion
        kernels = f"{fused.integer} integer and {fused.float} float kernels"
        screen.print(f"the runtime executes {kernels}, and {fused.qdq_left} Q/DQ are left")
    table = Table(
        "operator",
        box=SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title=f"opset {graph.opset}, {graph.nodes} nodes",
    )
    for heading in ("integer", "weight-only", "float"):
        table.add_column(heading, justify="right")
    for one in graph.operators:
        cells = (str(count) if count else "" for count in (one.integer, one.weight_only, one.float))
        table.add_row(escape(one.operator), *cells)
    screen.print(table)


def _counted(types: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.items()) or "none"


def _show_files(found: Bundle, screen: Console) -> None:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title=f"{len(found.files)} files, every one whole",
    )
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("SHA-256")
    for file in found.files:
        table.add_row(file.path, f"{file.size_bytes:,}", f"{file.sha256[:12]}…")
    screen.print(table)
    if found.unlisted:
        screen.print(f"not in the manifest: {escape(', '.join(found.unlisted))}")
