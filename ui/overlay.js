/* What lies over a film: contours of findings, and what the reader measures or points at. Drawn as SVG in the stage's CSS pixels, anew whenever
   viewer.js says where the film lies ("rr-drawn"), so that lines stay thin at every zoom.

   Contours come from the server as paths in 0..1000 of the film's width and height (`.rr-outlines`, ui/viewer.py); which are shown is chosen here.
   Marks are {kind, points}, points in shares of the film, kept by the film's digest and told to the screen by the event "rr-marks". The numbers
   beside them are those of emrrg_core/explain/marks.py. */
(() => {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  let outlines = { films: {}, colours: {} }, outlined = "";
  const on = new Set(); // names of the findings whose contours are shown
  const marks = new Map(); // film -> [{kind, points}]
  let drawing = null; // {film, tool, points}
  let heart = null; // {film, points}: the first half of a cardiothoracic ratio

  const number = (value) => Math.round(value * 10) / 10;

  function element(name, given, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // --- numbers ------------------------------------------------------------------------------------------------------

  function measured(figure, mark) {
    const { width, height, mm, view } = figure.dataset, [[a, b], [c, d]] = mark.points;
    if (mark.kind === "ruler") {
      const across = (c - a) * width, down = (d - b) * height;
      if (!mm) return `${Math.round(Math.hypot(across, down))} pixels, no scale`;
      const [row, column] = mm.split(" ").map(Number);
      return `${Math.round(Math.hypot(across * column, down * row))} mm`;
    }
    if (mark.kind === "ratio") {
      const widths = [Math.abs(c - a), Math.abs(mark.points[3][0] - mark.points[2][0])].sort((x, y) => x - y);
      const ratio = (widths[0] / Math.max(widths[1], 1e-6)).toFixed(2);
      return `CTR ${ratio}${view.startsWith("AP") ? ", AP: overestimates" : view ? "" : ", view not known"}`;
    }
    return "Arrow";
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  function line(group, at, from, to, ends) {
    const [x1, y1, x2, y2] = [at.left + from[0] * at.width, at.top + from[1] * at.height, at.left + to[0] * at.width, at.top + to[1] * at.height].map(number);
    for (const kind of ["rr-under", "rr-ink"]) {
      group.append(element("line", { class: kind, x1, y1, x2, y2 }));
      const length = Math.hypot(x2 - x1, y2 - y1) || 1, [u, v] = [(x2 - x1) / length, (y2 - y1) / length];
      if (ends === "ticks") {
        for (const [x, y] of [[x1, y1], [x2, y2]]) group.append(element("line", { class: kind, x1: x - 6 * v, y1: y + 6 * u, x2: x + 6 * v, y2: y - 6 * u }));
      } else if (ends === "head") {
        for (const turn of [1, -1]) {
          group.append(element("line", { class: kind, x1: x2, y1: y2, x2: number(x2 - 14 * u + turn * 7 * v), y2: number(y2 - 14 * v - turn * 7 * u) }));
        }
      }
    }
    return [x2, y2];
  }

  function drawn(figure, group, at, mark) {
    const { kind, points } = mark;
    if (kind === "arrow") { line(group, at, points[0], points[1], "head"); return; }
    let [x, y] = line(group, at, points[0], points[1], "ticks");
    if (points.length === 4) [x, y] = line(group, at, points[2], points[3], "ticks");
    if (kind === "ratio" && points.length < 4) return;
    const right = x > at.wide - 110;
    group.append(element("text", { x: number(right ? x - 8 : x + 8), y: number(y - 8), "text-anchor": right ? "end" : "start" }, measured(figure, mark)));
  }

  function draw(stage) {
    const at = window.emrrgViewer.place(stage), over = stage.querySelector(".rr-over");
    if (!at || !over) return;
    const figure = stage.closest(".rr-film"), mine = figure.dataset.film;
    const parts = [];
    const paths = stage.closest("#read") ? outlines.films[mine] ?? {} : {};
    const lines = element("g", { class: "rr-lines", transform: `translate(${number(at.left)} ${number(at.top)}) scale(${at.width / 1000} ${at.height / 1000})` });
    for (const [name, path] of Object.entries(paths)) {
      if (on.has(name) && path) lines.append(element("path", { d: path, "data-finding": name, style: `--finding:${outlines.colours[name]}`, "vector-effect": "non-scaling-stroke" }));
    }
    parts.push(lines);
    const group = element("g", { class: "rr-inks" });
    for (const mark of marks.get(mine) ?? []) drawn(figure, group, at, mark);
    for (const under of [heart, drawing]) {
      if (under?.film === mine && under.points.length > 1) drawn(figure, group, at, { kind: under.tool === "ratio" ? "ratio" : under.tool, points: under.points });
    }
    parts.push(group);
    over.replaceChildren(...parts);
    list(figure, mine);
  }

  function drawAll() { window.emrrgViewer.stages().forEach(draw); }

  /* What was measured, below the film, each with a button that takes it away. */
  function list(figure, film) {
    const mine = marks.get(film) ?? [], words = mine.map((mark) => measured(figure, mark)).join("|");
    let place = figure.querySelector(".rr-ink-list");
    if (!place) {
      place = document.createElement("span");
      place.className = "rr-ink-list";
      figure.querySelector(".rr-line")?.append(place);
    }
    if (place.dataset.words === words) return;
    place.dataset.words = words;
    place.replaceChildren(...mine.map((mark, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.unmark = index;
      button.textContent = `${measured(figure, mark)} ✕`;
      button.setAttribute("aria-label", `Remove: ${measured(figure, mark)}`);
      return button;
    }));
  }

  // --- what the reader draws ------------------------------------------------------------------------------------------

  function tell(film) {
    document.dispatchEvent(new CustomEvent("rr-marks", { detail: { film, marks: marks.get(film) ?? [] } }));
    drawAll();
  }

  document.addEventListener("rr-ink", (event) => {
    const { phase, tool, film, where } = event.detail;
    if (phase === "cancel") drawing = null;
    else if (phase === "down") drawing = { film, tool, points: [where, where] };
    else if (drawing?.film === film) {
      // the widths of heart and chest are level: only their width counts
      drawing.points[1] = tool === "ratio" ? [where[0], drawing.points[0][1]] : where;
      if (phase === "up") finish();
    }
    draw(event.target);
  });

  function finish() {
    const { film, tool, points } = drawing, [[a, b], [c, d]] = points;
    drawing = null;
    if (Math.hypot(c - a, d - b) < 0.01) return; // a click is no line
    const mine = marks.get(film) ?? [];
    if (tool === "ratio") {
      if (heart?.film !== film) { heart = { film, tool, points }; return; }
      marks.set(film, [...mine, { kind: "ratio", points: [...heart.points, ...points] }]);
      heart = null;
    } else marks.set(film, [...mine, { kind: tool, points }]);
    tell(film);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !(heart || drawing)) return;
    heart = drawing = null;
    drawAll();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-unmark]");
    if (!button) return;
    const film = button.closest(".rr-film").dataset.film;
    marks.set(film, (marks.get(film) ?? []).filter((_, index) => index !== Number(button.dataset.unmark)));
    tell(film);
  });

  // --- what comes from the server -------------------------------------------------------------------------------------

  function look() {
    const given = document.querySelector("#read .rr-outlines"), text = given?.dataset.outlines ?? "";
    if (text !== outlined) {
      outlined = text;
      outlines = text ? JSON.parse(text) : { films: {}, colours: {} };
      on.clear();
      for (const name of outlines.on ?? []) on.add(name);
      if (text && outlines.marks) for (const [film, mine] of Object.entries(outlines.marks)) marks.set(film, mine);
      drawAll();
    }
    for (const eye of document.querySelectorAll("#read [data-eye]")) eye.setAttribute("aria-pressed", on.has(eye.dataset.eye));
  }

  let looking = false;
  new MutationObserver(() => {
    if (looking) return;
    looking = true;
    requestAnimationFrame(() => { looking = false; look(); });
  }).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-outlines"] });

  document.addEventListener("rr-drawn", (event) => draw(event.target));

  function show(name, shown) {
    if (shown) on.add(name); else on.delete(name);
    look();
    drawAll();
  }

  document.addEventListener("click", (event) => {
    const eye = event.target.closest?.("[data-eye]");
    if (eye) show(eye.dataset.eye, !on.has(eye.dataset.eye));
  });

  window.emrrgOverlay = { show, isShown: (name) => on.has(name), marks: () => Object.fromEntries(marks), forget: () => { marks.clear(); heart = drawing = null; drawAll(); } };
})();
