"""Every way a file is saved, followed on a real file system by real events."""

import asyncio
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from gateway.config.sources import ConfigFiles
from gateway.reload import Pace
from tests.reload.following import EVENTS, TICKS, follow, save


async def run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, command))
    assert await process.wait() == 0


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """Keep the folders of each watch, from when it is armed."""
    folders: list[frozenset[str]] = []
    watch = watchfiles.watch

    class Asked:
        def __init__(self, paths: tuple[str, ...], stop: threading.Event) -> None:
            self.paths: tuple[str, ...] | None = paths
            self.stop = stop

        def is_set(self) -> bool:
            if self.paths is not None:
                folders.append(frozenset(self.paths))
                self.paths = None
            return self.stop.is_set()

    def arm(*paths: str, stop_event: threading.Event, **options: Any) -> object:
        return watch(*paths, stop_event=Asked(paths, stop_event), **options)

    monkeypatch.setattr(watchfiles, "watch", arm)
    return folders


async def test_every_save_by_rename_is_followed(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        for number in range(20):
            save(following.files.models, f"models: {number}")
            await following.adopts(f"models: {number}")
        assert len(following.adopted) == 21


async def test_a_write_in_place_is_followed(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        following.files.models.write_text("models: in place")
        await following.adopts("models: in place")


async def test_cp_over_is_followed(tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("models: copied")
    async with follow(tmp_path) as following:
        await run("cp", tmp_path / "new.yaml", following.files.models)
        await following.adopts("models: copied")


async def test_sed_in_place_is_followed(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        await run("sed", "-i.bak", "s/first/edited/", following.files.models)
        await following.adopts("models: edited")


async def test_routing_is_followed_and_may_come_later(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        assert following.adopted[-1].routing is None
        save(following.files.routing, "timeout: 1")
        await following.until(lambda: following.adopted[-1].routing == b"timeout: 1")


async def test_files_in_two_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = ConfigFiles(tmp_path / "a" / "models.yaml", tmp_path / "b" / "routing.yaml", tmp_path / ".env")
    save(files.models, "models: first")
    async with follow(tmp_path, files=files) as following:
        save(files.models, "models: second")
        await following.adopts("models: second")
        save(files.routing, "timeout: 1")
        await following.until(lambda: following.adopted[-1].routing == b"timeout: 1")


async def test_a_swapped_configmap_is_followed(tmp_path: Path, armed: list[frozenset[str]]) -> None:
    config = tmp_path / "config"

    def publish(version: str) -> None:
        (config / version).mkdir(parents=True)
        (config / version / "models.yaml").write_text(f"models: {version}")
        (config / "..data_tmp").symlink_to(version)
        (config / "..data_tmp").rename(config / "..data")

    publish("..1")
    (config / "models.yaml").symlink_to("..data/models.yaml")
    async with follow(tmp_path) as following:
        for number in range(2, 5):
            publish(f"..{number}")
            shutil.rmtree(config / f"..{number - 1}")
            await following.adopts(f"models: ..{number}")
            await following.until(lambda: str(config / f"..{number}") in armed[-1])  # noqa: B023 - it is asked now


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_linked_file_elsewhere_is_followed(tmp_path: Path, *, in_place: bool) -> None:
    real = tmp_path / "elsewhere" / "box.yaml"
    real.parent.mkdir()
    real.write_text("models: linked")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.yaml").symlink_to(real)
    async with follow(tmp_path) as following:
        assert following.models == [b"models: linked"]
        if in_place:
            real.write_text("models: changed")
        else:
            save(real, "models: changed")
        await following.adopts("models: changed")


async def test_a_link_that_is_pointed_elsewhere_is_followed_there(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.yaml").write_text(f"models: {name}")
    (tmp_path / "config").mkdir()
    link = tmp_path / "config" / "models.yaml"
    link.symlink_to(tmp_path / "one" / "models.yaml")
    async with follow(tmp_path) as following:
        link.with_name("new").symlink_to(tmp_path / "two" / "models.yaml")
        link.with_name("new").rename(link)
        await following.adopts("models: two")
        save(tmp_path / "two" / "models.yaml", "models: two, edited")
        await following.adopts("models: two, edited")


async def test_a_config_folder_that_is_a_link_is_followed_when_it_is_swapped(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.yaml").write_text(f"models: {name}")
    config = tmp_path / "config"
    config.symlink_to("one")
    async with follow(tmp_path, TICKS) as following:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(config)
        await following.adopts("models: two")


async def test_a_replaced_folder_is_watched_anew(tmp_path: Path, armed: list[frozenset[str]]) -> None:
    async with follow(tmp_path, TICKS) as following:
        config = following.files.models.parent
        (tmp_path / "next").mkdir()
        (tmp_path / "next" / "models.yaml").write_text("models: next")
        shutil.rmtree(config)
        (tmp_path / "next").rename(config)
        await following.adopts("models: next")
        await following.until(lambda: len(armed) >= 2 and armed[-1] == {str(config)})


async def test_a_folder_exchanged_under_its_name_is_watched_anew(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS) as following:
        config = following.files.models.parent
        (tmp_path / "next").mkdir()
        save(tmp_path / "next" / "models.yaml", "models: next")
        config.rename(tmp_path / "old")
        (tmp_path / "next").rename(config)
        await following.adopts("models: next")
        save(tmp_path / "old" / "models.yaml", "models: bad, and of no interest")
        save(following.files.models, "models: edited")
        await following.adopts("models: edited")
        assert following.rejected == []


@pytest.mark.parametrize("parent", [".", "../{name}", "{absolute}"])
async def test_a_folder_deleted_and_made_again_is_watched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, armed: list[frozenset[str]], parent: str
) -> None:
    """The new folder often has the old one's inode: only the event of the deletion tells them apart."""
    monkeypatch.chdir(tmp_path)
    async with follow(Path(parent.format(name=tmp_path.name, absolute=tmp_path)), TICKS) as following:
        config = str(following.files.models.parent.absolute())
        await following.until(lambda: armed)
        for number in range(3):
            before = len(armed)
            shutil.rmtree(config)
            following.files.models.parent.mkdir()
            save(following.files.models, f"models: {number}")
            await following.adopts(f"models: {number}")
            await following.until(lambda: len(armed) > before and armed[-1] == {config})  # noqa: B023 - it is asked now
        assert following.rejected == []


async def test_a_folder_that_comes_later_is_found_by_ticks(tmp_path: Path) -> None:
    files = ConfigFiles.of(tmp_path / "config", {})
    async with follow(tmp_path, TICKS, files=files) as following:
        assert (following.adopted, len(following.rejected)) == ([], 1)
        files.models.parent.mkdir()
        save(files.models, "models: late")
        await following.until(lambda: following.models == [b"models: late"])


async def test_of_two_saves_the_last_one_wins(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        for number in range(10):
            save(following.files.models, f"models: {number}, to be overwritten")
            save(following.files.models, f"models: {number}")
            await following.adopts(f"models: {number}")


async def test_a_save_while_another_is_built_is_followed(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        refuse_bad = following.build

        def save_meanwhile(sources: object) -> object:
            following.build = refuse_bad
            save(following.files.models, "models: third")
            return sources

        following.build = save_meanwhile  # type: ignore[assignment] # it takes and gives anything
        save(following.files.models, "models: second")
        await following.until(lambda: following.models == [b"models: first", b"models: second", b"models: third"])


async def test_only_the_whole_of_a_half_written_file_is_built(tmp_path: Path) -> None:
    resting, rested = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        resting.set()
        await rested.wait()

    async with follow(tmp_path, sleep=sleep) as following:
        with following.files.models.open("w") as file:
            file.write("models: half")
            file.flush()
            await asyncio.wait_for(resting.wait(), 20)
            file.write(", and whole")
        rested.set()
        await following.adopts("models: half, and whole")
        assert [sources.models for sources in following.built] == [b"models: first", b"models: half, and whole"]


async def test_a_file_deleted_and_recreated_within_the_grace_was_never_gone(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS, clock=lambda: 0.0) as following:
        following.files.models.unlink()
        await following.looked_twice()
        save(following.files.models, "models: back")
        await following.adopts("models: back")
        assert (len(following.built), following.rejected) == (2, [])


async def test_a_removed_file_counts_as_removed_after_the_grace(tmp_path: Path) -> None:
    now = 0.0
    async with follow(tmp_path, Pace(tick=0.02, grace=30), clock=lambda: now) as following:
        save(following.files.routing, "timeout: 1")
        await following.until(lambda: following.adopted[-1].routing is not None)
        following.files.routing.unlink()
        await following.looked_twice()
        now = 29.9
        await following.looked_twice()
        assert len(following.adopted) == 2
        now = 30.0
        await following.until(lambda: following.adopted[-1].routing is None)

        following.files.models.unlink()
        await following.looked_twice()
        now = 60.0
        await following.until(lambda: following.rejected)
        await following.looked_twice()
        assert [str(error) for error in following.rejected] == ["models.yaml:1:1: missing"]


async def test_an_env_file_is_followed_by_ticks(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS) as following:
        save(tmp_path / ".env", "KEY=1")
        await following.until(lambda: following.adopted[-1].env == b"KEY=1")
        save(tmp_path / ".env", "KEY=2")
        await following.until(lambda: following.adopted[-1].env == b"KEY=2")


async def test_polling_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "true")
    async with follow(tmp_path, EVENTS) as following:
        new = tmp_path / "new.yaml"
        new.write_text("models: polled")
        os.utime(new, (4e9, 4e9))  # polling compares whole seconds
        new.replace(following.files.models)
        await following.adopts("models: polled")
        assert following.notices == []


async def test_a_write_that_polling_misses_is_caught_by_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "true")
    async with follow(tmp_path, TICKS) as following:
        before = following.files.models.stat()
        following.files.models.write_text("models: equal")
        os.utime(following.files.models, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert following.files.models.stat().st_size == before.st_size
        await following.adopts("models: equal")
