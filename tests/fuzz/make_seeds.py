"""Makes the seeds that need libraries to be made: `python -m tests.fuzz.make_seeds`.

For: small real models as the converter writes them, kept in the repository, so that a run begins without the
libraries and with the files of today's version when they have moved on.
Not for: seeds that a target makes by itself.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.agent import models, tflite
from tests.fleet.delta_samples import Weights
from tests.fuzz.corpus_files import keep


def nested(folder: Path, depth: int = 3) -> bytes:
    """A graph within a graph within a graph."""
    value = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "in", [], [value("z", TensorProto.FLOAT, None)]
    )
    body = inner
    for _ in range(depth):
        node = helper.make_node("If", ["go"], ["z"], then_branch=body, else_branch=inner)
        body = helper.make_graph([node], "in", [], [value("z", TensorProto.FLOAT, None)])
    node = helper.make_node("If", ["go"], ["y"], then_branch=body, else_branch=inner)
    path = models.save(folder / "nested.onnx", [node], {"go": np.array(True)})
    return path.read_bytes()


def external() -> bytes:
    """A weight that lies in another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], [tensor],
    )  # fmt: skip
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def typed() -> bytes:
    """Weights in fields of their own type, sparse, and of text."""
    dense = [
        helper.make_tensor("f", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("i", TensorProto.INT64, [2], [1, -2]),
        helper.make_tensor("s", TensorProto.STRING, [1], [b"word"]),
        helper.make_tensor("h", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["f"], ["y"])], "g", [], [value("y", TensorProto.FLOAT, [2])], dense
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("n", TensorProto.INT64, [1], [2]))
    model.graph.sparse_initializer.append(sparse)
    return bytes(model.SerializeToString())


def main() -> int:
    """Writes them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        twins = {edge: tflite.quantized_product(folder / edge, edge) for edge in ("float32", "int8")}
        pictures = tflite.images(folder / "images")
        onnx_files = {
            "linear": models.linear(folder / "linear.onnx").read_bytes(),
            "loop": models.hanging(folder / "loop.onnx").read_bytes(),
            "images": pictures.onnx.read_bytes(),
            "quantized": twins["int8"].onnx.read_bytes(),
            "nested": nested(folder),
            "external": external(),
            "typed": typed(),
        }
        tflite_files = {
            "images": pictures.tflite.read_bytes(),
            "int8": twins["int8"].tflite.read_bytes(),
            "float32": twins["float32"].tflite.read_bytes(),
        }
    tensors = {"weights": Weights(channels=4, inputs=3).onnx(), "int8": tflite_files["int8"]}
    made = {
        "models.onnx_walk": onnx_files,
        "models.tflite_walk": tflite_files,
        "models.delta_tensors": tensors,
    }
    for target, files in made.items():
        for name, data in files.items():
            sys.stdout.write(f"{keep(target, name, data)}: {len(data)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
