"""Frame times of the film viewer beside two other ways to draw it, in Chromium: python benchmarks/viewer.py [--json]

A film of 3000 × 3000 pixels; every frame narrows or widens the window, moves the film at one to one, or zooms.

canvas    ours (ui/viewer.js): the pixels on the screen, from 16 bits, by the processor
webgl     the whole film as a 16-bit texture, windowed in a fragment shader
filter    an <img> of 8 bits with an SVG filter (feComponentTransfer) for the window and a CSS transform for the rest

A frame's time is from one requestAnimationFrame to the next, without a limit to the screen's rate; the median and the
95th percentile of FRAMES are printed, in milliseconds (16.7 is 60 frames a second). Without a graphics card, as here
when it says SwiftShader, the last two are drawn by the processor too. `first` is the time from asking for the full
film until it can be drawn, without the network.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

try:
    from playwright.sync_api import Page, sync_playwright
except ImportError:
    sys.exit("This benchmark drives a browser: pip install -r requirements-dev.txt")

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core import Film
from ui import viewer
from ui.pixels import packed

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = Path("/usr/bin/chromium")
SIDE, FRAMES = 3000, 60
SCREENS = {"laptop": (1440, 900, 1), "laptop, fine": (1440, 900, 2), "monitor": (2560, 1440, 1)}

TIMED = """
async (step) => {
    const times = [];
    for (let n = 0, last = 0; n <= FRAMES + 5; n++) {
        const now = await new Promise(requestAnimationFrame);
        if (n > 5) times.push(now - last);
        last = now;
        step(n);
    }
    times.sort((a, b) => a - b);
    return [times[Math.floor(times.length / 2)], times[Math.floor(times.length * 0.95)]];
}
""".replace("FRAMES", str(FRAMES))

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


def measure(page: Page, code: str, *, ready: str = "") -> dict[str, list[float]] | None:
    page.goto("http://film.invalid/")
    if ready:
        page.wait_for_function(ready)
    page.evaluate(f"(async () => {{ {code.replace('SIDE', str(SIDE))} }})()")
    if not page.evaluate("'moves' in window"):
        return None
    return {name: page.evaluate(f"({TIMED})(moves.{name})") for name in ("window", "pan", "zoom")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    shown = film()
    png = io.BytesIO()
    Image.fromarray(np.rint(shown.pixels * 255).astype(np.uint8)).save(png, "PNG", compress_level=1)
    styles = (ROOT / "ui" / "viewer.css").read_text(encoding="utf-8")
    html = f"<!doctype html><style>{styles}</style>{viewer.HEAD}<body style='margin:0'><div id=films>"
    answers = {
        "/": ("text/html;charset=utf-8", html + viewer.figures([shown]) + "</div>"),
        "/film.png": ("image/png", png.getvalue()),
        "/films": ("application/octet-stream", packed(shown.pixels)),
    }

    def answer(route) -> None:  # type: ignore[no-untyped-def]
        path = "/" + route.request.url.split("/")[3]
        if path not in answers:
            route.abort()
            return
        kind, body = answers[path]
        route.fulfill(content_type=kind, body=body)

    results: dict[str, dict[str, dict[str, list[float]] | None]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM) if CHROMIUM.exists() else None,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-frame-rate-limit",
                "--disable-gpu-vsync",
            ],
        )
        renderer, first = "no WebGL", 0.0
        for screen, (width, height, ratio) in SCREENS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=ratio)
            page.set_default_timeout(600_000)
            page.route("**/*", answer)
            page.goto("http://film.invalid/")
            page.wait_for_selector(".rr-viewer[data-adopted]")
            page.evaluate("document.querySelector('[data-do=preset][data-value=\"2\"]').click()")
            first = page.evaluate(
                """async () => { const begun = performance.now();
                while (!document.querySelector('.rr-now').textContent.includes('16 bit')) await new Promise(requestAnimationFrame);
                return performance.now() - begun; }"""
            )
            page.evaluate(OURS)
            results[screen] = {
                "canvas": {name: page.evaluate(f"({TIMED})(moves.{name})") for name in ("window", "pan", "zoom")},
                "webgl": measure(page, WEBGL),
            }
            renderer = page.evaluate("window.renderer || 'no WebGL'")
            results[screen]["filter"] = measure(page, FILTER)
            page.close()
        version = browser.version
        browser.close()
    if args.json:
        print(
            json.dumps({"chromium": version, "renderer": renderer, "first": first, "milliseconds": results}, indent=1)
        )
        return
    print(
        f"Chromium {version}, {renderer}; {SIDE} × {SIDE} pixels, {FRAMES} frames; full film drawn after {first:.0f} ms"
    )
    print(f"{'screen':14}{'drawn by':10}" + "".join(f"{name:>20}" for name in ("window", "pan", "zoom")))
    for screen, ways in results.items():
        for way, moves in ways.items():
            cells = [f"{a:8.1f} ms ({b:.1f})" for a, b in moves.values()] if moves else ["not available"]
            print(f"{screen:14}{way:10}" + "".join(f"{cell:>20}" for cell in cells))
    print("median (95th percentile) of one frame")


if __name__ == "__main__":
    main()
