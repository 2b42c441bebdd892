/* The film viewer: window and level, invert, zoom and pan, side by side, heat map. Loaded once, in the page's head.

   Drawn on a canvas by the processor, not by WebGL or a filter: only the pixels on the screen are worked out, from the
   nearest of a series of halved copies, so that a frame costs the same however large the film is; it needs no graphics
   card (reading rooms run on remote desktops) and gives the very numbers of ui/window_level.py. benchmarks/viewer.py measures
   it beside the others. While a film moves on a screen too large for that, every second pixel is drawn.

   Gradio writes its HTML anew whenever a film comes or goes: it makes the elements that are there like the new ones, so
   that a stage may come to show another film, and what was set here is undone. So nothing is kept in elements: what the
   reader chose is kept by the film's digest, and the mark data-adopted, lost in every rewriting, tells when to set it
   again. */
(() => {
  "use strict";

  const WHOLE = { level: 0.5, width: 1, inverted: false, zoom: 1, x: 0.5, y: 0.5 }; // x, y: the film's place at the middle
  const NARROWEST = 0.01; // as the slider
  const CLOSEST = 8; // screen pixels per film pixel
  const FRAME = 12; // milliseconds that a frame may cost before it is drawn coarser while things move
  const REST = 140; // milliseconds without change until it is drawn finely again
  const STEP = 1.25; // zoom per key or press

  const screens = new Map(); // id of the component around a viewer -> what the reader chose in it
  const films = new Map(); // digest -> the film's pixels
  const panes = new Map(); // stage -> pane: what is on the screen now
  const root = document.documentElement;
  const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
  const per = (share) => `${Math.round(share * 1000) / 10}\u00a0%`;

  // --- finding the viewers on the page ------------------------------------------------------------------------------

  let looking = false;

  function look() {
    if (looking) return;
    looking = true;
    requestAnimationFrame(() => {
      looking = false;
      for (const [stage, pane] of panes) if (!stage.isConnected) close(stage, pane);
      for (const viewer of document.querySelectorAll(".rr-viewer:not([data-adopted])")) adopt(viewer);
      const held = new Set([...panes.values()].map((pane) => pane.film.key));
      for (const key of films.keys()) if (!held.has(key)) films.delete(key); // a study put away leaves no pixels here
    });
  }

  function adopt(viewer) {
    viewer.dataset.adopted = "";
    const screen = screenOf(viewer);
    for (const stage of viewer.querySelectorAll(".rr-stage")) {
      const pane = panes.get(stage) ?? open(stage);
      Object.assign(pane, { figure: stage.closest(".rr-film"), viewer, screen });
      bind(pane);
    }
    arrange(screen, viewer);
    onScreen(screen).forEach(draw);
  }

  function open(stage) {
    const pane = {
      stage, canvas: stage.querySelector("canvas"), image: stage.querySelector("img"), map: stage.querySelector(".rr-map"),
      film: null, pointers: new Map(), drawn: false, cost: 0, moving: 0,
    };
    panes.set(stage, pane);
    stage.addEventListener("wheel", (event) => onWheel(pane, event), { passive: false });
    stage.addEventListener("pointerdown", (event) => onDown(pane, event));
    stage.addEventListener("pointermove", (event) => onMove(pane, event));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => onUp(pane, event));
    stage.addEventListener("dblclick", (event) => onDouble(pane, event));
    stage.addEventListener("contextmenu", (event) => event.preventDefault()); // the right button windows
    stage.addEventListener("touchmove", (event) => { if (event.touches.length > 1) event.preventDefault(); }, { passive: false });
    stage.addEventListener("mousedown", (event) => { if (event.button === 1) event.preventDefault(); }); // no scrolling of its own
    stage.addEventListener("focusin", () => activate(pane));
    sizes.observe(stage);
    return pane;
  }

  /* The film that the element is of now. */
  function bind(pane) {
    const { figure, screen, image } = pane, { film: key, width, windows } = figure.dataset;
    if (!films.has(key)) films.set(key, { key, width: Number(width), levels: null, state: "none" });
    if (!screen.views.has(key)) screen.views.set(key, { ...WHOLE });
    if (pane.film !== films.get(key)) Object.assign(pane, { film: films.get(key), drawn: false, where: "", tableName: "" });
    Object.assign(pane, { view: screen.views.get(key), windows: JSON.parse(windows) });
    pane.canvas.hidden = !pane.drawn;
    if (!image.complete) image.addEventListener("load", () => draw(pane), { once: true });
  }

  function close(stage, pane) {
    sizes.unobserve(stage);
    clearTimeout(pane.moving);
    panes.delete(stage);
  }

  function screenOf(viewer) {
    const id = viewer.closest("[id]")?.id ?? "";
    if (!screens.has(id)) {
      screens.set(id, { views: new Map(), shown: null, linked: null, active: null, window: false, about: false, tool: null });
    }
    return screens.get(id);
  }

  const isNarrow = (viewer) => (viewer.clientWidth || innerWidth) < 560;
  const isLinked = (screen) => screen.linked ?? onScreen(screen)[0]?.viewer.dataset.linked === "1"; // null: not chosen yet
  const onScreen = (screen) => [...panes.values()].filter((pane) => pane.screen === screen);
  const visible = (pane) => pane.stage.clientWidth > 0;
  const activeOf = (screen) => onScreen(screen).find((pane) => pane.film.key === screen.active && visible(pane))
    ?? onScreen(screen).find(visible) ?? onScreen(screen)[0];

  function activate(pane) {
    pane.screen.active = pane.film.key;
    refresh(pane.screen);
  }

  /* Which films are shown: all side by side, or one; on a telephone one, as two would be too small to read. */
  function arrange(screen, viewer) {
    const figures = [...viewer.querySelectorAll(".rr-film")];
    const known = screen.shown === "all" || figures.some((figure) => figure.dataset.film === screen.shown);
    if (figures.length > 1 && !known) screen.shown = isNarrow(viewer) ? figures[0].dataset.film : "all";
    const one = figures.length === 1 || screen.shown !== "all";
    viewer.classList.toggle("rr-one", one);
    for (const figure of figures) {
      figure.classList.toggle("rr-away", one && figures.length > 1 && figure.dataset.film !== screen.shown);
    }
    refresh(screen);
  }

  // --- the film's pixels --------------------------------------------------------------------------------------------

  /* Halved copies, each the mean of two by two pixels of the one before. */
  function halved(data, width, height) {
    const levels = [{ data, width, height, step: 1 }];
    for (let last = levels[0]; Math.min(last.width, last.height) >= 256; last = levels[levels.length - 1]) {
      const half = { width: last.width >> 1, height: last.height >> 1, step: last.step * 2 };
      const from = last.data, to = (half.data = new Uint16Array(half.width * half.height));
      for (let row = 0, at = 0; row < half.height; row++) {
        let above = 2 * row * last.width, below = above + last.width;
        for (let column = 0; column < half.width; column++, above += 2, below += 2) {
          to[at++] = (from[above] + from[above + 1] + from[below] + from[below + 1] + 2) >> 2;
        }
      }
      levels.push(half);
    }
    return levels;
  }

  /* The picture inside the page: eight bits and at most 1600 pixels long, but there at once. */
  function readPreview(film, image) {
    if (!image.complete || !image.naturalWidth) return; // its load will draw again; decode() may wait for ever
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const bytes = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const data = new Uint16Array(canvas.width * canvas.height);
    for (let at = 0; at < data.length; at++) data[at] = bytes[4 * at] * 257;
    film.levels = halved(data, canvas.width, canvas.height);
    film.state = "preview";
    redraw(film);
  }

  /* The film itself: sixteen bits and every pixel, see ui/pixels.py. */
  async function readFull(film, address) {
    film.state = "loading";
    redraw(film);
    try {
      const answer = await fetch(new URL(address, document.baseURI), { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const body = await answer.arrayBuffer();
      const [height, width] = new Uint32Array(body, 0, 2); // little-endian, as every machine with a browser is
      film.levels = halved(new Uint16Array(body, 8), width, height);
      film.state = "full";
    } catch {
      film.state = "failed";
    }
    redraw(film);
  }

  function redraw(film) {
    for (const pane of panes.values()) if (pane.film === film) draw(pane);
  }

  const isWhole = (view) => Object.entries(WHOLE).every(([name, value]) => view[name] === value);
  const isWindowed = (view) => view.width !== WHOLE.width || view.level !== WHOLE.level;

  /* Does the screen show more than the preview holds? A window asks for depth, a larger scale for pixels. */
  function wantsFull(pane) {
    const { film, image, view } = pane;
    const scale = (place(pane).width * devicePixelRatio) / (image.naturalWidth || film.width);
    return isWindowed(view) || scale > 1.01;
  }

  // --- where the film lies, in the stage's CSS pixels -----------------------------------------------------------------

  function fitted(pane) {
    const wide = pane.stage.clientWidth, tall = pane.stage.clientHeight;
    const ratio = Number(pane.stage.style.getPropertyValue("--ratio"));
    const width = Math.min(wide, tall * ratio);
    return { wide, tall, width, height: width / ratio };
  }

  function place(pane) {
    const fit = fitted(pane), { zoom, x, y } = pane.view;
    const width = fit.width * zoom, height = fit.height * zoom;
    return { ...fit, width, height, left: fit.wide / 2 - x * width, top: fit.tall / 2 - y * height, fit };
  }

  const actual = (pane) => pane.film.width / (fitted(pane).width * devicePixelRatio || 1); // zoom that shows 1:1
  const closest = (pane) => Math.max(CLOSEST * actual(pane), 2);

  function keepInside(pane) {
    const { view } = pane;
    view.zoom = clamp(view.zoom, 1, closest(pane));
    const half = 0.5 / view.zoom; // no more black beside the film than there is when it is shown whole
    view.x = clamp(view.x, half, 1 - half);
    view.y = clamp(view.y, half, 1 - half);
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  const waiting = new Set();

  function draw(pane) {
    if (!waiting.size) requestAnimationFrame(drawAll);
    waiting.add(pane);
  }

  function drawAll() {
    const now = [...waiting], touched = new Set();
    waiting.clear();
    for (const pane of now) {
      if (!pane.stage.isConnected) continue;
      touched.add(pane.screen);
      if (visible(pane)) drawNow(pane);
    }
    touched.forEach(refresh);
  }

  function drawNow(pane) {
    const { film, view, stage, canvas, map } = pane;
    keepInside(pane);
    const at = place(pane);
    stage.classList.toggle("rr-zoomed", view.zoom > 1);
    map.style.transform = view.zoom === 1 ? "" : `translate(${at.left - (at.wide - at.fit.width) / 2}px,${at.top - (at.tall - at.fit.height) / 2}px) scale(${view.zoom})`;
    stage.dispatchEvent(new CustomEvent("rr-drawn", { bubbles: true, detail: { film: film.key, left: at.left, top: at.top, width: at.width, height: at.height } }));
    const full = wantsFull(pane);
    if (!pane.drawn && isWhole(view) && !full) return; // the picture in the page is all that is needed
    if (film.state === "none") readPreview(film, pane.image);
    else if (full && film.state === "preview") readFull(film, pane.figure.dataset.full);
    if (!film.levels) return;
    const begun = performance.now();
    const coarse = pane.moving && pane.cost > FRAME ? 2 : 1;
    paint(pane, at, devicePixelRatio / coarse);
    canvas.hidden = false;
    pane.drawn = true;
    if (coarse === 1) pane.cost = performance.now() - begun;
  }

  /* scale: canvas pixels per CSS pixel */
  function paint(pane, at, scale) {
    const { canvas, film } = pane;
    const wide = Math.round(at.wide * scale), tall = Math.round(at.tall * scale);
    if (canvas.width !== wide || canvas.height !== tall) [canvas.width, canvas.height] = [wide, tall];
    const context = (pane.context ??= canvas.getContext("2d", { alpha: false }));
    const box = { left: Math.max(0, Math.round(at.left * scale)), top: Math.max(0, Math.round(at.top * scale)) };
    box.width = Math.min(wide, Math.round((at.left + at.width) * scale)) - box.left;
    box.height = Math.min(tall, Math.round((at.top + at.height) * scale)) - box.top;
    if (box.width < 1 || box.height < 1) return;
    const where = [wide, tall, at.left, at.top, at.width, film.state].join();
    if (pane.where !== where) { // else only the window moved, and the values stay
      pane.values = sampled(film.levels, at, scale, box);
      pane.picture = context.createImageData(box.width, box.height);
      pane.where = where;
      context.fillRect(0, 0, wide, tall); // black around the film
    }
    const tones = table(pane), values = pane.values, out = new Uint32Array(pane.picture.data.buffer);
    for (let index = 0; index < out.length; index++) out[index] = tones[values[index]];
    context.putImageData(pane.picture, box.left, box.top);
  }

  /* The film's values at the canvas' pixels of `box`, linear between the four nearest. */
  function sampled(levels, at, scale, box) {
    const across = levels[0].width / (at.width * scale), down = levels[0].height / (at.height * scale);
    let chosen = levels[0];
    for (const level of levels) if (level.step <= Math.min(across, down)) chosen = level;
    const { data, width, height, step } = chosen;
    const source = (pixel, start, ratio, most) => clamp(((pixel + 0.5 - start * scale) * ratio) / step - 0.5, 0, most);
    const left = new Int32Array(box.width), right = new Int32Array(box.width), share = new Int32Array(box.width);
    for (let column = 0; column < box.width; column++) {
      const from = source(box.left + column, at.left, across, width - 1);
      left[column] = Math.floor(from);
      right[column] = Math.min(left[column] + 1, width - 1);
      share[column] = Math.round((from - left[column]) * 256);
    }
    const values = new Uint16Array(box.width * box.height);
    for (let row = 0, index = 0; row < box.height; row++) {
      const from = source(box.top + row, at.top, down, height - 1), whole = Math.floor(from);
      const upper = whole * width, lower = Math.min(whole + 1, height - 1) * width, part = Math.round((from - whole) * 256);
      for (let column = 0; column < box.width; column++, index++) {
        const a = left[column], b = right[column], f = share[column];
        const top = ((data[upper + a] << 8) + (data[upper + b] - data[upper + a]) * f) >> 8;
        const bottom = ((data[lower + a] << 8) + (data[lower + b] - data[lower + a]) * f) >> 8;
        values[index] = top + (((bottom - top) * part) >> 8);
      }
    }
    return values;
  }

  /* Value (16 bits) -> pixel (alpha, blue, green, red): LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2, as ui/window_level.py. */
  function table(pane) {
    const { level, width, inverted } = pane.view, name = [level, width, inverted].join();
    if (pane.tableName === name) return pane.table;
    const tones = (pane.table ??= new Uint32Array(65536));
    for (let value = 0; value < 65536; value++) {
      const shown = clamp((value / 65535 - level) / width + 0.5, 0, 1);
      tones[value] = 0xff000000 | (Math.round((inverted ? 1 - shown : shown) * 255) * 0x010101);
    }
    pane.tableName = name;
    return tones;
  }

  // --- changing the view --------------------------------------------------------------------------------------------

  function change(pane, part) {
    const { screen, view } = pane;
    Object.assign(view, part);
    keepInside(pane);
    moved(pane);
    if (!isLinked(screen) || !["zoom", "x", "y"].some((name) => name in part)) return;
    for (const other of onScreen(screen)) {
      if (other === pane) continue;
      Object.assign(other.view, { zoom: view.zoom, x: view.x, y: view.y });
      moved(other);
    }
  }

  function moved(pane) {
    clearTimeout(pane.moving);
    pane.moving = setTimeout(() => { pane.moving = 0; draw(pane); }, REST);
    draw(pane);
  }

  /* Zoom by a factor; the film's place under (x, y), in CSS pixels of the stage, stays where it is. */
  function zoomBy(pane, factor, x, y) {
    const at = place(pane), zoom = clamp(pane.view.zoom * factor, 1, closest(pane));
    const across = x ?? at.wide / 2, down = y ?? at.tall / 2;
    const width = at.fit.width * zoom, height = at.fit.height * zoom;
    change(pane, {
      zoom,
      x: (at.wide / 2 - across) / width + (across - at.left) / at.width,
      y: (at.tall / 2 - down) / height + (down - at.top) / at.height,
    });
  }

  function moveBy(pane, across, down) {
    const at = place(pane);
    change(pane, { x: pane.view.x - across / at.width, y: pane.view.y - down / at.height });
  }

  function windowBy(pane, wider, darker) {
    const { width, level } = pane.view;
    change(pane, { width: clamp(width + wider, NARROWEST, 1), level: clamp(level + darker, 0, 1) });
  }

  function preset(pane, number) {
    const [level, width] = pane.windows[number] ?? [WHOLE.level, WHOLE.width];
    change(pane, { level, width });
  }

  function reset(screen) {
    for (const pane of onScreen(screen)) {
      if (pane.film.state === "failed") pane.film.state = "preview"; // another try when it is next asked for
      Object.assign(pane.view, WHOLE);
      moved(pane);
    }
  }

  const setMap = (on) => { root.classList.toggle("rr-map-off", !on); screens.forEach(refresh); };
  const mapIsOn = () => !root.classList.contains("rr-map-off");

  function fullScreen(viewer) {
    if (document.fullscreenElement) document.exitFullscreen();
    else viewer.requestFullscreen?.().catch(() => {}); // a page in a frame may not be allowed to
  }

  // --- wheel, mouse, fingers ----------------------------------------------------------------------------------------

  function onWheel(pane, event) {
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const amount = event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002); // with ctrl: two fingers on a touch pad
    if (amount >= 0 && pane.view.zoom === 1 && !event.ctrlKey) return; // a whole film lets the page scroll on
    event.preventDefault();
    const [x, y] = inStage(pane, event);
    activate(pane);
    zoomBy(pane, Math.exp(-clamp(amount, -0.7, 0.7)), x, y);
  }

  function inStage(pane, event) {
    const box = pane.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /* What a drag means now. A finger scrolls the page over a whole film, and moves a film that is zoomed, unless a tool was chosen. */
  function meaning(pane, event) {
    if (event.button === 1 || space || event.shiftKey) return "pan";
    if (event.button === 2) return "zoom";
    if (event.pointerType === "touch" && !pane.screen.tool) return "pan";
    return pane.screen.tool ?? "window";
  }

  const INK = ["ruler", "ratio", "arrow"]; // overlay.js draws with them

  function ink(pane, event, phase) {
    const at = place(pane), [x, y] = inStage(pane, event);
    const where = [clamp((x - at.left) / at.width, 0, 1), clamp((y - at.top) / at.height, 0, 1)];
    pane.stage.dispatchEvent(new CustomEvent("rr-ink", { bubbles: true, detail: { phase, tool: pane.mode, film: pane.film.key, where } }));
  }

  function onDown(pane, event) {
    pane.stage.setPointerCapture(event.pointerId);
    pane.pointers.set(event.pointerId, inStage(pane, event));
    activate(pane);
    if (pane.pointers.size > 1) {
      if (INK.includes(pane.mode)) ink(pane, event, "cancel");
      pane.mode = "pan";
      return;
    }
    pane.mode = meaning(pane, event);
    pane.held = inStage(pane, event);
    if (INK.includes(pane.mode)) ink(pane, event, "down");
  }

  function onMove(pane, event) {
    const before = pane.pointers.get(event.pointerId);
    if (!before) return;
    const now = inStage(pane, event), others = [...pane.pointers].filter(([id]) => id !== event.pointerId);
    pane.pointers.set(event.pointerId, now);
    if (others.length) {
      const [, still] = others[0];
      const spread = (one) => Math.hypot(one[0] - still[0], one[1] - still[1]);
      zoomBy(pane, spread(now) / Math.max(spread(before), 1), (now[0] + still[0]) / 2, (now[1] + still[1]) / 2);
      moveBy(pane, (now[0] - before[0]) / 2, (now[1] - before[1]) / 2); // the middle of both fingers went half as far
    } else if (INK.includes(pane.mode)) ink(pane, event, "move");
    else if (pane.mode === "window") windowBy(pane, (now[0] - before[0]) / pane.stage.clientWidth, (now[1] - before[1]) / pane.stage.clientHeight);
    else if (pane.mode === "zoom") zoomBy(pane, Math.exp((before[1] - now[1]) * 0.006), ...pane.held);
    else if (pane.view.zoom > 1) moveBy(pane, now[0] - before[0], now[1] - before[1]);
  }

  function onUp(pane, event) {
    if (pane.pointers.has(event.pointerId) && INK.includes(pane.mode)) ink(pane, event, event.type === "pointerup" ? "up" : "cancel");
    pane.pointers.delete(event.pointerId);
  }

  function onDouble(pane, event) {
    if (INK.includes(pane.screen.tool)) return;
    const [x, y] = inStage(pane, event);
    zoomBy(pane, pane.view.zoom > 1 ? 0 : Math.max(actual(pane), 2), x, y);
  }

  // --- keys and controls --------------------------------------------------------------------------------------------

  const actions = {
    in: (pane) => zoomBy(pane, STEP),
    out: (pane) => zoomBy(pane, 1 / STEP),
    fit: (pane) => change(pane, { zoom: 1, x: 0.5, y: 0.5 }),
    actual: (pane) => zoomBy(pane, actual(pane) / pane.view.zoom),
    invert: (pane) => change(pane, { inverted: !pane.view.inverted }),
    preset: (pane, value) => preset(pane, Number(value)),
    reset: (pane) => reset(pane.screen),
    map: () => setMap(!mapIsOn()),
    screen: (pane) => fullScreen(pane.viewer),
    window: (pane) => { pane.screen.window = !pane.screen.window; },
    keys: () => window.emrrgKeys.open(),
    about: (pane) => { pane.screen.about = !pane.screen.about; },
    tool: (pane, value) => { pane.screen.tool = pane.screen.tool === value && value !== "window" ? null : value; },
    link: (pane) => {
      pane.screen.linked = !isLinked(pane.screen);
      const { zoom, x, y } = pane.view;
      if (pane.screen.linked) change(pane, { zoom, x, y }); // the others follow at once
    },
    show: (pane, value) => {
      const figure = pane.viewer.querySelectorAll(".rr-film")[Number(value)];
      pane.screen.shown = value === "all" ? "all" : figure.dataset.film;
      if (value !== "all") pane.screen.active = pane.screen.shown;
      arrange(pane.screen, pane.viewer);
      onScreen(pane.screen).forEach(draw);
    },
  };

  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

  /* True where the key meant something here. */
  function onArrow(pane, event) {
    const arrow = arrows[event.key];
    if (!arrow) return false;
    if (event.shiftKey) windowBy(pane, -arrow[0] * 0.02, -arrow[1] * 0.02);
    else if (pane.view.zoom > 1) moveBy(pane, arrow[0] * 60, arrow[1] * 60);
    else return false;
    refresh(pane.screen);
    return true;
  }

  document.addEventListener("keydown", (event) => {
    const stage = event.target.closest?.(".rr-stage");
    if (!stage || event.ctrlKey || event.altKey || event.metaKey) return;
    const pane = panes.get(stage);
    if (!pane || !onArrow(pane, event)) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);

  // the space bar moves the film under the pointer
  let space = false;
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || window.emrrgKeys.typing(event.target) || !document.querySelector(".rr-stage:hover")) return;
    event.preventDefault();
    space = true;
    root.classList.add("rr-space");
  }, true);
  for (const end of ["keyup", "blur"]) {
    window.addEventListener(end, (event) => {
      if (end === "keyup" && (event.key !== " " || !space)) return;
      if (space && end === "keyup") event.preventDefault();
      space = false;
      root.classList.remove("rr-space");
    }, true);
  }

  const seenViewer = () => [...document.querySelectorAll(".rr-viewer")].find((viewer) => viewer.checkVisibility());

  /* Do something to the film that is in use on the screen; false where there is none. */
  function perform(action, value) {
    const viewer = seenViewer(), pane = viewer && activeOf(screenOf(viewer));
    if (!pane) return false;
    actions[action](pane, value);
    refresh(pane.screen);
    return true;
  }

  for (const action of ["in", "out", "fit", "actual", "invert", "reset", "map", "screen", "link"]) {
    window.emrrgKeys.on(action, () => perform(action));
  }
  for (const tool of ["window", "zoom", ...INK]) window.emrrgKeys.on(tool, () => perform("tool", tool));
  for (let number = 0; number < 5; number++) window.emrrgKeys.on(`preset-${number + 1}`, () => perform("preset", number));

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".rr-viewer button[data-do]");
    const pane = button && activeOf(screenOf(button.closest(".rr-viewer")));
    if (!pane) return;
    actions[button.dataset.do](pane, button.dataset.value);
    refresh(pane.screen);
  });

  document.addEventListener("input", (event) => {
    const slider = event.target.closest?.(".rr-viewer input[data-set]");
    const pane = slider && activeOf(screenOf(slider.closest(".rr-viewer")));
    if (!pane) return;
    const share = Number(slider.value) / 100;
    if (slider.dataset.set !== "opacity") change(pane, { [slider.dataset.set]: share });
    else {
      root.style.setProperty("--map-opacity", share);
      setMap(true);
    }
  });

  document.addEventListener("fullscreenchange", () => screens.forEach(refresh));

  // --- what the controls say ----------------------------------------------------------------------------------------

  const states = {
    none: "", preview: "", loading: " · loading the full film…", full: " · full film",
    failed: " · a preview: the full film could not be loaded. Press Reset to try again, or add the film anew.",
  };

  const zoomed = (pane) => `${Math.round(100 * pane.view.zoom / actual(pane))}\u00a0%`;

  function words(pane) {
    const { view, film } = pane;
    const tone = isWindowed(view) ? `window ${per(view.width)}, level ${per(view.level)}` : "as read";
    return `${tone}${view.inverted ? ", inverted" : ""} · zoom ${zoomed(pane)}${states[film.state]}`;
  }

  function refresh(screen) {
    const active = activeOf(screen);
    if (!active || !visible(active)) return;
    const { viewer, view } = active;
    const find = (selector) => viewer.querySelector(selector);
    const press = (action, on) => find(`[data-do=${action}]`)?.setAttribute("aria-pressed", on);
    const all = onScreen(screen), shown = all.filter(visible);
    for (const pane of all) {
      pane.figure.classList.toggle("rr-active", pane === active && shown.length > 1);
      write(pane.figure.querySelector(".rr-now"), words(pane));
      const about = pane.figure.querySelector("[data-do=about]");
      about.setAttribute("aria-expanded", screen.about);
      pane.figure.querySelector(".rr-inspect").hidden = !screen.about;
    }
    write(find(".rr-percent"), zoomed(active));
    write(find(".rr-target"), all.length > 1 ? `${active.figure.querySelector("b").textContent}:` : "");
    press("invert", view.inverted);
    press("link", isLinked(screen));
    press("map", mapIsOn());
    press("screen", document.fullscreenElement === viewer);
    find("[data-do=screen]").hidden = !document.fullscreenEnabled;
    find("[data-do=window]").setAttribute("aria-expanded", screen.window);
    find(".rr-window").hidden = !screen.window;
    viewer.dataset.tool = screen.tool ?? "window";
    for (const button of viewer.querySelectorAll("[data-do=tool]")) {
      button.setAttribute("aria-pressed", button.dataset.value === (screen.tool ?? "window"));
    }
    for (const button of viewer.querySelectorAll("[data-do=show]")) {
      const one = viewer.classList.contains("rr-one") ? screen.shown : "all";
      const key = button.dataset.value === "all" ? "all" : viewer.querySelectorAll(".rr-film")[button.dataset.value].dataset.film;
      button.setAttribute("aria-pressed", one === key);
    }
    const chosen = active.windows.findIndex(([level, width]) => level === view.level && width === view.width);
    for (const button of viewer.querySelectorAll("[data-do=preset]")) {
      button.setAttribute("aria-pressed", Number(button.dataset.value) === chosen);
    }
    const line = find(".rr-words");
    write(line, JSON.parse(line.dataset.words)[chosen] ?? "Set by hand.");
    slide(find("[data-set=width]"), view.width);
    slide(find("[data-set=level]"), view.level);
    slide(find("[data-set=opacity]"), Number(getComputedStyle(root).getPropertyValue("--map-opacity") || 0.5));
    say(viewer, active);
  }

  /* Text is written only where it changes: the observer below hears of every change. */
  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function slide(slider, share) {
    if (document.activeElement !== slider || Math.abs(slider.value / 100 - share) > 0.006) slider.value = 100 * share;
    write(slider.parentElement.querySelector("output"), per(share));
  }

  let saying = 0;

  function say(viewer, pane) { // for screen readers, once a movement is over
    clearTimeout(saying);
    saying = setTimeout(() => {
      if (pane.drawn) write(viewer.querySelector(".rr-said"), `${pane.figure.querySelector("b").textContent}: ${words(pane)}`);
    }, 600);
  }

  window.emrrgViewer = {
    /* Where the film lies in its stage, in CSS pixels; null where it is not shown. */
    place: (stage) => { const pane = panes.get(stage); return pane && visible(pane) ? { film: pane.film.key, ...place(pane) } : null; },
    stages: () => [...panes.keys()],
    useTool: (tool) => perform("tool", tool),
    perform,
  };

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) if (panes.has(target)) draw(panes.get(target));
  });
  new MutationObserver(look).observe(root, { childList: true, subtree: true, attributeFilter: ["data-adopted"] });
  look();
})();
