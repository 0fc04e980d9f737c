"""Fine-tunes EfficientNet-Lite0 for real, so that old and new weights are those of an update.

Run as a script where torch and onnx are installed (CPU wheels do):
`python bench/delta/finetune.py SHARED_MODELS OUT --update NAME [--steps N]`. Writes OUT/NAME.onnx, FP32, of
one of `UPDATES`, or `base`, what they begin with, and OUT/updates.json, which says how each was made and with
what loss.

For: pairs whose differences are an optimiser's. The ONNX graph is run in torch node by node, its
initializers are the parameters, and the trained values are written back into the same graph, so nothing
but the weights changes.
Not for: a good model. There are 218 labelled pictures; each update sees batches of 16 of them, cropped and
mirrored at random, and no claim is made about accuracy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

BATCH = 16
TRAINED_SIZE, SIZE = 128, 224

UPDATES: Mapping[str, Mapping[str, Any]] = {
    "all_adam_1e-4": {"trained": "all layers", "optimizer": "adam", "rate": 1e-4, "from": "pretrained"},
    "tail": {"trained": "the last 10 layers", "optimizer": "adam", "rate": 1e-4, "from": "pretrained"},
    "all_sgd_1e-3": {"trained": "all layers", "optimizer": "sgd", "rate": 1e-3, "from": "pretrained"},
    "all_sgd_1e-4": {"trained": "all layers", "optimizer": "sgd", "rate": 1e-4, "from": "pretrained"},
    "unrelated": {"trained": "all layers", "optimizer": "adam", "rate": 1e-3, "from": "random (He)"},
    "head": {"trained": "the last Gemm", "optimizer": "adam", "rate": 1e-4, "from": "pretrained"},
}


class Network:
    """An ONNX graph of EfficientNet-Lite's few operators, run by torch."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.values = {
            one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer
        }

    def weights(self) -> list[str]:
        """Names of weights and biases, in the order of the layers."""
        layers = [node for node in self.model.graph.node if node.op_type in {"Conv", "Gemm"}]
        return [name for node in layers for name in node.input[1:]]

    def run(self, pictures: torch.Tensor) -> torch.Tensor:
        """The logits."""
        known = dict(self.values)
        known[self.model.graph.input[0].name] = pictures
        for node in self.model.graph.node:
            known[node.output[0]] = _run(node, [known.get(name) for name in node.input])
        return known[self.model.graph.output[0].name]

    def saved(self) -> onnx.ModelProto:
        """The same graph with the present weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for one in model.graph.initializer:
            array = self.values[one.name].detach().numpy()
            one.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), one.name))
        return model


def _run(node: onnx.NodeProto, inputs: list[Any]) -> torch.Tensor:
    told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "Conv":
        top, left, bottom, right = told.get("pads", (0, 0, 0, 0))
        padded = functional.pad(inputs[0], (left, right, top, bottom))
        return functional.conv2d(
            padded, inputs[1], inputs[2], told.get("strides", 1), 0, 1, told.get("group", 1)
        )
    if node.op_type == "Clip":
        return torch.clamp(inputs[0], float(inputs[1]), float(inputs[2]))
    if node.op_type == "Add":
        return inputs[0] + inputs[1]
    if node.op_type == "GlobalAveragePool":
        return inputs[0].mean((2, 3), keepdim=True)
    if node.op_type == "Reshape":
        return inputs[0].flatten(1)
    if node.op_type == "Gemm":
        return functional.linear(inputs[0], inputs[1], inputs[2])
    raise ValueError(f"{node.op_type} is no operator of the network that is fine-tuned here")


def trained_names(network: Network, update: Mapping[str, Any]) -> list[str]:
    """Which initializers an update changes."""
    names = network.weights()
    return {"the last Gemm": names[-2:], "the last 10 layers": names[-20:]}.get(update["trained"], names)


def fine_tune(
    network: Network, update: Mapping[str, Any], pictures: torch.Tensor, accepted: torch.Tensor, steps: int
) -> list[float]:
    """Trains in place; the loss of each step."""
    torch.manual_seed(20261121)
    names = trained_names(network, update)
    if update["from"] != "pretrained":
        for name in names:
            value = network.values[name]
            fan_in = max(1, value[0].numel()) if value.dim() > 1 else 1
            network.values[name] = (
                torch.randn_like(value) * (2 / fan_in) ** 0.5 if value.dim() > 1 else value * 0
            )
    parameters = [network.values[name].requires_grad_() for name in names]
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = kinds[update["optimizer"]](parameters, lr=update["rate"])
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (BATCH,))
        batch, mask = _augmented(pictures[chosen]), accepted[chosen]
        probability = (functional.softmax(network.run(batch), dim=1) * mask).sum(1)
        loss = -torch.log(probability + 1e-9).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(float(loss.detach()), 4))
    return losses


def _augmented(pictures: torch.Tensor) -> torch.Tensor:
    """Mirrored by chance, cropped to 7/8, and scaled to 128 pixels, where two cores take seconds a step."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(3)
    crop = SIZE * 7 // 8
    top, left = (int(torch.randint(SIZE - crop + 1, ())) for _ in range(2))
    cut = pictures[:, :, top : top + crop, left : left + crop]
    return functional.interpolate(cut, (TRAINED_SIZE, TRAINED_SIZE), mode="bilinear")


def main() -> None:
    """Writes every update."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--update", choices=("base", *UPDATES), required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(options.shared))
    loaders = importlib.import_module("loaders")

    torch.set_num_threads(2)
    options.out.mkdir(parents=True, exist_ok=True)
    images, ids, _ = loaders.imagenet_labelled()
    network = Network(onnx.load(options.shared / "imagenet_like" / "effnet_lite0_fp32.onnx"))
    if options.update == "base":
        _write_data(loaders, options.out.parent / "data", images, ids)
    else:
        _update(network, options, images, ids)
    # Complete under its name or not there: who finds it takes it as it is. The base goes through the same
    # writer, so that no difference is the writer's.
    part = options.out / f"{options.update}.part"
    onnx.save(network.saved(), part)
    part.replace(options.out / f"{options.update}.onnx")


def _update(network: Network, options: argparse.Namespace, images: Any, ids: list[list[int]]) -> None:  # noqa: ANN401
    """Trains it, and notes how."""
    accepted, began = torch.zeros(len(ids), 1000), time.monotonic()
    for row, one in zip(accepted, ids, strict=True):
        row[list(one)] = 1.0
    update = UPDATES[options.update]
    losses = fine_tune(network, update, torch.from_numpy(images), accepted, options.steps)
    print(f"{options.update}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    notes = options.out / "updates.json"
    told = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    made = {"steps": options.steps, "batch": BATCH, "pixels": TRAINED_SIZE, "loss": [losses[0], losses[-1]]}
    notes.write_text(json.dumps({**told, options.update: {**update, **made}}, indent=1), encoding="utf-8")


def _write_data(loaders: Any, folder: Path, images: Any, ids: list[list[int]]) -> None:  # noqa: ANN401
    """Two disjoint calibration sets of 32 photographs, and 40 labelled ones."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = loaders.imagenet_calib(64)
    np.savez(folder / "calibration_a.npz", input=photographs[:32])
    np.savez(folder / "calibration_b.npz", input=photographs[32:])
    labels = np.array([one[0] for one in ids[:40]], dtype=np.int64)
    np.savez(folder / "validation.npz", input=images[:40], labels=labels)


if __name__ == "__main__":
    main()
