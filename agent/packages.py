"""Which version of a Python distribution is installed beside this program, and imports that can wait.

For: keeping the daemon small on the device. `importlib.metadata` answers the first question too, and brings
the whole `email` package, `zipfile` and `csv` with it: 0.8 MiB that stay for as long as the daemon runs; the
names of the folders that installers leave say as much. And libraries import more than this program uses of
them: what is put off is imported when somebody looks into it, in most daemons never.
Not for: other environments' packages; `agent.adapters.trial_process` asks their interpreter.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

_FOLDER = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(?:-py.+)?\.(?:dist|egg)-info")
"""The binary distribution format (PEP 427) and, of Debian's older packages, setuptools' own."""
_STEPPING_ASIDE = threading.Lock()
"""Two lanes may look into a module at once, and it makes way once. Nothing is imported under this."""


def installed_version(name: str, path: Iterable[str] | None = None) -> str | None:
    """Version of an installed distribution by the folder of its metadata; None where there is none.

    Args:
        name: as on PyPI.
        path: folders to look in; those that modules are imported from, the first that has it.
    """
    wanted = _normal(name)
    for folder in sys.path if path is None else path:
        place = Path(folder)
        found = place.glob("*-info") if place.is_dir() else ()
        matches = filter(None, (_FOLDER.fullmatch(entry.name) for entry in sorted(found)))
        version = next((match["version"] for match in matches if _normal(match["name"]) == wanted), None)
        if version is not None:
            return version
    return None


def _normal(name: str) -> str:
    """Names that differ in capitals and separators are one (PEP 503); a folder's name holds no hyphen."""
    return re.sub(r"[-_.]+", "_", name).lower()


def put_off(*names: str, unraised: Iterable[str] = ()) -> None:
    """Makes modules be imported when they are first looked into, for whoever imports them from now on.

    Nothing changes for one that is imported already. The standard library's `importlib.util.LazyLoader` will
    not do: in Python 3.11 a mere `import` statement looks into a module that waits.

    Args:
        names: modules that are there; the package that one is in is imported now.
        unraised: their exceptions that somebody catches: `except ssl.SSLWantReadError` looks into `ssl`
            whenever a plain socket has nothing to read. Nobody can raise one while its module waits, so
            until then they stand for no exceptions at all, and wake nothing.
    """
    quiet = frozenset(unraised)
    for name in names:
        if name in sys.modules:
            continue
        package, _, last = name.rpartition(".")
        sys.modules[name] = module = _waiting(name, quiet)
        if package:
            setattr(importlib.import_module(package), last, module)


def _waiting(name: str, unraised: frozenset[str]) -> ModuleType:
    """A module that is empty until somebody wants something of it; then it is as if it were the real one."""
    module = ModuleType(name)

    def come(attribute: str) -> object:
        if attribute.startswith("__"):  # the import system's questions, such as `__path__`
            raise AttributeError(attribute)
        if attribute in unraised:
            return ()  # an except clause with no exceptions in it
        with _STEPPING_ASIDE:
            if sys.modules.get(name) is module:
                del sys.modules[name]
        real = importlib.import_module(name)
        vars(module).update(vars(real))
        return getattr(real, attribute)

    vars(module)["__getattr__"] = come
    return module
