// The page: which view, what it needs to know, and how the connection is.

import { hearDemo } from "./demo.js";
import { Fan } from "./fan.js";
import { forgetKey, hearPast, showHero, showKey } from "./key.js";
import { first, showKeys, wireKeys } from "./keys.js";
import { showOverview } from "./overview.js";
import { Stream } from "./stream.js";
import { $, shown, time, write } from "./words.js";

const HERO_STAYS_MS = 30000;
const RESTART_TOLD_MS = 8000;

let key = null; // of the page that is open; null: the overview
let hero = { id: null, until: 0 };
let state = "connecting";
let health = null;
let worker = "up";
let begun = null;
let heardMs = 0;
let restartedMs = -Infinity;
let empty = false;

const heroChart = new Fan($("#hero"), { height: 260, title: false, legend: $(".hero .legend") });

const stream = new Stream(
  {
    overview(answer) {
      if (begun !== null && begun !== answer.started_ms) restartedMs = Date.now();
      begun = answer.started_ms;
      worker = "up";
      heardMs = answer.at_ms;
      empty = answer.watermark_ms === null;
      showOverview(answer);
      reveal();
      tell();
    },
    keys(answer) {
      showKeys(answer, key ?? hero.id);
      chooseHero(answer);
    },
    key(answer) {
      if (answer.id === key) showKey(answer);
      else if (key === null && answer.id === hero.id && answer.known) {
        write($("#hero-key"), shown(answer.key));
        $("#hero-key").href = `#/key/${answer.id}`;
        showHero(heroChart, answer);
      }
    },
    past: hearPast,
    health(answer) {
      health = answer;
      worker = "up";
      tell();
    },
    worker(answer) {
      worker = answer.state;
      tell();
    },
    demo: (answer) => hearDemo(answer, () => key ?? hero.id),
  },
  (now) => {
    state = now;
    tell();
  },
);

const wanted = wireKeys(() => {
  hero.until = 0;
  ask();
});

function ask() {
  const query = new URLSearchParams(wanted);
  const about = key ?? hero.id;
  if (about) query.set("key", about);
  stream.ask(query.toString());
}

/** The overview shows the first key of the list, and keeps to it for a while. */
function chooseHero(answer) {
  if (key !== null || !answer.rows.length || Date.now() < hero.until) return;
  const names = { active: "Most active now", surprising: "Most surprising now", newest: "The newest" };
  write($("#hero-title"), answer.search ? "First found" : names[answer.order]);
  hero = { id: first().id, until: Date.now() + HERO_STAYS_MS };
  heroChart.reset();
  ask();
}

/** No frame without a picture: the overview when there is one, the fan when there is a key. */
function reveal() {
  $("#overview").hidden = key !== null || begun === null;
  $(".hero").hidden = empty;
  $("#key").hidden = key === null;
}

function route() {
  const found = /^#\/key\/([\w-]*)$/.exec(location.hash);
  key = found ? found[1] : null;
  reveal();
  if (key === null) document.title = "stream_forecaster";
  else forgetKey(key);
  for (const link of document.querySelectorAll("#keys a")) {
    if (link.hash === location.hash) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  ask();
}

/** In a word in the corner, and in a sentence where something is not as it should be. */
function tell() {
  const failing = health && !health.ok && Object.values(health.checks).find((check) => !check.ok);
  let word = "live", sentence = "", calm = true;
  if (state === "lost") [word, sentence, calm] = ["lost", `Connection lost${heardMs ? `: what you see is from ${time(heardMs, "clock")}` : ""}. Trying again …`, false];
  else if (state === "full") [word, sentence] = ["full", "Too many pages are open: close one. Trying again …"];
  else if (state !== "live") word = state;
  else if (worker === "down") [word, sentence, calm] = ["down", "The worker is gone. Another one is starting, and will go on from its checkpoint …", false];
  else if (failing) [word, sentence] = ["waiting", `Not ready: ${failing.detail}.`];
  else if (empty) sentence = "Nothing yet: as soon as an event comes, there is something to see.";
  else if (Date.now() - restartedMs < RESTART_TOLD_MS) sentence = "The worker has restarted: state restored, forecasts go on.";
  const status = $("#status");
  status.dataset.is = word;
  write(status.lastElementChild, { lost: "connection lost", down: "worker restarting", full: "too many pages" }[word] ?? word);
  const banner = $("#banner");
  banner.hidden = !sentence;
  banner.dataset.is = calm ? "calm" : "bad";
  write(banner, sentence);
}

addEventListener("hashchange", route);
route();
