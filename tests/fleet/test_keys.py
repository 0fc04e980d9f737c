"""A fleet's keys: made, rotated, revoked, kept; each root checked as a device checks it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent import believing
from agent.adapters.ed25519 import verify
from fleet.adapters import key_files, keychain
from fleet.cli import main
from fleet.keys import KeysError, rotated
from tests.conftest import ROOT
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


def test_a_key_that_follows_an_encrypted_one_is_encrypted_too(tmp_path: Path) -> None:
    """Nobody has to remember --encrypt: after a rotation the order key would lie there for all to use."""
    made = Keys(tmp_path)
    made.run("init", "--encrypt", env=SECRET)
    for role in ("order", "release", "root"):
        made.run("rotate", role, *made.roots(), env=SECRET)
        (root,) = made.chain.root.of(Role(role)).keyids
        where = made.offline if role == "root" else made.folder
        assert key_files.is_encrypted(where / keychain.file_name(Role(role), root)), role
    made.run("revoke", made.chain.root.order.keyids[0], *made.roots(), env=SECRET)
    keychain.load_online(made.folder, SECRET["SHALLOP_PASSPHRASE"])
    assert code_of(lambda: keychain.load_online(made.folder)) == "passphrase_needed"


def test_a_root_key_may_have_a_passphrase_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for where somebody is there, also while the registry's stands in the environment."""
    made = Keys(tmp_path)
    made.run("init", "--encrypt", env=SECRET)
    (path,) = made.offline.glob("*.pem")
    root = key_files.load(path, SECRET["SHALLOP_PASSPHRASE"])
    path.unlink()
    key_files.write_new(path, root.pem("battery staple"))
    words = ["keys", "rotate", "order", "--keys", str(made.folder), "--with", str(path)]
    alone = CliRunner().invoke(main, words, env=SECRET)
    assert (alone.exit_code, "[passphrase_wrong]" in alone.output) == (2, True)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    done = CliRunner().invoke(main, words, env=SECRET, input="battery staple\n")
    assert done.exit_code == 0, done.output
    assert made.chain.root.number == 2
    keychain.load_online(made.folder, SECRET["SHALLOP_PASSPHRASE"])


def test_a_dry_run_speaks_json_too(keys: Keys) -> None:
    said = json.loads(keys.run("rotate", "order", "--dry-run", "--json").output)
    assert any("new epoch" in line for line in said["plan"])


def test_a_missing_passphrase_is_told_by_the_way_to_give_it(tmp_path: Path) -> None:
    made = Keys(tmp_path)
    made.run("init", "--encrypt", env=SECRET)
    said = made.run("rotate", "order", *made.roots(), code=2).output
    assert "SHALLOP_PASSPHRASE" in said
    assert "--passphrase" not in said


@pytest.mark.parametrize("which", ["--keys", "--root-keys"])
def test_a_directory_that_cannot_be_made_is_named_before_any_key_lies_anywhere(
    tmp_path: Path, which: str
) -> None:
    (tmp_path / "file").touch()
    usual = {"--keys": tmp_path / "keys", "--root-keys": tmp_path / "offline"}
    places = {**usual, which: tmp_path / "file" / "x"}
    words = [str(word) for pair in places.items() for word in pair]
    result = CliRunner().invoke(main, ["keys", "init", *words])
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    assert "[key_unwritable]" in result.output
    assert not list(tmp_path.rglob("*.pem"))


def test_a_disk_that_is_full_leaves_no_half_of_a_root(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a root-2.json would end the registry's next start, and stand in the way of the whole one."""
    real, left = os.fsync, [1]

    def full(fd: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        real(fd)

    before = keys.chain
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for room in range(4):
            left[0] = room
            assert "[key_unwritable]" in keys.run("rotate", "order", *keys.roots(), code=2).output
            if (keys.folder / "root-2.json").exists():
                break  # whole already; only its name was not made to last
            assert keys.chain == before
    assert not list(keys.folder.glob(".*"))
    if keys.chain == before:
        keys.run("rotate", "order", *keys.roots())
    assert keys.chain.root.number == 2


def test_a_root_key_lasts_before_the_root_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut between the two must not leave a fleet whose root key is gone."""
    synced: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note)
        Keys(tmp_path).run("init")
    root = next(at for at, name in enumerate(synced) if name.startswith(".root-1.json"))
    assert "offline" in synced[:root]
    assert "keys" in synced[:root]
    assert synced[-1] == "keys"


def test_a_medium_that_knows_no_second_names_holds_keys_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FAT of a USB stick, where `link` is not permitted."""

    def never(*_: object, **_named: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", never)
    made = Keys(tmp_path)
    made.run("init")
    assert made.chain.root.number == 1
    with pytest.raises(KeysError, match="is not replaced") as caught:
        key_files.write_new(made.folder / "root-1.json", b"other")
    assert caught.value.code == "key_exists"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody who may not look: sudo make test")
def test_a_directory_of_somebody_else_is_named(keys: Keys, tmp_path: Path) -> None:
    os.chown(keys.folder, 65534, 65534)
    words = ["serve", "--keys", str(keys.folder), "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps=-all"]
    command = [*drop, sys.executable, "-m", "fleet.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "[keys_unreadable]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_everybody_may_read_is_told(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    (order,) = keys.folder.glob("order-*.pem")
    keychain.load_online(keys.folder)
    assert not caplog.records
    order.chmod(0o644)
    keychain.load_online(keys.folder)
    assert f"everybody on this machine may read the key {order}" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of another user: sudo make test")
def test_what_root_makes_is_the_registrys(tmp_path: Path) -> None:
    """`sudo shallop-fleet keys init` on a machine where the registry's user owns its directory."""
    home = tmp_path / "shallop-fleet"
    home.mkdir()
    os.chown(home, 65534, 65534)
    made = Keys(home)
    made.run("init")
    made.run("rotate", "order", *made.roots())
    found = [made.folder, *made.folder.iterdir()]
    assert len(found) == 6
    assert {(path.stat().st_uid, path.stat().st_gid) for path in found} == {(65534, 65534)}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away: sudo make test")
@pytest.mark.parametrize("command", ["keys", "broker"])
def test_root_gives_nothing_away_but_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whoever took the registry's user over puts a link in the place of a directory that root just made."""
    home, victim = tmp_path / "shallop-fleet", tmp_path / "etc"
    home.mkdir()
    victim.mkdir(mode=0o711)
    os.chown(home, 65534, 65534)
    real = os.mkdir

    def watched(path: str | Path, mode: int = 0o777, **named: int) -> None:
        real(path, mode, **named)
        if Path(path).parent == home:
            Path(path).rmdir()
            Path(path).symlink_to(victim)

    options = (
        ["--host", "x", "--out", str(home / "out")]
        if command == "broker"
        else ["--root-keys", str(home / "r")]
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", watched)
        done = CliRunner().invoke(main, [command, "init", "--keys", str(home / "keys"), *options])
    assert (done.exit_code, "[key_unwritable]" in done.output) == (2, True), done.output
    assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o711)
    assert list(victim.iterdir()) == []
