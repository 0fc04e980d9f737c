"""A fleet's keys: made, rotated, revoked, kept; each root checked as a device checks it."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent import believing
from agent.adapters.ed25519 import verify
from fleet.adapters import key_files, keychain
from fleet.cli import main
from fleet.keys import KeysError, rotated
from wire.errors import ShallopError
from wire.roots import first_order, keyid
from wire.trust import Role

SECRET = {"SHALLOP_PASSPHRASE": "correct horse"}


class Keys:
    """`shallop-fleet keys` on one pair of directories."""

    def __init__(self, root: Path) -> None:
        self.folder, self.offline = root / "keys", root / "offline"

    def run(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        where = ["--keys", str(self.folder)]
        if arguments[0] != "show":
            where += ["--root-keys", str(self.offline)]
        result = CliRunner().invoke(main, ["keys", *arguments, *where], env=env)
        assert result.exit_code == code, result.output
        return result

    def roots(self) -> list[str]:
        """The options that bring every root key that lies offline."""
        return [word for path in sorted(self.offline.glob("*.pem")) for word in ("--with", str(path))]

    @property
    def chain(self) -> keychain.Chain:
        return keychain.load_chain(self.folder)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path)
    made.run("init")
    return made


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ShallopError) as caught:
        act()
    return caught.value.code


def test_a_device_believes_what_init_made(keys: Keys) -> None:
    chain = keys.chain
    state = believing.pinned(chain.envelopes[0], chain.first_sha256, verify)
    assert state.root == chain.root
    online = keychain.load_online(keys.folder)
    message = b"order"
    assert verify(online.order[0].public, message, online.order[0].sign(message))


def test_the_root_key_does_not_lie_with_the_others(keys: Keys) -> None:
    assert {path.name.split("-")[0] for path in keys.folder.glob("*.pem")} == {"order", "release"}
    assert [path.name.split("-")[0] for path in keys.offline.glob("*.pem")] == ["root"]


def test_private_keys_are_their_owners_alone(keys: Keys) -> None:
    for path in [*keys.folder.glob("*.pem"), *keys.offline.glob("*.pem")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700


def test_init_says_to_take_the_root_key_offline(tmp_path: Path) -> None:
    assert "offline" in Keys(tmp_path).run("init").output


def test_init_replaces_nothing(keys: Keys) -> None:
    before = {path: path.read_bytes() for path in keys.folder.iterdir()}
    assert "keys_exist" in keys.run("init", code=2).output
    assert {path: path.read_bytes() for path in keys.folder.iterdir()} == before


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    assert "would write" in made.run("init", "--dry-run").output
    assert not made.folder.exists()
    made.run("init")
    before = sorted(made.folder.iterdir())
    said = made.run("rotate", "order", "--dry-run").output
    assert "needs 1 of the root keys of root 1" in said
    assert "new epoch" in said
    assert sorted(made.folder.iterdir()) == before


@pytest.mark.parametrize("role", ["order", "release", "root"])
def test_a_device_follows_every_rotation(keys: Keys, role: str) -> None:
    first = keys.chain
    keys.run("rotate", role, *keys.roots())
    chain = keys.chain
    state = believing.pinned(first.envelopes[0], first.first_sha256, verify)
    state = believing.rotated(state, chain.envelopes[1], verify)
    assert state.root.number == 2
    old, new = (set(c.root.of(Role(role)).keyids) for c in (first, chain))
    assert old.isdisjoint(new)
    assert state.root.epoch == (1 if role == "order" else 0)
    keychain.load_online(keys.folder)


def test_a_new_epochs_orders_are_above_the_old_ones(keys: Keys) -> None:
    keys.run("rotate", "order", *keys.roots())
    assert first_order(keys.chain.root.epoch) > 2**40 - 1


def test_a_rotation_without_the_root_key_is_refused(keys: Keys) -> None:
    said = keys.run("rotate", "order", code=2).output
    assert "root_keys_missing" in said
    assert keys.chain.root.number == 1
    order = next(keys.folder.glob("order-*.pem"))
    assert "root_keys_missing" in keys.run("rotate", "release", "--with", str(order), code=2).output
    assert len(list(keys.folder.glob("release-*.pem"))) == 1, "no new key lies about"


def test_two_of_three_root_keys_sign(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    made.run("init", "--root-count", "3", "--root-threshold", "2")
    three = made.roots()
    assert "root_keys_missing" in made.run("rotate", "order", *three[:2], code=2).output
    made.run("rotate", "order", *three[2:])
    assert made.chain.root.number == 2


def test_one_root_key_of_three_is_revoked_by_the_others(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    made.run("init", "--root-count", "3", "--root-threshold", "2")
    lost = made.chain.root.root.keyids[0]
    others = [w for w in made.roots() if not w.startswith("--")]
    signing = [w for path in others if lost[:12] not in path for w in ("--with", path)]
    made.run("revoke", lost[:8], *signing)
    left = made.chain.root.root.keyids
    assert lost not in left
    assert len(left) == 3


def test_revoking_wants_to_know_which(keys: Keys) -> None:
    for word in ("", "zz", "0" * 64):
        assert "unknown_key" in keys.run("revoke", word, *keys.roots(), code=2).output


def test_a_threshold_above_the_keys_is_refused(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    assert "root_incoherent" in made.run("init", "--root-threshold", "2", code=2).output
    assert not made.folder.exists()


# --- passphrases


def test_encrypted_keys_need_their_passphrase(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    made.run("init", "--encrypt", env=SECRET)
    path = next(made.offline.glob("*.pem"))
    assert b"ENCRYPTED" in path.read_bytes()
    assert code_of(lambda: keychain.load_online(made.folder)) == "passphrase_needed"
    assert code_of(lambda: keychain.load_online(made.folder, "wrong")) == "passphrase_wrong"
    assert keychain.load_online(made.folder, SECRET["SHALLOP_PASSPHRASE"]).order
    made.run("rotate", "order", "--encrypt", *made.roots(), env=SECRET)
    assert "passphrase_needed" in made.run("rotate", "order", *made.roots(), code=2).output


def test_openssl_reads_the_files(keys: Keys) -> None:
    path = next(keys.folder.glob("order-*.pem"))
    said = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-pubout", "-outform", "DER"], capture_output=True, check=True
    )
    assert keyid(said.stdout[-32:]) == keychain.load_online(keys.folder).order[0].keyid


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    assert code_of(lambda: key_files.load(path)) == "key_unreadable"
    assert code_of(lambda: key_files.load(tmp_path / "missing.pem")) == "key_unreadable"


def test_another_kind_of_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "X25519", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    assert code_of(lambda: key_files.load(path)) == "wrong_key_kind"


# --- the chain


def test_a_broken_chain_is_not_used(keys: Keys) -> None:
    keys.run("rotate", "release", *keys.roots())
    path = keys.folder / "root-2.json"
    path.write_bytes(path.read_bytes().replace(b'"payload":"', b'"payload":"AA', 1))
    assert code_of(lambda: keys.chain) == "chain_broken"
    assert code_of(lambda: keychain.load_chain(keys.folder / "none")) == "no_keys"


def test_a_folder_without_the_order_key_signs_nothing(keys: Keys) -> None:
    next(keys.folder.glob("order-*.pem")).unlink()
    assert code_of(lambda: keychain.load_online(keys.folder)) == "no_order_key"


def test_show_says_what_lies_here(keys: Keys) -> None:
    shown = json.loads(keys.run("show", "--json").output)
    assert shown["root"] == 1
    assert shown["root_sha256"] == keys.chain.last_sha256
    assert {key["role"]: key["here"] for key in shown["keys"]} == {
        "root": False, "release": True, "order": True,
    }  # fmt: skip
    assert "private key elsewhere" in keys.run("show").output


# --- the decisions


def test_a_key_of_another_role_is_not_retired(keys: Keys) -> None:
    root = keys.chain.root
    with pytest.raises(KeysError) as caught:
        rotated(root, Role.ORDER, root.release.keyids, [], "")
    assert caught.value.code == "unknown_key"


def test_no_role_is_left_without_its_threshold(keys: Keys) -> None:
    root = keys.chain.root
    with pytest.raises(KeysError) as caught:
        rotated(root, Role.ORDER, root.order.keyids, [], "")
    assert caught.value.code == "too_few_keys"


def test_adding_an_order_key_opens_no_epoch(keys: Keys) -> None:
    after = rotated(keys.chain.root, Role.ORDER, (), [key_files.generate().public], "")
    assert (after.number, after.epoch, len(after.order.keyids)) == (2, 0, 2)
