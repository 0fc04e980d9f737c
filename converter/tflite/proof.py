"""PURE. What a proof of parity says: how far a TFLite file is from the ONNX graph that it was made of.

For: `Proof` and its parts, plain data for `candidates.json` and the report, and the reasons known for which
two runtimes round differently.
Not for: proving (`converter.tflite.parity`).

A step is the distance of two neighbouring stored integers. `EXACT` names the operators whose answers should
be equal in every element; any other may be one step off, and one that is further off is named with its
reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from wire.bundle import Parity

Verdict = Literal["equal", "one_step", "worse", "unmeasured"]

EXACT = frozenset({"Add", "Conv", "Gelu", "Gemm", "MatMul", "Mul", "Sigmoid", "Softmax", "Tanh"})
"""ONNX operators that both runtimes compute alike: multiplications with 32-bit sums, and tables."""

_EXCEPT = frozenset({"BATCH_MATMUL"})
"""What is not meant above: a MatMul by a constant is FULLY_CONNECTED, one of two computed matrices this."""

REASONS: dict[str, str] = {
    "Add": "XNNPACK adds with integer multipliers of 21 bits, ONNX Runtime in float32: a sum that falls next "
    "to the middle between two steps is rounded to either side",
    "AveragePool": "halves go to another side: ONNX Runtime rounds the plain stored average to even, LiteRT "
    "the one without its zero point, or away from zero",
    "ConvTranspose": "ONNX Runtime has no integer kernel: it computes in float32 between the pairs",
    "GlobalAveragePool": "MEAN and ONNX Runtime round halves of the average to different sides",
    "HardSwish": "LiteRT multiplies in 16-bit fixed point; ONNX Runtime computes in float32",
    "LeakyRelu": "XNNPACK's slope is an integer multiplier; ONNX Runtime computes in float32",
    "MatMul": "LiteRT scales the sums of two computed matrices by integers, ONNX Runtime by float32",
    "PRelu": "ONNX Runtime has no integer kernel; LiteRT multiplies by integers",
    "QuantizeLinear": "LiteRT multiplies by the inverse of the scale, ONNX Runtime divides by it",
    "ReduceMean": "ONNX Runtime has no integer kernel: in float32 between the pairs a half is hit by chance",
    "ReduceSum": "ONNX Runtime has no integer kernel: it adds in float32 between the pairs",
    "Resize": "LiteRT interpolates with integer weights, ONNX Runtime with float32 ones",
    "Softmax": "a probability of 1 wraps around in ONNX Runtime: unsigned over one element, signed before "
    "the fix of onnxruntime#29727",
    "Sub": "XNNPACK subtracts with integer multipliers of 21 bits, ONNX Runtime in float32",
}  # fmt: skip
"""Why an operator's answers may differ, as far as it is known, by ONNX type."""

REQUANTIZED = "the kernel's scale is not ONNX's, so a QUANTIZE follows and numbers are rounded twice"
_NAME_MAX = 200
"""Of a name in a manifest."""
UNKNOWN = "no reason is known"


class NodeProof(Struct, frozen=True, kw_only=True):
    """One integer operator, both runtimes given the same stored inputs.

    Attributes:
        node: ONNX's name.
        op_type: ONNX's.
        tensor: the stored output; the first of several.
        written_as: TFLite's operators; empty where nothing is computed.
        elements: compared, over all samples.
        equal: of them.
        worst_steps: largest distance.
        verdict: of the above; `unmeasured` where nothing was compared.
        reason: why it differs where more was expected of it, or why it was not measured; empty else.
    """

    node: str
    op_type: str
    tensor: str
    written_as: tuple[str, ...] = ()
    elements: int = 0
    equal: int = 0
    worst_steps: int = 0
    verdict: Verdict = "unmeasured"
    reason: str = ""


class KindProof(Struct, frozen=True, kw_only=True):
    """All measured operators of one ONNX type.

    Attributes:
        op_type: ONNX's.
        nodes: measured.
        elements: compared.
        equal: of them.
        worst_steps: largest distance.
        kept: no node is further off than its type allows.
    """

    op_type: str
    nodes: int
    elements: int
    equal: int
    worst_steps: int
    kept: bool

    @property
    def share(self) -> float:
        """Of equal elements."""
        return self.equal / self.elements


class ScaleProof(Struct, frozen=True, kw_only=True):
    """Scales and zero points of the file's bytes against the ONNX graph's.

    Attributes:
        tensors: compared: stored activations, weights and biases.
        equal: bit-equal scales, and zero points equal after the shift of 128.
        exceptions: the others, each with what differs.
        added: quantized tensors that the file has and ONNX has not (padded and moved ones, zero biases).
    """

    tensors: int
    equal: int
    exceptions: tuple[str, ...] = ()
    added: int = 0


class Divergence(Struct, frozen=True, kw_only=True):
    """The first stored tensor that is not equal in both runtimes, each computing from its own inputs.

    Attributes:
        tensor: ONNX's name.
        node: that makes it.
        op_type: ONNX's.
        equal: share of its elements on the sample where it was found.
        worst_steps: largest distance there.
        sample: its place.
    """

    tensor: str
    node: str
    op_type: str
    equal: float
    worst_steps: int
    sample: int


class EndProof(Struct, frozen=True, kw_only=True):
    """Whole runs of both files on the same samples.

    Attributes:
        samples: asked.
        outputs_equal: share of elements of all outputs that are equal, bit for bit.
        worst_steps: of the stored outputs; None where no output is stored.
        worst_difference: of all outputs, as the numbers are.
        argmax_agreement: share of equal places of the largest number along the last axis of the first
            output; None where it has not two numbers there.
        tensors_equal: stored tensors that were equal on all samples, of `tensors`.
        tensors: stored tensors compared.
        first_divergence: the first in topological order that was not; None if all were.
    """

    samples: int
    outputs_equal: float
    worst_steps: int | None
    worst_difference: float
    argmax_agreement: float | None
    tensors_equal: int
    tensors: int
    first_divergence: Divergence | None = None


class Proof(Struct, frozen=True, kw_only=True):
    """What is known of one pair of files.

    Attributes:
        runtimes: ONNX Runtime's and LiteRT's name with version.
        config: session entries with which ONNX Runtime computed.
        samples: on which single operators were compared.
        nodes: every integer operator, in the order of the graph.
        kinds: summed by type.
        scales: tensor by tensor.
        end: whole runs.
        notes: what limits the proof, for people.
    """

    runtimes: tuple[str, str]
    config: dict[str, str]
    samples: int
    nodes: tuple[NodeProof, ...]
    kinds: tuple[KindProof, ...]
    scales: ScaleProof
    end: EndProof
    notes: tuple[str, ...] = ()

    @property
    def operators(self) -> int:
        """Measured."""
        return sum(node.verdict != "unmeasured" for node in self.nodes)

    def count(self, verdict: Verdict) -> int:
        """Operators of one verdict."""
        return sum(node.verdict == verdict for node in self.nodes)

    @property
    def beyond(self) -> tuple[NodeProof, ...]:
        """Operators further off than their type allows."""
        return tuple(node for node in self.nodes if not allowed(node))

    def summary(self) -> Parity:
        """For the bundle's manifest."""
        first = self.end.first_divergence
        return Parity(
            operators=len(self.nodes), equal=self.count("equal"), one_step=self.count("one_step"),
            worse=self.count("worse"), outputs_equal=self.end.outputs_equal,
            first_divergence=None if first is None else first.tensor[:_NAME_MAX],
        )  # fmt: skip

    @property
    def is_twin(self) -> bool:
        """Whether the files are the same model as the issue means it: all scales are equal."""
        return not self.scales.exceptions


def verdict_of(elements: int, equal: int, worst_steps: int) -> Verdict:
    """The class of a comparison.

    >>> verdict_of(10, 10, 0), verdict_of(10, 9, 1), verdict_of(10, 9, 2), verdict_of(0, 0, 0)
    ('equal', 'one_step', 'worse', 'unmeasured')
    """
    if not elements:
        return "unmeasured"
    if equal == elements:
        return "equal"
    return "one_step" if worst_steps <= 1 else "worse"


def allowed(node: NodeProof) -> bool:
    """Whether an operator is no further off than its type allows; what was not measured is not judged."""
    if node.verdict in {"equal", "unmeasured"}:
        return True
    exact = node.op_type in EXACT and not _EXCEPT.intersection(node.written_as)
    return node.verdict == "one_step" and not exact


def kinds_of(nodes: Sequence[NodeProof]) -> tuple[KindProof, ...]:
    """Sums by type, in the order of their names; what was not measured is left out."""
    found: dict[str, list[NodeProof]] = {}
    for node in nodes:
        if node.verdict != "unmeasured":
            found.setdefault(node.op_type, []).append(node)
    return tuple(
        KindProof(
            op_type=kind, nodes=len(group), elements=sum(one.elements for one in group),
            equal=sum(one.equal for one in group), worst_steps=max(one.worst_steps for one in group),
            kept=all(allowed(one) for one in group),
        )
        for kind, group in sorted(found.items())
    )  # fmt: skip
