"""From QDQ to QOperator form.

For: targets whose runtime wants fused integer operators in the file (`qop`). ONNX Runtime's own fusion is
asked for the graph that it would run, so the answers are those of the QDQ graph, islands and all; what it
does not fuse keeps its pairs.
Not for: targets that do not list it: the fused operators are of the domain com.microsoft.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from converter.passes.strip import strip
from converter.runtime import open_session


def to_qoperator(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as the runtime fuses it.

    Raises:
        Exception: what the runtime raises on this graph.
    """
    # Without this entry x86 refuses to fuse some operators on i8; elsewhere it says nothing.
    config = {"session.qdqisint8allowed": "1"}
    with tempfile.TemporaryDirectory(prefix="shallop-qop-") as folder:
        path = Path(folder) / "fused.onnx"
        content = model.SerializeToString()
        open_session(content, config=config, optimized_path=path, optimization="EXTENDED")
        fused = onnx.load(path)
    strip(fused)
    del fused.graph.value_info[:]
    used = {node.domain for node in fused.graph.node} | {""}
    kept = [entry for entry in fused.opset_import if entry.domain in used]
    del fused.opset_import[:]
    fused.opset_import.extend(kept)
    return fused
