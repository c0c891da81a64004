// How numbers, times and names are written; small helpers for elements. Keys and all other text
// that comes from users enters the page through `textContent`, and in no other way.

export const $ = (selector) => document.querySelector(selector);

/** An element with a class and children: elements, or text. */
export function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** Write only what changed, so that nothing is laid out, or read aloud, for nothing. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 0.034, 1.25, 12.5, 1,234, 12.3k */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size >= 100 || Number.isInteger(value)) return whole.format(value);
  if (size < 0.005) return "0";
  return size < 1 ? String(Number(value.toFixed(2))) : String(Number(value.toPrecision(3)));
}

export const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`);
/** The nominal coverage of an interval: 80 %, 99.5 % */
export const nominal = (level) => `${Number((100 * level).toFixed(3))} %`;
export function signed(value) {
  const size = number(Math.abs(value ?? NaN));
  return size === "0" ? size : `${value > 0 ? "+" : "−"}${size}`;
}

/** 4 s, 3 min, 5 h, 2 days */
export function span(seconds) {
  const size = Math.max(0, seconds);
  if (size < 90) return `${Math.round(size)} s`;
  if (size < 5400) return `${Math.round(size / 60)} min`;
  if (size < 172800) return `${Math.round(size / 3600)} h`;
  return `${Math.round(size / 86400)} days`;
}

export function bytes(count) {
  for (const unit of ["bytes", "kB", "MB", "GB"]) {
    if (count < 1000 || unit === "GB") return `${count < 10 && unit !== "bytes" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1000;
  }
}

export function step(seconds) {
  const named = { 1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week" };
  for (const [unit, name] of [[86400, "days"], [3600, "hours"], [60, "minutes"], [1, "seconds"]]) {
    if (named[seconds]) return named[seconds];
    if (seconds % unit === 0) return `${seconds / unit} ${name}`;
  }
}

let zone = "UTC";
let forms = {};
export const timezone = () => zone;
export function useZone(name) {
  if (name !== zone) [zone, forms] = [name, {}];
}

/** An instant in the pipeline's own time zone: as a clock, a day, or both. */
export function time(ms, form = "both") {
  forms[form] ??= new Intl.DateTimeFormat("en-GB", {
    timeZone: zone,
    ...(form === "clock" ? {} : form === "day" ? { day: "numeric", month: "short" } : { weekday: "short", day: "numeric", month: "short" }),
    ...(form === "day" ? {} : { hour: "2-digit", minute: "2-digit" }),
  });
  return forms[form].format(ms);
}

/** Bars (or a line) of some numbers, without axes: an SVG to be read at a glance. */
export function spark(svg, values, { line = false, top = null } = {}) {
  let last = 0;
  const known = values.map((value) => (last = value ?? (line ? last : 0)));
  const highest = top ?? Math.max(...known, 1e-9);
  const count = known.length;
  let path = "";
  if (line) {
    const points = known.map((value, i) => `${i} ${(1 - Math.max(0, value) / highest).toFixed(3)}`);
    path = count > 1 ? `M${points.join("L")}` : "";
  } else {
    known.forEach((value, i) => {
      const height = Math.max(0, value) / highest;
      if (height) path += `M${i + 0.15} 1V${(1 - height).toFixed(3)}h.7V1z`;
    });
  }
  svg.setAttribute("viewBox", `0 0 ${Math.max(1, line ? count - 1 : count)} 1`);
  if (line) svg.children[1].setAttribute("d", path && `${path}L${count - 1} 1L0 1z`);
  svg.children[0].setAttribute("d", path);
}

export function sparkline(line = false) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const name of line ? ["line", "area"] : [""]) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  return svg;
}

/** A key as it can be shown: what would not be seen, or turns the direction of writing, spelled out. */
export const shown = (key) => key.replace(/\p{C}/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`) || "(empty)";
