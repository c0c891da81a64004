// One key: its numbers, its fans, who carries them, and the message as it was published.

import { Fan } from "./fan.js";
import { $, make, number, percent, shown, signed, spark, sparkline, step, time, write } from "./words.js";

const charts = [];
const numbers = new Map();
const panels = new Map();
const MOST_EXPERTS = 6;
let past = null;

/** Another key is looked at: nothing of the one before may be taken for it. */
export function forgetKey(id) {
  if (past && past.id !== id) past = null;
  for (const chart of charts) chart.reset();
  write($("#key-name"), "…");
  write($("#key-note"), "");
}

export function hearPast(answer) {
  past = answer;
}

const pastOf = (id, step_s) => (past?.id === id ? past.resolutions.find((r) => r.step_s === step_s) : null);

/** The fan of the finest resolution alone, for the overview. */
export function showHero(chart, key) {
  const resolution = key.forecast.resolutions[0];
  chart.update(key.windows[0], resolution, pastOf(key.id, resolution.step_s), key.bands);
}

export function showKey(key) {
  write($("#key-name"), shown(key.key));
  document.title = `${shown(key.key)} · stream_forecaster`;
  const known = key.known;
  for (const id of ["#intent", "#charts", "#experts"]) $(id).hidden = !known;
  if (!known) {
    $("#badges").replaceChildren();
    return write($("#key-note"), "This process does not have this key: it has sent no event, was forgotten, or lives in another partition.");
  }
  const { forecast } = key;
  const { quality, intent } = forecast;
  write($("#key-note"), `${number(quality.observations)} events, the newest ${time(key.seen_ms)} · partition ${key.partition}${key.partitions > 1 ? ` and ${key.partitions - 1} others` : ""} · ${key.published ? `issued ${time(Date.parse(forecast.issued_at))}` : "as the state has it; the next hop publishes"}`);
  badges(quality);
  showNumbers(intent, quality, `per ${step(forecast.resolutions[0].step_s)}`);
  forecast.resolutions.forEach((resolution, r) => {
    charts[r] ??= addChart(r);
    charts[r].update(key.windows[r], resolution, pastOf(key.id, resolution.step_s), key.bands);
    showExperts(resolution, pastOf(key.id, resolution.step_s));
  });
  write($("#message-id"), forecast.id);
  // Rows of numbers on one line. No string has a line break in it, so none is taken for a row.
  write($("#message"), JSON.stringify(forecast, null, 2).replace(/\[\n[-+.\deE,\s]+\]/g, (row) => row.replace(/\s+/g, " ")));
}

function badges(quality) {
  const found = [[quality.origin, "accent"], [quality.drift, quality.drift === "stable" ? "" : "warn"]];
  if (quality.cold_start) found.push(["cold start", "accent"]);
  $("#badges").replaceChildren(...found.map(([name, kind]) => make("span", `badge ${kind}`, name)));
}

function showNumbers(intent, quality, per) {
  tile("Short-term level", number(intent.short_term), `${per}, of late`);
  tile("Long-term level", number(intent.long_term), `${per}, as a rule`);
  tile("Momentum", signed(intent.momentum), intent.momentum > 0.1 ? "rising" : intent.momentum < -0.1 ? "fading" : "as usual", intent.momentum / 2);
  tile("Surprise", signed(intent.surprise), "expected errors off", intent.surprise / 6);
  tile("Skill", quality.skill === null ? "–" : `${signed(Math.round(100 * quality.skill))} %`, "against the last value");
  tile("Coverage", percent(quality.coverage_80), "inside the 80 % interval");
}

/** A number; `tilt` from -1 to 1 is drawn from the middle. */
function tile(name, value, detail, tilt) {
  let of = numbers.get(name);
  if (!of) {
    of = { number: document.createTextNode(""), detail: make("small"), track: tilt === undefined ? null : make("div", "track mid", make("i"), make("u")) };
    const place = make("div", "", make("dt", "", name), make("dd", "", of.number, " ", of.detail));
    if (of.track) place.append(of.track);
    $("#intent").append(place);
    numbers.set(name, of);
  }
  if (of.number.data !== value) of.number.data = value;
  write(of.detail, detail);
  if (!of.track) return;
  const size = 50 * Math.min(1, Math.abs(tilt));
  Object.assign(of.track.children[0].style, { left: `${tilt < 0 ? 50 - size : 50}%`, width: `${size}%` });
}

function addChart(r) {
  const place = make("section", "card chart");
  if (r === 0) $("#charts").append(place, make("div", "pair"));
  else $("#charts .pair").append(place);
  return new Fan(place, { height: r ? 210 : 300, legend: r ? null : make("ul", "legend") });
}

/** The heaviest experts now, and how that came. */
function showExperts(resolution, past) {
  let panel = panels.get(resolution.step_s);
  if (!panel) {
    panel = { rows: [], list: make("div", "experts") };
    $("#experts").append(make("section", "card", make("h3", "", `By the ${step(resolution.step_s)}`), panel.list));
    panels.set(resolution.step_s, panel);
  }
  const names = new Map((past?.experts ?? []).map((expert, m) => [expert.name, { ...expert, m }]));
  const heaviest = Object.entries(resolution.weights).sort((a, b) => b[1] - a[1]).slice(0, MOST_EXPERTS);
  const top = Math.max(0.05, ...heaviest.map(([, weight]) => weight), ...(past ? past.weights.flatMap((of) => Math.max(...of)) : []));
  while (panel.rows.length < heaviest.length) {
    const row = { place: make("div", "expert"), name: make("span"), spark: sparkline(true), weight: make("b") };
    row.place.append(row.name, row.spark, row.weight);
    panel.list.append(row.place);
    panel.rows.push(row);
  }
  panel.rows.forEach((row, i) => {
    row.place.hidden = i >= heaviest.length;
    if (row.place.hidden) return;
    const [name, weight] = heaviest[i];
    const expert = names.get(name);
    write(row.name, expert?.label ?? name.replaceAll("_", " "));
    row.name.title = name;
    write(row.weight, percent(weight));
    const history = expert ? past.weights.map((of) => of[expert.m]) : [];
    spark(row.spark, history, { line: true, top });
  });
}
