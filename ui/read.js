// The Read screen in the browser. It runs once, as js_on_load of the editor (a gr.HTML): `element` is the editor, `trigger`
// sends an event to the server, `watch` tells when the server has drawn the editor anew.
//
// Whatever in the screen has data-action is a button. What the browser can do alone is done here; the rest goes to the server
// with the button's data, as the event in data-event ("act", "look", "ask" or "save"; "act" where there is none).

const screen = document.getElementById('read');
const TYPING = 'emrrg-typing', SIGNER = 'emrrg-signer', MACROS = 'emrrg-macros';
const K = window.emrrgKeys;
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
    const here = row(line), linked = new Set((here?.dataset.linked ?? '').split(' '));
    for (const item of rows()) item.classList.toggle('rr-linked', linked.has(item.dataset.line));
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
    const {line, section, after, action: what, name} = box.action;
    const part = element.querySelector(`.rr-part[data-section="${section}"]`) ?? element.querySelector(`[data-field="${name}"]`);
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
        if (event.key === 'Tab' && nextBlank(area, event.shiftKey ? -1 : 1)) { event.preventDefault(); return; }
        if (event.key === 'Escape') { event.preventDefault(); cancel(); }
        if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); commit(); }
    });
    area.addEventListener('input', (event) => { expand(area, event); fit(); remember(); });
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
    remember();
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

/* Half-typed text outlives a reload: kept for this tab with the session it belongs to. */
function remember() {
    try {
        if (box) sessionStorage.setItem(TYPING, JSON.stringify({id: sessionStorage.getItem('emrrg-session') ?? '', action: box.action, text: box.area.value, was: box.was}));
        else sessionStorage.removeItem(TYPING);
    } catch { /* no storage */ }
}

let recalled = false;

function recall() {  // once, when the report of this tab is drawn
    if (recalled || box) return;
    let kept = null;
    try { kept = JSON.parse(sessionStorage.getItem(TYPING)); } catch { /* none */ }
    if (!kept) { recalled = true; return; }
    const {id, action, text, was} = kept;
    if (id !== (sessionStorage.getItem('emrrg-session') ?? '')) return;
    const {line, section, name} = action;
    if (line !== undefined ? !row(line) : section !== undefined ? !element.querySelector(`.rr-part[data-section="${section}"]`) : !element.querySelector(`[data-field="${name}"]`)) return;
    recalled = true;
    write(action, text, 'As you had typed it');
    box.was = was;
}

// --- macros: a word that expands, and fields in square brackets to fill -----------------------------------------------

let shared = {macros: [], templates: []};  // the server's, and this browser's over them

function ownMacros() {
    const none = {macros: [], templates: [], toml: ''};
    try { return JSON.parse(localStorage.getItem(MACROS)) ?? ownMacros.now ?? none; } catch { return ownMacros.now ?? none; }
}

function macros() {
    const words = new Map([...shared.macros, ...ownMacros().macros].map((each) => [each.word.toLowerCase(), each]));
    return [...words.values()];
}

function sectionOf(action) { return action.section ?? action.name ?? (action.line !== undefined ? row(action.line)?.closest('.rr-part')?.dataset.section : ''); }

function expand(area, event) {
    if (event.inputType !== 'insertText' || !/[\s.,;]/.test(event.data ?? '')) return;
    const end = area.selectionStart - 1, before = area.value.slice(0, end), word = /(\S+)$/.exec(before)?.[1];
    const section = sectionOf(box.action);
    const found = word && macros().filter((each) => each.word.toLowerCase() === word.toLowerCase() && (!each.section || each.section === section)).sort((a, b) => b.section.length - a.section.length)[0];
    if (!found) return;
    area.setRangeText(found.text, end - word.length, end, 'end');
    if (event.data === ' ' ) area.setSelectionRange(area.selectionEnd + 1, area.selectionEnd + 1);
    nextBlank(area, 1, end - word.length);
}

function nextBlank(area, way, from) {
    const blanks = [...area.value.matchAll(/\[[^\[\]\n]{1,60}\]/g)].map((match) => [match.index, match.index + match[0].length]);
    const here = from ?? (way > 0 ? area.selectionEnd : area.selectionStart);
    const next = way > 0 ? blanks.find(([start]) => start >= here) ?? (from === undefined ? blanks[0] : blanks.find(([start]) => start >= here)) : blanks.findLast(([, end]) => end <= here);
    if (!next) return false;
    area.setSelectionRange(...next);
    return true;
}

function fillMenus() {
    for (const menu of element.querySelectorAll('select[data-macro]')) {
        const mine = macros().filter((each) => !each.section || each.section === menu.dataset.macro);
        const names = mine.map((each) => each.word).join('|');
        if (menu.dataset.filled === names) continue;
        menu.dataset.filled = names;
        menu.replaceChildren(new Option('macro', ''), ...mine.map((each) => new Option(`${each.word}: ${each.text.slice(0, 60)}`, each.text)));
    }
    const kept = document.querySelector('#macros-kept .rr-macros')?.dataset.macros;
    if (kept && kept !== fillMenus.last) {
        fillMenus.last = kept;
        shared = JSON.parse(kept);
        if (shared.own) try { localStorage.setItem(MACROS, JSON.stringify(shared.own)); } catch { ownMacros.now = shared.own; }
        fillMenus();
    }
    const begin = element.querySelector('.rr-templates'), mine = ownMacros().templates;
    for (const {name} of begin ? mine : []) {
        if ([...begin.querySelectorAll('button')].some((button) => button.dataset.name === name)) continue;
        const button = document.createElement('button');
        button.type = 'button';
        Object.assign(button.dataset, {action: 'template', name});
        button.textContent = name;
        begin.append(button);
    }
}

// --- evidence stands at its own sentence ------------------------------------------------------------------------------

function layEvidence() {
    const given = document.querySelector('#evidence .rr-evidence');
    const {line, sentence, finding} = given?.dataset ?? {};
    const places = [
        line === undefined ? null : row(line),
        sentence === undefined ? null : document.querySelectorAll('#words .rr-sentence')[Number(sentence)],
        finding === undefined ? null : document.querySelector(`#was-read [data-finding="${finding}"]`)?.closest('li'),
    ].filter(Boolean);
    const open = new Set([...document.querySelectorAll('#read .rr-laid details[open] > summary')].map((one) => one.textContent));
    const words = given?.innerHTML ?? '', mark = `${line}|${sentence}|${finding}`;
    for (const laid of document.querySelectorAll('#read .rr-laid')) if (!places.includes(laid.parentElement)) laid.remove();
    for (const place of places) {
        let laid = place.querySelector(':scope > .rr-laid');
        if (!laid) {
            laid = document.createElement('div');
            laid.className = 'rr-laid';
            place.append(laid);
        }
        if (laid.dataset.words === words) continue;
        laid.dataset.words = words;
        laid.innerHTML = words;
        if (layEvidence.mark === mark) for (const one of laid.querySelectorAll('details')) one.open = open.has(one.firstElementChild.textContent);
    }
    layEvidence.mark = mark;
}

new MutationObserver(() => requestAnimationFrame(layEvidence)).observe(document.getElementById('evidence'), {childList: true, subtree: true, characterData: true});
// the findings and the draft's words are drawn anew at moments of their own, the words once their tab is opened
new MutationObserver(() => requestAnimationFrame(layEvidence)).observe(document.getElementById('desk-tabs'), {childList: true, subtree: true});

// --- sentences that were seen -----------------------------------------------------------------------------------------

const seen = new Set();  // numbers of lines that stood in sight for a moment
const timers = new Map();
const sight = new IntersectionObserver((entries) => {
    for (const {target, intersectionRatio} of entries) {
        clearTimeout(timers.get(target));
        if (intersectionRatio >= 0.9) timers.set(target, setTimeout(() => { seen.add(target.dataset.seen); showRest(); }, 700));
    }
}, {threshold: [0, 0.9]});

function watchSight() {
    sight.disconnect();
    for (const item of rows()) {
        item.dataset.seen = `${item.dataset.line}|${item.dataset.text}`;
        if (!seen.has(item.dataset.seen)) sight.observe(item);
    }
    showRest();
}

function rest() { return rows().filter((item) => item.matches('.rr-unreviewed')); }

function showRest() {
    const button = element.querySelector('[data-action="accept-rest"]');
    if (button) button.disabled = !rest().every((item) => seen.has(item.dataset.seen));
}

// --- films: dropped anywhere, kept by this browser until the study is closed -------------------------------------------

const LONGEST = 7 * 24 * 3600e3;  // as long as the server keeps a report

function store(mode, work) {  // IndexedDB: {key, at, files: [Blob]}
    return new Promise((done) => {
        let asked;
        try { asked = indexedDB.open('emrrg', 1); } catch { done(null); return; }
        asked.onupgradeneeded = () => asked.result.createObjectStore('films', {keyPath: 'key'});
        asked.onerror = () => done(null);
        asked.onsuccess = () => {
            const change = asked.result.transaction('films', mode), answer = work(change.objectStore('films'));
            change.oncomplete = () => { asked.result.close(); done(answer?.result ?? null); };
            change.onerror = change.onabort = () => { asked.result.close(); done(null); };
        };
    });
}

let dropped = null;  // {number, files}: given to the server, not yet sorted into studies
window.emrrgAgain = () => (dropped?.again ? JSON.stringify(dropped.again) : '');

async function give(files, again = null) {
    const input = document.querySelector('#drop input[type="file"]');
    if (!files.length || !input) return;
    dropped = {files, again};
    const list = new DataTransfer();
    files.forEach((file) => list.items.add(file));
    input.files = list.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
}

async function filesIn(items) {  // files and, through and through, folders
    const found = [];
    async function walk(entry) {
        if (entry.isFile) found.push(await new Promise((done, fail) => entry.file(done, fail)));
        else if (entry.isDirectory) {
            const reader = entry.createReader();
            for (;;) {
                const some = await new Promise((done, fail) => reader.readEntries(done, fail));
                if (!some.length) break;
                for (const each of some) await walk(each);
            }
        }
    }
    for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry);
    return found;
}

function takesDrop(event) { return screen.offsetParent !== null && [...(event.dataTransfer?.types ?? [])].includes('Files') && !event.target.closest?.('#drop'); }

document.addEventListener('dragover', (event) => {
    if (!takesDrop(event)) return;
    event.preventDefault();
    document.documentElement.classList.add('rr-dropping');
});
document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) document.documentElement.classList.remove('rr-dropping'); });
document.addEventListener('drop', async (event) => {
    document.documentElement.classList.remove('rr-dropping');
    if (!takesDrop(event)) return;
    event.preventDefault();
    const plain = [...event.dataTransfer.files];
    const files = event.dataTransfer.items?.[0]?.webkitGetAsEntry ? await filesIn(event.dataTransfer.items) : plain;
    give(files.length ? files : plain);
});
document.addEventListener('change', (event) => {  // chosen by hand, or by a program
    const input = event.target;
    if (input.matches?.('#drop input[type="file"]') && input.files.length && !dropped) dropped = {files: [...input.files], again: null};
}, true);

/* The server has sorted a drop: keep each file with its study. arrived: {"number", "studies": {key: [places in the drop]}}. */
async function keepFilms() {
    const line = document.querySelector('#study .rr-study');
    if (!line?.dataset.study) return;
    const key = line.dataset.study, arrived = JSON.parse(line.dataset.arrived || '{}');
    try { sessionStorage.setItem('emrrg-study', key); } catch { /* no storage */ }
    if (dropped && (arrived.number ?? '') !== (keepFilms.last ?? '')) {
        keepFilms.last = arrived.number;
        const {files, again} = dropped;
        dropped = null;
        for (const [study, places] of again ? [] : Object.entries(arrived.studies)) {
            const mine = places.map((place) => files[place]).filter(Boolean);
            await store('readwrite', (films) => {
                const asked = films.get(study);
                asked.onsuccess = () => films.put({...asked.result, key: study, at: Date.now(), files: [...(asked.result?.files ?? []), ...mine]});
            });
        }
    } else if (dropped?.again && document.querySelector('#films .rr-film')) dropped = null;
    const told = line.dataset.kept;
    if (told && told !== keepFilms.told && (JSON.parse(told).films.length || JSON.parse(told).prior.length)) {  // how the films stand, beside their files
        keepFilms.told = told;
        await store('readwrite', (films) => {
            const asked = films.get(key);
            asked.onsuccess = () => { if (asked.result) films.put({...asked.result, kept: JSON.parse(told)}); };
        });
    }
    keepStudies().then(timeStudies);
    await bringFilms(key, line);
}

const brought = new Set();  // studies whose films were given back since the page was loaded

async function bringFilms(key, line) {
    const here = document.querySelectorAll('#films .rr-film').length, missing = Number(line.dataset.missing);
    if (brought.has(key) || dropped || (here && !missing)) return;
    if (!document.querySelector('#status')?.textContent.match(/Ready|as you left it/)) return;
    brought.add(key);
    const kept = await store('readonly', (films) => films.get(key));
    if (kept?.files?.length && kept.kept && !dropped) await give(kept.files, kept.kept);
}

function studies() { try { return JSON.parse(localStorage.getItem('emrrg-studies')) ?? []; } catch { return []; } }

window.emrrgStudies = studies;

async function keepStudies() {
    const list = document.querySelector('#worklist .rr-worklist'), given = list?.dataset.studies;
    if (!given || given === keepStudies.last) return;
    keepStudies.last = given;
    const before = studies(), now = JSON.parse(given), at = Date.now();
    const kept = now.map((each) => ({...each, at: before.find((other) => other.key === each.key)?.at ?? at})).filter((each) => each.id || each.label !== 'no film');
    try { localStorage.setItem('emrrg-studies', JSON.stringify(kept)); } catch { /* for this page only */ }
    const keys = new Set(now.map((each) => each.key));
    for (const gone of before.filter((each) => !keys.has(each.key))) await store('readwrite', (films) => films.delete(gone.key));
}

/* When each study came, by this computer's clock: studies have no names here. */
function timeStudies() {
    const kept = studies();
    for (const button of document.querySelectorAll('#worklist [data-action="switch"]')) {
        const came = kept.find((each) => each.key === button.dataset.key)?.at;
        if (came && !button.querySelector('.rr-at')) {
            const when = document.createElement('small');
            when.className = 'rr-at';
            when.textContent = ` · ${new Date(came).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'})}`;
            button.append(when);
        }
    }
}

async function forgetOld() {
    await store('readwrite', (films) => {
        const every = films.openCursor();
        every.onsuccess = () => { const row = every.result; if (row) { if (Date.now() - row.value.at > LONGEST) row.delete(); row.continue(); } };
    });
}

for (const id of ['study', 'worklist', 'status']) {
    new MutationObserver(() => requestAnimationFrame(keepFilms)).observe(document.getElementById(id), {childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ['data-study', 'data-arrived', 'data-studies', 'data-missing', 'data-kept']});
}
forgetOld();

document.addEventListener('rr-marks', (event) => send('act', {action: 'marks', ...event.detail}));

// --- crop and straighten ----------------------------------------------------------------------------------------------

let cropping = null;  // {number, corners, svg, figure}

function straighten(number) {
    const figure = document.querySelectorAll('#films .rr-film')[number], stage = figure?.querySelector('.rr-stage');
    if (!stage) return;
    endCrop();
    window.emrrgViewer.perform('fit');
    const panel = document.createElement('div');
    panel.className = 'rr-crop';
    const given = (figure.dataset.corners || '0.02 0.02 0.98 0.02 0.98 0.98 0.02 0.98').split(' ').map(Number);
    cropping = {number, figure, panel, corners: [0, 1, 2, 3].map((n) => [given[2 * n], given[2 * n + 1]])};
    panel.innerHTML = '<svg><path></path></svg><p><button type="button" data-action="crop-done">Crop</button><button type="button" data-action="crop-turn">Turn</button><button type="button" data-action="crop-cancel">Cancel</button></p>';
    for (let n = 0; n < 4; n++) {
        const grip = document.createElement('button');
        grip.type = 'button';
        grip.className = 'rr-grip';
        grip.setAttribute('aria-label', `Corner ${n + 1}: arrow keys move it`);
        grip.addEventListener('pointerdown', (event) => { event.preventDefault(); event.stopPropagation(); grip.setPointerCapture(event.pointerId); grip.focus(); });
        grip.addEventListener('pointermove', (event) => { if (grip.hasPointerCapture(event.pointerId)) moveGrip(n, event); });
        grip.addEventListener('keydown', (event) => {
            const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
            if (!way) return;
            event.preventDefault();
            event.stopPropagation();
            cropping.corners[n] = cropping.corners[n].map((value, axis) => Math.min(1, Math.max(0, value + way[axis] * 0.005)));
            drawCrop();
        });
        panel.append(grip);
    }
    stage.append(panel);
    for (const kind of ['pointerdown', 'wheel', 'dblclick']) panel.addEventListener(kind, (event) => event.stopPropagation());
    drawCrop();
    panel.querySelector('.rr-grip').focus();
}

function moveGrip(n, event) {
    const stage = cropping.panel.parentElement, at = window.emrrgViewer.place(stage), edge = stage.getBoundingClientRect();
    cropping.corners[n] = [(event.clientX - edge.left - at.left) / at.width, (event.clientY - edge.top - at.top) / at.height].map((value) => Math.min(1, Math.max(0, value)));
    drawCrop();
}

function drawCrop() {
    const {panel, corners} = cropping, at = window.emrrgViewer.place(panel.parentElement);
    const points = corners.map(([x, y]) => [at.left + x * at.width, at.top + y * at.height]);
    panel.querySelector('path').setAttribute('d', `M${points.map((point) => point.join(' ')).join('L')}Z`);
    panel.querySelectorAll('.rr-grip').forEach((grip, n) => { grip.style.left = `${points[n][0]}px`; grip.style.top = `${points[n][1]}px`; });
}

function endCrop() { cropping?.panel.remove(); cropping = null; }

// --- buttons ---------------------------------------------------------------------------------------------------------

function dialog(name) { return screen.querySelector(`dialog[data-dialog="${name}"]`); }

const here = {  // what the browser does alone
    look: (data) => look(data.line),
    edit: (data) => { choose(data.line, {focus: false}); write({action: 'edit', line: Number(data.line)}, row(data.line).dataset.text, 'The sentence'); },
    add: (data) => write({action: 'add', section: data.section, ...(data.after === undefined ? {} : {after: Number(data.after)})}, '', 'A new sentence'),
    retype: (data) => write({action: 'retype', section: data.section}, element.querySelector(`.rr-part[data-section="${data.section}"]`).dataset.text, `The ${data.section}`),
    field: (data, button) => write({action: 'field', name: data.name}, button.dataset.text, data.name),
    'to-export': () => tab('Export'),
    'add-film': () => document.querySelector('#drop input[type="file"]')?.click(),
    copy: async (data) => {
        try { await navigator.clipboard.writeText(data.text); }
        catch {
            const area = document.createElement('textarea');
            area.value = data.text;
            screen.append(area);
            area.select();
            document.execCommand('copy');
            area.remove();
        }
        tell('The report is copied.');
    },
    'accept-rest': () => send('act', {action: 'accept-rest', lines: rest().map((item) => Number(item.dataset.line))}),
    offer: ({offer, line, text}) => send('act', offer === 'summarise' ? {action: 'summarise'} : {action: offer, line: Number(line), text}),
    straighten: (data) => straighten(Number(data.number)),
    'crop-done': () => { const {number, corners} = cropping; endCrop(); send('act', {action: 'straighten', number, corners}); },
    'crop-turn': () => { const {number} = cropping; endCrop(); send('act', {action: 'straighten', number, turn: 1}); },
    'crop-cancel': endCrop,
    'phone-draft': () => document.querySelector('#write')?.click(),
    'phone-accept': () => tool('accept'),
    'phone-next': () => step(1),
    'macros-import': () => document.querySelector('[data-macros-file]').click(),
    'macros-export': () => {
        const link = document.createElement('a');
        link.href = URL.createObjectURL(new Blob([ownMacros().toml ?? ''], {type: 'application/toml'}));
        link.download = 'emrrg-macros.toml';
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
    template: (data) => {
        const own = ownMacros().templates.find((each) => each.name === data.name);
        send('act', own ? {action: 'template', name: data.name, parts: own} : {action: 'template', name: data.name});
    },
    'make-case': () => send('make', {}),
    changes: () => { screen.classList.toggle('rr-changes'); pressed(); },
    keys: () => K.open(),
    shut: (data, button) => button.closest('dialog').close(),
    'ask-sign': () => {
        const asked = dialog('sign');
        for (const tick of asked.querySelectorAll('input[type=checkbox]')) tick.checked = false;  // nothing is confirmed beforehand
        for (const field of asked.querySelectorAll('[data-signer]')) field.value = signer()[field.dataset.signer] ?? '';
        ready(asked);
        asked.showModal();
    },
    sign: (data, button) => {
        const asked = button.closest('dialog');
        const confirmed = [...asked.querySelectorAll('input:checked')].map((tick) => Number(tick.value));
        const named = Object.fromEntries([...asked.querySelectorAll('[data-signer]')].map((field) => [field.dataset.signer, field.value.trim()]));
        try { localStorage.setItem(SIGNER, JSON.stringify(named)); } catch { signer.now = named; }
        asked.close();
        send('act', {action: 'sign', confirmed});
    },
};

function ready(asked) {
    const ticks = [...asked.querySelectorAll('input[type=checkbox]')], button = asked.querySelector('[data-action="sign"]');
    button.disabled = button.dataset.blocked === '1' || !ticks.every((tick) => tick.checked);
}

function signer() { try { return JSON.parse(localStorage.getItem(SIGNER)) ?? signer.now ?? {}; } catch { return signer.now ?? {}; } }

function tab(name) { [...document.querySelectorAll('#desk-tabs [role="tab"]')].find((one) => one.textContent.trim() === name)?.click(); }

function tell(words) {  // as the server does
    const line = document.querySelector('#status .html-container, #status');
    const said = document.createElement('div');
    said.className = 'rr-say rr-calm rr-told-here';
    said.setAttribute('role', 'status');
    said.textContent = words;
    document.querySelectorAll('.rr-told-here').forEach((old) => old.remove());
    line.append(said);
    setTimeout(() => said.remove(), 4000);
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
    if (event === 'save') Object.assign(data, {reader: signer().name ?? '', organization: signer().organization ?? ''});
    for (const name of ['line', 'number']) if (name in data) data[name] = Number(data[name]);
    if (data.line !== undefined) choose(data.line, {focus: false});
    send(event, data);
}

screen.addEventListener('click', (event) => {
    const finding = event.target.closest('#was-read .rr-find');
    if (finding) window.emrrgOverlay.show(finding.dataset.finding, true);  // its contour, beside its map
    const button = event.target.closest('[data-action]');
    if (button) press(button);
    if (event.target.closest('.rr-find, .rr-pick')) clearTimeout(looking);  // chosen instead of a sentence just before
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
    const {says, macro, macrosFile} = event.target.dataset;
    if (macrosFile !== undefined && event.target.files[0]) {
        event.target.files[0].text().then((text) => send('act', {action: 'macros', text: text.slice(0, 2e6), own: ownMacros().toml ?? ''}));
        event.target.value = '';
    }
    if (says) send('act', {action: 'says', finding: says, value: event.target.value});
    if (macro && event.target.value) {
        const last = [...element.querySelectorAll(`.rr-part[data-section="${macro}"] .rr-item`)].at(-1);
        write({action: 'add', section: macro, ...(last ? {after: Number(last.dataset.line)} : {})}, event.target.value, 'A new sentence');
        box.was = '';
        nextBlank(box.area, 1, 0);
        event.target.value = '';
    }
});

// --- keys --------------------------------------------------------------------------------------------------------------

function tool(what) {  // a button of the current line
    const button = current === null ? null : row(current)?.querySelector(`.rr-item-tools [data-action="${what}"]`);
    if (button) press(button);
}

function bar(what) { const button = element.querySelector(`.rr-bar-of-report [data-action="${what}"]`); if (button) press(button); }

const onScreen = () => screen.offsetParent !== null;

for (const [name, work] of Object.entries({
    draft: () => document.querySelector('#write')?.click(),
    next: () => step(1), previous: () => step(-1),
    accept: () => tool('accept'), edit: () => tool('edit'),
    delete: () => (row(current)?.matches('.rr-deleted') ? tool('restore') : tool('delete')),
    undo: () => bar('undo'), redo: () => bar('redo'), changes: () => here.changes(),
    'next-study': () => send('act', {action: 'next-study'}),
})) K.on(name, (event) => { if (!onScreen()) return false; work(event); return true; });

document.addEventListener('keydown', (event) => {
    const target = event.target instanceof Element ? event.target : document.body;
    if (!onScreen()) return;  // another screen is open
    if ((event.key === 'Enter' || event.key === ' ') && target.matches('.rr-item-text[role=button]') && !event.defaultPrevented) {
        event.preventDefault();
        press(target);
        return;
    }
    if (K.typing(target) || event.altKey || event.defaultPrevented || K.isOpen() || !(event.ctrlKey || event.metaKey)) return;
    const key = event.key.toLowerCase();  // as in any editor; a text box has an undo of its own
    if (key !== 'z' && key !== 'y') return;
    event.preventDefault();
    bar(key === 'y' || event.shiftKey ? 'redo' : 'undo');
});

// --- after the server has drawn the editor -------------------------------------------------------------------------------

watch('value', () => {
    if (box) { const {selectionStart, selectionEnd} = box.area; place(); box.area.focus(); box.area.setSelectionRange(selectionStart, selectionEnd); }
    if (current !== null) choose(current, {focus: false});
    pressed();
    fillMenus();
    watchSight();
    layEvidence();
    recall();
});
new MutationObserver(() => fillMenus()).observe(document.getElementById('macros-kept'), {childList: true, subtree: true});
fillMenus();
watchSight();
