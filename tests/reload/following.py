"""What the reload tests have in common: a Reloader that follows real files, and keeps what it was told.

async with follow(tmp_path) as following:
    save(following.files.models, "models: new")
    await following.adopts("models: new")
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from gateway.config.faults import ConfigError, Fault
from gateway.config.sources import ConfigFiles, Sources
from gateway.reload import Pace, Reloader

PATIENCE: Final = 20.0
"""Seconds that a wait may take on a machine under load. A guard, never a measure."""

EVENTS: Final = Pace(tick=600)
"""Only events lead to a look."""

TICKS: Final = Pace(tick=0.02)
"""Ticks lead to a look soon, whether there are events or not."""


def save(file: Path, text: str) -> None:
    """Save as most editors do: write another file, and rename it over."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def refuse_bad(sources: Sources) -> Sources:
    """Build nothing; refuse a models.yaml that is missing or says `bad`."""
    if sources.models is None or b"bad" in sources.models:
        raise ConfigError([Fault("models.yaml", 1, 1, "", "missing" if sources.models is None else "bad")])
    return sources


class Following:
    """A Reloader and all that it has said. `looks` counts the readings that were judged."""

    def __init__(
        self, files: ConfigFiles, pace: Pace, *, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.files = files
        self.build: Callable[[Sources], Sources] = refuse_bad
        self.built: list[Sources] = []
        self.adopted: list[Sources] = []
        self.rejected: list[ConfigError] = []
        self.notices: list[tuple[str, Mapping[str, object]]] = []
        self.looks = 0
        self.on_adopt: Callable[[Sources], None] = lambda _: None
        self.on_notice: Callable[[str], None] = lambda _: None
        self._clock = clock
        self._told = asyncio.Event()
        self.reloader = Reloader(
            files,
            build=self._build,
            adopt=self._adopt,
            reject=self._reject,
            notice=self._notice,
            pace=pace,
            clock=self._now,
            sleep=sleep,
        )

    @property
    def models(self) -> list[bytes | None]:
        """What each adopted models.yaml held."""
        return [sources.models for sources in self.adopted]

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until `holds`; it is asked whenever the reloader has done something."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._told.clear()
                await self._told.wait()

    async def adopts(self, models: str) -> None:
        """Wait until the models.yaml that was adopted last holds this."""
        await self.until(lambda: self.models[-1:] == [models.encode()])

    async def looked_twice(self) -> None:
        """Wait for a look that began after this call."""
        before = self.looks
        await self.until(lambda: self.looks >= before + 2)

    def _now(self) -> float:
        self.looks += 1
        self._told.set()
        return self._clock()

    def _build(self, sources: Sources) -> Sources:
        self.built.append(sources)
        return self.build(sources)

    def _adopt(self, sources: Sources) -> None:
        self.on_adopt(sources)
        self.adopted.append(sources)
        self._told.set()

    def _reject(self, error: ConfigError) -> None:
        self.rejected.append(error)
        self._told.set()

    def _notice(self, event: str, fields: Mapping[str, object]) -> None:
        self.notices.append((event, fields))
        self._told.set()
        self.on_notice(event)


@asynccontextmanager
async def follow(
    parent: Path,
    pace: Pace = EVENTS,
    *,
    load: bool = True,
    files: ConfigFiles | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[Following]:
    """Follow a config folder, which is made with a models.yaml if there is none, from when it is watched."""
    if files is None:
        files = ConfigFiles.of(parent / "config", {})
        files.models.parent.mkdir(exist_ok=True)
        if not files.models.exists():
            save(files.models, "models: first")
    following = Following(files, pace, clock=clock, sleep=sleep)
    if load:
        await following.reloader.load()
    task = asyncio.create_task(following.reloader.run())
    try:
        await following.until(lambda: following.looks >= 2)  # one look, and another once the watch is armed
        yield following
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
