"""Trains the demo's image classifier: two versions of one small residual network.

What it is for: making every binary file of this directory again from Debian's package
`dataset-fashion-mnist`, namely the two FP32 models, the calibration split and the validation
split. Version 1 is the network after a short learning-rate cycle; version 2 is the same network
after a second one, so the demo has a real improvement to roll out.

What it is not for: quantization (that is the converter's work) and records of accuracy. No image
of the test set is trained on, and none chooses a checkpoint: the last epoch's is exported.

How to run it, in an environment of its own, because Shallop itself never needs torch:

    apt-get install dataset-fashion-mnist
    pip install torch==2.13.0 numpy onnx onnxruntime
    python examples/fashion/train.py --bfloat16  # as the committed files were made

Seeds are fixed. The same torch, processor kind, options and number of threads give the same
weights; others round differently, so their weights and accuracy differ too.
"""

import argparse
import gzip
import statistics
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 20
CLASSES = 10
CHANNELS = 48
BATCH_SIZE = 128
LEARNING_RATE_MAX = 0.15
CALIBRATION_PER_CLASS = 50
VALIDATION_COUNT = 2000
LATENCY_RUNS = 1000
OPSET = 17
# The mean and deviation of the training pixels after division by 255; dataset.yaml repeats them.
MEAN = 0.2860
STD = 0.3530
MODEL_NAMES = ("fashion_v1.onnx", "fashion_v2.onnx")
# What a static quantizer is known to handle well; an export with anything else is refused.
OPERATORS = {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Residual(nn.Module):  # type: ignore[misc]  # torch is not followed, so Module is Any
    """Adds a body's output to its shortcut's and rectifies the sum."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                first=convolution(channels, channels, kernel=3, stride=stride, relu=True),
                second=convolution(channels, channels, kernel=3),
            )
        )
        self.shortcut = (
            nn.Identity() if stride == 1 else convolution(channels, channels, kernel=1, stride=stride)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns relu(body + shortcut)."""
        return functional.relu(self.body(image) + self.shortcut(image))


def convolution(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, relu: bool = False
) -> nn.Sequential:
    """Returns a padded convolution with its batch normalisation, and a ReLU where asked."""
    layers = OrderedDict(
        conv=nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        norm=nn.BatchNorm2d(outputs),
    )
    if relu:
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def network() -> nn.Sequential:
    """Returns the untrained classifier: 28x28, then 14x14, then 7x7, then one vector."""
    return nn.Sequential(
        OrderedDict(
            stem=convolution(1, CHANNELS, kernel=3, relu=True),
            block1=Residual(CHANNELS, stride=1),
            block2=Residual(CHANNELS, stride=1),
            block3=Residual(CHANNELS, stride=2),
            last=convolution(CHANNELS, CHANNELS, kernel=3, stride=2, relu=True),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(CHANNELS, CLASSES),
        )
    )


def read_idx(path: Path) -> Images:
    """Reads a gzipped IDX file of unsigned bytes.

    Raises:
        ValueError: The file is not one, or its length disagrees with its header.
    """
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes; reinstall dataset-fashion-mnist")
    dimensions = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).tolist()
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_split(dataset: Path, prefix: str) -> tuple[Images, Labels]:
    """Returns the raw images [N,1,28,28] and the labels [N] of `train` or `t10k`."""
    images = read_idx(dataset / f"{prefix}-images-idx3-ubyte.gz")[:, np.newaxis]
    labels = read_idx(dataset / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
    return images, labels


def calibration_mask(labels: Labels) -> NDArray[np.bool_]:
    """Marks the training images that are held out for calibration, equally many per class."""
    random = np.random.default_rng(SEED)
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        mask[random.choice(members, CALIBRATION_PER_CLASS, replace=False)] = True
    return mask


def normalized(images: Images) -> NDArray[np.float32]:
    """Returns model inputs made from raw pixels, exactly as dataset.yaml says it."""
    scaled = images.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(MEAN)) / np.float32(STD)


def train_cycle(
    model: nn.Sequential, images: torch.Tensor, labels: torch.Tensor, epochs: int, *, bfloat16: bool
) -> None:
    """Trains the model in place for one learning-rate cycle that ends near zero."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE_MAX, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps_per_epoch = len(labels) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE_MAX, total_steps=epochs * steps_per_epoch, pct_start=0.25
    )
    model.train()
    for epoch in range(epochs):
        started = time.monotonic()
        loss_sum = 0.0
        order = torch.randperm(len(labels))[: steps_per_epoch * BATCH_SIZE]
        for chosen in order.split(BATCH_SIZE):
            batch = mirrored(images[chosen])
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                logits = model(batch)
            loss = functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item()
        elapsed_s = time.monotonic() - started
        mean_loss = loss_sum / steps_per_epoch
        print(f"epoch {epoch + 1}/{epochs}: loss {mean_loss:.4f}, {elapsed_s:.0f} s", flush=True)


def mirrored(images: torch.Tensor) -> torch.Tensor:
    """Returns the batch with about half of its images flipped left to right."""
    flips = torch.rand(len(images), 1, 1, 1) < 0.5
    batch = torch.where(flips, images.flip(3), images)
    return batch.contiguous(memory_format=torch.channels_last)


def folded(model: nn.Sequential) -> nn.Sequential:
    """Returns a copy in which each batch normalisation is part of its convolution.

    Folding here rather than in the exporter keeps the parameters' names, so that the two versions'
    files name the same tensors alike.
    """
    copy = network()
    copy.load_state_dict(model.state_dict())
    copy.eval()
    for module in copy.modules():
        if isinstance(module, nn.Sequential) and hasattr(module, "norm"):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            del module.norm
    return copy


def export(model: nn.Sequential, path: Path) -> None:
    """Writes the model as one self-contained ONNX file.

    Raises:
        ValueError: The exporter used an operator outside `OPERATORS`.
    """
    torch.onnx.export(
        folded(model),
        (torch.zeros(1, 1, 28, 28),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        dynamo=False,
    )
    written = onnx.load(str(path))
    onnx.checker.check_model(written, full_check=True)
    if strange := {node.op_type for node in written.graph.node} - OPERATORS:
        raise ValueError(f"{path} holds operators {sorted(strange)}; pin torch==2.13.0 or fold them")


def session(path: Path) -> onnxruntime.InferenceSession:
    """Opens a model on the CPU with one thread, as a small device would run it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(path: Path, images: Images, labels: Labels) -> None:
    """Prints an exported model's accuracy, its latency for one image and its size."""
    runner = session(path)
    inputs = normalized(images)
    batches = np.array_split(inputs, len(inputs) // 100)
    guesses = np.concatenate([runner.run(None, {"image": b})[0].argmax(axis=1) for b in batches])
    hits = guesses == labels
    times_ms: list[float] = []
    for index in range(LATENCY_RUNS):
        started = time.perf_counter()
        runner.run(None, {"image": inputs[index : index + 1]})
        times_ms.append((time.perf_counter() - started) * 1000)
    quantiles = statistics.quantiles(times_ms, n=20)
    print(
        f"{path.name}: accuracy {hits.mean():.4f} on {len(labels)}, "
        f"{hits[:VALIDATION_COUNT].mean():.4f} on the validation split; "
        f"p50 {quantiles[9]:.2f} ms, p95 {quantiles[18]:.2f} ms; {path.stat().st_size} bytes"
    )


def write_splits(output: Path, calibration: Images, test: tuple[Images, Labels]) -> None:
    """Writes calibration.npz and validation.npz with raw pixels."""
    images, labels = test
    np.savez_compressed(output / "calibration.npz", image=calibration)
    np.savez_compressed(
        output / "validation.npz",
        image=images[:VALIDATION_COUNT],
        labels=labels[:VALIDATION_COUNT],
    )


def train(arguments: argparse.Namespace, test: tuple[Images, Labels]) -> None:
    """Trains both cycles and writes all four binary files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    images, labels = read_split(arguments.dataset, "train")
    held_out = calibration_mask(labels)
    write_splits(arguments.output, images[held_out], test)
    inputs = torch.from_numpy(normalized(images[~held_out]))
    targets = torch.from_numpy(labels[~held_out])
    model = network().to(memory_format=torch.channels_last)
    for name, epochs in zip(MODEL_NAMES, arguments.epochs, strict=True):
        train_cycle(model, inputs, targets, epochs, bfloat16=arguments.bfloat16)
        export(model, arguments.output / name)
        measure(arguments.output / name, *test)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train the demo's Fashion-MNIST classifier.")
    parser.add_argument(
        "--epochs",
        type=int,
        nargs=2,
        default=[3, 4],
        metavar=("V1", "V2"),
        help="epochs of the first cycle, and of the second that starts from it (default: 3 4)",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="the directory of the four IDX files (default: where Debian's package puts them)",
    )
    parser.add_argument("--output", type=Path, default=here, help="where to write (default: here)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default: 2)")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="train with bfloat16 arithmetic; twice as fast where the processor has AVX512_BF16",
    )
    parser.add_argument("--measure", action="store_true", help="only measure the models that --output holds")
    return parser.parse_args()


def main() -> None:
    """Trains, or only measures."""
    arguments = parse_arguments()
    test = read_split(arguments.dataset, "t10k")
    if not arguments.measure:
        arguments.output.mkdir(parents=True, exist_ok=True)
        train(arguments, test)
        return
    for name in MODEL_NAMES:
        measure(arguments.output / name, *test)


if __name__ == "__main__":
    main()
