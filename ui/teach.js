// The brush of "What does the model see?". It runs once, as js_on_load of a gr.HTML: `element` is that component, `watch`
// tells when the server has drawn it anew, `trigger` sends what is painted.
//
// What is marked lies in a grid over each film, the same for every size of screen; only the grid goes to the server.

const CELLS = 112;  // along a side: two pixels each of what the model takes in, so a finer grid would be lost on it
const STEP = 0.03;  // of the width: how far an arrow key moves the brush
let papers = [], past = [], timer = 0;

function fill() { return element.querySelector('input[name=rr-fill]:checked').value; }
function size() { return Number(element.querySelector('[data-set=size]').value) / 100; }  // of the film's width
function erasing() { return element.querySelector('[data-do=erase]').getAttribute('aria-pressed') === 'true'; }

class Paper {  // one film to paint on
    constructor(figure) {
        this.figure = figure;
        this.canvas = figure.querySelector('canvas');
        this.film = figure.querySelector('img');
        this.ring = figure.querySelector('.rr-ring');
        this.marked = new Uint8Array(CELLS * CELLS);
        this.at = [0.5, 0.5];  // of the brush, for the keyboard: shares of width and height
        this.last = null;  // where the stroke under way has come to
        this.grid = document.createElement('canvas');
        this.grid.width = this.grid.height = CELLS;
        this.film.addEventListener('load', () => this.draw());
        this.canvas.addEventListener('pointerdown', (event) => this.begin(event));
        this.canvas.addEventListener('pointermove', (event) => this.move(event));
        for (const over of ['pointerup', 'pointercancel']) this.canvas.addEventListener(over, () => this.end());
        this.canvas.addEventListener('pointerleave', () => { if (!this.last) this.ring.hidden = true; });
        this.canvas.addEventListener('keydown', (event) => this.key(event));
        this.canvas.addEventListener('focus', () => this.show(this.canvas.matches(':focus-visible')));
        this.canvas.addEventListener('blur', () => { this.ring.hidden = true; });
        this.ring.hidden = true;
        new ResizeObserver(() => this.draw()).observe(this.canvas);
    }

    place(event) {
        const box = this.canvas.getBoundingClientRect();
        return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    }

    begin(event) {
        if (event.button) return;
        event.preventDefault();  // no selecting, no dragging of the picture
        this.canvas.focus({preventScroll: true});
        try { this.canvas.setPointerCapture(event.pointerId); } catch (gone) { /* the pointer is up already */ }
        remember();
        this.last = this.place(event);
        this.stroke(this.last, this.last);
    }

    move(event) {
        const here = this.place(event);
        this.at = here;
        this.show(true);
        if (!this.last) return;
        this.stroke(this.last, here);
        this.last = here;
    }

    end() {
        if (!this.last) return;
        this.last = null;
        send();
    }

    key(event) {
        const moves = {ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP]};
        if (event.altKey || event.ctrlKey || event.metaKey) return;
        if (event.key in moves) {
            this.at = this.at.map((share, n) => Math.min(1, Math.max(0, share + moves[event.key][n])));
            this.show(true);
        } else if (event.key === ' ' || event.key === 'Enter') {
            remember();
            this.stroke(this.at, this.at);
            send();
        } else if (event.key === 'Backspace') back();
        else return;
        event.preventDefault();
        event.stopPropagation();  // the keys of the other screens are not meant
    }

    show(seen) {  // the ring that says where and how large the brush is
        const {clientWidth: width, clientHeight: height} = this.canvas;
        this.ring.hidden = !seen;
        this.ring.style.width = this.ring.style.height = `${size() * width}px`;
        this.ring.style.left = `${(this.at[0] - size() / 2) * width}px`;
        this.ring.style.top = `${this.at[1] * height - size() * width / 2}px`;
    }

    stroke(from, to) {  // round on the screen, though the grid's cells need not be square there
        const {clientWidth: width, clientHeight: height} = this.canvas;
        const radius = size() * width / 2, value = erasing() ? 0 : 1;
        const length = Math.hypot((to[0] - from[0]) * width, (to[1] - from[1]) * height);
        const steps = Math.max(1, Math.ceil(length / (radius / 2)));
        for (let step = 0; step <= steps; step += 1) {
            const x = (from[0] + (to[0] - from[0]) * step / steps) * width, y = (from[1] + (to[1] - from[1]) * step / steps) * height;
            for (let row = 0; row < CELLS; row += 1) {
                const down = (row + 0.5) * height / CELLS - y;
                if (Math.abs(down) > radius) continue;
                for (let column = 0; column < CELLS; column += 1) {
                    if (Math.hypot((column + 0.5) * width / CELLS - x, down) <= radius) this.marked[row * CELLS + column] = value;
                }
            }
        }
        this.draw();
    }

    draw() {  // what the model is given: the film as it is, and over it what takes the place of the marked part
        const {clientWidth: width, clientHeight: height} = this.canvas;
        if (!width || !height) return;
        const ratio = window.devicePixelRatio || 1, context = this.canvas.getContext('2d');
        const wide = this.canvas.width = Math.round(width * ratio), tall = this.canvas.height = Math.round(height * ratio);
        if (!this.marked.includes(1)) return;
        const small = this.grid.getContext('2d'), cells = small.createImageData(CELLS, CELLS);
        this.marked.forEach((value, cell) => { cells.data[4 * cell + 3] = 255 * value; });
        small.putImageData(cells, 0, 0);
        context.imageSmoothingEnabled = false;
        context.drawImage(this.grid, 0, 0, wide, tall);
        context.imageSmoothingEnabled = true;
        context.globalCompositeOperation = 'source-in';
        const grey = this.figure.dataset.grey, kind = fill();
        if (kind === 'blank') {
            context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
            context.fillRect(0, 0, wide, tall);
        } else if (kind === 'side') {
            context.setTransform(-1, 0, 0, 1, wide, 0);
            context.drawImage(this.film, 0, 0, wide, tall);
        } else context.drawImage(element.querySelector('.rr-other'), 0, 0, wide, tall);
    }

    bits() {  // one bit a cell, in raster order, the first the highest of its byte
        const bytes = new Uint8Array(CELLS * CELLS / 8);
        this.marked.forEach((value, cell) => { bytes[cell >> 3] |= value << (7 - (cell & 7)); });
        return btoa(String.fromCharCode(...bytes));
    }
}

function remember() {
    past.push(papers.map((paper) => paper.marked.slice()));
    if (past.length > 50) past.shift();
}

function recall(states) {
    papers.forEach((paper, n) => { paper.marked = states[n]; paper.draw(); });
    send();
}

function back() { if (past.length) recall(past.pop()); }

function send() {
    enable();
    clearTimeout(timer);  // a stroke that follows at once goes with this one
    timer = setTimeout(() => trigger('paint', {fill: fill(), masks: papers.map((paper) => paper.bits())}), 250);
}

function enable() {
    element.querySelector('[data-do=back]').disabled = !past.length;
    element.querySelector('[data-do=clear]').disabled = !papers.some((paper) => paper.marked.includes(1));
}

function press(event) {
    const button = event.target.closest('button[data-do]');
    if (!button || !element.contains(button)) return;
    if (button.dataset.do === 'erase') button.setAttribute('aria-pressed', String(!erasing()));
    if (button.dataset.do === 'back') back();
    if (button.dataset.do === 'clear') { remember(); recall(papers.map(() => new Uint8Array(CELLS * CELLS))); }
}

function change(event) {
    if (event.target.name !== 'rr-fill') return;
    papers.forEach((paper) => paper.draw());
    if (papers.some((paper) => paper.marked.includes(1))) send();
}

function begin() {
    papers = [...element.querySelectorAll('.rr-paint')].map((figure) => new Paper(figure));
    past = [];
}

element.addEventListener('click', press);
element.addEventListener('change', change);
watch('value', begin);
begin();
