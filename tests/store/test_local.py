"""What is the folder's own: leftovers of killed writers, locks, full disks, refused access."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.errors import ConfigurationError, MachineError, PermissionRefusedError, PreemptedError
from job.run.checkpoints import Checkpoints
from job.run.records import Worker
from job.store import files, local
from job.store.base import AbsentError, ConflictError, TransientError
from job.store.files import exclusive, explain, scratch, write_durably, write_whole
from job.store.local import LocalStore
from tests.disks import read_only_later, tiny_disk, two_machines
from tests.limits import without_locks


def test_nothing_but_the_keys_is_left(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("a/b", b"x")
    store.put_if_absent("a/c", b"x")
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"store/a/b", "store/a/c", "store/.lock"}


def test_a_killed_writers_leftovers_go_with_the_next_put(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from job.store.files import scratch\n"
        "with scratch(Path(sys.argv[1])) as work:\n"
        "    (work / 'half').write_bytes(b'half'); print(work, flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    left = Path(writer.stdout.readline().strip())
    store = LocalStore(tmp_path)
    store.put("a", b"x")
    assert (left / "half").exists()  # its writer lives
    writer.kill()
    writer.communicate()
    store.put("b", b"x")
    assert not left.exists()
    assert {entry.key for entry in store.list()} == {"a", "b"}


def test_a_writer_stopped_with_the_lock_makes_others_try_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOCK_TIMEOUT_SECONDS", 0.2)
    script = (
        "import sys, time; from pathlib import Path; from job.store.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    store = LocalStore(tmp_path)
    store.put("a", b"x")
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / local.LOCK)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(TransientError) as caught:
        store.put("a", b"y")
    assert caught.value.exit_code == 74
    assert store.get("a").data == b"x"
    holder.kill()
    holder.communicate()
    store.put("a", b"y")
    assert store.get("a").data == b"y"


def test_a_full_disk_is_the_machines_fault_and_keeps_what_was_there(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        store = LocalStore(disk)
        store.put("a", b"old")
        with pytest.raises(MachineError, match="no space left") as caught:
            store.put("a", bytes(2**21))
        assert caught.value.exit_code == 74
        assert not isinstance(caught.value, TransientError)
        assert store.get("a").data == b"old"
        assert not list(disk.glob(f"{files.SCRATCH_PREFIX}*"))
        store.put("a", b"new")


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that are flushed to the disk."""
    paths: list[Path] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return paths


def test_the_name_of_a_new_run_survives_a_power_loss(tmp_path: Path, flushed: list[Path]) -> None:
    LocalStore(tmp_path / "runs" / "first").put("claims/1", b"x")
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / "first"} <= set(flushed)


def test_a_file_that_is_written_whole_survives_a_power_loss(tmp_path: Path, flushed: list[Path]) -> None:
    path = tmp_path / "new" / "net.onnx"
    write_whole(path, b"x")
    assert [kept.name for kept in flushed] == [tmp_path.name, "file", "new"]
    write_whole(path, b"y")
    assert path.read_bytes() == b"y"


@pytest.mark.parametrize("block", [4096, 1])  # with 1 the kernel refuses the end of most, written directly
@pytest.mark.parametrize("size", [0, 2**20 - 1, 2**20, 2**20 + 1, 2**20 + 4096, 3 * 2**20 + 17])
def test_any_size_is_written_whole(
    size: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    data = random.Random(size).randbytes(size)
    write_durably(tmp_path / "new", data)
    assert (tmp_path / "new").read_bytes() == data


def test_a_large_file_is_written_directly(tmp_path: Path) -> None:
    with (tmp_path / "new").open("xb") as file:
        assert files._write_directly(file.fileno(), bytes(2**21))
    assert (tmp_path / "new").read_bytes() == bytes(2**21)


def test_access_refused_is_not_absence(nobody: Path) -> None:
    store = LocalStore(nobody)
    with pytest.raises(PermissionRefusedError) as caught:
        store.get("secret")
    assert caught.value.exit_code == 77
    with pytest.raises(PermissionRefusedError):
        store.put("a", b"x")
    with pytest.raises(PermissionRefusedError):
        LocalStore(nobody / "new").put("a", b"x")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = LocalStore(tmp_path / "file" / "run")
    with pytest.raises(AbsentError):
        store.get("a")
    with pytest.raises(ConfigurationError, match="file"):
        store.put("a", b"x")


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "back\\slash").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [entry.key for entry in store.list()] == ["a"]


def test_a_relative_folder_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore(Path("runs"))
    monkeypatch.chdir("/")
    store.put("a", b"x")
    assert (tmp_path / "runs" / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, 74),
        (errno.EDQUOT, 74),
        (errno.EIO, 74),
        (errno.EACCES, 77),
        (errno.EROFS, 77),
        (errno.ENOTDIR, 78),
    ],
)
def test_each_fault_of_a_disk_has_its_exit_code(number: int, code: int) -> None:
    error = explain(OSError(number, os.strerror(number)), "/some/file")
    assert error.exit_code == code
    assert "/some/file" in str(error)
    assert error.fix


def test_scratch_folders_of_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    with scratch(tmp_path) as one, scratch(tmp_path) as two:
        assert one != two
        assert one.is_dir()
    assert not list(tmp_path.iterdir())


def test_a_lock_waits_for_its_holder(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock"):
        start = time.monotonic()
        with pytest.raises(TransientError), exclusive(tmp_path / "lock", timeout_seconds=0.1):
            pass
        assert time.monotonic() - start >= 0.1
    with exclusive(tmp_path / "lock", timeout_seconds=0):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_folder_that_becomes_read_only_is_the_machines_fault(tmp_path: Path) -> None:
    with read_only_later(tmp_path / "disk") as (disk, make_read_only):
        store = LocalStore(disk)
        store.put("a", b"old")
        make_read_only()
        for call in (lambda: store.put("a", b"new"), lambda: store.delete("a")):
            with pytest.raises(MachineError, match="has become read-only") as caught:
                call()
            assert caught.value.exit_code == 74
        assert store.get("a").data == b"old"
        with pytest.raises(PermissionRefusedError):  # to a new process it has never been anything else
            LocalStore(disk).put("a", b"new")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [f"{files.SCRATCH_PREFIX}x", "HEAD.json", local.LOCK])
@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/nowhere/at/all")])
def test_what_is_planted_in_a_folder_blocks_nothing(
    tmp_path: Path, name: str, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path / name)
    store = LocalStore(tmp_path)
    calls = [
        lambda: store.put("other", b"x"),
        lambda: store.get("HEAD.json"),
        lambda: store.get_range("HEAD.json", 0, 1),
        lambda: store.put_if_absent("HEAD.json", b"x"),
        lambda: store.put_if_match("HEAD.json", b"x", "0"),
        lambda: store.list(),
    ]
    for call in calls:
        with contextlib.suppress(ConflictError, AbsentError, ConfigurationError):
            call()


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_a_planted_head_stops_the_start_with_one_line(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "HEAD.json")
    with pytest.raises(ConfigurationError, match=r"HEAD\.json"):
        Checkpoints.claim(LocalStore(tmp_path), "0123456789ab", Worker(host="here"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("bindfs"), reason="needs bindfs and root")
def test_machines_that_do_not_see_each_others_locks_leave_each_others_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_machines(tmp_path) as (here, there):
        one, other = LocalStore(here / "run"), LocalStore(there / "run")
        one.put("a", b"x")
        with scratch(here / "run") as work:
            (work / "half").write_bytes(b"half")
            other.put("a", b"y")  # at once, and while it is being written
            seen = there / "run" / work.name / "half"
            assert seen.read_bytes() == b"half"
            monkeypatch.setattr(files, "ABANDONED_SECONDS", 0.2)
            time.sleep(0.5)
            (work / "half").write_bytes(b"more")
            other.put("a", b"y")
            assert seen.exists()
            time.sleep(0.5)
            other.put("a", b"y")
            assert not seen.exists()  # whoever writes nothing for so long has gone
        assert one.get("a").data == b"y"


def test_a_link_that_is_named_like_a_scratch_folder_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ABANDONED_SECONDS", -1.0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{files.SCRATCH_PREFIX}0123").symlink_to(tmp_path / "elsewhere")
    LocalStore(tmp_path / "run").put("a", b"x")
    assert (tmp_path / "elsewhere" / "file").read_text() == "x"
    assert not (tmp_path / "elsewhere" / files.ALIVE).exists()


def test_a_scratch_folder_that_is_removed_meanwhile_is_tried_again(tmp_path: Path) -> None:
    def work() -> None:
        with scratch(tmp_path) as folder:
            shutil.rmtree(folder)
            (folder / "new").rename(tmp_path / "new")

    with pytest.raises(TransientError, match="removed while it was in use") as caught:
        work()
    assert caught.value.exit_code == 74


def test_a_signal_while_a_scratch_folder_is_removed_is_no_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = [PreemptedError("stopped by SIGTERM", "")]

    def close(descriptor: int) -> None:
        """Close it, and let a signal come before rmtree's next line."""
        os_close(descriptor)
        if signals and sys._getframe(1).f_code.co_filename == shutil.__file__:
            raise signals.pop()

    os_close = os.close
    monkeypatch.setattr(os, "close", close)
    with contextlib.suppress(PreemptedError):
        LocalStore(tmp_path / "run").put("a", b"x")
    assert not signals
    assert (tmp_path / "run" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, number: int) -> None:
    code = """
import sys
from job.errors import ConfigurationError
from job.store import open_store
try:
    open_store(sys.argv[1]).put("a", b"x")
except ConfigurationError as error:
    print(error.exit_code, error)
"""
    words = without_locks(code, number, str(tmp_path))
    assert words.startswith("78 ")
    assert all(part in words for part in (str(tmp_path), "has no locks", "-o flock", "NFS 4"))
    assert not (tmp_path / "a").exists()
