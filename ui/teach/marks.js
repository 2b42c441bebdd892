// Marks on films: where a finding is. It runs once for each component (js_on_load of a gr.HTML): `element` is that component,
// `watch` tells when the server has drawn it anew, `trigger` tells that they changed; the
// marks are in data-now, where the event finds them (wiring.py). The server draws what is there to be compared with.
//
// A press is a point, a drag a rectangle. Places are shares of the film, the same for every size of screen.

const STEP = 0.02, FINE = 0.004;  // of the film: how far an arrow key moves the cross, and with Shift
const DRAG = 0.015;  // of the film: what is smaller is a press
let section = null, marks = [], past = [], plates = [];

const find = (what) => section?.querySelector(what);
const clamp = (share) => Math.min(1, Math.max(0, share));
const per = (share) => `${(100 * share).toFixed(3)}%`;
const locked = () => section.dataset.locked === '1';
const boxesOnly = () => section.dataset.need === 'box';

class Plate {  // one film to mark on
    constructor(figure) {
        this.film = Number(figure.dataset.film);
        this.plate = figure.querySelector('.rr-plate');
        this.spots = figure.querySelector('.rr-spots');
        this.cross = figure.querySelector('.rr-cross');
        this.at = [0.5, 0.5];  // of the cross, for the keyboard
        this.from = null;  // a corner of the rectangle under way
        this.plate.onpointerdown = (event) => this.begin(event);
        this.plate.onpointermove = (event) => this.move(event);
        this.plate.onpointerup = (event) => this.end(event);
        this.plate.onpointercancel = () => this.give();
        this.plate.onkeydown = (event) => this.key(event);
        this.plate.onfocus = () => this.show(this.plate.matches(':focus-visible'));
        this.plate.onblur = () => { this.show(false); this.give(); };
        this.show(false);
    }

    place(event) {
        const box = this.plate.getBoundingClientRect();
        return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
    }

    begin(event) {
        if (event.button || locked()) return;
        event.preventDefault();  // no selecting, no dragging of the picture
        this.plate.focus({preventScroll: true});
        try { this.plate.setPointerCapture(event.pointerId); } catch (gone) { /* the pointer is up already */ }
        this.from = this.at = this.place(event);
        this.show(false);
    }

    move(event) {
        if (!this.from) return;
        this.at = this.place(event);
        this.draw();
    }

    end(event) {
        if (!this.from) return;
        this.at = this.place(event);
        this.set();
    }

    give() {
        this.from = null;
        this.draw();
    }

    set() {  // a mark from where it was begun to where the cross is
        const [a, b] = [this.from || this.at, this.at];
        const [width, height] = [Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
        this.from = null;
        if (width < DRAG && height < DRAG) {
            if (boxesOnly()) { this.draw(); say('Drag from one corner of the finding to the other.'); return; }
            add({finding: chosen(), film: this.film, x: this.at[0], y: this.at[1], width: 0, height: 0});
        } else add({finding: chosen(), film: this.film, x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]), width, height});
    }

    key(event) {
        if (event.altKey || event.ctrlKey || event.metaKey || locked()) return;
        const step = event.shiftKey ? FINE : STEP;
        const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
        if (event.key in moves) {
            this.at = this.at.map((share, n) => clamp(share + moves[event.key][n]));
            this.show(true);
            this.draw();
        } else if (event.key === 'Enter' && (event.shiftKey || boxesOnly()) && !this.from) {
            this.from = this.at;
            say('One corner is set. Go to the other with the arrow keys and press Enter.');
        } else if (event.key === 'Enter' || event.key === ' ') this.set();
        else if (event.key === 'Escape' && this.from) this.give();
        else if (event.key === 'Backspace') undo();
        else return;
        event.preventDefault();
        event.stopPropagation();  // the keys of the other screens are not meant
    }

    show(seen) {
        this.cross.hidden = !seen;
        this.cross.style.left = per(this.at[0]);
        this.cross.style.top = per(this.at[1]);
    }

    draw() {
        this.spots.replaceChildren();
        marks.forEach((mark, n) => { if (mark.film === this.film) this.spots.append(spot(mark, n + 1)); });
        if (this.from) {
            const [a, b] = [this.from, this.at];
            const [width, height] = [Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
            if (width >= DRAG || height >= DRAG) this.spots.append(spot({x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]), width, height}, ''));
        }
    }
}

function spot(mark, number) {
    const made = document.createElement('i');
    made.className = mark.width || mark.height ? 'rr-spot rr-rect' : 'rr-spot';
    Object.assign(made.style, {left: per(mark.x), top: per(mark.y)});
    if (mark.width || mark.height) Object.assign(made.style, {width: per(mark.width), height: per(mark.height)});
    made.append(Object.assign(document.createElement('b'), {textContent: number}));
    return made;
}

function chosen() { return find('[data-set=finding]').value; }

function say(words) { find('.rr-marks-said').textContent = words; }

function add(mark) {
    if (!mark.finding) { plates.forEach((plate) => plate.draw()); say('Choose a finding first.'); find('[data-set=finding]').focus(); return; }
    if (marks.length >= 40) { say('These are too many marks: at most 40 are kept.'); return; }
    past.push([...marks]);
    marks = [...marks, mark];
    changed(`Marked: ${mark.finding}, film ${mark.film + 1}.`);
}

function undo() {
    if (!past.length) return;
    marks = past.pop();
    changed('Taken back.');
}

function changed(words) {
    draw();
    say(words);
    section.dataset.now = JSON.stringify(marks);
    trigger('mark', {});
}

function draw() {
    plates.forEach((plate) => plate.draw());
    const list = find('.rr-marklist');
    list.replaceChildren(...marks.map((mark, n) => {
        const row = document.createElement('li'), films = plates.length > 1 ? `, film ${mark.film + 1}` : '';
        const gone = Object.assign(document.createElement('button'), {type: 'button', textContent: 'Remove'});
        gone.dataset.remove = n;
        gone.setAttribute('aria-label', `Remove mark ${n + 1}, ${mark.finding}`);
        row.append(`${n + 1} ${mark.finding}${films} `, gone);
        return row;
    }));
    find('[data-do=undo]').disabled = !past.length;
    find('[data-do=clear]').disabled = !marks.length;
    for (const count of section.querySelectorAll('.rr-count')) count.textContent = marks.length ? ` (${marks.length})` : '';
}

function show(mode) {
    section.dataset.mode = mode;
    for (const button of section.querySelectorAll('[data-do=mode]')) button.setAttribute('aria-pressed', String(button.dataset.value === mode));
}

function press(event) {
    const button = event.target.closest('button');
    if (!button || !section?.contains(button)) return;
    if (button.dataset.do === 'mode') show(button.dataset.value);
    if (button.dataset.do === 'undo') undo();
    if (button.dataset.do === 'clear') { past.push([...marks]); marks = []; changed('All marks are taken away.'); }
    if (button.dataset.remove) { past.push([...marks]); marks = marks.filter((_, n) => n !== Number(button.dataset.remove)); changed('Taken away.'); }
}

function begin() {
    section = element.querySelector('.rr-marking');
    marks = [], past = [], plates = [];
    if (!section || locked()) return;
    marks = JSON.parse(section.dataset.marks || '[]');
    section.dataset.now = JSON.stringify(marks);
    plates = [...section.querySelectorAll('.rr-paint')].map((figure) => new Plate(figure));
    draw();
}

element.addEventListener('click', press);
watch('value', begin);
begin();
