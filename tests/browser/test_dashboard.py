"""The page as somebody sees it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gateway.lifecycle import Door, Listen
from gateway.server import Options
from gateway.simulator import Box
from tests.browser.conftest import Blank, Complaints, Hush, Look, Theme
from tests.conftest import MakeBox, OpenDoor
from tests.execution.support import ask
from tests.fakes.client import RawClient
from tests.fakes.upstream import Hang, Pause, ScriptedUpstream, Send, chunk, json_answer, sse_head
from tests.running import Config, open_door, split, until

pytest.importorskip("playwright.async_api", reason="playwright is not installed")
from playwright.async_api import Locator, Page, expect

MODEL = "<img src=x onerror=alert(1)>"
PARAMETERS: dict[str, object] = {"local_fraction": 0.75, "selection": "smooth"}

BOX = """
import asyncio
from aiohttp import web
from gateway.simulator import Box, create_simulator

async def serve():
    runner = web.AppRunner(create_simulator(Box("near", ("{model}",))), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("http://127.0.0.1:%d" % runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""
OPENED = """
window.EventSource = class extends EventSource {
  constructor(url) {
    super(url);
    this.addEventListener("open", () => window.isOpened = true);
  }
};
"""
Victim = tuple[asyncio.subprocess.Process, str]
LOOKS: tuple[tuple[int, Theme, Theme], ...] = (
    (390, "light", "dark"),
    (390, "dark", "light"),
    (1440, "light", "dark"),
    (1440, "dark", "light"),
)
SECTIONS = ("models", "endpoints", "reloads", "requests")


async def is_dark(page: Page) -> bool:
    """Tell whether the page's background is dark."""
    color: str = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.strip("rgb()").split(",")) < 3 * 128


def share(page: Page, deployment: str, column: str) -> Locator:
    """Find a share of the first model's deployment."""
    return page.locator(f'tr[data-deployment="{deployment}"] td.{column} .number').first


async def stop_clock(page: Page) -> None:
    """Let time pass on the page when the test says so, and only then."""
    now = datetime.now(UTC)
    await page.clock.install(time=now)
    await page.clock.pause_at(now + timedelta(seconds=60))


async def opened_by(door: OpenDoor, config: Config) -> Door:
    """Serve, and tell the page ten states a second."""
    opened = await door(Options(config.path, environ={}))
    opened.gateway.events._interval = 0.1
    return opened


async def serve(door: OpenDoor, config: Config) -> str:
    """Likewise; give the address."""
    return (await opened_by(door, config)).urls[0]


async def post(url: str, times: int = 1, model: str = MODEL) -> None:
    for _ in range(times):
        async with RawClient(url) as client:
            await client.send(ask(model))
            await client.read_answer()


@pytest.fixture
async def victim() -> AsyncIterator[Victim]:
    """A box in a process of its own, to be killed, and its address."""
    python, code = sys.executable, BOX.format(model=MODEL)
    process = await asyncio.create_subprocess_exec(python, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    yield process, (await process.stdout.readline()).decode().strip()
    if process.returncode is None:
        process.kill()
    await process.communicate()


@pytest.fixture
async def boxes(config: Config, make_box: MakeBox) -> dict[str, str]:
    """A local and a remote box that serve a model of a dangerous name."""
    made = {name: await make_box(Box(name, (MODEL,))) for name in ("near", "far")}
    config.models(**{MODEL: {**made, "later": {"base_url": "${LATER}"}}})
    save(config, made, PARAMETERS)
    return made


def save(config: Config, boxes: dict[str, str], parameters: dict[str, object], **more: object) -> None:
    config.routing(
        routing_parameter=parameters,
        local_deployment=split([boxes["near"]], MODEL),
        remote_deployment=split([boxes["far"]], MODEL),
        **more,
    )


async def test_shares_move_with_a_save_and_a_bad_one_shows_its_line(
    config: Config, boxes: dict[str, str], door: OpenDoor, look: Look, complaints: Complaints
) -> None:
    url = await serve(door, config)
    page = await look(url)
    await expect(page.locator(".model-name")).to_have_text(MODEL)
    await expect(page.locator("#requests")).to_contain_text("No request has ended yet")
    await expect(page.locator("tr.inactive .name")).to_have_text("later")
    await expect(page.locator("tr.inactive .why")).to_have_text("waiting for ${LATER}")
    await expect(share(page, "near", "planned")).to_have_text("75 %")

    save(config, boxes, {"local_fraction": 0.25})
    await expect(share(page, "near", "planned")).to_have_text("25 %")
    await expect(share(page, "far", "eligible")).to_have_text("75 %")
    await expect(page.locator("#reloads summary").first).to_contain_text("Generation 2")
    await expect(page.locator("#reloads .change").first).to_be_visible()

    good = (config.path / "routing.yaml").read_text()
    config.save("routing.yaml", good.replace('"local_fraction"', '"local_fractoin"'))
    line = 1 + good[: good.index("local_fraction")].count("\n")
    notice = page.locator("#notice-refused")
    await expect(notice).to_contain_text(f"routing.yaml:{line}:")
    await expect(notice).to_contain_text("local_fraction")
    await expect(page.locator("#reloads .refused .fault code").first).to_contain_text(f"routing.yaml:{line}:")
    await expect(share(page, "near", "planned")).to_have_text("25 %")

    config.save("routing.yaml", good)
    await expect(notice).to_have_count(0)
    await post(url)
    opener = page.locator(".opener").first
    await opener.press("Enter")
    await expect(opener).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".attempts li")).to_contain_text("answered")
    assert complaints == []


async def test_a_box_that_is_killed_is_down_and_its_share_moves(
    config: Config, victim: Victim, make_box: MakeBox, door: OpenDoor, look: Look
) -> None:
    near, address = victim
    boxes = {"near": address, "far": await make_box(Box("far", (MODEL,)))}
    config.models(**{MODEL: boxes})
    save(config, boxes, PARAMETERS, health_check=0.1)
    url = await serve(door, config)
    page = await look(url, theme="dark")
    endpoint = page.locator(f'#endpoints li[data-endpoint="{boxes["near"]}"]')
    await expect(endpoint.locator(".state")).to_have_text("up")
    await post(url, 4)
    await expect(share(page, "near", "delivered")).to_have_text("75 %")

    near.kill()
    await expect(endpoint.locator(".state")).to_have_text("down")
    await expect(endpoint.locator(".cause")).not_to_be_empty()
    await expect(share(page, "near", "eligible")).to_have_text("0 %")
    await expect(share(page, "far", "eligible")).to_have_text("100 %")
    rows = {name: page.locator(f'tr[data-deployment="{name}"]') for name in boxes}
    await expect(rows["near"].locator(".why")).to_have_text("down")
    await expect(rows["far"].locator(".why")).to_have_text("covers for near")
    await post(url, 4)
    await expect(share(page, "far", "delivered")).to_have_text("62.5 %")


@pytest.mark.usefixtures("boxes")
async def test_a_name_cannot_hide_what_it_is(config: Config, door: OpenDoor, look: Look) -> None:
    url = await serve(door, config)
    page = await look(url)
    await post(url, model="\u202e evil\x07\u3164\U000e0041")
    asked = page.locator(".request .asked")
    await expect(asked).to_have_text(r"\u202e evil\u0007\u3164\u{e0041}")
    await expect(asked).to_have_css("unicode-bidi", "isolate")
    await post(url, model="\u0645\U0001f600 m")
    await expect(asked.first).to_have_text("\u0645\U0001f600 m")


async def test_an_answer_drawn_before_a_save_is_no_fallback(
    config: Config, make_box: MakeBox, door: OpenDoor, look: Look
) -> None:
    answered = asyncio.Event()
    answer = json_answer({"choices": [{"message": {"content": "hi"}}]})
    async with ScriptedUpstream([Pause(answered), Send(answer)]) as upstream:
        boxes = {"near": await make_box(Box("near", (MODEL,))), "far": upstream.url}
        config.models(**{MODEL: boxes})
        save(config, boxes, {"local_fraction": 0})
        opened = await opened_by(door, config)
        url = opened.urls[0]
        page = await look(url)
        heading, lately = page.locator(".shares thead th").nth(3), page.locator(".lately")
        await expect(heading).to_have_text("Delivered since the start")
        await expect(lately).to_contain_text("no answers since the start, ")
        asked = asyncio.create_task(post(url))
        far = page.locator('tr[data-deployment="far"]')
        await expect(far.locator(".flight")).to_have_text("1")
        save(config, boxes, {"local_fraction": 1.0})
        await expect(share(page, "far", "planned")).to_have_text("0 %")
        await expect(far.locator(".why")).to_have_text("fallback")
        await expect(heading).to_have_text("Delivered since the save")
        await expect(lately).to_contain_text("no answers since the save, ")
        answered.set()
        await asked
        await expect(share(page, "far", "delivered")).to_have_text("100 %")
        await expect(far.locator(".why")).to_have_text("drawn before the save")
        await expect(lately).to_contain_text("1 answer since the save, ")
        opened.gateway.live.since -= 300
        await expect(lately).to_have_text("1 answer in 5 min")
        await expect(heading).to_have_text("Delivered in 5 min")


async def test_the_attempts_of_a_rescue_say_who_broke_off_and_who_carried_on(
    config: Config, make_box: MakeBox, door: OpenDoor, look: Look
) -> None:
    made = [await make_box(Box(name, ("m",), deterministic=True)) for name in ("near", "far")]
    faulty = {"base_url": made[0], "provider_model_id": "m+cut"}
    config.models(m={"faulty": faulty, "healthy": {"base_url": made[1], "provider_model_id": "m", "weight": 0}})
    config.routing()
    url = await serve(door, config)
    page = await look(url)
    async with RawClient(url) as client:
        await client.send(ask("m", stream=True, messages=[{"role": "user", "content": "hi"}]))
        await client.read_answer()
    await expect(page.locator('tr[data-deployment="faulty"] .answers')).to_have_text("0 · 1 failed")
    await expect(page.locator(".request .result")).to_have_text("rescued: continue")
    await page.locator(".opener").click()
    tried = page.locator(".attempts li")
    await expect(tried.locator(".result")).to_have_text(["broke off: cut answer", "carried on"])
    await expect(tried.last.locator(".more")).to_contain_text("continue: from the text so far")


@pytest.mark.usefixtures("boxes")
async def test_large_counts_fit_at_every_width(config: Config, door: OpenDoor, look: Look) -> None:
    opened = await opened_by(door, config)
    for name in ("near", "far"):
        opened.gateway.traffic._answers[MODEL, name] = opened.gateway.traffic._failures[MODEL, name] = 99_999
    page = await look(opened.urls[0])
    await expect(page.locator(".answers").first).to_have_text("99,999 · 99,999 failed")
    for width in (320, 390, 800, 801, 1220, 1221, 1260, 1261, 1440):
        await page.set_viewport_size({"width": width, "height": 900})
        sizes = await page.evaluate("""[document.documentElement, document.querySelector(".models-card")].map(
          (each) => each.scrollWidth - each.clientWidth)""")
        assert sizes == [0, 0], width


@pytest.mark.usefixtures("boxes")
async def test_it_fits_and_complains_of_nothing(
    config: Config, door: OpenDoor, look: Look, complaints: Complaints
) -> None:
    url = await serve(door, config)
    await post(url, 3)
    for width, theme, other in LOOKS:
        page = await look(f"{url}/dashboard", width, theme)
        await expect(page.locator(".request")).to_have_count(3)
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert await page.evaluate("document.querySelectorAll('canvas').length") == 4
        assert await page.locator("[onerror]").count() == 0
        assert await is_dark(page) == (theme == "dark")
        await page.get_by_role("button", name=f"Switch to the {other} theme").click()
        await page.reload()
        await expect(page.locator("html")).to_have_attribute("data-theme", other)
        assert await is_dark(page) == (other == "dark")
    assert complaints == []


async def test_every_section_says_that_no_state_has_come(
    config: Config, door: OpenDoor, hush: Hush, blank: Blank
) -> None:
    config.models(m={"a": "http://127.0.0.1:1"})
    config.routing()
    url = await serve(door, config)
    page = await blank()
    await stop_clock(page)
    await hush(page)
    await page.goto(url)
    sections = [page.locator(f"#{name}") for name in ("chart-rate", "chart-first", "chart-tokens", "chart-trouble")]
    sections += [page.locator(f"section[aria-labelledby={name}-title]") for name in SECTIONS]
    for section in sections:
        await expect(section).to_contain_text("Waiting for the first state.")

    await page.clock.fast_forward(6000)
    await expect(page.locator("#connection")).to_have_text("Not connected")
    await expect(page.locator("#notice-lost")).to_contain_text("No state has come since the page was opened")
    for section in sections:
        await expect(section).to_contain_text("Not connected: no state yet.")

    await page.unroute("**/events")
    await page.clock.run_for(2000)
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#notices")).to_be_empty()
    for section in sections:
        await expect(section).not_to_contain_text("no state yet")


async def test_a_first_state_may_be_long_on_its_way(config: Config, door: OpenDoor, blank: Blank) -> None:
    config.models(m={"a": "http://127.0.0.1:1"})
    config.routing()
    url = await serve(door, config)
    page = await blank()
    await stop_clock(page)
    await page.add_init_script(OPENED)
    async with ScriptedUpstream([Send(sse_head() + chunk(b'data: {"full": true, ')), Hang()]) as line:
        await page.route("**/events", lambda route: route.continue_(url=line.url))
        await page.goto(url)
        await until(lambda: page.evaluate("window.isOpened"))
        await page.clock.fast_forward(59_000)
        await expect(page.locator("body")).to_have_attribute("data-connection", "loading")
        await page.clock.fast_forward(1_500)
        await expect(page.locator("#connection")).to_have_text("Not connected")
        await page.clock.run_for(2_000)
        await until(lambda: len(line.requests) == 2)


async def test_it_says_that_it_is_disconnected_and_goes_on_by_itself(config: Config, look: Look) -> None:
    config.save("models.yaml", "models: 1\n")
    config.routing()
    first = await open_door(Options(config.path, environ={}), Listen(port=0))
    try:
        page = await look(first.urls[0])
        await expect(page.locator("#models")).to_contain_text("no valid configuration yet")
        await expect(page.locator("#notice-refused")).to_contain_text("models.yaml:1:")
    finally:
        await first.close(0)
    await expect(page.locator("#connection")).to_contain_text("Disconnected since")
    await expect(page.locator("#notice-lost")).to_contain_text("Disconnected since")
    config.models(m={"a": "http://127.0.0.1:1"})
    again = await open_door(Options(config.path, environ={}), Listen(port=first.ports[0]))
    try:
        await expect(page.locator("#connection")).to_have_text("Live")
        await expect(page.locator(".model-name")).to_have_text("m")
        await expect(page.locator("#notices")).to_be_empty()
    finally:
        await again.close(0)
