"""Certificates of any dates and names, made by the `openssl` command for the tests of TLS.

For: an authority of the test's own, and what it signs. Not for: anything but tests; keys lie about in clear.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_CONFIG = """[ca]
default_ca=a
[a]
new_certs_dir={folder}
database={folder}/index.txt
rand_serial=yes
default_md=sha256
policy=p
copy_extensions=copy
unique_subject=no
[p]
commonName=supplied
[req]
distinguished_name=d
[d]
"""
_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
ALWAYS = ("20000101000000Z", "20990101000000Z")


class Authority:
    """One that signs."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed: apt-get install openssl")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.pem = folder, folder / "ca.pem"
        (folder / "ca.cnf").write_text(_CONFIG.format(folder=folder))
        (folder / "index.txt").touch()
        self._key = folder / "ca.key"
        self._run("req", "-x509", *_NEW, "-keyout", str(self._key), "-out", str(self.pem), "-days", "3650",
                  "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE")  # fmt: skip

    def _run(self, *arguments: str) -> None:
        config = ("-config", str(self.folder / "ca.cnf"))
        command = ["openssl", arguments[0], *config, *arguments[1:]]
        said = subprocess.run(command, capture_output=True, check=False, timeout=30, cwd=self.folder)
        assert said.returncode == 0, said.stderr.decode()

    def sign(
        self, name: str, dates: tuple[str, str] = ALWAYS, subject: str = "DNS:localhost"
    ) -> tuple[Path, Path]:
        """A certificate and its key, both for `subject`."""
        key, request, pem = (self.folder / f"{name}{suffix}" for suffix in (".key", ".csr", ".pem"))
        self._run("req", *_NEW, "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}",
                  "-addext", f"subjectAltName={subject}")  # fmt: skip
        signed = ("-in", str(request), "-out", str(pem), "-startdate", dates[0], "-enddate", dates[1])
        self._run("ca", "-batch", "-notext", "-cert", str(self.pem), "-keyfile", str(self._key), *signed)
        return pem, key
