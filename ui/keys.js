/* The keys of the app. One listener hears them wherever the focus is, but not while a reader types. Who knows what a key does says so with
   emrrgKeys.on(action, work): work gets the event and returns false where it does not apply now. The reader may change a key; the change is kept in
   this browser (localStorage). The list is ui/keys.py. */
(() => {
  "use strict";

  const OFF = "emrrg-keys-off", OWN = "emrrg-keys";
  const list = window.emrrgKeyList, work = new Map();
  let own = {}, on = true, waiting = null; // waiting: the action whose new key is about to be pressed

  const kept = (name, empty) => { try { return localStorage.getItem(name) ?? empty; } catch { return empty; } };
  const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* for this page only */ } };
  try { own = JSON.parse(kept(OWN, "{}")) ?? {}; } catch { own = {}; }
  on = kept(OFF, "") !== "off";

  const keyOf = (action) => (typeof own[action] === "string" ? own[action] : list.find((row) => row[0] === action)?.[1]);
  const actionOf = (key) => list.find(([action]) => keyOf(action) === key)?.[0];
  const shown = (key) => (key === " " ? "Space" : key.length === 1 ? key.toUpperCase() : key);
  const same = { "=": "+", "−": "-", _: "-", n: "j", p: "k" }; // where nothing else is meant by them

  function named(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    return actionOf(key) ?? actionOf(same[key]);
  }

  function typing(target) {
    return target.isContentEditable || Boolean(target.closest("textarea, select, dialog, [role=textbox], [role=combobox], input:not([type=checkbox]):not([type=radio]):not([type=range]):not([type=file])"));
  }

  const dialogs = () => [...document.querySelectorAll('dialog[data-dialog="keys"]')];
  const isOpen = () => Boolean(document.querySelector("dialog[open]"));

  function draw() {
    for (const button of document.querySelectorAll("[data-key-of]")) {
      const action = button.dataset.keyOf;
      button.textContent = action === waiting ? "…" : shown(keyOf(action));
    }
    for (const tick of document.querySelectorAll("[data-keys-on]")) tick.checked = on;
  }

  function say(words) { for (const line of document.querySelectorAll("[data-keys-said]")) line.textContent = words; }

  function open() {
    waiting = null;
    draw();
    say("Press a key here to change it. Keys work everywhere, and rest while you type.");
    dialogs()[0]?.showModal();
  }

  function change(event) {
    event.preventDefault();
    event.stopPropagation();
    const action = waiting, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (["Shift", "Control", "Alt", "Meta"].includes(key)) return;
    waiting = null;
    const other = actionOf(key);
    if (key === "Escape") say("Nothing was changed.");
    else if (key === " " || key === "Tab" || key === "Enter" || /^Arrow/.test(key)) say(`${shown(key)} has a meaning of its own: choose another key.`);
    else if (other && other !== action) say(`${shown(key)} is the key of “${list.find((row) => row[0] === other)[2]}”: choose another, or change that one first.`);
    else {
      own[action] = key;
      keep(OWN, JSON.stringify(own));
      say(`${shown(key)}: ${list.find((row) => row[0] === action)[2]}. Kept in this browser.`);
    }
    draw();
  }

  document.addEventListener("keydown", (event) => {
    if (waiting) { change(event); return; }
    const target = event.target instanceof Element ? event.target : document.body;
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || typing(target) || isOpen()) return;
    if (!on) return;
    const action = named(event);
    if (!action) return;
    if (action === "keys") { event.preventDefault(); open(); return; }
    for (const each of work.get(action) ?? []) {
      if (each(event) !== false) { event.preventDefault(); return; }
    }
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-key-of], [data-keys]");
    if (!button) return;
    if (button.dataset.keyOf) { waiting = button.dataset.keyOf; say(`Press the key for: ${list.find((row) => row[0] === waiting)[2]}. Esc leaves it.`); draw(); }
    else waiting = null; // whoever presses another button has no key in mind any more
    if (button.dataset.keys === "reset") { own = {}; keep(OWN, "{}"); say("The usual keys are back."); draw(); }
    if (button.dataset.keys === "shut") button.closest("dialog").close();
    if (button.dataset.keys === "open") open();
  });
  document.addEventListener("change", (event) => {
    if (!event.target.matches?.("[data-keys-on]")) return;
    on = event.target.checked;
    keep(OFF, on ? "" : "off");
  });

  window.emrrgKeys = {
    on: (action, each) => { work.set(action, [...(work.get(action) ?? []), each]); },
    typing,
    open,
    isOpen,
    isOn: () => on,
    shown: (action) => shown(keyOf(action) ?? ""),
  };
})();
