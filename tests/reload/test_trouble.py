"""Bad files, broken watches, unexpected errors: what is told, and that the files are followed further."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

import gateway
from gateway.config.sources import ConfigFiles, Sources
from gateway.watch import own_mount_points
from tests.reload.following import PATIENCE, TICKS, follow, refuse_bad, save
from tests.running import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and inotify")


async def test_a_bad_file_is_rejected_once_however_often_it_is_touched(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS) as following:
        save(following.files.models, "models: bad")
        await following.until(lambda: following.rejected)
        following.files.models.touch()
        await following.looked_twice()
        save(following.files.models, "models: bad")
        await following.looked_twice()
        assert [str(error) for error in following.rejected] == ["models.yaml:1:1: bad"]
        assert len(following.adopted) == 1


async def test_each_bad_content_is_rejected(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        for number in range(3):
            save(following.files.models, f"models: bad {number}")
            await following.until(lambda: len(following.rejected) == number + 1)  # noqa: B023 - it is asked now


async def test_a_good_file_after_a_bad_one_is_adopted(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        save(following.files.models, "models: bad")
        await following.until(lambda: following.rejected)
        save(following.files.models, "models: good")
        await following.adopts("models: good")


async def test_going_back_to_what_is_served_clears_the_rejection(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        save(following.files.models, "models: bad")
        await following.until(lambda: following.rejected)
        save(following.files.models, "models: first")
        await following.until(lambda: following.models == [b"models: first", b"models: first"])


async def test_a_bad_file_at_the_start_is_rejected_once(tmp_path: Path) -> None:
    files = ConfigFiles.of(tmp_path, {})
    save(files.models, "models: bad")
    async with follow(tmp_path, files=files) as following:
        assert (len(following.rejected), following.adopted) == (1, [])
        save(files.models, "models: good")
        await following.adopts("models: good")


async def test_a_file_that_cannot_be_read_is_rejected_once(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS) as following:
        following.files.routing.mkdir()
        await following.until(lambda: following.rejected)
        await following.looked_twice()
        [error] = following.rejected
        assert str(error) == f"{following.files.routing}: cannot be read: is a directory"
        following.files.routing.rmdir()
        await following.until(lambda: len(following.adopted) == 2)


async def test_without_a_first_load_the_first_look_builds(tmp_path: Path) -> None:
    async with follow(tmp_path, load=False) as following:
        await following.adopts("models: first")
        assert (len(following.built), following.rejected) == (1, [])


async def test_requests_build_once_what_has_not_changed(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS) as following:
        for _ in range(3):
            following.reloader.request()
        await following.until(lambda: len(following.adopted) == 2)
        await following.looked_twice()
        assert following.models == [b"models: first"] * 2


async def test_a_request_reports_a_bad_file_again(tmp_path: Path) -> None:
    async with follow(tmp_path) as following:
        save(following.files.models, "models: bad")
        await following.until(lambda: following.rejected)
        following.reloader.request()
        await following.until(lambda: len(following.rejected) == 2)


async def test_a_request_does_not_wait_for_a_missing_file(tmp_path: Path) -> None:
    async with follow(tmp_path, TICKS, clock=lambda: 0.0) as following:
        following.files.models.unlink()
        await following.looked_twice()
        assert following.rejected == []
        following.reloader.request()
        await following.until(lambda: following.rejected)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration])
async def test_whatever_a_build_raises_is_a_rejection_without_its_value(
    tmp_path: Path, raised: type[BaseException]
) -> None:
    def fail(_: Sources) -> Sources:
        raise raised("sk-canary")

    async with follow(tmp_path) as following:
        following.build = fail
        save(following.files.models, "models: second")
        await following.until(lambda: following.rejected)
        [error] = following.rejected
        assert str(error).startswith(
            f"{following.files.models}: cannot be built: {raised.__name__} at test_trouble.py:"
        )
        assert "canary" not in repr(error)
        assert (error.__cause__, error.__context__) == (None, None)
        following.build = refuse_bad
        save(following.files.models, "models: third")
        await following.adopts("models: third")


async def test_an_adoption_that_fails_is_noticed_and_the_next_one_is_made(tmp_path: Path) -> None:
    def fail(_: Sources) -> None:
        raise RuntimeError("sk-canary")

    async with follow(tmp_path, TICKS) as following:
        following.on_adopt = fail
        for number in range(2):
            save(following.files.models, f"models: {number}")
            await following.until(lambda: len(following.notices) == number + 1)  # noqa: B023 - it is asked now
        await following.looked_twice()
        for event, fields in following.notices:
            assert event == "reload.failed"
            assert str(fields["error"]).startswith("RuntimeError at test_trouble.py:")
        assert len(following.notices) == 2
        following.on_adopt = lambda _: None
        save(following.files.models, "models: good")
        await following.adopts("models: good")


async def test_a_notice_that_fails_ends_nothing(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise RuntimeError

    async with follow(tmp_path, TICKS) as following:
        following.on_adopt = following.on_notice = fail
        save(following.files.models, "models: second")
        await following.until(lambda: following.notices)
        following.on_adopt = lambda _: None
        save(following.files.models, "models: third")
        await following.adopts("models: third")


def descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}


def reload_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gateway-reload")]


@linux
async def test_without_inotify_the_files_are_polled(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("few_descriptors.py")),
        str(tmp_path),
        env=os.environ | {"PYTHONPATH": str(Path(gateway.__file__).parents[1])},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    [(event, fields)] = json.loads(told)
    assert (event, process.returncode) == ("reload.polling", 0)
    assert "Too many open files" in fields["reason"]


async def test_without_any_watch_there_are_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool | None] = []

    def refuse(*_: str, force_polling: bool | None, **__: object) -> object:
        tried.append(force_polling)
        raise OSError(f"refused {force_polling}")

    monkeypatch.setattr(watchfiles, "watch", refuse)
    async with follow(tmp_path, TICKS) as following:
        for number in range(3):
            save(following.files.models, f"models: {number}")
            await following.adopts(f"models: {number}")
        await following.until(lambda: following.notices)
        assert following.notices == [("reload.polling", {"reason": "refused None"})]
        assert tried == [None, True]


class PanicError(BaseException):
    """As the panics of Rust code, it is no Exception."""


@pytest.mark.parametrize("error", [OSError("broken"), PanicError("broken")], ids=repr)
async def test_a_watch_that_breaks_is_noticed_once_and_armed_anew_after_a_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    armed = rests = 0

    async def sleep(seconds: float) -> None:
        nonlocal rests
        rests += seconds == TICKS.tick
        await asyncio.sleep(seconds)

    def break_down(*_: str, stop_event: threading.Event, **__: object) -> Iterator[object]:
        nonlocal armed
        stop_event.is_set()
        armed += 1
        yield from ()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(watchfiles, "watch", break_down)
        async with follow(tmp_path, TICKS, sleep=sleep) as following:
            await following.until(lambda: armed >= 3)
            assert rests >= 2
            patch.undo()
            save(following.files.models, "models: second")
            await following.adopts("models: second")
            assert following.notices == [("reload.failed", {"error": "broken"})]


async def test_a_folder_that_goes_while_the_watch_is_armed_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch: Callable[..., Any] = watchfiles.watch
    gone = False

    def come_late(*folders: str, **options: Any) -> object:
        nonlocal gone
        if not gone:
            gone = True
            raise FileNotFoundError(folders[0])
        return watch(*folders, **options)

    monkeypatch.setattr(watchfiles, "watch", come_late)
    async with follow(tmp_path) as following:
        save(following.files.models, "models: second")
        await following.adopts("models: second")
        assert following.notices == []


async def test_while_nothing_stirs_nothing_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    async with follow(tmp_path) as quiet, follow(tmp_path / "busy") as busy:
        before = quiet.looks
        for number in range(5):
            save(busy.files.models, f"models: {number}")
            await busy.adopts(f"models: {number}")
        assert quiet.looks == before


async def test_a_folder_that_is_not_there_keeps_no_other_from_being_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch: Callable[..., Any] = watchfiles.watch
    watched: list[tuple[str, ...]] = []

    def note(*folders: str, **options: Any) -> object:
        watched.append(folders)
        return watch(*folders, **options)

    monkeypatch.setattr(watchfiles, "watch", note)
    files = ConfigFiles(tmp_path / "models.yaml", tmp_path / "gone" / "routing.yaml", tmp_path / ".env")
    save(files.models, "models: first")
    async with follow(tmp_path, files=files) as following:
        save(files.models, "models: second")
        await following.adopts("models: second")
        assert (watched, following.notices) == ([(str(tmp_path),)], [])


async def test_a_file_that_is_mounted_alone_is_noticed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ConfigFiles.of(tmp_path, {})
    save(files.models, "models: first")
    save(files.routing, "timeout: 3")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"36 22 254:0 /srv/models.yaml {files.models} ro,relatime - ext4 /dev/vda rw\n")
    monkeypatch.setattr(own_mount_points, "__defaults__", (mountinfo,))
    async with follow(tmp_path, TICKS, files=files) as following:
        await following.until(lambda: following.notices)
        await following.looked_twice()
        advice = "saves never reach a file that is mounted alone; mount the folder that holds it"
        assert following.notices == [("reload.pinned_file", {"file": str(files.models), "advice": advice})]


@linux
async def test_a_file_that_saves_cannot_reach_is_noticed_once(tmp_path: Path) -> None:
    (tmp_path / "held.yaml").write_text("models: held")
    with (tmp_path / "held.yaml").open("rb") as held:
        files = ConfigFiles(Path(f"/proc/self/fd/{held.fileno()}"), tmp_path / "routing.yaml", tmp_path / ".env")
        async with follow(tmp_path, TICKS, files=files) as following:
            await following.looked_twice()
            assert following.notices == []
            (tmp_path / "held.yaml").unlink()
            await following.until(lambda: following.notices)
            await following.looked_twice()
            advice = "saves never reach a file that is mounted alone; mount the folder that holds it"
            assert following.notices == [("reload.pinned_file", {"file": str(files.models), "advice": advice})]


@linux
async def test_cancellation_leaves_neither_threads_nor_descriptors(tmp_path: Path) -> None:
    async with follow(tmp_path):
        pass  # what is opened once stays open
    await until(lambda: not reload_threads())
    before = len(descriptors())
    for _ in range(5):
        async with follow(tmp_path):
            assert reload_threads()
    await until(lambda: not reload_threads() and len(descriptors()) <= before)


async def test_cancellation_does_not_wait_for_a_build(tmp_path: Path) -> None:
    building, finish = threading.Event(), threading.Event()

    def build(sources: Sources) -> Sources:
        building.set()
        assert finish.wait(PATIENCE)
        return sources

    async with follow(tmp_path) as following:
        following.build = build
        save(following.files.models, "models: second")
        await asyncio.to_thread(building.wait, PATIENCE)
    assert not finish.is_set()
    finish.set()
    assert following.models == [b"models: first"]
