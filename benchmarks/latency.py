"""What one reader waits for, on this machine: python benchmarks/latency.py [--json]

first_word, draft      from the film in memory to the first and to the last word, as the app drafts
plain_draft            the same token by token, without guesses
why, looking           *Why this sentence?* of the first sentence, and *Is it looking?*
busy_ratio             a draft beside two busy processes over a draft alone; _spinning: with threads as torch chooses them
dicom                  a film of 3000 × 3000 pixels, 12 bits, read and made a picture, by transfer syntax
ready                  from the start of app.py until the page answers, and until the model is loaded (its files are in the cache)
peak                   memory of the process that drafted

Medians of --repeats after a warm-up.
"""

import argparse
import io
import json
import os
import platform
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emrrg_core.model.threads import wait_quietly

ROOT = Path(__file__).resolve().parents[1]
BUSY = 2  # processes beside
SIDE = 3000
SYNTAXES = {
    "implicit little endian": "1.2.840.10008.1.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}


def median(way: Callable[[], object], repeats: int) -> float:
    """Seconds."""
    way()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        way()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def drafting(repeats: int, *, only_draft: bool = False, share: bool = True) -> dict[str, float]:
    from pydicom.data import get_testdata_file

    from emrrg_core import Reporter
    from emrrg_core.films.film import read_film

    reporter = Reporter.load(share_cores=share)
    film = read_film(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
    first: list[float] = []

    def draft() -> Any:
        begun = time.perf_counter()
        texts = reporter.stream([film])
        made = next(texts)
        first.append(time.perf_counter() - begun)
        for made in texts:  # noqa: B007 — the last one is wanted
            pass
        return made

    found = {"draft_s": median(draft, repeats)}
    if only_draft:
        return found
    found["first_word_s"] = statistics.median(first[1:])
    made = draft()
    found["tokens"] = len(made.tokens)
    found["why_s"] = median(lambda: reporter.why([film], made, 0), max(repeats // 2, 1))
    found["looking_s"] = median(lambda: reporter.looking([film], made), max(repeats // 2, 1))
    reporter._proposer = None
    found["plain_draft_s"] = median(draft, max(repeats // 2, 1))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def apart(repeats: int, **how: bool) -> dict[str, float]:
    """`drafting` in a process of its own."""
    words = [sys.executable, __file__, "--part", json.dumps(how), "--repeats", str(repeats)]
    environment = dict(os.environ)
    if not how.get("share", True):
        environment["OMP_WAIT_POLICY"] = "active"
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def beside(repeats: int, **how: bool) -> dict[str, float]:
    """The same beside BUSY processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        return apart(repeats, **how)
    finally:
        for other in others:
            other.kill()
            other.wait()


def dicom(repeats: int) -> dict[str, float]:
    import gdcm
    import numpy as np
    import pydicom
    from pydicom.data import get_testdata_file

    from emrrg_core.films.film import read_film
    from ui import viewer

    made = pydicom.dcmread(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
    rows = np.linspace(0, made.Rows - 1, SIDE).astype(int)
    columns = np.linspace(0, made.Columns - 1, SIDE).astype(int)
    made.PixelData = np.ascontiguousarray(made.pixel_array[np.ix_(rows, columns)]).tobytes()
    made.Rows, made.Columns = SIDE, SIDE
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.dcm"
        made.save_as(plain)
        for name, uid in SYNTAXES.items():
            path = Path(folder) / f"{uid}.dcm"
            change, reader, writer = gdcm.ImageChangeTransferSyntax(), gdcm.ImageReader(), gdcm.ImageWriter()
            reader.SetFileName(str(plain))
            if uid == SYNTAXES["deflated"]:
                copy = pydicom.dcmread(plain)
                copy.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)
                copy.save_as(path)
            elif reader.Read():
                change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(uid)))
                change.SetInput(reader.GetImage())
                change.Change()
                writer.SetFileName(str(path))
                writer.SetFile(reader.GetFile())
                writer.SetImage(change.GetOutput())
                writer.Write()
            found[name] = median(lambda path=path: viewer.picture(read_film(path).pixels), repeats)  # type: ignore[misc]
    return found


def ready(repeats: int) -> dict[str, float]:
    """Seconds from the start of the app until its page answers and until its model is loaded."""
    page, model = [], []
    for _ in range(repeats + 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        begun = time.perf_counter()
        app = subprocess.Popen(
            [sys.executable, "-u", "app.py", "--port", port],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert app.stdout is not None
        for line in app.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                urllib.request.urlopen(found.group()).read()
                page.append(time.perf_counter() - begun)
            if "model is loaded" in line:
                model.append(time.perf_counter() - begun)
            if page and model and len(page) == len(model):
                break
        app.terminate()
        app.wait()
    return {"page_s": statistics.median(page[1:] or page), "model_s": statistics.median(model[1:] or model)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    alone = apart(args.repeats)
    found: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        **alone,
        "busy_ratio": beside(args.repeats, only_draft=True)["draft_s"] / alone["draft_s"],
        "busy_ratio_spinning": beside(args.repeats, only_draft=True, share=False)["draft_s"]
        / apart(args.repeats, only_draft=True, share=False)["draft_s"],
        "dicom_s": dicom(args.repeats),
        "ready_s": ready(max(args.repeats // 2, 1)),
    }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part is not None:
        wait_quietly()
        print(json.dumps(drafting(args.repeats, **json.loads(args.part))))
        return
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    out = io.StringIO()
    for name, value in found.items():
        for key, number in (value if isinstance(value, dict) else {"": value}).items():
            shown = f"{number:8.2f}" if isinstance(number, float) else f"{number!s:>8}"
            out.write(f"{f'{name} {key}'.strip():34} {shown}\n")
    print(out.getvalue(), end="")


if __name__ == "__main__":
    main()
