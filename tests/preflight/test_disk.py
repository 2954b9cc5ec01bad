"""Room on the disks."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from job.data.cifar import CIFAR100_SHA256
from job.errors import MachineError, PermissionRefusedError
from job.network.wide_resnet import wide_resnet
from job.preflight.disk import check_shared_memory, check_space, data_bytes, parameters, run_bytes
from job.settings import DEMO_DATA, DataSettings, Recipe
from tests.disks import tiny_disk

ARCHIVE, UNPACKED = 169_001_437, 185_901_581  # 1.1 times


@pytest.mark.parametrize(("depth", "width"), [(22, 6), (10, 1), (16, 2), (28, 3)])
def test_parameters_are_counted_as_the_network_has_them(depth: int, width: int) -> None:
    network = wide_resnet(depth, width)
    assert parameters(Recipe(depth=depth, width=width)) == sum(
        weight.numel() for weight in network.parameters()
    )


def test_a_run_keeps_four_states_and_two_copies_of_its_weights() -> None:
    # 9,693,108 parameters in fp32: weights and two moments, 3 kept and 1 being written, and 2 x weights
    assert run_bytes(Recipe()) == 9_693_108 * (4 * 12 + 2 * 4)


def test_what_is_in_the_cache_needs_no_room(tmp_path: Path) -> None:
    assert data_bytes((), tmp_path) == ARCHIVE + UNPACKED
    (tmp_path / f"{CIFAR100_SHA256}.archive").write_bytes(b"")
    assert data_bytes((), tmp_path) == UNPACKED
    (tmp_path / CIFAR100_SHA256).mkdir()
    assert data_bytes((), tmp_path) == 0


def test_what_cannot_be_known_is_not_counted(tmp_path: Path) -> None:
    assert data_bytes((DEMO_DATA,), tmp_path) == 0
    assert data_bytes(("https://host/a.tar.gz",), tmp_path) == 0


def test_a_disk_that_will_be_full_is_named(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        if shutil.disk_usage(disk).total > 2**20:
            pytest.skip("a disk of its own needs the right to mount")
        data = DataSettings((), str(disk / "cache"))
        with pytest.raises(MachineError, match="no space left") as caught:
            check_space(Recipe(), "s3://bucket/run", data)
        assert caught.value.exit_code == 74
        assert str(disk) in caught.value.message
        assert " 355 MB will be needed" in caught.value.message  # the archive and what is in it
        assert check_space(Recipe(), "s3://bucket/run", replace(data, data=(DEMO_DATA,))).status == "ok"


def test_checkpoints_need_room_where_the_run_is_in_a_folder(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        if shutil.disk_usage(disk).total > 2**20:
            pytest.skip("a disk of its own needs the right to mount")
        recipe = Recipe(depth=10, width=1)  # 83,700 parameters: 4.7 MB
        run, data = str(disk / "run"), DataSettings((DEMO_DATA,), str(tmp_path / "cache"))
        with pytest.raises(MachineError, match=re.escape(f"{disk}:") + ".* 5 MB will be needed"):
            check_space(recipe, run, data)
        there = disk / "run" / "objects" / "1-ab"
        there.mkdir(parents=True)
        with (there / "one").open("wb") as file:
            file.truncate(4_000_000)  # sparse: 0.7 MB are still to come
        assert check_space(recipe, run, data).status == "ok"


def test_one_disk_holds_all_of_it(tmp_path: Path) -> None:
    text = check_space(Recipe(), str(tmp_path / "run"), DataSettings((), str(tmp_path / "cache"))).text
    assert text.count("will be needed") == 1
    assert f" {round((ARCHIVE + UNPACKED + 9_693_108 * 56) / 1e6)} MB will be needed" in text
    assert not list(tmp_path.iterdir())


def test_a_cache_that_may_not_be_written_is_refused(nobody: Path) -> None:
    with pytest.raises(PermissionRefusedError, match="--cache") as caught:
        check_space(Recipe(), "s3://bucket/run", DataSettings((), str(nobody / "cache")))
    assert caught.value.exit_code == 77


def test_shared_memory_raises_no_alarm() -> None:
    found = check_shared_memory()
    assert (found.status, found.exit_code) == ("ok", 0)
    assert "none is needed" in found.text
