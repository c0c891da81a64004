// The chart of one resolution: what came true as bars, what is forecast as a fan, and behind the bars
// what had been forecast for each of them. A slider goes back to earlier fans.
//
//     truth   ▂▅▃█▆        x: the middle of each bucket
//     past    ░░░░░ ▒▒▒▓   the intervals: two at most, the wide one first; none, if so it is set
//                  ^ now

import { make, nominal, number, step, time, timezone, write } from "./words.js";

const TRUTH = 1, OPEN = 2, MISS = 3, AVERAGE = 4, PAST = 5, FAN = 9, MEAN = 13;
const FEWEST = 8; // buckets of the past that are always shown
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faded = (name, share) => () => `color-mix(in srgb, ${color(name)} ${share}%, transparent)`;

export class Fan {
  #plot = null;
  #window = null;
  #past = null;
  #look = null; // issued_ms of the fan looked back at; null: the newest

  /** @param legend a list to be filled with what is drawn, if there is one */
  constructor(place, { height, title = true, legend = null }) {
    this.height = height;
    this.legend = legend;
    this.heading = make("h2");
    this.slider = make("input");
    Object.assign(this.slider, { type: "range", min: 0, max: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Look back at earlier forecasts");
    this.slider.addEventListener("input", () => this.#scrub());
    this.verdict = make("output");
    this.scrubber = make("div", "scrub", this.slider, this.verdict);
    this.scrubber.hidden = true;
    this.plot = make("div", "plot");
    this.plot.setAttribute("role", "img");
    this.tip = make("div", "tip");
    this.tip.hidden = true;
    this.plot.append(this.tip);
    if (title) place.append(make("div", "title", this.heading, ...(legend ? [legend] : [])));
    place.append(this.plot, this.scrubber);
    new ResizeObserver(() => this.#resize()).observe(this.plot);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#plot?.redraw());
  }

  /**
   * Draw a key: its buckets, the forecast (as in the message), and the fans before, if known.
   *
   * @param bands the intervals that are drawn, the widest first: `level`, and which of the forecast's
   *   quantiles are `low` and `high`; those of `past` are the same ones
   */
  update(window, forecast, past, bands) {
    if (this.#window && this.#window.step_s !== window.step_s) this.#plot?.destroy(), (this.#plot = null);
    this.#window = trimmed(window);
    this.forecast = forecast;
    this.bands = bands;
    if (this.legend) name(this.legend, bands);
    this.#past = past;
    const count = past?.issued_ms.length ?? 0;
    let at = this.#look === null ? count : past ? past.issued_ms.indexOf(this.#look) : -1;
    if (at < 0) [at, this.#look] = [count, null];
    this.slider.max = count;
    this.slider.value = at;
    this.scrubber.hidden = count < 2;
    write(this.heading, `By the ${step(window.step_s)}`);
    this.#draw();
  }

  /** Another key: forget where we looked. */
  reset() {
    this.#look = this.#past = null;
  }

  #scrub() {
    const at = Number(this.slider.value);
    this.#look = at < this.#past.issued_ms.length ? this.#past.issued_ms[at] : null;
    this.#draw();
  }

  #draw() {
    const w = this.#window;
    const data = this.#columns(w);
    this.data = data;
    if (this.#plot) this.#plot.setData(data);
    else this.#make(data);
    const { mean, quantiles } = this.forecast;
    const between = this.bands.slice(-1).map(({ level, low, high }) => `, ${nominal(level)} between ${number(quantiles[low][0])} and ${number(quantiles[high][0])}`);
    this.plot.setAttribute(
      "aria-label",
      `By the ${step(w.step_s)}: ${number(w.values.at(-1))} in the newest closed one, average ` +
        `${number(w.average)}, next ${number(mean[0])}${between}`,
    );
  }

  #columns(w) {
    const size = w.at.length;
    const row = new Map(w.at.map((ms, i) => [ms, i]));
    const data = Array.from({ length: MEAN + 1 }, () => new Array(size).fill(null));
    const width = (i) => (i + 1 < size ? w.at[i + 1] : w.at[i] + 1000 * w.step_s) - w.at[i];
    w.at.forEach((ms, i) => (data[0][i] = (ms + width(i) / 2) / 1000));
    w.values.forEach((value, i) => (data[TRUTH][i] = value));
    w.open.forEach((value, i) => (data[OPEN][w.closed + i] = value || null));
    this.#drawPast(data, row, w);
    const at = Number(this.slider.value);
    const back = this.#past && at < this.#past.issued_ms.length ? at : null;
    const fan = back === null ? fromMessage(this.forecast, this.bands) : fromPast(this.#past, back);
    const begin = row.get(fan.start_ms);
    if (begin !== undefined) {
      // What of the newest one is past by now is behind the bars already.
      const from = back === null ? w.closed : 0;
      const put = (series, values) => values.forEach((value, i) => begin + i >= from && begin + i < size && (data[series][begin + i] = value));
      fan.bounds.forEach((values, k) => put(FAN + k, values));
      put(MEAN, fan.mean);
    }
    this.#judge(fan, begin, data, back);
    return data;
  }

  /** What the newest forecast before each bucket had said of it; and which buckets were outside. */
  #drawPast(data, row, w) {
    const past = this.#past;
    if (!past) return;
    let issue = -1;
    for (let at = 0; at <= w.closed; at += 1) {
      while (issue + 1 < past.start_ms.length && past.start_ms[issue + 1] <= w.at[at]) issue += 1;
      if (issue < 0) continue;
      data[AVERAGE][at] = past.average[issue];
      const ahead = at - (row.get(past.start_ms[issue]) ?? -Infinity);
      if (at === w.closed || ahead >= past.mean[issue].length) continue;
      past.bands.forEach((band, k) => {
        data[PAST + 2 * k][at] = band.low[issue][ahead];
        data[PAST + 2 * k + 1][at] = band.high[issue][ahead];
      });
      const truth = data[TRUTH][at];
      if (past.bands.length && truth !== null && (truth < data[PAST][at] || truth > data[PAST + 1][at])) {
        [data[MISS][at], data[TRUTH][at]] = [truth, null];
      }
    }
    data[AVERAGE][w.closed] = w.average;
  }

  /** Say how a fan that is looked back at has fared. */
  #judge(fan, begin, data, back) {
    const said = this.verdict;
    said.replaceChildren();
    if (back === null) return said.append(make("b", "", "now"), " · drag back to see what earlier forecasts were worth");
    let came = 0, inside = 0;
    const [low, high] = fan.bounds.slice(-2); // none, if there are no intervals
    fan.mean.forEach((_, i) => {
      const at = begin + i;
      const truth = at < this.#window.closed ? (data[TRUTH][at] ?? data[MISS][at]) : null;
      if (truth === null || truth === undefined) return;
      came += 1;
      inside += low && low[i] <= truth && truth <= high[i];
    });
    const fared = this.bands.length ? `${inside} of ${came} came true inside ${nominal(this.bands.at(-1).level)}` : `${came} came true`;
    said.append(make("b", "", `as issued ${time(fan.issued_ms)}`), ` · ${came ? fared : "not due yet"}`);
  }

  #make(data) {
    const w = this.#window;
    const bars = uPlot.paths.bars({ size: [0.7, 28], radius: 0.12 });
    const none = { points: { show: false } };
    const bar = (fill) => ({ ...none, paths: bars, fill, width: 0 });
    const hidden = { ...none, stroke: "transparent", width: 0 };
    const daily = w.step_s >= 86400;
    this.#plot = new uPlot(
      {
        ...this.#size(),
        padding: [10, 18, 0, 0],
        legend: { show: false },
        cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
        tzDate: (seconds) => uPlot.tzDate(new Date(1000 * seconds), timezone()),
        scales: { x: { range: (_, low, high) => [low - w.step_s / 2, high + w.step_s / 2] }, y: { range: height } },
        axes: [
          { ...axis(), size: 28, space: 70, grid: { show: false }, ticks: { show: false }, values: (_, at) => at.map((s) => label(1000 * s, w.step_s)) },
          { ...axis(), size: 40, space: 36, grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false }, values: (_, at) => at.map((v) => number(v)) },
        ],
        series: [
          {},
          bar(faded("--truth", 85)),
          bar(faded("--truth", 38)),
          bar(() => color("--miss")),
          { ...none, stroke: () => color("--soft"), width: 1.25, dash: [2, 3], spanGaps: true },
          hidden, hidden, hidden, hidden, hidden, hidden, hidden, hidden,
          { ...none, stroke: () => color("--accent"), width: 2 },
        ],
        bands: [
          { series: [PAST + 1, PAST], fill: faded("--accent", 9) },
          { series: [PAST + 3, PAST + 2], fill: faded("--accent", 11) },
          { series: [FAN + 1, FAN], fill: faded("--accent", 16) },
          { series: [FAN + 3, FAN + 2], fill: faded("--accent", 26) },
        ],
        hooks: { drawAxes: [(u) => this.#drawNow(u)], setCursor: [(u) => this.#point(u)] },
      },
      data,
      this.plot,
    );
  }

  /** Where the past ends. */
  #drawNow(u) {
    const w = this.#window;
    const x = Math.round(u.valToPos(w.at[w.closed] / 1000, "x", true));
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = color("--faint");
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  #point(u) {
    const i = u.cursor.idx;
    this.tip.hidden = i === null || i === undefined || u.cursor.left < 0;
    if (this.tip.hidden) return;
    const w = this.#window;
    const of = (series) => this.data[series][i];
    const truth = of(TRUTH) ?? of(MISS);
    const lines = [make("b", "", time(w.at[i], w.step_s >= 86400 ? "day" : "both"))];
    if (truth !== null) lines.push(`\ncame true  ${number(truth)}`);
    if (of(OPEN) !== null) lines.push(`\nso far  ${number(of(OPEN))}`);
    const inner = PAST + 2 * (this.bands.length - 1);
    if (of(PAST) !== null) lines.push(`\nforecast then  ${number(of(inner))} to ${number(of(inner + 1))}`);
    if (of(MEAN) !== null && (truth === null || Number(this.slider.value) < Number(this.slider.max))) {
      const said = this.bands.map(({ level }, k) => `\n${nominal(level)}  ${number(of(FAN + 2 * k))} to ${number(of(FAN + 2 * k + 1))}`);
      lines.push(`\nforecast  ${number(of(MEAN))}`, ...said.reverse());
    }
    this.tip.replaceChildren(...lines);
    const left = u.over.offsetLeft + u.cursor.left;
    const flip = left > this.plot.clientWidth / 2;
    this.tip.style.left = `${flip ? left - this.tip.offsetWidth - 12 : left + 12}px`;
    this.tip.style.top = "12px";
  }

  #size() {
    return { width: Math.max(200, this.plot.clientWidth), height: this.height };
  }

  #resize() {
    if (this.#plot && this.plot.clientWidth && this.#plot.width !== this.plot.clientWidth) this.#plot.setSize(this.#size());
  }
}

/** Fill a legend, if it says something else. */
function name(legend, bands) {
  const levels = bands.map(({ level }) => nominal(level));
  const miss = levels.length ? [["miss", `outside ${levels[0]}`]] : [];
  // A single band has the wide one's colour.
  const named = [["mean", "forecast"], ...levels.map((said, k) => [k ? "in" : "out", said]).reverse(), ["", "came true"], ...miss, ["avg", "moving average"]];
  if (legend.textContent === named.map(([, said]) => said).join("")) return;
  legend.replaceChildren(...named.map(([kind, said]) => make("li", "", make("i", kind), said)));
}

const fromMessage = ({ start, mean, quantiles }, bands) => ({ start_ms: Date.parse(start), mean, bounds: bands.flatMap(({ low, high }) => [quantiles[low], quantiles[high]]) });
const fromPast = (past, i) => ({
  issued_ms: past.issued_ms[i],
  start_ms: past.start_ms[i],
  mean: past.mean[i],
  bounds: past.bands.flatMap((band) => [band.low[i], band.high[i]]),
});

/** A young key's window without most of the time before it. */
function trimmed(w) {
  const first = w.values.findIndex((value) => value !== null);
  const begin = Math.max(0, Math.min(first < 0 ? w.closed : first, w.closed - FEWEST) - 1);
  return { ...w, at: w.at.slice(begin), values: w.values.slice(begin), closed: w.closed - begin };
}

/** A tick: days by their date, hours by the clock and midnight by its date, minutes by the clock. */
function label(ms, step_s) {
  const clock = time(ms, "clock");
  return step_s >= 86400 || (step_s >= 3600 && clock === "00:00") ? time(ms, "day") : clock;
}

/** From zero, if that is not far from the values. */
function height(_, low, high) {
  if (low === null) return [0, 1];
  const margin = 0.06 * (high - low || Math.abs(high) || 1);
  return [low >= 0 && low <= high / 2 ? 0 : low - margin, high + margin];
}

const axis = () => ({ stroke: () => color("--faint"), font: "11px Inter, system-ui, sans-serif" });
