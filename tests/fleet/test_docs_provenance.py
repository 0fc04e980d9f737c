"""docs/provenance.md says what is so: its rows, fields, options and routes exist, and none is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fleet.api.provenance import routes
from fleet.cli import main
from fleet.verification import Asked
from tests.fleet.test_verify_origin import retaining
from tests.fleet.twins import Harness
from tests.fleet.verifying import Release, rows_of
from wire.bundle import Provenance

TEXT = (Path(__file__).parents[2] / "docs" / "provenance.md").read_text(encoding="utf-8")


def test_every_field_of_the_record_is_explained() -> None:
    for field in Provenance.__struct_fields__:
        assert f"`{field}`" in TEXT


def test_every_row_is_explained(tmp_path: Path) -> None:
    release = Release(tmp_path)
    asked = Asked(subject="s", retained=retaining(release).retained)
    table = TEXT.split("| row | holds where |")[1].split("\n\n")[0]
    told = {
        name.split(" ")[0]
        for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", cell)
    }
    assert told == {name.split(" ")[0] for name in rows_of(release, asked)}


def test_every_option_that_the_page_names_exists_and_the_other_way_round() -> None:
    commands = [main.commands[name] for name in ("verify", "export-signature", "publish", "keys", "releases")]
    known = {name for one in commands for parameter in one.params for name in parameter.opts}
    known |= {"--json", "--public_key", "--signature", "--quick"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9-]*", TEXT))
    assert named - known == set()
    own = {
        name for parameter in main.commands["verify"].params for name in parameter.opts if name[:2] == "--"
    }
    assert own - named <= {"--server", "--token-file"}


def test_every_route_is_named() -> None:
    for _, path, _ in routes(Harness().archive):
        assert re.sub(r"\{\w+\}.*", "", path) in TEXT
        assert path.rsplit("/", 1)[-1].strip("{}").upper().replace("DIGEST", "SHA256") in TEXT.upper()


@pytest.mark.parametrize("word", ["ok", "failed", "not recorded", "not checked"])
def test_every_outcome_is_named(word: str) -> None:
    assert f"`{word}`" in TEXT
