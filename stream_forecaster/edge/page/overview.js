// The process as a whole: how much comes, how far behind it is, how right it has been.

import { $, bytes, make, nominal, number, percent, span, spark, sparkline, step, time, useZone, write } from "./words.js";

const SMOOTHED_S = 5;
const tiles = new Map();
const cards = new Map();
let refused = {};

/** The newest few seconds of a rate, averaged: commits come in bursts. */
const newest = (rates) => {
  const last = rates.slice(-SMOOTHED_S);
  return last.length ? last.reduce((sum, rate) => sum + rate, 0) / last.length : null;
};

export function showOverview(o) {
  useZone(o.timezone);
  write($("#pipeline"), `${o.pipeline} · ${o.topic}`);
  write($("#version"), `${o.version} · up ${span((o.at_ms - o.started_ms) / 1000)} · ${bytes(o.state_bytes)} of state · ${number(o.training_steps)} training steps`);
  const known = o.watermark_ms !== null;
  const behind = known ? (o.at_ms - o.watermark_ms) / 1000 : null;
  write($("#event-time"), known ? time(o.watermark_ms) : "");
  write($("#behind"), known ? `${span(behind)} behind the clock` : "");
  const h = o.history;
  tile("Events a second", number(newest(h.events)), `${number(o.events)} since the start`, h.events);
  tile("Forecasts a second", number(newest(h.forecasts)), `${number(o.forecasts)} since the start`, h.forecasts);
  tile("Lag", number(o.lag), "records not read yet", h.lag);
  tile("Watermark", known ? span(behind) : "–", "behind the clock", h.behind_s);
  tile("Keys", number(o.keys), o.keys ? `${bytes(o.state_bytes / o.keys)} each` : "none yet");
  const rejects = Object.values(o.rejects).reduce((sum, n) => sum + n, 0);
  tile("Refused", number(rejects), o.events ? `${percent(rejects / (o.events + rejects), 2)} of all` : "nothing yet");
  o.quality.forEach((of, r) => showQuality(of, o.weights[r] ?? []));
  showPartitions(o.partitions);
  showRejects(o.rejects);
}

function tile(name, value, detail, history) {
  let of = tiles.get(name);
  if (!of) {
    of = { value: make("dd"), number: document.createTextNode(""), detail: make("small"), spark: history && sparkline(true) };
    of.value.append(of.number, " ", of.detail);
    const place = make("div", "", make("dt", "", name), of.value);
    if (of.spark) place.append(of.spark);
    $("#tiles").append(place);
    tiles.set(name, of);
  }
  if (of.number.data !== value) of.number.data = value;
  write(of.detail, detail);
  if (history) spark(of.spark, history, { line: true });
}

function showQuality(of, weights) {
  let card = cards.get(of.step_s);
  if (!card) {
    card = { place: make("section", "card quality"), badge: make("span", "badge"), skill: make("b"), said: make("span"), gauges: make("div"), errors: make("div", "bars"), carried: make("div", "bars"), head: make("h4", "", "error, the last value being 1") };
    card.place.append(
      make("div", "title", make("h3", "", `By the ${step(of.step_s)}, ${of.horizon} ahead`), card.badge),
      make("div", "lead", card.skill, card.said),
      card.gauges,
      card.head,
      card.errors,
      make("h4", "", "who carries it"),
      card.carried,
    );
    $("#quality").append(card.place);
    cards.set(of.step_s, card);
  }
  write(card.badge, of.drifting ? "drifting" : "stable");
  card.badge.classList.toggle("warn", of.drifting);
  const better = Math.round(100 * (of.skill ?? 0));
  write(card.skill, of.scored ? `${Math.abs(better)} %` : "–");
  card.skill.classList.toggle("worse", better < 0);
  write(card.said, of.scored ? `${better < 0 ? "worse" : "better"} than the last value` : "no forecast has come due since the start");
  card.said.title = of.scored ? `over ${number(of.scored)} forecasts that came due of late` : "";
  card.head.hidden = !of.scored;
  bars(card.errors, (of.errors ?? []).map((e) => ({ name: e.name === "published" ? "published" : e.label, value: e.ratio, ours: e.name === "published" })), 1.25);
  bars(card.carried, weights.slice(0, 4).map((w) => ({ name: w.label, value: w.weight, said: percent(w.weight) })), Math.max(0.01, ...weights.map((w) => w.weight)));
  gauges(card.gauges, of.coverage ?? []);
}

/** Coverage against its target: the bar should end at the mark. */
function gauges(place, coverage) {
  while (place.children.length < coverage.length) place.append(make("div", "gauge", make("span"), make("div", "track", make("i"), make("u")), make("b")));
  [...place.children].forEach((gauge, i) => (gauge.hidden = i >= coverage.length));
  coverage.forEach(({ level, share }, i) => {
    const [name, track, value] = place.children[i].children;
    write(name, `${nominal(level)} interval`);
    write(value, percent(share, 1));
    track.children[0].style.width = percent(share, 1).replace(" ", "");
    track.children[1].style.left = `${100 * level}%`;
    place.children[i].title = `${percent(share, 1)} of what came true lay inside; it should be ${nominal(level)}`;
  });
}

function bars(place, values, top) {
  while (place.children.length < values.length) place.append(make("div", "bar", make("span"), make("div", "track", make("i")), make("b")));
  [...place.children].forEach((bar, i) => {
    bar.hidden = i >= values.length;
    if (bar.hidden) return;
    const [name, track, said] = bar.children;
    const { name: label, value, ours, said: text } = values[i];
    write(name, label);
    name.title = label;
    write(said, text ?? number(value));
    bar.classList.toggle("ours", Boolean(ours));
    track.children[0].style.width = `${Math.min(100, Math.max(0, (100 * value) / top))}%`;
  });
}

function showPartitions(partitions) {
  const body = $("#partitions tbody");
  while (body.rows.length < partitions.length) {
    const row = body.insertRow();
    for (let i = 0; i < 5; i += 1) row.insertCell();
  }
  while (body.rows.length > partitions.length) body.deleteRow(-1);
  partitions.forEach((p, i) => {
    const state = p.restored === null ? "held" : `restoring, ${percent(p.restored)}`;
    [String(p.partition), state, number(p.keys), number(p.lag), p.watermark_ms === null ? "–" : time(p.watermark_ms)].forEach((said, k) => write(body.rows[i].cells[k], said));
  });
}

function showRejects(rejects) {
  const place = $("#rejects");
  const reasons = Object.entries(rejects).sort((a, b) => b[1] - a[1]);
  bars(place, reasons.map(([reason, n]) => ({ name: reason.replaceAll("_", " "), value: n, said: number(n) })), reasons[0]?.[1] ?? 1);
  reasons.forEach(([reason, n], i) => {
    const grew = n > (refused[reason] ?? n);
    if (!grew) return;
    place.children[i].classList.remove("fresh");
    void place.offsetWidth; // begin anew
    place.children[i].classList.add("fresh");
  });
  refused = rejects;
}
