// The Read screen in the browser. It runs once, as js_on_load of the editor (a gr.HTML): `element` is the editor, `trigger`
// sends an event to the server, `watch` tells when the server has drawn the editor anew.
//
// Whatever in the screen has data-action is a button. What the browser can do alone is done here; the rest goes to the server
// with the button's data, as the event in data-event ("act", "look", "ask" or "save"; "act" where there is none).

const screen = document.getElementById('read');
const TAB = 'emrrg-session', KEYS_OFF = 'emrrg-keys-off';
let box = null;  // the open text box: {form, area, action, was}
let current = null;  // the number of the chosen line
let looking = 0;  // timer: maps are drawn once the reader rests on a sentence

function send(event, action) { trigger(event, action); }

function rows() { return [...element.querySelectorAll('.rr-item[data-line]')]; }

function row(line) { return element.querySelector(`.rr-item[data-line="${Number(line)}"]`); }

// --- choosing a sentence ---------------------------------------------------------------------------------------------

function choose(line, {focus = true} = {}) {
    current = line;
    for (const item of rows()) {
        const mine = item.dataset.line === String(line);
        item.toggleAttribute('data-current', mine);
        if (mine) item.setAttribute('aria-current', 'true'); else item.removeAttribute('aria-current');
    }
    const here = row(line);
    if (here && focus) {
        here.querySelector('.rr-item-text').focus({preventScroll: true});
        here.scrollIntoView({block: 'nearest', behavior: 'smooth'});
    }
}

function look(line) {
    choose(line);
    clearTimeout(looking);
    looking = setTimeout(() => send('look', {line: Number(line)}), 200);
}

function step(by) {
    const items = rows().filter((item) => !item.matches('.rr-deleted'));
    if (!items.length) return;
    const here = items.findIndex((item) => item.dataset.line === String(current));
    const next = here < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(items.length - 1, Math.max(0, here + by));
    look(items[next].dataset.line);
}

// --- the text box: one at a time, laid into the row or section it is about ---------------------------------------------

function place() {  // where the open box belongs; the server draws without it
    const {line, section, after, action: what} = box.action;
    const part = element.querySelector(`.rr-part[data-section="${section}"]`);
    const here = line !== undefined ? row(line) : after !== undefined && what === 'add' ? row(after) : part;
    element.querySelectorAll('.rr-open').forEach((other) => other.classList.remove('rr-open'));
    (here || element).classList.add('rr-open');
    (here || element).dataset.open = what;
    if (box.form.parentElement !== here) (here || element).append(box.form);
}

function write(action, words, label) {
    if (box) commit();
    const form = document.createElement('form'), area = document.createElement('textarea');
    form.className = 'rr-box';
    area.value = words;
    area.setAttribute('aria-label', label);
    const ends = document.createElement('p');
    for (const [name, what] of [['Keep', commit], ['Cancel', cancel]]) {
        const button = document.createElement('button');
        button.type = 'button';
        button.textContent = name;
        button.addEventListener('pointerdown', (event) => event.preventDefault());  // leaving the box would keep it first
        button.addEventListener('click', what);
        ends.append(button);
    }
    form.append(area, ends);
    box = {form, area, action, was: words};
    area.addEventListener('keydown', (event) => {
        if (event.key === 'Escape') { event.preventDefault(); cancel(); }
        if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); commit(); }
    });
    area.addEventListener('input', fit);
    form.addEventListener('focusout', (event) => { if (!form.contains(event.relatedTarget) && form.isConnected && document.hasFocus()) commit(); });
    place();
    fit();
    area.focus();
}

function fit() {
    if (!box) return;
    box.area.style.height = 'auto';
    box.area.style.height = `${box.area.scrollHeight + 2}px`;
}

function shut() {
    const {form, action} = box;
    box = null;
    form.parentElement?.classList.remove('rr-open');
    form.remove();
    const line = action.line ?? action.after;
    if (line !== undefined) choose(line);
}

function cancel() { if (box) shut(); }

function commit() {
    if (!box) return;
    const {action, was} = box, text = box.area.value;
    shut();
    if (text !== was) send('act', {...action, text});
}

// --- buttons ---------------------------------------------------------------------------------------------------------

function dialog(name) { return screen.querySelector(`dialog[data-dialog="${name}"]`); }

const here = {  // what the browser does alone
    look: (data) => look(data.line),
    edit: (data) => { choose(data.line, {focus: false}); write({action: 'edit', line: Number(data.line)}, row(data.line).dataset.text, 'The sentence'); },
    add: (data) => write({action: 'add', section: data.section, ...(data.after === undefined ? {} : {after: Number(data.after)})}, '', 'A new sentence'),
    retype: (data) => write({action: 'retype', section: data.section}, element.querySelector(`.rr-part[data-section="${data.section}"]`).dataset.text, `The ${data.section}`),
    'to-export': () => document.getElementById('export').scrollIntoView({behavior: 'smooth'}),
    changes: () => { screen.classList.toggle('rr-changes'); pressed(); },
    keys: () => { document.getElementById('keys-on').checked = keysOn; dialog('keys').showModal(); },
    shut: (data, button) => button.closest('dialog').close(),
    'ask-sign': () => {
        const asked = dialog('sign');
        for (const tick of asked.querySelectorAll('input')) tick.checked = false;  // nothing is confirmed beforehand
        ready(asked);
        asked.showModal();
    },
    sign: (data, button) => {
        const asked = button.closest('dialog');
        const confirmed = [...asked.querySelectorAll('input:checked')].map((tick) => Number(tick.value));
        asked.close();
        send('act', {action: 'sign', confirmed});
    },
};

function ready(asked) {
    const ticks = [...asked.querySelectorAll('input')];
    asked.querySelector('[data-action="sign"]').disabled = !ticks.every((tick) => tick.checked);
}

function pressed() {
    const button = element.querySelector('[data-action="changes"]');
    if (button) button.setAttribute('aria-pressed', screen.classList.contains('rr-changes'));
}

function press(button) {
    const data = {...button.dataset}, what = data.action;
    if (button.disabled) return;
    if (what in here) { here[what](data, button); return; }
    if (box) commit();
    const event = data.event || 'act';
    for (const name of ['line', 'number']) if (name in data) data[name] = Number(data[name]);
    if (data.line !== undefined) choose(data.line, {focus: false});
    send(event, data);
}

screen.addEventListener('click', (event) => {
    const button = event.target.closest('[data-action]');
    if (button) press(button);
    const pick = event.target.closest('.rr-pick');  // a sentence or word of the draft beside: its line is the current one
    if (pick) {
        const line = element.querySelector(`.rr-item[data-drafted="${Number(pick.dataset.sentence)}"]`);
        if (line) choose(line.dataset.line, {focus: false});
    }
});
screen.addEventListener('dblclick', (event) => {
    const said = event.target.closest('.rr-item-text[data-line]');
    if (said && element.contains(said)) row(said.dataset.line).querySelector('[data-action="edit"]')?.click();
});
screen.addEventListener('change', (event) => {
    const asked = event.target.closest('dialog[data-dialog="sign"]');
    if (asked) ready(asked);
    if (event.target.id === 'keys-on') {
        try { localStorage.setItem(KEYS_OFF, event.target.checked ? '' : 'off'); } catch { /* kept for this page only */ }
        keysOn = event.target.checked;
    }
});

// --- keys --------------------------------------------------------------------------------------------------------------

let keysOn = true;
try { keysOn = localStorage.getItem(KEYS_OFF) !== 'off'; } catch { /* no storage: on */ }

function tool(what) {  // a button of the current line
    const button = current === null ? null : row(current)?.querySelector(`.rr-item-tools [data-action="${what}"]`);
    if (button) press(button);
}

function bar(what) { const button = element.querySelector(`.rr-bar-of-report [data-action="${what}"]`); if (button) press(button); }

function toggleMap() { document.querySelector('#films [data-do="map"]')?.click(); }  // the viewer's own button

const keys = {
    d: () => document.querySelector('#write')?.click(),
    j: () => step(1), n: () => step(1), k: () => step(-1), p: () => step(-1),
    a: () => tool('accept'), e: () => tool('edit'), x: () => (row(current)?.matches('.rr-deleted') ? tool('restore') : tool('delete')),
    z: () => bar('undo'), y: () => bar('redo'), Z: () => bar('redo'), m: toggleMap, c: () => here.changes(), '?': () => here.keys(),
};

function typing(target) {
    return target.isContentEditable || target.closest('textarea, select, dialog, input:not([type=checkbox]):not([type=radio])');
}

document.addEventListener('keydown', (event) => {
    const target = event.target instanceof Element ? event.target : document.body;
    if (screen.offsetParent === null) return;  // another screen is open
    if ((event.key === 'Enter' || event.key === ' ') && target.matches('.rr-item-text[role=button]')) {
        event.preventDefault();
        press(target);
        return;
    }
    if (target.closest('.rr-viewer') && 'zZm?'.includes(event.key)) return;  // the viewer's own
    if (typing(target) || event.altKey || event.defaultPrevented || dialogOpen()) return;
    if (event.ctrlKey || event.metaKey) {  // as in any editor; a text box has an undo of its own
        const key = event.key.toLowerCase();
        if (key !== 'z' && key !== 'y') return;
        event.preventDefault();
        bar(key === 'y' || event.shiftKey ? 'redo' : 'undo');
        return;
    }
    if (!keysOn || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
});

function dialogOpen() { return Boolean(document.querySelector('dialog[open]')); }

// --- after the server has drawn the editor -------------------------------------------------------------------------------

watch('value', () => {
    if (box) { const {selectionStart, selectionEnd} = box.area; place(); box.area.focus(); box.area.setSelectionRange(selectionStart, selectionEnd); }
    if (current !== null) choose(current, {focus: false});
    pressed();
});
