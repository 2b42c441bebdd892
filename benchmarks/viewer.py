"""Frame times of the film viewer beside two other ways to draw it, in Chromium: python benchmarks/viewer.py [--json]

A film of 3000 × 3000 pixels; every frame narrows or widens the window, moves the film at one to one, or zooms.

canvas    ours (ui/viewer.js): the pixels on the screen, from 16 bits, by the processor
webgl     the whole film as a 16-bit texture, windowed in a fragment shader
filter    an <img> of 8 bits with an SVG filter (feComponentTransfer) for the window and a CSS transform for the rest

A frame's time is from one requestAnimationFrame to the next, without a limit to the screen's rate; the median and the
95th percentile of 60 are printed, in milliseconds (16.7 is 60 frames a second); fewer frames are taken where six
seconds do not suffice. It needs no graphics card: without one, as where it says SwiftShader, the last two are drawn by
the processor too. Also the time from asking for the full film until it is drawn, from this machine.
"""

import argparse
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sys.exit("This benchmark drives a browser: pip install -r requirements-dev.txt")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core import Film
from ui import keys, viewer
from ui.pixel_endpoint import packed

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
SIDE, FRAMES = 3000, 60
MOVES, NOTE = ("window", "pan", "zoom"), "full film drawn after, ms"
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-frame-rate-limit", "--disable-gpu-vsync"]
SCREENS = {"laptop": (1440, 900, 1), "laptop, fine": (1440, 900, 2), "monitor": (2560, 1440, 1)}

TIMED = """
async (step) => {
    const times = [], begun = performance.now();
    for (let n = 0, last = 0; n <= FRAMES + 3 && (n < 9 || performance.now() - begun < 6000); n++) {
        const now = await Promise.race([
            new Promise(requestAnimationFrame), new Promise((done) => setTimeout(done, 10000)),
        ]);
        if (now === undefined) return null; // no frame comes any more: this browser cannot draw it this way
        if (n > 3) times.push(now - last);
        last = now;
        step(n);
    }
    times.sort((a, b) => a - b);
    return [times[Math.floor(times.length / 2)], times[Math.floor(times.length * 0.95)]];
}
""".replace("FRAMES", str(FRAMES))

FIRST = """
async () => {
    const begun = performance.now();
    document.querySelector('[data-do=preset][data-value="2"]').click();
    while (!document.querySelector('.rr-now').textContent.endsWith('· full film')) {
        if (performance.now() - begun > 30000) throw new Error('the full film was not drawn within 30 seconds');
        await new Promise((done) => setTimeout(done, 5));
    }
    return performance.now() - begun;
}
"""

OURS = """
const stage = document.querySelector('.rr-stage'), width = document.querySelector('[data-set=width]');
const key = (key, shiftKey) => stage.dispatchEvent(new KeyboardEvent('keydown', {key, shiftKey, bubbles: true}));
window.moves = {
    window: (n) => { width.value = 40 + n % 2 * 10 + n / 10; width.dispatchEvent(new Event('input', {bubbles: true})); },
    pan: (n) => { if (n === 0) key('o'); key(n % 20 < 10 ? 'ArrowRight' : 'ArrowLeft'); },
    zoom: (n) => key(n % 20 < 10 ? '+' : '-'),
};
"""

FILTER = """
document.body.innerHTML = `<svg width="0" height="0"><filter id="f" color-interpolation-filters="sRGB"><feComponentTransfer>
    <feFuncR type="linear"/><feFuncG type="linear"/><feFuncB type="linear"/></feComponentTransfer></filter></svg>
    <div id="box" style="width:100vw;height:90vh;overflow:hidden"><img src="/film.png"
    style="filter:url(#f);transform-origin:0 0;will-change:transform"></div>`;
const image = document.querySelector('img'), fit = document.querySelector('#box').clientHeight / SIDE;
const place = (zoom, x) => { image.style.transform = `translate(${x}px,0) scale(${zoom})`; };
await image.decode();
place(fit, 0);
window.moves = {
    window: (n) => { for (const part of document.querySelectorAll('feComponentTransfer > *')) {
        part.setAttribute('slope', 2 + n % 2 + n / 100); part.setAttribute('intercept', -0.5); } },
    pan: (n) => place(1, -60 * (n % 20 < 10 ? n % 20 : 20 - n % 20)),
    zoom: (n) => place(fit * 1.25 ** (n % 20 < 10 ? n % 20 : 20 - n % 20), 0),
};
"""

WEBGL = """
document.body.innerHTML = '<canvas style="width:100vw;height:90vh"></canvas>';
const canvas = document.querySelector('canvas'), gl = canvas.getContext('webgl2');
if (gl) {
    [canvas.width, canvas.height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, `#version 300 es
        void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1); }`],
        [gl.FRAGMENT_SHADER, `#version 300 es
        precision highp float; precision highp usampler2D; uniform usampler2D film; uniform vec4 view; out vec4 colour;
        float at(ivec2 p) { return float(texelFetch(film, clamp(p, ivec2(0), ivec2(SIDE - 1)), 0).r) / 65535.0; }
        void main() { vec2 p = gl_FragCoord.xy / view.x + vec2(view.y, 0) - 0.5; ivec2 i = ivec2(floor(p)); vec2 f = fract(p);
            float v = mix(mix(at(i), at(i + ivec2(1, 0)), f.x), mix(at(i + ivec2(0, 1)), at(i + 1), f.x), f.y);
            colour = vec4(vec3((v - view.z) / view.w + 0.5), 1); }`]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, source);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    const words = new Uint16Array(await (await fetch('/films/full')).arrayBuffer(), 8);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 2);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.R16UI, SIDE, SIDE, 0, gl.RED_INTEGER, gl.UNSIGNED_SHORT, words);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.viewport(0, 0, canvas.width, canvas.height);
    const view = gl.getUniformLocation(program, 'view'), fit = canvas.height / SIDE;
    const show = (scale, x, level, width) => { gl.uniform4f(view, scale, x, level, width); gl.drawArrays(gl.TRIANGLES, 0, 3); };
    window.renderer = gl.getParameter(gl.getExtension('WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL);
    window.moves = {
        window: (n) => show(fit, 0, 0.5, 0.4 + n % 2 * 0.1 + n / 1000),
        pan: (n) => show(1, 60 * (n % 20 < 10 ? n % 20 : 20 - n % 20), 0.5, 1),
        zoom: (n) => show(fit * 1.25 ** (n % 20 < 10 ? n % 20 : 20 - n % 20), 0, 0.5, 1),
    };
}
"""


def film() -> Film:
    rows, columns = np.mgrid[:SIDE, :SIDE] / np.float32(SIDE)
    grain = np.random.default_rng(0).normal(0, 0.02, (SIDE, SIDE)).astype(np.float32)
    pixels = (0.2 + 0.4 * rows + 0.3 * columns + grain).clip(0, 1).astype(np.float32)
    return Film("Film 1", pixels, None, "PA", ("made",), "0", "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    shown = film()
    png = io.BytesIO()
    Image.fromarray(np.rint(shown.pixels * 255).astype(np.uint8)).save(png, "PNG", compress_level=1)
    styles = (ROOT / "ui" / "viewer.css").read_text(encoding="utf-8")
    html = f"<!doctype html><style>{styles}</style>{keys.HEAD}{viewer.HEAD}<body style='margin:0'><div id=films></div>"
    answers = {
        "/": ("text/html;charset=utf-8", html.encode()),
        "/film.png": ("image/png", png.getvalue()),
        "/films": ("application/octet-stream", packed(shown.pixels)),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = answers.get("/" + self.path.split("/")[1], ("text/plain", b""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    rows = []
    say = (lambda text: None) if args.json else (lambda text: print(text, flush=True))
    with sync_playwright() as playwright:
        for number, (screen, (width, height, ratio)) in enumerate(SCREENS.items()):
            browser = playwright.chromium.launch(  # a new one: the second page of one browser got no frames
                executable_path=str(CHROMIUM) if CHROMIUM.exists() else None, args=FLAGS
            )
            if number == 0:
                say(f"Chromium {browser.version}, {SIDE} × {SIDE} pixels, median (95th percentile) of one frame in ms")
                say(f"{'screen':14}{'drawn by':10}" + "".join(f"{name:>18}" for name in MOVES))
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=ratio)
            for way, code in (("canvas", OURS), ("webgl", WEBGL), ("filter", FILTER)):
                page.goto(address)
                # all at once, as Gradio does: the viewer adopts what is there, and a page still arriving is half there
                page.evaluate("html => { document.querySelector('#films').innerHTML = html; }", viewer.figures([shown]))
                page.wait_for_selector(".rr-viewer[data-adopted]")
                row = {"screen": screen, "way": way}
                if way == "canvas":
                    row[NOTE] = page.evaluate(FIRST)
                page.evaluate(f"(async () => {{ {code.replace('SIDE', str(SIDE))} }})()")
                row["renderer"] = page.evaluate("window.renderer || ''")
                if page.evaluate("'moves' in window"):
                    times = {name: page.evaluate(f"({TIMED})(moves.{name})") for name in MOVES}
                    row |= {name: both for name, both in times.items() if both}
                rows.append(row)
                cells = [f"{row[name][0]:.1f} ({row[name][1]:.1f})" if name in row else "none" for name in MOVES]
                notes = f"   {row['renderer']}" + (f"full film drawn after {row[NOTE]:.0f} ms" if NOTE in row else "")
                say(f"{screen:14}{way:10}" + "".join(f"{cell:>18}" for cell in cells) + notes)
            browser.close()
    server.shutdown()
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
