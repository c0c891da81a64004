// The list of keys: found, ordered, and walked through with the arrows.

import { $, make, nominal, number, shown, spark, sparkline, write } from "./words.js";

const rows = [];
let listed = [];

export const first = () => listed[0];

/** Show what came; the order stands still while somebody is in the list. */
export function showKeys(answer, current) {
  const list = $("#keys");
  let coming = answer.rows;
  if (list.matches(":focus-within, :hover") && listed.length) {
    const fresh = new Map(coming.map((row) => [row.id, row]));
    if (listed.every((row) => fresh.has(row.id))) coming = listed.map((row) => fresh.get(row.id));
  }
  listed = coming;
  while (rows.length < listed.length) rows.push(addRow(list));
  rows.forEach((row, i) => {
    row.item.hidden = i >= listed.length;
    if (!row.item.hidden) fill(row, listed[i], answer, current);
  });
  write($("#cols-next"), answer.order === "surprising" ? "off by" : "next");
  const count = number(answer.total);
  const found = answer.found;
  write(
    $("#keys-note"),
    !answer.total ? "No key yet." : answer.search ? (found ? `${number(found)} of ${count} keys` : `None of ${count} keys contains this.`) : listed.length < answer.total ? `${listed.length} of ${count} keys` : `${count} keys`,
  );
}

function addRow(list) {
  const link = make("a");
  const row = { link, name: make("span", "name"), spark: sparkline(), next: make("span", "next") };
  link.append(row.name, row.spark, row.next);
  row.item = make("li", "", link);
  list.append(row.item);
  return row;
}

function fill(row, key, { order, bands }, current) {
  row.link.href = `#/key/${key.id}`;
  if (key.id === current) row.link.setAttribute("aria-current", "page");
  else row.link.removeAttribute("aria-current");
  write(row.name, shown(key.key));
  row.name.classList.toggle("cold", key.cold_start);
  spark(row.spark, key.spark);
  const surprising = order === "surprising";
  write(row.next, surprising ? `${key.surprise > 0 ? "+" : ""}${number(key.surprise)}σ` : number(key.next[0]));
  row.next.classList.toggle("odd", surprising && Math.abs(key.surprise) >= 3);
  const [mean, low, high] = key.next;
  row.next.title = `next ${number(mean)}${bands.length ? `, ${nominal(bands.at(-1).level)} between ${number(low)} and ${number(high)}` : ""}`;
}

/** Wire search, order and arrows; `ask` is called when something else is to be listed. */
export function wireKeys(ask) {
  const search = $("#search");
  const wanted = { order: "active", search: "" };
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => ask(Object.assign(wanted, { search: search.value.trim() })), 150);
  });
  for (const tab of document.querySelectorAll("[data-order]")) {
    tab.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-order]")) other.setAttribute("aria-pressed", String(other === tab));
      ask(Object.assign(wanted, { order: tab.dataset.order }));
    });
  }
  document.addEventListener("keydown", (event) => walk(event, search, ask, wanted));
  return wanted;
}

function walk(event, search, ask, wanted) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const links = rows.filter((row) => !row.item.hidden).map((row) => row.link);
  const at = links.indexOf(document.activeElement);
  const typing = document.activeElement === search;
  const elsewhere = document.activeElement?.matches?.("input:not(#search), textarea, pre");
  const go = (link) => {
    event.preventDefault();
    link?.focus();
  };
  if (event.key === "/" && !typing && !elsewhere) go(search), search.select();
  else if (event.key === "ArrowDown" && !elsewhere && (typing || at >= 0)) go(links[Math.min(at + 1, links.length - 1)]);
  else if (event.key === "ArrowUp" && at >= 0) go(at ? links[at - 1] : search);
  else if (event.key === "Enter" && typing && links[0]) location.hash = links[0].hash;
  else if (event.key === "Escape") {
    if (typing && search.value) {
      search.value = "";
      ask(Object.assign(wanted, { search: "" }));
    } else if (typing || at >= 0) document.activeElement.blur();
    else location.hash = "#/";
  }
}
