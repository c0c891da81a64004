// The demo's buttons. Outside of the demo nobody sends `demo` events, and this stays hidden.

import { $, make, write } from "./words.js";

/** What the demo says: which buttons there are, and what it is at; `current` key is looked at. */
export function hearDemo({ actions, said }, current) {
  if (actions && $("#demo").hidden) wire(actions, current);
  write($("#said"), said);
}

function wire(actions, current) {
  const buttons = actions.map(({ name, label, hint }) => {
    const button = make("button", name === "kill" ? "danger" : "", label);
    Object.assign(button, { type: "button", title: hint });
    button.addEventListener("click", () => act(name, buttons, current()));
    return button;
  });
  $("#demo .buttons").append(...buttons);
  $("#demo").hidden = false;
}

async function act(name, buttons, key) {
  for (const button of buttons) button.disabled = true;
  try {
    const answer = await fetch(`/demo/${name}`, { method: "POST", body: JSON.stringify({ key }) });
    const { said, detail } = await answer.json();
    write($("#said"), said ?? detail);
  } catch {
    write($("#said"), "The demo does not answer: has it ended?");
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}
