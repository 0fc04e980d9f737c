"""Lays out the subjects: a model, a calibration set, a validation set to choose on, a test set to judge on.

Run as a script in the peers' environment, for decoding pictures and sound needs pillow and scipy:
`python bench/converter/prepare.py SHARED_MODELS OUT [MINILM.onnx]`. One folder per subject:
model.onnx, calibration.npz, validation.npz, test.npz, dataset.yaml, sla.yaml.

For: giving every tool the very same bytes. No sample of a test set is in the set that Shallop chooses on,
but for imagenet_like, which has 218 labelled pictures: it chooses on every other one of them.
Not for: anything that users need; these models are not the project's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

_WITHIN_ONE_PERCENT = "accuracy: {min_fraction_of_baseline: 0.99}\n"
_WITHIN_HALF_A_POINT = "accuracy: {min_fraction_of_baseline: 0.9946}\n"


def lay_out(
    folder: Path, model: Path, arrays: tuple[Arrays, Arrays, Arrays], sla: str, dataset: str = ""
) -> None:
    """Writes one subject; `arrays` are those of calibration, validation and test."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    for name, held in zip(("calibration", "validation", "test"), arrays, strict=True):
        np.savez(folder / f"{name}.npz", allow_pickle=False, **dict(held))
    (folder / "sla.yaml").write_text(sla, encoding="utf-8")
    if dataset:
        (folder / "dataset.yaml").write_text(dataset, encoding="utf-8")


def fashion(loaders: Any, shared: Path, out: Path) -> None:  # noqa: ANN401 - a script without types
    """Three models on the same pictures: 1,000 to calibrate, 5,000 to choose on, 10,000 to judge on."""
    sets = {split: loaders.fashion(split) for split in ("calib", "val", "test")}
    calibration = {"image": sets["calib"][0]}
    validation, test = (
        {"image": sets[split][0], "labels": sets[split][1].astype(np.int64)} for split in ("val", "test")
    )
    for name in ("fashion_ds", "fashion_mnv3", "fashion_hostile2"):
        sla = _WITHIN_HALF_A_POINT if name == "fashion_hostile2" else _WITHIN_ONE_PERCENT
        model = shared / "fashion" / f"{name}_fp32.onnx"
        lay_out(out / name, model, (calibration, validation, test), sla)


def imagenet(loaders: Any, shared: Path, out: Path) -> None:  # noqa: ANN401 - a script without types
    """EfficientNet-Lite0; labels are sets of acceptable classes, padded with -1."""
    pictures, accepted, _ = loaders.imagenet_labelled()
    labels = np.full((len(accepted), max(map(len, accepted))), -1, dtype=np.int64)
    for row, ids in zip(labels, accepted, strict=True):
        row[: len(ids)] = ids
    test = {"input": pictures, "labels": labels}
    validation = {"input": pictures[::2], "labels": labels[::2]}
    calibration = {"input": loaders.imagenet_calib()}
    model = shared / "imagenet_like" / "effnet_lite0_fp32.onnx"
    lay_out(out / "effnet_lite0", model, (calibration, validation, test), _WITHIN_ONE_PERCENT)


def minilm(loaders: Any, model: Path, out: Path) -> None:  # noqa: ANN401 - a script without types
    """A transformer encoder; judged by the linear head that comes with the texts."""
    sets = {}
    for split in ("calib", "test"):
        ids, mask, labels = loaders.wordnet(split)
        sets[split] = {"input_ids": ids, "attention_mask": mask, "labels": labels.astype(np.int64)}
    calibration = {key: array for key, array in sets["calib"].items() if key != "labels"}
    sla = "agreement: {min: 0.99}\n"
    # The labels are classes of the head, which is not in the model: the choice is label-free.
    lay_out(out / "minilm", model, (calibration, calibration, sets["test"]), sla, "task: embedding\n")


def vad(loaders: Any, shared: Path, out: Path) -> None:  # noqa: ANN401 - a script without types
    """A recurrent detector of speech: one sample is a clip of 375 frames, with a score for each."""
    frames, labels = loaders.vad("test")
    clips, labels = np.stack(frames), labels.astype(np.int64)
    frames, calibration_labels = loaders.vad("calib")
    zeros = np.zeros((1, 1, 128), dtype=np.float32)
    calibration = {"input": np.stack(frames)}
    validation = {"input": np.stack(frames), "labels": calibration_labels.astype(np.int64)}
    test = {"input": clips, "labels": labels}
    dataset = (
        "task: classification\nanswer: {frames: true}\n"
        "inputs: {input: {sample_axis: null}, h: {role: state}, c: {role: state}}\n"
    )
    model = shared / "audio_vad" / "silero_vad_16k_sequence_fp32.onnx"
    lay_out(out / "audio_vad", model, (calibration, validation, test), _WITHIN_ONE_PERCENT, dataset)
    # Shallop knows from dataset.yaml that a clip begins with these zeros; the peers are fed them.
    np.savez(out / "audio_vad" / "state.npz", h=zeros, c=zeros)


def main(arguments: list[str]) -> None:
    """Lays out all subjects that can be had."""
    shared, out = Path(arguments[0]), Path(arguments[1])
    sys.path.insert(0, str(shared))
    import loaders  # type: ignore[import-not-found] # noqa: PLC0415 - lies beside the data, not here

    fashion(loaders, shared, out)
    imagenet(loaders, shared, out)
    vad(loaders, shared, out)
    if len(arguments) > 2:
        minilm(loaders, Path(arguments[2]), out)


if __name__ == "__main__":
    main(sys.argv[1:])
