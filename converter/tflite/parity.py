"""Proves how far a TFLite file is from the ONNX graph that it was made of.

For: `prove()`: scales tensor by tensor, every integer operator with the same stored inputs in both runtimes,
and whole runs with the first tensor that diverges.
Not for: whether the twin is good enough; accuracy is measured like any candidate's.

ONNX Runtime runs the whole graph and gives up its stored tensors; each operator's part of the file
(`converter.tflite.cuts`) gets those of its inputs and is compared with those of its outputs. So both sides
run the kernels of the whole graph, and no error is carried on. LiteRT runs with its default kernels;
BUILTIN_REF computes something else (FACTS.md, Parity).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
from msgspec import Struct, structs
from numpy.typing import NDArray

from converter import litert, runtime
from converter.dataset import Feeds
from converter.tflite import Lowered, Options, Written, lower, write
from converter.tflite.cuts import Piece, laid_out, makers, piece_of
from converter.tflite.proof import (
    REASONS,
    REQUANTIZED,
    UNKNOWN,
    EndProof,
    NodeProof,
    Proof,
    allowed,
    kinds_of,
    verdict_of,
)
from converter.tflite.reading import Op
from converter.tflite.same_scales import compare_scales
from converter.tflite.tensors import Operator
from converter.tflite.whole import Shown, Whole, steps, summed

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
Clock = Callable[[], float]

SAMPLES_MAX = 16
SECONDS_MAX = 60.0
CAPTURED_BYTES_MAX = 1 << 28
"""Of stored tensors held at once; the samples of single operators end there, but one is always compared."""


class Limits(Struct, frozen=True, kw_only=True):
    """What a proof may cost.

    Attributes:
        samples: at most.
        seconds: after which operators are left unmeasured, and samples of whole runs end; one of each is
            done.
    """

    samples: int = SAMPLES_MAX
    seconds: float = SECONDS_MAX


def prove(
    model: onnx.ModelProto,
    samples: Iterable[Feeds],
    options: Options | None = None,
    *,
    config: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    clock: Clock = time.monotonic,
) -> Proof:
    """The proof for the file that `write(model, options)` gives.

    Args:
        model: the QDQ graph.
        samples: real ones, each of one sample; not empty.
        options: of the file; a proof needs float edges and a batch of 1.
        config: ONNX Runtime's session entries; None for `exact_config`.
        limits: what it may cost.
        progress: told (stage, done, in all).
        clock: seconds, monotonic.

    Raises:
        TFLiteError: the graph cannot be written.
        ValueError: there is no sample, or the options' edges are not float.
        Exception: what a runtime raises for the whole graph or file.
    """
    options, limits = options or Options(), limits or Limits()
    if options.edge != "float32" or options.batch != 1:
        raise ValueError("parity is proved on float edges and a batch of 1")
    taken = [feeds for _, feeds in zip(range(limits.samples), samples, strict=False)]
    if not taken:
        raise ValueError("parity is proved on samples, and there are none")
    entries = exact_config(model) if config is None else dict(config)
    proving = _Proving(model, options, taken, entries, clock() + limits.seconds, clock, progress)
    return proving.prove()


def exact_config(model: onnx.ModelProto) -> dict[str, str]:
    """Session entries with which any host computes what the arithmetic says.

    Signed activations in integers throughout (FACTS.md, trap 10); unsigned ones without 16-bit sums that
    saturate on a CPU that lacks VNNI (trap 15). Both at once ask for a kernel that ONNX Runtime has not.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    stored = {
        types.get(node.input[2])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2
    }
    signed = onnx.TensorProto.INT8 in stored
    return {"session.qdqisint8allowed" if signed else "session.x64quantprecision": "1"}


class _Proving:
    """One proof in the making."""

    def __init__(
        self, model: onnx.ModelProto, options: Options, samples: Sequence[Feeds], config: dict[str, str],
        until_s: float, clock: Clock, progress: Progress | None,
    ) -> None:  # fmt: skip
        self._model, self._samples, self._config = model, samples, config
        self._until_s, self._clock, self._progress = until_s, clock, progress
        self._lowered: Lowered = lower(model, options)
        self._written: Written = write(model, options)
        self._shown = Shown(model, _shown(self._lowered), config)
        self._notes: list[str] = []

    def prove(self) -> Proof:
        captured = self._captured()
        nodes = self._nodes(captured)
        return Proof(
            runtimes=(f"{runtime.NAME} {runtime.VERSION}", f"{litert.NAME} {litert.VERSION}"),
            config=self._config, samples=len(captured), nodes=nodes, kinds=kinds_of(nodes),
            scales=compare_scales(self._model, self._written), end=self._end(), notes=tuple(self._notes),
        )  # fmt: skip

    def _late(self) -> bool:
        return self._clock() > self._until_s

    def _told(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, total)

    def _end(self) -> EndProof:
        whole = Whole(self._lowered, self._written, self._shown)
        for place, feeds in enumerate(self._samples):
            if place and self._late():
                self._notes.append(f"whole runs were compared on {place} samples: time ran out")
                break
            self._told("whole runs", place, len(self._samples))
            whole.add(feeds)
        self._told("whole runs", len(self._samples), len(self._samples))
        self._notes += whole.notes
        return whole.proof()

    # Single operators.

    def _captured(self) -> list[dict[str, Array]]:
        """Stored tensors of as many samples as memory and time allow."""
        kept: list[dict[str, Array]] = []
        size = 0
        for feeds in self._samples:
            # Samples are of one size: another one takes as much as those before it did.
            if kept and (size + size / len(kept) > CAPTURED_BYTES_MAX or self._late()):
                why = "time ran out" if self._late() else "more would not fit into memory"
                self._notes.append(f"single operators were compared on {len(kept)} samples: {why}")
                break
            one = self._shown.stored(feeds)
            size += sum(array.nbytes for array in one.values())
            kept.append(one)
        return kept

    def _nodes(self, captured: Sequence[dict[str, Array]]) -> tuple[NodeProof, ...]:
        ops = [op for op in self._lowered.source.ops if _is_compared(self._lowered, op)]
        maker = makers(self._lowered.graph)
        found = []
        for place, op in enumerate(ops):
            self._told("operators", place, len(ops))
            late = place > 0 and self._late()
            found.append(_unmeasured(op, "time ran out") if late else self._node(op, maker, captured))
        self._told("operators", len(ops), len(ops))
        return tuple(found)

    def _node(self, op: Op, maker: dict[int, Operator], captured: Sequence[dict[str, Array]]) -> NodeProof:
        piece = piece_of(self._lowered, op, maker)
        if piece is None or any(name not in captured[0] for name in (*piece.inputs, *piece.outputs)):
            return _unmeasured(op, "the file holds it only together with its neighbours")
        try:
            mine = _computed(piece, captured)
        except Exception as error:  # noqa: BLE001 - what a runtime refuses is named
            return _unmeasured(op, f"LiteRT: {error}")
        distances = [
            steps(have[name], laid_out(value, theirs[name]))
            for have, theirs in zip(mine, captured, strict=True)
            for name, value in piece.outputs.items()
        ]
        elements, equal, worst = summed(distances)
        made = NodeProof(
            node=op.name, op_type=op.op_type, tensor=op.outputs[0], written_as=piece.operators,
            elements=elements, equal=equal, worst_steps=worst, verdict=verdict_of(elements, equal, worst),
        )  # fmt: skip
        if made.verdict == "equal":
            return made
        return structs.replace(made, reason=_reason(made))


def _shown(lowered: Lowered) -> tuple[str, ...]:
    """Stored tensors, and what integer operators give or take besides them, in the graph's order."""
    source = lowered.source
    found: dict[str, None] = {}
    for op in source.ops:
        if op.integer or op.op_type == "QuantizeLinear":
            found |= dict.fromkeys((*op.inputs, *op.outputs))
    given = {"", *source.inputs, *source.outputs}
    return tuple(
        name
        for name in found
        if name not in given and name not in source.constants and source.dtypes.get(name) != "float32"
    )


def _is_compared(lowered: Lowered, op: Op) -> bool:
    """Integer operators, and the quantization of inputs."""
    if op.op_type == "QuantizeLinear":
        return op.integer or op.inputs[0] in lowered.source.inputs
    return op.integer


def _reason(node: NodeProof) -> str:
    """Why it is not equal, as far as that is known; what is allowed one step needs no reason."""
    if "QUANTIZE" in node.written_as and node.op_type != "QuantizeLinear":
        return REQUANTIZED
    return REASONS.get(node.op_type, "" if allowed(node) else UNKNOWN)


def _unmeasured(op: Op, why: str) -> NodeProof:
    return NodeProof(node=op.name, op_type=op.op_type, tensor=op.outputs[0], reason=why)


def _computed(piece: Piece, captured: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """The piece's outputs as the file holds them, by sample.

    Raises:
        Exception: what LiteRT raises.
    """
    given = [{name: laid_out(value, one[name]) for name, value in piece.inputs.items()} for one in captured]
    if piece.content is None:
        # Nothing is computed: each output is an input under another name, or with other axes.
        by_tensor = {id(value.tensor): name for name, value in piece.inputs.items()}
        return [
            {name: one[by_tensor[id(value.tensor)]] for name, value in piece.outputs.items()} for one in given
        ]
    session = litert.open_session(piece.content)
    return [
        dict(zip(session.output_names, session.invoke(session.prepare(one)), strict=True)) for one in given
    ]
