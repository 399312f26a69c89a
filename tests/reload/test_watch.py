import asyncio
import os
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from gateway.threads import DaemonThreads
from gateway.watch import Watch, identities, mount_points, own_mount_points, pinned
from tests.fakes.connection import PATIENCE

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 254:0 /srv/models.yaml /app/config/models.yaml ro,relatime - ext4 /dev/vda rw
37 22 254:0 /srv/a\040b /app/a\040b/with\134slash ro master:3 propagate_from:2 - ext4 /dev/vda rw
38 22 0:5 / /dev/shared\011x rw - tmpfs tmpfs rw
"""


def identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def test_the_folder_that_holds_the_names_is_watched(tmp_path: Path) -> None:
    names = (tmp_path / "models.yaml", tmp_path / "routing.yaml")
    assert identities(names) == {tmp_path: identity(tmp_path)}


def test_a_folder_that_is_not_there_has_no_identity(tmp_path: Path) -> None:
    assert identities([tmp_path / "config" / "models.yaml"]) == {tmp_path / "config": None}


def test_the_folder_of_a_linked_file_is_watched_too(tmp_path: Path) -> None:
    config, real = tmp_path / "config", tmp_path / "real"
    config.mkdir()
    real.mkdir()
    (config / "hop.yaml").symlink_to("../real/models.yaml")
    (config / "models.yaml").symlink_to("hop.yaml")
    watched = identities([config / "models.yaml", config / "routing.yaml"])
    assert watched == {config: identity(config), Path(os.path.realpath(real)): identity(real)}


def test_a_name_that_may_not_be_looked_at_is_no_link(tmp_path: Path) -> None:
    """One that is too long, as lstat refuses it to root as well, who may enter every folder."""
    assert identities([tmp_path / ("n" * 300)]) == {tmp_path: identity(tmp_path)}


def test_a_replaced_folder_has_another_identity(tmp_path: Path) -> None:
    name = tmp_path / "config" / "models.yaml"
    name.parent.mkdir()
    before = identities([name])
    name.parent.rename(tmp_path / "old")
    name.parent.mkdir()
    assert identities([name]) != before


def test_mount_points_are_decoded() -> None:
    assert mount_points(MOUNTINFO.strip()) == {"/", "/app/config/models.yaml", "/app/a b/with\\slash", "/dev/shared\tx"}


@pytest.mark.parametrize("text", ["", "\n"])
def test_no_mounts(text: str) -> None:
    assert mount_points(text) == frozenset()


def test_own_mount_points_are_read(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(b"22 1 254:0 / /caf\xe9 rw - ext4 /dev/vda rw\n")
    assert own_mount_points(mountinfo) == {os.fsdecode(b"/caf\xe9")}


def test_a_system_without_mountinfo_has_no_mount_points(tmp_path: Path) -> None:
    assert own_mount_points(tmp_path / "mountinfo") == frozenset()


def test_a_file_that_is_a_mount_point_is_pinned(tmp_path: Path) -> None:
    mounted, link, other = tmp_path / "models.yaml", tmp_path / "link.yaml", tmp_path / "routing.yaml"
    mounted.touch()
    link.symlink_to(mounted)
    mounts = frozenset({os.path.realpath(mounted), os.path.realpath(tmp_path)})
    assert pinned((mounted, link, other), mounts) == (mounted, link)


def test_a_file_without_a_name_is_pinned(tmp_path: Path) -> None:
    with (tmp_path / "models.yaml").open("wb") as file:
        held = Path(f"/dev/fd/{file.fileno()}")
        assert pinned([held]) == ()
        (tmp_path / "models.yaml").unlink()
        assert pinned([held]) == (held,)


def test_a_file_that_is_not_there_is_not_pinned(tmp_path: Path) -> None:
    assert pinned([tmp_path / "models.yaml"]) == ()


class Hanging(Executor):
    """A thread that never comes to an end."""

    def submit(self, *_: object) -> Future[Any]:  # type: ignore[override] # whatever it is
        return Future()


async def test_a_watch_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.watch._PATIENCE", 0.01)
    watch = Watch([tmp_path], lambda: None, Hanging())
    async with asyncio.timeout(PATIENCE):
        await watch.close()


async def test_a_watch_stirs_once_when_it_is_armed(tmp_path: Path) -> None:
    stirs: list[str] = []
    watch = Watch([tmp_path], lambda: stirs.append("armed"), Hanging())
    assert [watch.is_set() for _ in range(3)] == [False] * 3
    await asyncio.sleep(0)
    assert stirs == ["armed"]


async def test_a_watch_of_a_folder_that_is_not_there_is_over_and_stirs(tmp_path: Path) -> None:
    stirred = asyncio.Event()
    watch = Watch([tmp_path / "gone"], stirred.set, DaemonThreads("gateway-reload"))
    async with asyncio.timeout(PATIENCE):
        await stirred.wait()
    assert (watch.over, watch.refused, watch.failure) == (True, None, None)
