// The live charts: ten minutes, a point a second. The pointer reads a moment in all of them at once.

import { byId, h, setAttribute, setText } from "./dom.js";
import { compact, count, milliseconds, rate, time } from "./format.js";

const SPAN = 600;
const LEAST = 120;
const MEAN = 10;
const SYNC = "gateway";
const [AT, REQUESTS, ERRORS, FALLBACKS, TOKENS, P50, P99] = [0, 1, 2, 3, 4, 5, 6];

// The mean of a column over the last ten seconds, at each of them.
function means(rows, column) {
  let sum = 0;
  return rows.map((row, place) => {
    sum += row[column] - (place >= MEAN ? rows[place - MEAN][column] : 0);
    return sum / Math.min(place + 1, MEAN);
  });
}

// A column's sums over whole ten seconds, at the middle of each, so that a bar stands still.
function tens(rows, columns) {
  const sums = new Map();
  for (const row of rows) {
    const start = row[AT] - (row[AT] % MEAN);
    const sum = sums.get(start) ?? columns.map(() => 0);
    columns.forEach((column, place) => (sum[place] += row[column]));
    sums.set(start, sum);
  }
  return [[...sums.keys()].map((start) => start + MEAN / 2), ...columns.map((_, place) => [...sums.values()].map((sum) => sum[place]))];
}

const short = (value) => (value < 10000 ? rate(value) : compact(value));
const column = (rows, place) => rows.map((row) => row[place]);
const noneYet = (rows) => (rows.length < SPAN ? "None yet" : "None in ten minutes");
const none = (rows, ...columns) => !rows.some((row) => columns.some((place) => row[place]));

const CHARTS = [
  {
    id: "rate", title: "Requests", unit: "/ s", note: "mean over 10 s", least: 1,
    series: [{ name: "requests", color: "--series-a", fill: true, tell: rate }],
    data: (rows) => [column(rows, AT), means(rows, REQUESTS)],
    empty: (rows) => none(rows, REQUESTS) && noneYet(rows),
  },
  {
    id: "first", title: "Time to first token", unit: "", note: "of streams, over 10 s", least: 100, span: true,
    series: [{ name: "p50", color: "--series-b", fill: true, tell: milliseconds }, { name: "p99", color: "--series-c", dash: [4, 3], tell: milliseconds }],
    data: (rows) => [column(rows, AT), column(rows, P50), column(rows, P99)],
    axis: (value) => (value >= 1000 ? `${value / 1000} s` : `${value} ms`),
    empty: (rows) => none(rows, P50) && noneYet(rows),
  },
  {
    id: "tokens", title: "Output tokens", unit: "/ s", note: "mean over 10 s", least: 10,
    series: [{ name: "tokens", color: "--series-d", fill: true, tell: rate }],
    data: (rows) => [column(rows, AT), means(rows, TOKENS)],
    empty: (rows) => none(rows, TOKENS) && (none(rows, REQUESTS) ? noneYet(rows) : "No usage reported"),
  },
  {
    id: "trouble", title: "Errors and fallbacks", unit: "", note: "per 10 s", least: 4, bars: true,
    series: [{ name: "errors", color: "--bad", tell: count }, { name: "fallbacks", color: "--warn", tell: count }],
    data: (rows) => tens(rows, [ERRORS, FALLBACKS]),
    empty: (rows) => none(rows, ERRORS, FALLBACKS) && noneYet(rows),
  },
];

// Colours are CSS's: a canvas has to be told what they come to in the theme of now.
function resolve(name) {
  const probe = h("span", { class: "probe" });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

const faint = (color, alpha) => color.replace(/^rgba?\(([^,]+),([^,]+),([^,)]+).*$/, `rgba($1,$2,$3, ${alpha})`);

function card(chart) {
  const values = chart.series.map((series) => ({ series, number: h("span", { class: "value" }, "–") }));
  const single = chart.series.length === 1;
  const reading = h("p", { class: "reading" }, ...values.map(({ series, number }) => {
    const swatch = h("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = `var(${series.color})`;
    return h("span", { class: "one" }, number, single ? h("span", { class: "unit" }, ` ${chart.unit}`) : h("span", { class: "unit" }, swatch, series.name));
  }));
  const note = h("span", { class: "hint" }, chart.note);
  const plot = h("div", { class: "plot", role: "img" });
  const blank = h("p", { class: "blank unknown" }, "Waiting for the first state.");
  const element = h("article", { class: "card chart", id: `chart-${chart.id}` }, h("div", { class: "card-head" }, h("h3", {}, chart.title), note), reading, h("div", { class: "stage" }, plot, blank));
  return { element, plot, blank, note, values };
}

// Hours and minutes. A label is left out where the right edge would cut it or the other axis has its lowest one, and
// before there is any time to tell.
function clockTicks(plot, ticks) {
  const { min, max } = plot.scales.x;
  const room = ((max - min) * 18) / Math.max(plot.width - 62, 60);
  return ticks.map((tick) => (!plot.span || tick - min < room || max - tick < room ? "" : time(tick).slice(0, 5)));
}

function options(chart, size, hover) {
  const ink = resolve("--muted");
  const grid = resolve("--grid");
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const bars = chart.bars ? [-1, 1].map((align) => window.uPlot.paths.bars({ size: [0.4, 8, 2], align })) : [];
  return {
    ...size,
    padding: [6, 10, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: SYNC, setSeries: false }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
    scales: { x: { time: true, range: (plot) => plot.span ?? [0, 1] }, y: { range: (_, low, high) => [0, Math.max(chart.least, (high ?? 0) * 1.12)] } },
    axes: [
      { stroke: ink, font, grid: { show: false }, ticks: { show: false }, size: 22, gap: 4, space: 52, incrs: [60, 120, 300], values: clockTicks },
      { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: chart.axis ? 52 : 40, gap: 4, space: 32, values: (_, ticks) => ticks.map((tick) => (chart.axis ?? short)(tick)) },
    ],
    series: [{}, ...chart.series.map((series, place) => {
      const color = resolve(series.color);
      const fill = chart.bars ? faint(color, 0.85) : series.fill ? faint(color, 0.12) : undefined;
      return { stroke: color, width: chart.bars ? 0 : 1.5, fill, dash: series.dash, paths: bars[place], spanGaps: false, points: { show: false } };
    })],
    hooks: { setCursor: [hover] },
  };
}

function live(chart) {
  const view = card(chart);
  let plot = null;
  let rows = [];
  let data = [[]];

  // Shows the values at a place of the data, or the newest.
  function read(place) {
    const at = place ?? data[0].length - 1;
    view.values.forEach(({ series, number }, index) => setText(number, at < 0 || data[index + 1][at] === null ? "–" : series.tell(data[index + 1][at])));
    setText(view.note, place === null ? chart.note : `at ${time(data[0][at])}`);
  }

  const hover = (hovered) => read(hovered.cursor.left >= 0 ? (hovered.cursor.idx ?? null) : null);
  const size = () => ({ width: Math.max(120, view.plot.clientWidth), height: Math.max(80, view.plot.clientHeight) });

  function build() {
    plot?.destroy();
    plot = new window.uPlot(options(chart, size(), hover), data, view.plot);
    if (rows.length) draw();
  }

  function draw() {
    const end = rows.at(-1)[AT];
    plot.span = [end - Math.min(SPAN, Math.max(LEAST, rows.length)), end];
    plot.setData(data, true);
  }

  function update(state) {
    rows = state.seconds;
    const blank = chart.empty(rows);
    setText(view.blank, blank || "");
    view.blank.hidden = !blank;
    if (!rows.length) return;
    data = chart.data(rows);
    draw();
    if (!(plot.cursor.left >= 0)) read(null);
    const said = view.values.map(({ series, number }) => `${series.name} ${number.textContent} ${chart.unit}`).join(", ");
    if (!(rows.at(-1)[AT] % MEAN)) setAttribute(view.plot, "aria-label", `${chart.title}, a chart of the last ten minutes; now ${said}`);
  }

  setAttribute(view.plot, "aria-label", `${chart.title}, a chart of the last ten minutes`);
  return { element: view.element, build, update, resize: () => plot?.setSize(size()) };
}

export function chartsView() {
  const charts = CHARTS.map(live);
  byId("charts").append(...charts.map((chart) => chart.element));
  for (const chart of charts) chart.build();
  new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(byId("charts"));
  return {
    update: (state) => charts.forEach((chart) => chart.update(state)),
    repaint: () => charts.forEach((chart) => chart.build()),
  };
}
