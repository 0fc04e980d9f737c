"""Keys and certificates that change under a registry: real files and databases, one look after another."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.adapters import key_files, keychain
from fleet.adapters.following import Following, Followings, stamps
from fleet.adapters.key_files import PASSPHRASE
from fleet.adapters.signing_desk import SigningDesk, first_desk, key_files_in
from fleet.conductor import Conductor
from fleet.config import Config
from fleet.inventory import Device
from fleet.keys import KeysError
from fleet.people import RolloutAsk
from fleet.ports import StoreError
from tests.fleet.bundles import write_bundle
from tests.fleet.twins import TOPICS, Harness, Killed
from wire import topics as wt
from wire.codec import encode
from wire.trust import Role, open_envelope, seal

ROLES = [Role.ORDER, Role.RELEASE, Role.ROOT]


class Signing:
    """A registry on twins that signs with the keys in a directory, and follows it."""

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        self.folder, self.offline, self.passphrase = folder / "keys", folder / "offline", passphrase
        keychain.carry_out(keychain.begin({}, 1, ""), self.folder, self.offline, (), passphrase)
        begun = stamps(key_files_in(self.folder))
        self.harness = Harness(desk=first_desk(Config(keys=str(self.folder))))
        harness = self.harness
        self.holder = SigningDesk(self.folder, harness.current, harness.store, harness.files, harness.clock)
        self.holder.sign_anew(harness.desk)
        self.following = Following(self.holder, begun)

    def rotate(self, role: Role, folder: Path | None = None, passphrase: str | None = None) -> None:
        """As `keys rotate`, into another directory where one is given."""
        keys = folder or self.folder
        chain = keychain.load_chain(keys)
        change = keychain.retire(chain.root, role, chain.root.of(role).keyids, "")
        signers = [key_files.load(path, self.passphrase) for path in self.offline.glob("*.pem")]
        named = set(chain.root.root.keyids)
        signing = [key for key in signers if key.keyid in named]
        keychain.carry_out(change, keys, self.offline, signing, passphrase or self.passphrase)

    def look(self) -> None:
        """What the conductor does, until whatever changed was seen."""
        self.following.look()
        self.following.look()

    @property
    def number(self) -> int:
        root = self.harness.desk.root
        assert root is not None
        return root.number

    def retained(self) -> dict[str, bytes]:
        """What lies ready for the broker."""
        with self.harness.store.begin() as tx:
            rows = tx.pending(100_000)
        return {row.post.topic: row.post.payload for row in rows if row.post.retain and row.post.payload}

    def signed_by_now(self) -> int:
        """Opens everything that is retained and signed by the keys that count; how much it was."""
        kinds = {wt.DESIRED: "desired", wt.RELEASE: "release"}
        found = 0
        for topic, payload in self.retained().items():
            parsed = TOPICS.parse(topic)
            assert parsed is not None
            if parsed[0] in kinds:
                open_envelope(payload, kinds[parsed[0]], self.harness.desk.policy, 2**20)
                found += 1
        return found


@pytest.fixture
def signing(tmp_path: Path) -> Iterator[Signing]:
    made = Signing(tmp_path)
    yield made
    made.harness.store.close()


def know(signing: Signing, *devices: str) -> None:
    with signing.harness.store.begin() as tx:
        for device in devices:
            tx.save_device(Device(id=device))
    for device in devices:
        signing.harness.people.group(device, ("north",))


@pytest.mark.parametrize("role", ROLES)
def test_whatever_role_is_rotated_everything_is_signed_by_the_keys_that_count(
    signing: Signing, tmp_path: Path, role: Role
) -> None:
    know(signing, "roof-1")
    write_bundle(tmp_path / "b", "v1", size_bytes=2000)
    signing.harness.publish(tmp_path / "b")
    before = signing.harness.desk
    signing.rotate(role)
    assert signing.number == 1
    signing.look()
    assert (signing.number, signing.following.trouble) == (2, None)
    assert signing.signed_by_now() == 2
    root = TOPICS.topic(wt.ROOT, number="2")
    assert signing.retained()[root] == (signing.folder / "root-2.json").read_bytes()
    after = signing.harness.desk
    changed = [after.signers != before.signers, after.release_signers != before.release_signers]
    names = [[key.keyid for key in desk.signers] for desk in (before, after)]
    assert (names[0] != names[1]) == (role is Role.ORDER), changed


def test_two_rotations_between_two_looks_are_one_change(signing: Signing) -> None:
    know(signing, "roof-1")
    signing.rotate(Role.ORDER)
    signing.rotate(Role.ROOT)
    signing.look()
    assert signing.number == 3
    assert signing.signed_by_now() == 1


def test_a_key_that_comes_later_signs_though_the_root_is_the_same(signing: Signing, tmp_path: Path) -> None:
    """The release key was elsewhere, and is brought here."""
    (path,) = signing.folder.glob("release-*.pem")
    away = Path(shutil.move(path, tmp_path / path.name))
    signing.look()
    assert signing.harness.desk.release_signers == ()
    shutil.copy(away, path)
    signing.look()
    assert len(signing.harness.desk.release_signers) == 1


# --- what is refused ----------------------------------------------------------------------------------


def forged(signing: Signing) -> None:
    chain = keychain.load_chain(signing.folder)
    after = keychain.retire(chain.root, Role.ORDER, chain.root.order.keyids, "").after
    (signing.folder / "root-2.json").write_bytes(seal("root", encode(after), [key_files.generate()]))


def torn(signing: Signing) -> None:
    signing.rotate(Role.ORDER)
    path = signing.folder / "root-2.json"
    path.write_bytes(path.read_bytes()[:-40])


def without_its_key(signing: Signing) -> None:
    old = set(signing.folder.glob("order-*.pem"))
    signing.rotate(Role.ORDER)
    for path in set(signing.folder.glob("order-*.pem")) - old:
        path.unlink()


def a_torn_key(signing: Signing) -> None:
    old = set(signing.folder.glob("order-*.pem"))
    signing.rotate(Role.ORDER)
    for path in set(signing.folder.glob("order-*.pem")) - old:
        path.write_bytes(path.read_bytes()[:60])


def another_fleets(signing: Signing) -> None:
    shutil.rmtree(signing.folder)
    keychain.carry_out(keychain.begin({}, 1, ""), signing.folder, signing.folder.parent / "usb", (), None)


def another_fleets_longer(signing: Signing) -> None:
    another_fleets(signing)
    for path in signing.offline.glob("*.pem"):
        path.unlink()
    for path in (signing.folder.parent / "usb").glob("*.pem"):
        shutil.copy(path, signing.offline / path.name)
    signing.rotate(Role.ORDER)


def gone(signing: Signing) -> None:
    shutil.rmtree(signing.folder)


def another_passphrase(signing: Signing) -> None:
    signing.rotate(Role.ORDER, passphrase="wrong horse")


REFUSED: dict[str, tuple[Callable[[Signing], None], str]] = {
    "signed by somebody else": (forged, "root-2.json cannot be used"),
    "torn": (torn, "chain_broken"),
    "without its key": (without_its_key, "no_order_key"),
    "with a torn key": (a_torn_key, "key_unreadable"),
    "another fleet's": (another_fleets, "another_fleet"),
    "another fleet's, and longer": (another_fleets_longer, "another_fleet"),
    "gone": (gone, "no_keys"),
    "encrypted by what nobody said": (another_passphrase, "passphrase_needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named_and_nothing_changes(
    signing: Signing, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    know(signing, "roof-1")
    kept = shutil.copytree(signing.folder, signing.folder.parent / "kept")
    before, posts = signing.harness.desk, signing.retained()
    spoil, said = REFUSED[name]
    spoil(signing)
    signing.look()
    assert said in str(signing.following.trouble)
    assert said in caplog.text
    assert signing.harness.desk is before
    assert signing.retained() == posts
    know(signing, "roof-2")
    assert signing.signed_by_now() == 2, "it goes on with what it has"
    shutil.rmtree(signing.folder, ignore_errors=True)
    shutil.copytree(kept, signing.folder)
    signing.look()
    assert signing.following.trouble is None
    assert signing.number == 1


def test_one_refusal_is_one_line_of_the_log(signing: Signing, caplog: pytest.LogCaptureFixture) -> None:
    torn(signing)
    for _ in range(5):
        signing.following.ask()
        signing.look()
    assert caplog.text.count("not taken up") == 1


def test_a_key_is_opened_by_the_passphrase_that_the_registry_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    signing = Signing(tmp_path, "correct horse")
    signing.rotate(Role.ORDER)
    signing.look()
    assert signing.number == 2
    signing.rotate(Role.ORDER, passphrase="wrong horse")
    signing.look()
    assert "passphrase_wrong" in str(signing.following.trouble)
    assert signing.number == 2
    signing.harness.store.close()


def test_a_disk_that_takes_no_ready_rollback_leaves_the_root_before(
    signing: Signing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "b", "v1", size_bytes=2000)
    signing.harness.publish(tmp_path / "b")
    signing.harness.people.start(RolloutAsk(model="camera", release="v1"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    signing.rotate(Role.ORDER)
    monkeypatch.setattr(signing.harness.files, "write", full)
    signing.look()
    assert "no space" in str(signing.following.trouble)
    assert signing.number == 1
    monkeypatch.undo()
    signing.following.ask()
    signing.look()
    assert (signing.number, signing.following.trouble) == (2, None)
    assert signing.signed_by_now() == 1


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
def test_a_database_that_fails_is_asked_again_at_the_next_look(signing: Signing, when: str) -> None:
    """Whether it kept what it was told or not."""
    know(signing, "roof-1")
    signing.rotate(Role.ORDER)
    signing.following.look()

    def fails() -> None:
        raise StoreError("database_unusable", "gone")

    setattr(signing.harness.store, when, fails)
    with pytest.raises(StoreError):
        signing.following.look()
    setattr(signing.harness.store, when, lambda: None)
    know(signing, "roof-2")
    signing.following.look()
    assert signing.number == 2
    assert signing.signed_by_now() == 2
    with signing.harness.store.begin() as tx:
        assert tx.mark().signed_root == 2


@pytest.mark.parametrize("when", ["before_commit", "after_commit"])
def test_a_registry_that_is_killed_while_it_takes_a_root_up_has_it_when_it_starts(
    signing: Signing, when: str
) -> None:
    know(signing, "roof-1")
    signing.rotate(Role.ORDER)
    signing.following.look()

    def killed() -> None:
        raise Killed

    setattr(signing.harness.store, when, killed)
    with pytest.raises(Killed):
        signing.following.look()
    setattr(signing.harness.store, when, lambda: None)
    desk = first_desk(Config(keys=str(signing.folder)))
    signing.harness.current.succeed(desk)
    signing.holder.sign_anew(desk)
    assert signing.number == 2
    assert signing.signed_by_now() == 1
    signing.look()
    assert signing.following.trouble is None


def test_a_database_that_cannot_be_opened_changes_nothing(
    signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing.rotate(Role.ORDER)
    signing.following.look()

    def fails() -> None:
        raise StoreError("database_unusable", "gone")

    with monkeypatch.context() as patched:
        patched.setattr(signing.harness.store, "begin", fails)
        with pytest.raises(StoreError):
            signing.following.look()
    assert signing.number == 1
    signing.following.look()
    assert signing.number == 2


# --- others work meanwhile ----------------------------------------------------------------------------


def test_nothing_that_others_sign_meanwhile_is_by_the_old_key(signing: Signing) -> None:
    """Threads write desired documents while keys change; what lies ready is all by the new ones."""
    devices = [f"roof-{i}" for i in range(6)]
    know(signing, *devices)
    people, stop, failed = signing.harness.people, threading.Event(), list[BaseException]()
    count = [0] * 3

    def work(at: int) -> None:
        try:
            while not stop.is_set():
                for device in devices[at::3]:
                    people.group(device, (f"g{count[at]}",))
                    count[at] += 1
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        before = sum(count)
        signing.rotate(Role.ORDER)
        signing.look()
        assert signing.following.trouble is None
        while sum(count) < before + 6:
            time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert signing.number == 7
    assert signing.signed_by_now() == len(devices)


# --- looking ------------------------------------------------------------------------------------------


class Counted:
    """A holder of one file that counts how often it is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.reads, self.wrong = path, 0, ""

    def files(self) -> list[Path]:
        return [self.path]

    def take_up(self) -> str:
        self.reads += 1
        if self.wrong:
            raise KeysError("wrong", self.wrong)
        return ""


def test_files_are_read_when_they_changed_and_not_at_each_look(tmp_path: Path) -> None:
    holder = Counted(tmp_path / "a.pem")
    following = Following(holder, stamps(holder.files()))
    for wrong in ("", "torn"):
        holder.wrong = wrong
        holder.path.write_text(f"new {wrong}")
        before = holder.reads
        for _ in range(6):
            following.look()
        assert holder.reads == before + 1
    holder.path.unlink()
    for _ in range(4):
        following.look()
    assert holder.reads == 3, "that it is gone is a change too"


def test_trouble_is_over_when_what_could_not_be_used_is_gone(signing: Signing) -> None:
    forged(signing)
    signing.look()
    assert signing.following.trouble is not None
    (signing.folder / "root-2.json").unlink()
    signing.look()
    assert signing.following.trouble is None


def test_a_file_that_was_changed_in_place_and_made_to_look_as_before_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_text("one")
    before, was = stamps([path]), path.stat()
    path.write_text("two")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert stamps([path]) != before
    assert stamps([tmp_path / "none"]) == {}


def test_one_that_fails_stands_in_no_others_way(tmp_path: Path) -> None:
    class Broken(Counted):
        def take_up(self) -> str:
            raise StoreError("database_unusable", "gone")

    well, broken, ill = Counted(tmp_path / "a"), Broken(tmp_path / "b"), Counted(tmp_path / "c")
    ill.wrong = "torn"
    both = Followings([Following(one, {}) for one in (broken, well, ill)])
    both.ask()
    with pytest.raises(StoreError):
        both.look()
    assert (well.reads, ill.reads) == (1, 1)
    assert both.trouble == "torn [wrong]"


def test_a_registry_that_waited_for_newer_keys_goes_on_when_they_are_put_back(signing: Signing) -> None:
    """A restored one: the broker holds a root that does not lie here (`fleet.recall`)."""
    elsewhere = shutil.copytree(signing.folder, signing.folder.parent / "elsewhere")
    signing.rotate(Role.ORDER, elsewhere)
    root, recall = (elsewhere / "root-2.json").read_bytes(), signing.harness.recall
    with signing.harness.store.begin() as tx:
        recall.root(tx, root, 1.0)
    assert "root-2.json" in recall.older_keys
    shutil.copytree(elsewhere, signing.folder, dirs_exist_ok=True)
    signing.look()
    assert (signing.number, recall.older_keys) == (2, "")
    with signing.harness.store.begin() as tx:
        recall.root(tx, root, 1.0)
    assert recall.older_keys == "", "our own"


def test_the_loop_looks_once_a_second_whatever_becomes_of_the_clock(signing: Signing) -> None:
    looks: list[float] = []
    harness = signing.harness
    clock = harness.clock
    ports = replace(harness.conductor._ports, follow=lambda: looks.append(clock.time))
    conductor = Conductor(ports, harness.current, harness.config)
    start = clock.time
    for offset in (0.0, 0.1, 0.9, 1.0, 1.5, 2.0, -5000.0, -4999.5, -4999.0, 9000.0):
        clock.time = start + offset
        conductor.tick()
    assert [at - start for at in looks] == [0.0, 1.0, 2.0, -5000.0, -4999.0, 9000.0]
    assert not conductor.failures
