// Line charts as SVG: a few hundred points, redrawn once a second.

import { el, say, svg } from "./dom.js";
import { clock } from "./format.js";

const WIDTH = 600, HEIGHT = 110;
const SHORTEST_MS = 60000;

/** A round number not below `value`: 1, 2 or 5 times a power of ten. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export class Chart {
  /** `format` writes a value; `seconds`: how much time is shown at most. */
  constructor(figure, title, format, seconds) {
    this.format = format;
    this.seconds = seconds;
    this.title = title;
    this.lines = new Map();
    this.caption = el("figcaption", {}, el("b", {}, title));
    this.top = el("span");
    this.middle = el("span");
    this.from = el("span");
    this.plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      ...[0.5, HEIGHT / 2, HEIGHT - 0.5].map((y) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y })));
    figure.append(this.caption, el("div", { class: "chart" },
      el("div", { class: "axis" }, this.top, this.middle, el("span", {}, "0")), this.plot,
      el("div", { class: "times" }, this.from, el("span", {}, "now"))));
  }

  /** `series`: [{name, look, points: [[ms, value], …]}]. */
  draw(series, now) {
    const oldest = Math.min(...series.map(({ points }) => points[0]?.[0] ?? now));
    const width = Math.min(Math.max(now - oldest, SHORTEST_MS), this.seconds * 1000);
    const begin = now - width;
    let most = 0;
    for (const { points } of series) for (const [t, value] of points) if (t >= begin && value > most) most = value;
    const top = ceiling(most);
    const names = new Set(series.map((one) => one.name));
    for (const [name, line] of this.lines) {
      if (!names.has(name)) {
        line.path.remove();
        line.legend.remove();
        this.lines.delete(name);
      }
    }
    const last = [];
    for (const { name, look, points } of series) {
      const line = this.lines.get(name) ?? this.add(name, look);
      let path = "", pen = "M";
      for (const [t, value] of points) {
        if (t < begin) continue;
        if (value === undefined || value === null) {
          pen = "M"; // a gap: nothing was signed
          continue;
        }
        const x = ((t - begin) / width) * WIDTH, y = HEIGHT - 1 - (value / top) * (HEIGHT - 3);
        path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
        pen = "L";
      }
      line.path.setAttribute("d", path);
      const value = points.at(-1)?.[1];
      say(line.value, this.format(value));
      last.push(`${name} ${this.format(value)}`);
    }
    say(this.top, this.format(top));
    say(this.middle, this.format(top / 2));
    say(this.from, clock(begin));
    this.plot.setAttribute("aria-label", `${this.title}. ${last.join("; ") || "no data"}`);
  }

  add(name, look) {
    const path = svg("path", { class: `series ${look}` });
    const value = el("b");
    const sample = svg("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" },
      svg("path", { class: `series ${look}`, d: "M0 4L22 4" }));
    const legend = el("span", { class: "legend" }, sample, `${name} `, value);
    this.plot.append(path);
    this.caption.append(legend);
    const line = { path, legend, value };
    this.lines.set(name, line);
    return line;
  }
}
