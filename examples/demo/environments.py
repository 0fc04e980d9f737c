"""A small environment of its own for an agent: the agent's libraries and one runtime, nothing else.

For: a device that has only ONNX Runtime, or only LiteRT. Its interpreter can neither import the other runtime
nor find it by name, so what the agent says of itself is so.
Not for: production, where `pip install 'shallop[onnx]'` or `'shallop[tflite]'` makes such an environment.

Nothing is downloaded: `python -m venv` without pip, and links to what lies in the environment that runs the
demo.
"""

from __future__ import annotations

import re
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def environment(folder: Path, runtime: str) -> Path:
    """Makes an environment with that runtime and gives its interpreter.

    Args:
        folder: to make; it must not exist.
        runtime: name of a distribution, such as `onnxruntime`.

    Raises:
        PackageNotFoundError: the runtime is not installed here.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (place,) = folder.glob("lib/python3*/site-packages")
    # The base dependencies are the agent's, its worker needs numpy beside the runtime.
    for found in _with_what_they_need((*_required("shallop"), "numpy", runtime)):
        _link(found, place)
    return folder / "bin" / "python"


def _required(name: str) -> list[str]:
    """What a distribution requires without any extra, by the metadata that pyproject.toml became."""
    lines = distribution(name).requires or ()
    return [match[0] for line in lines if "extra ==" not in line and (match := _NAME.match(line))]


def _with_what_they_need(names: tuple[str, ...]) -> list[Distribution]:
    """These distributions and all that they require; extras, and what is not installed here, are left out."""
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue
        waiting += _required(name)
    return list(found.values())


def _link(found: Distribution, place: Path) -> None:
    """Links every file or folder that the distribution put into site-packages."""
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        source, link = Path(str(found.locate_file(top))), place / top
        if not link.exists():
            link.symlink_to(source)
