"""The page's files: that all of them come, and nothing but them."""

import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gateway
from gateway.api.page import read
from tests.execution.support import Running, chain, running
from tests.fakes.client import get
from tests.running import Config

FOLDER = Path(gateway.__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ROUTE = {"m": chain("http://127.0.0.1:1")}


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in {"script", "style"}:
            self.code += data.strip()

    def named(self, *attributes: str) -> list[str]:
        """Give the values of these attributes."""
        return [value for _, found in self.tags for name in attributes if (value := found.get(name)) is not None]


def index() -> Tags:
    return Tags((FOLDER / "index.html").read_text(encoding="utf-8"))


async def fetch(gate: Running, target: str, **headers: str) -> tuple[int, dict[str, str | None], bytes]:
    answer = await gate.say(get(target, [(name.replace("_", "-"), value) for name, value in headers.items()]))
    names = ("content-type", "content-security-policy", "x-content-type-options", "referrer-policy", "cache-control")
    return answer.status, {name: answer.head.get(name) for name in (*names, "etag")}, answer.body


async def test_every_file_comes_with_its_headers(config: Config) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    files = {str(path.relative_to(FOLDER)): path for path in FOLDER.rglob("*") if path.suffix in kinds}
    assert len(files) > 10
    targets = {"/": FOLDER / "index.html", "/dashboard": FOLDER / "index.html"}
    targets |= {f"/assets/{name}": path for name, path in files.items()}
    async with running(config, ROUTE) as gate:
        for target, path in targets.items():
            status, headers, body = await fetch(gate, target)
            assert (status, body) == (200, path.read_bytes()), target
            etag = headers.pop("etag")
            assert headers == {
                "content-type": f"{kinds[path.suffix]}; charset=utf-8",
                "content-security-policy": POLICY,
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
                "cache-control": "no-cache",
            }
            assert etag
            status, headers, body = await fetch(gate, target, if_none_match=f'"other", {etag}')
            assert (status, headers["etag"], body) == (304, etag, b"")
            assert (await fetch(gate, target, if_none_match='"other"'))[0] == 200
            assert (await fetch(gate, target, if_none_match="*"))[0] == 304


@pytest.mark.parametrize(
    "target",
    [
        "/assets/../server.py",
        "/assets/%2e%2e/server.py",
        "/assets/..%2fserver.py",
        "/assets//etc/passwd",
        "/assets/vendor/uplot",
        "/assets/vendor/uplot/LICENSE",
        "/assets/",
        "/dashboard/",
    ],
)
async def test_nothing_else_comes(config: Config, target: str) -> None:
    async with running(config, ROUTE) as gate:
        status, headers, _ = await fetch(gate, target)
        assert (status, headers["content-type"]) == (404, "application/json")


async def test_the_page_comes_without_a_configuration(config: Config) -> None:
    config.save("models.yaml", "models: 1\n")
    async with running(config) as gate:
        assert (await fetch(gate, "/"))[0] == 200


def test_no_script_and_no_style_stands_in_the_page() -> None:
    page = index()
    assert page.code == ""
    assert "style" not in {tag for tag, _ in page.tags}
    assert all(attributes.get("src") for tag, attributes in page.tags if tag == "script")
    inline = [name for _, attributes in page.tags for name in attributes if re.fullmatch(r"style|on\w+", name)]
    assert inline == []


def test_everything_asked_for_is_there_and_nothing_else() -> None:
    """Relative addresses alone: the page may stand below another path."""
    assets = read()
    named = [name.removeprefix("assets/") for name in index().named("src", "href") if name.startswith("assets/")]
    others = [name for name in index().named("src", "href") if not name.startswith("assets/")]
    assert others == ["#main", "routing", "routing", "health"]
    wanted = {"index.html", *named}
    waiting = [name for name in wanted if name.endswith(".js") and "/" not in name]
    while waiting:
        imported = re.findall(r'from "\./([^"]+)"', assets[waiting.pop()].body.decode())
        waiting += set(imported) - wanted
        wanted |= set(imported)
    assert wanted == set(assets)


def test_what_is_shown_never_becomes_html() -> None:
    sinks = re.compile(r"(?:inner|outer|Adjacent)HTML|document\.write|srcdoc|\beval\(|new Function|javascript:")
    ours = list(FOLDER.glob("*.js"))
    assert len(ours) > 5
    assert [(path.name, found) for path in ours for found in sinks.findall(path.read_text(encoding="utf-8"))] == []


def test_nothing_comes_from_elsewhere() -> None:
    url = re.compile(r"https?://[^\s\"'`]+")
    texts = [path for path in FOLDER.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"}]
    found = {match for path in texts for match in url.findall(path.read_text(encoding="utf-8"))}
    assert {each for each in found if "w3.org" not in each and "github.com/leeoniya/uPlot" not in each} == set()


def test_a_wheel_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, check=True, cwd=FOLDER.parents[1], capture_output=True)  # noqa: S603 - our own build
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gateway/page/")}
    assert held == {f"gateway/page/{path.relative_to(FOLDER)}" for path in FOLDER.rglob("*") if path.is_file()}
    assert "gateway/page/vendor/uplot/LICENSE" in held
