// Numbers and times as people read them at three in the morning: UTC, few digits, units.

const number = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

export const whole = (value) => (value === undefined || value === null ? "–" : number.format(value));

export function rate(value) {
  if (value === undefined || value === null) return "–";
  return value >= 100 ? number.format(Math.round(value)) : short.format(value);
}

/** Microseconds. */
export function micros(value) {
  if (value === undefined || value === null) return "–";
  if (value < 1000) return `${Math.round(value)} µs`;
  if (value < 1e6) return `${(value / 1e3).toPrecision(3)} ms`;
  return `${(value / 1e6).toPrecision(3)} s`;
}

const iso = (ms) => new Date(ms).toISOString();
export const clock = (ms) => iso(ms).slice(11, 19);
export const day = (ms) => iso(ms).slice(0, 10);

/** Unix nanoseconds as a <time>'s text, with the date where it is not today. */
export function when(ns) {
  if (!ns) return "–";
  const ms = ns / 1e6;
  return day(ms) === day(Date.now()) ? clock(ms) : `${day(ms)} ${clock(ms).slice(0, 5)}`;
}

/** How long until a moment in milliseconds, or since it. */
export function until(ms) {
  const left = ms - Date.now();
  const minutes = Math.abs(left) / 60000;
  const size = minutes < 90 ? `${Math.round(minutes)} min` : minutes < 2880 ? `${Math.round(minutes / 60)} h`
    : `${Math.round(minutes / 1440)} days`;
  return left >= 0 ? `in ${size}` : `${size} ago`;
}

const DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/** Hexadecimal as base58, the form of a Solana address. */
export function base58(value) {
  let number = BigInt(`0x0${value}`), text = "";
  for (; number > 0n; number /= 58n) text = DIGITS[Number(number % 58n)] + text;
  return "1".repeat(/^(00)*/.exec(value)[0].length / 2) + text;
}

export const hex = (value, length = 12) =>
  !value ? "–" : value.length > length + 1 ? `${value.slice(0, length)}…` : value;
