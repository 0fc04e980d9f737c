"""The scheme `weight_wi4_af32_gN_METHOD`.

For: finding the products with constant matrices and the lookups in constant tables, quantizing each with the
recipe's algorithm and writing onnxruntime's MatMulNBits and GatherBlockQuantized in their place.
Not for: the algorithms (`blocks`, `hqq`, `gptq`, `awq`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from onnx import helper, numpy_helper

from converter.errors import RecipeError
from converter.quantize.material import Made, Material
from converter.quantize.weights.awq import scaled, search
from converter.quantize.weights.blocks import Blocks, Floats, round_to_nearest
from converter.quantize.weights.gptq import gptq
from converter.quantize.weights.gram import Gram, collect_grams
from converter.quantize.weights.hqq import half_quadratic
from converter.recipe import Recipe
from converter.targets.choose import ModelFacts

_DOMAIN = "com.microsoft"
_BLOCKS = frozenset({16, 32, 64, 128})
"""What MatMulNBits takes (a power of two, 16 at least) and one lazy batch of GPTQ holds whole."""
_TABLE_ROWS_MIN = 256
"""A smaller table saves nothing worth its error."""


class Product(Struct, frozen=True):
    """A MatMul or Gemm with a constant matrix; `weight` is `[N, K]`, whichever way round the graph has it."""

    node: onnx.NodeProto
    source: str
    weight: Floats
    bias: str | None


def quantize_weights(material: Material, recipe: Recipe) -> Made:
    """The graph with 4-bit weights.

    Raises:
        RecipeError: `recipe_extra`, `recipe_type`, `recipe_granularity` (block sizes), `weights_none`:
            there is no matrix to quantize; `gram_too_large`.
    """
    block = _block(recipe)
    model = onnx.ModelProto()
    model.CopyFrom(material.model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = products(model.graph, constants)
    tables = _tables(model.graph, constants)
    if not found:
        raise RecipeError("weights_none", "no MatMul or Gemm with a constant matrix is in the model")
    method = recipe.method or "rtn"
    grams: dict[str, Gram] = {}
    if method in {"gptq", "awq"}:
        widths = {one.source: one.weight.shape[1] for one in found}
        grams = collect_grams(material.model, widths, material.samples, material.signature)
    decisions = []
    if method == "awq":
        decisions.append(_write_aware(model.graph, found, block, grams))
    else:
        make = _maker(method, block, grams)
        for one in found:
            _replace(model.graph, one, make(one), one.source)
    decisions += [_write_table(model.graph, node, constants[node.input[0]], block) for node in tables]
    _drop_unused(model.graph)
    _open_domain(model)
    return Made(model=model, decisions=tuple(decisions))


def weight_facts(model: onnx.ModelProto) -> ModelFacts:
    """How much of a model 4-bit weights could shrink."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = [t for t in constants.values() if t.data_type == onnx.TensorProto.FLOAT]
    names = {one.node.input[1] for one in products(model.graph, constants)}
    names |= {node.input[0] for node in _tables(model.graph, constants)}
    return ModelFacts(
        weight_bytes=sum(4 * math.prod(tensor.dims) for tensor in floats),
        matrix_bytes=sum(4 * math.prod(constants[name].dims) for name in names),
    )


def _block(recipe: Recipe) -> int:
    if recipe.extras:
        raise RecipeError("recipe_extra", f"{', '.join(recipe.extras)} is not done by this scheme")
    if recipe.weight != "i4":
        raise RecipeError("recipe_type", f"weights of type {recipe.weight} cannot be emitted by this scheme")
    size = int(recipe.granularity[1:]) if recipe.granularity and recipe.granularity[0] == "g" else 0
    if size not in _BLOCKS:
        raise RecipeError("recipe_granularity", f"blocks of g16, g32, g64 or g128, not {recipe.granularity}")
    return size


def products(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> list[Product]:
    """Every product with a constant float32 matrix, in the graph's order."""
    found = []
    for node in graph.node:
        if node.op_type not in {"MatMul", "Gemm"} or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2 or node.input[0] in constants:
            continue
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if options.get("transA") or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            continue
        array = numpy_helper.to_array(tensor)
        weight = array if options.get("transB") else array.T
        found.append(Product(node, node.input[0], np.ascontiguousarray(weight, dtype=np.float32), bias))
    return found


def _maker(method: str, block: int, grams: Mapping[str, Gram]) -> Callable[[Product], Blocks]:
    if method == "rtn":
        return lambda one: round_to_nearest(one.weight, block)
    if method == "hqq":
        return lambda one: half_quadratic(one.weight, block)
    if method == "gptq":
        return lambda one: gptq(one.weight, block, grams[one.source])
    raise RecipeError("recipe_method", f"method {method} is not done by this scheme")


def _write_aware(graph: onnx.GraphProto, found: list[Product], block: int, grams: Mapping[str, Gram]) -> str:
    """Scales each shared input once, before the first product that reads it."""
    exponents = []
    for source in dict.fromkeys(one.source for one in found):
        group = [one for one in found if one.source == source]
        scales, exponent = search([one.weight for one in group], block, grams[source])
        exponents.append(exponent)
        read = source if exponent == 0.0 else _divided(graph, group[0].node, source, scales)
        for one in group:
            _replace(graph, one, scaled(one.weight, block, scales), read)
    helped = sum(exponent > 0 for exponent in exponents)
    reach = max(exponents)
    return f"activation-aware scales on {helped} of {len(exponents)} inputs, exponents up to {reach:.2f}"


def _divided(graph: onnx.GraphProto, first: onnx.NodeProto, source: str, scales: Floats) -> str:
    """One multiplication by 1 / scales ahead of `first`; gives the new tensor's name."""
    factor, out = f"{source}_aware_factor", f"{source}_aware"
    graph.initializer.append(numpy_helper.from_array((1.0 / scales).astype(np.float32), factor))
    node = helper.make_node("Mul", [source, factor], [out], name=f"{out}_mul")
    graph.node.insert(_index(graph, first), node)
    return out


def _replace(graph: onnx.GraphProto, one: Product, blocks: Blocks, source: str) -> None:
    """MatMulNBits, and an Add where a Gemm had a bias, in the place of the product."""
    node = one.node
    parts = _stored(
        graph,
        node,
        {
            "quantized": blocks.packed_values(),
            "scales": blocks.scale.reshape(-1),
            "zeros": blocks.packed_zeros().reshape(-1),
        },
    )
    out = node.output[0] if one.bias is None else f"{node.output[0]}_product"
    made = helper.make_node(
        "MatMulNBits", [source, *parts], [out], name=node.name, domain=_DOMAIN,
        K=one.weight.shape[1], N=one.weight.shape[0], bits=4, block_size=blocks.block,
    )  # fmt: skip
    at = _index(graph, node)
    graph.node.remove(node)
    graph.node.insert(at, made)
    if one.bias is not None:
        graph.node.insert(
            at + 1, helper.make_node("Add", [out, one.bias], [node.output[0]], name=f"{node.name}_bias")
        )


def _stored(
    graph: onnx.GraphProto, node: onnx.NodeProto, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> list[str]:
    """Names of the initializers that hold these arrays.

    A weight that two products share is stored once, unless their inputs made two different ones of it.
    """
    held = {tensor.name: tensor for tensor in graph.initializer}
    names = []
    for part, array in arrays.items():
        name = f"{node.input[1]}_{part}"
        if name in held and not np.array_equal(numpy_helper.to_array(held[name]), array):
            name = f"{name}_{node.name}"
        if name not in held:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        names.append(name)
    return names


def _index(graph: onnx.GraphProto, node: onnx.NodeProto) -> int:
    return next(i for i, one in enumerate(graph.node) if one is node or one.output[0] == node.output[0])


def _tables(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Lookups of whole rows in large constant tables that nothing else reads."""
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[0] in constants
        and readers[node.input[0]] == 1
        and constants[node.input[0]].data_type == onnx.TensorProto.FLOAT
        and len(constants[node.input[0]].dims) == 2
        and constants[node.input[0]].dims[0] >= _TABLE_ROWS_MIN
        and not any(a.name == "axis" and a.i for a in node.attribute)
    ]


def _write_table(graph: onnx.GraphProto, node: onnx.NodeProto, table: onnx.TensorProto, block: int) -> str:
    """GatherBlockQuantized in the place of the lookup; there is no data that knows better than rounding."""
    blocks = round_to_nearest(numpy_helper.to_array(table), block)
    rows, columns = int(table.dims[0]), int(table.dims[1])
    packed = blocks.packed_values().reshape(rows, -1)[:, : -(-columns // 2)]
    parts = {
        f"{table.name}_quantized": packed,
        f"{table.name}_scales": blocks.scale,
        f"{table.name}_zeros": blocks.packed_zeros(),
    }
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), k) for k, a in parts.items())
    data, scales, zeros = parts
    made = helper.make_node(
        "GatherBlockQuantized", [data, node.input[1], scales, zeros], list(node.output), name=node.name,
        domain=_DOMAIN, gather_axis=0, quantize_axis=1, block_size=block, bits=4,
    )  # fmt: skip
    at = _index(graph, node)
    graph.node.remove(node)
    graph.node.insert(at, made)
    return f"table {table.name} ({rows} rows) in 4 bits too"


def _drop_unused(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)


def _open_domain(model: onnx.ModelProto) -> None:
    if all(one.domain != _DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
