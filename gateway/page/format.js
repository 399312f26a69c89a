// Numbers, durations and times for people, in the reader's own locale.

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const two = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long", hourCycle: "h23" });

const SIZES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

// At most six characters: 12.3k, 4M, >999T.
export function compact(value) {
  if (value >= 999.95e12) return ">999T";
  const [size, letter] = SIZES.find(([size]) => value >= size * 0.99995) ?? [1, ""];
  return `${one.format(value / size)}${letter}`;
}

export const count = (value) => (value < 100000 ? whole.format(value) : compact(value));

export function rate(value) {
  if (value === 0) return "0";
  if (value < 0.995) return two.format(value);
  return value < 99.95 ? one.format(value) : count(value);
}

export function percent(part) {
  if (part === null || part === undefined) return "–";
  const value = part * 100;
  if (value > 0 && value < 0.1) return "<0.1 %";
  if (value > 99.9 && value < 100) return ">99.9 %";
  return `${one.format(value)} %`;
}

// Milliseconds, as they are spoken of.
export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${one.format(value)} ms`;
  if (value < 1000) return `${whole.format(value)} ms`;
  return value < 60000 ? `${value < 10000 ? two.format(value / 1000) : one.format(value / 1000)} s` : duration(value / 1000);
}

// Seconds, in the two largest units: 3 h 12 min.
export function duration(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const place = units.findIndex(([size]) => total >= size);
  if (place < 0) return "0 s";
  const [size, name] = units[place];
  const text = `${Math.floor(total / size)} ${name}`;
  const next = units[place + 1];
  const rest = next ? Math.floor((total % size) / next[0]) : 0;
  return rest && place < 2 ? `${text} ${rest} ${next[1]}` : text;
}

export const ago = (seconds) => (seconds < 1.5 ? "just now" : `${duration(seconds)} ago`);

export function money(usd) {
  const digits = usd !== 0 && Math.abs(usd) < 0.1 ? 4 : 2;
  return new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", minimumFractionDigits: digits, maximumFractionDigits: digits }).format(usd);
}

// Times are seconds since the epoch.
export const time = (seconds) => clock.format(seconds * 1000);
export const moment = (seconds) => full.format(seconds * 1000);
export const seconds = (iso) => (iso ? Date.parse(iso) / 1000 : null);
export const stamp = (value) => new Date(value * 1000).toISOString();

export function zone() {
  const now = new Date();
  const part = (style) => new Intl.DateTimeFormat(undefined, { timeZoneName: style }).formatToParts(now).find((each) => each.type === "timeZoneName").value;
  const named = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const offset = part("shortOffset");
  return named === offset ? named : `${named} (${offset})`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
