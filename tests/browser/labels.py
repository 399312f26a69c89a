"""What the charts have written on their canvases, and where."""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.async_api import Page

_RECORD = """
const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
Object.assign(CanvasRenderingContext2D.prototype, {
  clearRect(...area) {
    this.canvas.labels = [];
    clearRect.apply(this, area);
  },
  fillText(text, x, y) {
    const size = this.measureText(text);
    if (text) {
      const [left, right] = [x - size.actualBoundingBoxLeft, x + size.actualBoundingBoxRight];
      const [top, bottom] = [y - size.actualBoundingBoxAscent, y + size.actualBoundingBoxDescent];
      this.canvas.labels.push({ text, left, right, top, bottom });
    }
    fillText.call(this, text, x, y);
  },
});
"""
_ROOM = 4
_READ = "[...document.querySelectorAll('canvas')].map((each) => ({ width: each.width, labels: each.labels ?? [] }))"


@dataclass(frozen=True, slots=True)
class Label:
    """A text and the box around its ink."""

    text: str
    left: float
    right: float
    top: float
    bottom: float

    def touches(self, other: "Label") -> bool:
        """Tell whether there is no room between two."""
        across = self.left < other.right + _ROOM and other.left < self.right + _ROOM
        return across and self.top < other.bottom + _ROOM and other.top < self.bottom + _ROOM


@dataclass(frozen=True, slots=True)
class Chart:
    """The labels of a canvas."""

    width: float
    labels: tuple[Label, ...]

    @property
    def texts(self) -> list[str]:
        """What they say."""
        return [label.text for label in self.labels]

    @property
    def faults(self) -> list[str]:
        """Name those without room between them, and those that the canvas cuts."""
        pairs = combinations(self.labels, 2)
        touching = [f"{one.text} at {other.text}" for one, other in pairs if one.touches(other)]
        return touching + [f"{one.text} is cut" for one in self.labels if one.left < 0 or one.right > self.width]


async def record(page: "Page") -> None:
    """Note from now on what is written."""
    await page.add_init_script(_RECORD)


async def read(page: "Page") -> list[Chart]:
    """Give the charts as they are."""
    found = await page.evaluate(_READ)
    return [Chart(each["width"], tuple(Label(**label) for label in each["labels"])) for each in found]
