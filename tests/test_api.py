"""The endpoints: the examples of docs/api.md as they stand, errors in words, one draft at a time, and nothing left on the server."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from emrrg_core import DISCLAIMER
from emrrg_core.reporter import DEFAULT_CHECKPOINT
from emrrg_core.text.labeler import read_report
from tests.phantom import make_phantom
from tests.test_app import Server
from ui import api

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
NAMES = {"draft", "impression", "why", "looking", "heat_map", "export", "label", "check", "about"}
RG1, CT = (Path(str(get_testdata_file(name, download=False))) for name in ("RG1_UNCR.dcm", "CT_small.dcm"))
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"), DEFAULT_CHECKPOINT)
    try:
        yield running
    finally:
        running.stop()


def phantom(path: Path, seed: int = 0) -> Path:
    make_phantom(seed, height=240, width=200).save_png(path)
    return path


def run(code: str, folder: Path, *arguments: str) -> str:
    """What a program of its own prints, started in a folder."""
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(folder / "gradio")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------------- the examples

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
KEEP = """
import shutil
for name, path in (("map.png", picture), ("report.pdf", pdf), ("fhir.json", fhir), ("sr.dcm", sr), ("report.txt", text)):
    shutil.copy(path, name)
said = {"draft": draft, "looks": looks, "reason": reason, "written": written, "whole": whole, "labels": labels, "marks": marks, "about": about}
with open("said.json", "w") as out:
    json.dump(said, out)
"""


@pytest.mark.parametrize("kind", ["RG1", "phantom"])
def test_the_examples_of_the_page_run_as_written(kind: str, server: Server, tmp_path: Path) -> None:
    film = tmp_path / "film.dcm"  # told by its content: the phantom is a PNG
    shutil.copy(RG1, film) if kind == "RG1" else phantom(film)
    code = "".join(BLOCKS)
    assert "http://127.0.0.1:7860" in code
    printed = run(code.replace("http://127.0.0.1:7860", server.address) + KEEP, tmp_path)
    assert "Choose a chest film first." in printed
    assert DISCLAIMER in printed

    said = json.loads((tmp_path / "said.json").read_text())
    draft = said["draft"]
    assert draft["schema"] == "emrrg.draft/2"
    assert draft["films"][0]["format"] == ("DICOM" if kind == "RG1" else "PNG")
    assert draft["sentences"]
    assert {finding["presence"] for finding in draft["read"]} <= {"present", "absent", "open"}
    assert "Support Devices" in draft["not_assessed"]
    assert said["looks"]["looks"] in (True, False)
    assert said["reason"] is None or len(said["reason"]["random"]) >= 8
    assert said["written"].keys() == {"schema", "impression", "unknown"}
    assert said["written"]["unknown"] == ["Fracture"]
    assert said["whole"]["draft"]["findings"] == draft["findings"]
    assert said["labels"]["labels"]["Pleural Effusion"] == "negative"
    assert {flag["kind"] for flag in said["marks"]["flags"]} == {"negation", "prior"}
    assert said["about"]["model"] == draft["model"]
    assert list(said["about"]["intended_use"]) == [
        "Indication",
        "Body part",
        "Population",
        "User",
        "Environment",
        "Principle of operation",
    ]

    from PIL import Image
    from pydicom import dcmread

    with Image.open(tmp_path / "map.png") as shown:
        assert shown.size == (draft["films"][0]["width"], draft["films"][0]["height"])
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert json.loads((tmp_path / "fhir.json").read_text())["resourceType"] == "DiagnosticReport"
    assert dcmread(tmp_path / "sr.dcm").Modality == "SR"
    assert "DRAFT, NOT REVIEWED" in (tmp_path / "report.txt").read_text()

    assert [path for path in server.folder.rglob("*") if path.is_file()] == [], "no upload and no export stays"
    assert "Traceback" not in server.output()


def test_any_program_that_speaks_http_can_call_as_the_page_says(server: Server) -> None:
    body = json.dumps({"data": ["No effusion."]}).encode()
    asked = urllib.request.Request(
        f"{server.address}/gradio_api/call/label", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=300) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{server.address}/gradio_api/call/label/{event}", timeout=300) as answer:
        stream = answer.read().decode()
    (found,) = json.loads(re.search(r"event: complete\ndata: (.*)", stream).group(1))  # type: ignore[union-attr]
    assert found == read_report("No effusion.")


# ---------------------------------------------------------------------------------------------------------- what is offered


OFFERED = """
import json, app
from concurrent.futures import Future
demo = app.build_demo(Future())
public = [fn for fn in demo.fns.values() if fn.api_visibility != "private"]
print(json.dumps([{fn.api_name: fn.concurrency_id for fn in public}, demo.get_api_info()]))
"""


def test_only_the_named_endpoints_are_public_and_all_of_their_parameters_have_types(tmp_path: Path) -> None:
    open_ones, offered = json.loads(run(OFFERED, tmp_path))
    assert open_ones.keys() == NAMES
    assert {name for name, line in open_ones.items() if line == "model"} == {"draft", "impression", "why", "looking"}
    assert offered["named_endpoints"].keys() == {f"/{name}" for name in NAMES}
    assert offered["unnamed_endpoints"] == {}
    for name, endpoint in offered["named_endpoints"].items():
        assert endpoint["description"], name
        assert all(asked["type"] for asked in endpoint["parameters"]), name
        assert all(given["type"] for given in endpoint["returns"]), name
    asked = {one["parameter_name"]: one for one in offered["named_endpoints"]["/draft"]["parameters"]}
    assert (asked["beams"]["type"], asked["beams"]["parameter_default"]) == ({"type": "integer"}, 1)
    assert "contrast" not in asked
    assert [asked[name]["parameter_default"] for name in ("views", "laterals")] == [None, None]


def test_formats_and_rules_are_those_of_the_screen() -> None:
    from emrrg_core.films.film import OVERRIDABLE
    from ui.exports import KINDS

    assert set(api.Format.__args__) == {kind.name for kind in KINDS}
    assert set(api.Rule.__args__) == OVERRIDABLE


# ----------------------------------------------------------------------------------- errors, one at a time, nothing stays

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import app
from emrrg_core import Reporter
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

checkpoint, film, other, ct, out = sys.argv[1:]
running, most = 0, 0
guard = threading.Lock()

def alone(work):  # watches, and lets the real work be done
    def watched(*given, **how):
        global running, most
        with guard:
            running += 1
            most = max(most, running)
        try:
            time.sleep(0.3)
            return work(*given, **how)
        finally:
            with guard:
                running -= 1
    return watched

reporter = Reporter.load(checkpoint)
for name in ("draft", "why", "looking"):
    setattr(reporter, name, alone(getattr(reporter, name)))
demo = app.build_demo(reporter)
address = app.launch(demo)
client, second = (Client(address, verbose=False, download_files="downloads") for _ in range(2))
films = [handle_file(film)]
draft = client.predict(films=films, max_new_tokens=40, api_name="/draft")
said = {}

def refused(name, endpoint, **given):
    try:
        client.predict(api_name=endpoint, **given)
        said[name] = None
    except AppError as error:
        said[name] = str(error)

refused("no film", "/draft", films=[])
refused("ct", "/draft", films=[*films, handle_file(ct)])
refused("five", "/draft", films=films * 5)
refused("beams", "/draft", films=films, beams=99)
refused("kind", "/draft", films=films, beams="two")
refused("tokens", "/draft", films=films, max_new_tokens=100000)
refused("views", "/draft", films=films, views="in a row")
refused("laterals", "/draft", films=films, laterals="yes")
refused("rule", "/draft", films=films, anyway=["blank"])
refused("server", "/draft", films=[{"path": str(Path(checkpoint) / "config.json")}])
refused("link", "/draft", films=[handle_file("http://127.0.0.1:1/DOE.png")])
refused("sentence", "/why", films=films, draft=draft, sentence=99)
refused("other film", "/looking", films=[handle_file(other)], draft=draft)
refused("other map", "/heat_map", film=handle_file(other), draft=draft, sentence=0)
refused("opacity", "/heat_map", film=films[0], draft=draft, sentence=0, opacity=7)
refused("without kept", "/why", films=films, draft={"findings": ""}, sentence=0)
refused("damaged", "/why", films=films, draft={"kept": "[1, 2]"}, sentence=0)
refused("format", "/export", format="odt", draft=draft)
refused("nothing", "/export", format="pdf")
refused("capture", "/export", format="capture", draft=draft)
refused("no code", "/export", format="findings-sr", draft=draft, films=films)
refused("half a name", "/export", format="text", draft=draft, reader="Roe^Jana")
refused("text", "/label", text=5)

jobs = [one.submit(films=films, max_new_tokens=24, api_name="/draft") for one in (client, second)]
jobs.append(second.submit(films=films, draft=draft, api_name="/looking"))
for job in jobs:
    job.result()

files = {}
for kind in ("text", "pdf", "docx", "json", "fhir-r5", "fhir-r4", "sr", "findings-sr", "dicom-pdf", "capture"):
    from emrrg_core import Report
    coded = Report().add("findings", "There is a left pleural effusion.").to_dict()  # the tiny model says nothing that has a code
    given = {"report": coded} if kind == "findings-sr" else {}
    path = Path(client.predict(format=kind, draft=draft, films=films, sentence=0, api_name="/export", **given))
    files[kind] = [path.name, path.read_bytes()[:132].hex()]

held = [
    name
    for session in demo.state_holder.session_data.values()
    for name, config in session.config_values.items()
    if "kept" in json.dumps(config, default=str)
]
folder = Path(__import__("os").environ["GRADIO_TEMP_DIR"])
for _ in range(100):  # the last file goes a moment after its last byte was sent
    left = [str(path) for path in folder.rglob("*") if path.is_file()]
    if not left:
        break
    time.sleep(0.1)
Path(out).write_text(json.dumps({"said": said, "most": most, "files": files, "held": held, "left": left, "draft": draft}))
client.close(), second.close()
demo.close(verbose=False)
"""


@pytest.fixture(scope="module")
def observed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a program saw that did everything wrong, then several things at once, then exported."""
    folder = tmp_path_factory.mktemp("program")
    film, other, out = phantom(folder / "DOE^JANE.png", 0), phantom(folder / "other.png", 1), folder / "out.json"
    run(PROGRAM, folder, str(checkpoint), str(film), str(other), str(CT), str(out))
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no film", "Choose a chest film first."),
        ("ct", r"Film 2: This file holds a CT image.*anyway=\[\"modality\"\]"),
        ("five", "at most 4 films here; 5 were given. Leave some out."),
        ("beams", "beams must be from 1 to 16, not 99"),
        ("kind", "DecodeConfig.beams: "),
        ("tokens", "max_new_tokens may be at most 512 here"),
        ("views", "StudyConfig.views: "),
        ("laterals", "StudyConfig.laterals: "),
        ("rule", "anyway is a list of rules, of modality, body-part, colour, looks"),
        ("server", "Give each film as an uploaded file"),
        ("link", "Nothing is fetched from links here"),
        ("sentence", "counted from 0: there is no sentence 99"),
        ("other film", "These are not the films that this draft was written about"),
        ("other map", "These are not the films that this draft was written about"),
        ("opacity", "opacity must be from 0 to 1, not 7"),
        ("without kept", "as /draft returned it"),
        ("damaged", "draft again"),
        ("format", "There is no format 'odt': choose one of text, pdf"),
        ("nothing", "There is nothing to export yet"),
        ("capture", "drop the film again"),
        ("no code", "says nothing that has a code"),
        ("half a name", "give both name and organization"),
        ("text", "text must be text, not int"),
    ],
)
def test_an_error_is_a_sentence_that_says_what_to_do(what: str, words: str, observed: dict) -> None:
    assert observed["said"][what], f"{what} was not refused"
    assert re.search(words, observed["said"][what]), observed["said"][what]


def test_several_programs_have_their_drafts_written_at_once(observed: dict) -> None:
    """What computes is one thread all the same: tests/test_engine.py."""
    assert 1 < observed["most"] <= api.READERS


def test_every_format_comes_as_a_file_of_its_kind(observed: dict) -> None:
    begins = {name: bytes.fromhex(content) for name, (_, content) in observed["files"].items()}
    assert set(begins) == set(api.Format.__args__)
    assert begins["text"].startswith(b"DRAFT, NOT REVIEWED")
    assert begins["pdf"].startswith(b"%PDF-")
    assert begins["docx"].startswith(b"PK\x03\x04")
    assert all(begins[name].lstrip().startswith(b"{") for name in ("json", "fhir-r5", "fhir-r4"))
    assert all(begins[name][128:] == b"DICM" for name in ("sr", "findings-sr", "dicom-pdf", "capture"))


def test_nothing_of_a_call_stays_in_the_servers_memory_or_on_its_disk(observed: dict) -> None:
    assert observed["held"] == []
    assert observed["left"] == []


def test_the_file_name_of_a_film_is_not_in_its_draft(observed: dict) -> None:
    assert "DOE" not in json.dumps(observed["draft"])


# ------------------------------------------------------------------------------- Impression from findings, several films

SEVERAL = """
import base64, json, sys
from dataclasses import replace
from pathlib import Path
import app
from emrrg_core import Draft, Reporter
from emrrg_core.config import StudyConfig, Views
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

one, two, text, out = sys.argv[1:]
reporter = Reporter.load()
reporter._model.config = replace(reporter._model.config, study=StudyConfig(views=Views.STITCH))
demo = app.build_demo(reporter)
client = Client(app.launch(demo), verbose=False)
films = [handle_file(one), handle_file(two)]

def places(**asked):
    return [film["place"] for film in client.predict(films=films, max_new_tokens=24, api_name="/draft", **asked)["films"]]

def refused(films, findings):
    try:
        client.predict(films=films, draft=draft, findings=findings, api_name="/impression")
    except AppError as error:
        return str(error)

def prior(**asked):
    made = client.predict(films=films[:1], max_new_tokens=24, api_name="/draft", **asked)
    return {"films": [film["read"] for film in made["prior"]], "known": [row["earlier"] is not None for row in made["read"]]}

draft = client.predict(films=films, api_name="/draft")
record, numbers = json.loads(draft["kept"])
own = reporter.impression([reporter.read(path) for path in (one, two)], Draft.load(record, base64.b64decode(numbers)), text)
Path(out).write_text(json.dumps({
    "own": [own.text, list(own.unknown)],
    "written": client.predict(films=films[::-1], draft=draft, findings=text, api_name="/impression"),
    "refused": {"empty": refused(films, "  "), "other films": refused(films[:1], text), "no text": refused(films, 5)},
    "prior": {"given": prior(prior=films[1:]), "none": prior()},
    "sections": client.predict(films=films[:1], sections="separate", api_name="/draft")["decoding"]["sections"],
    "places": {"own": places(), "laterals": places(laterals=True), "average": places(views="average")},
}))
client.close()
demo.close(verbose=False)
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a program saw that asked about two films, of a checkpoint whose own settings are to stitch."""
    folder = tmp_path_factory.mktemp("several")
    one, two, out = phantom(folder / "one.png", 0), phantom(folder / "two.png", 1), folder / "out.json"
    run(SEVERAL, folder, str(one), str(two), "There is a left pleural effusion. A rib fracture.", str(out))
    return json.loads(out.read_text())


def test_an_impression_is_that_of_the_reporter(several: dict) -> None:
    text, unknown = several["own"]
    assert text
    assert unknown == ["Fracture"]
    assert several["written"] == {"schema": "emrrg.impression/1", "impression": text, "unknown": unknown}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("empty", "Write the Findings first"),
        ("other films", "These are not the films that this draft was written about"),
        ("no text", "findings must be text, not int"),
    ],
)
def test_an_impression_that_cannot_be_written_is_refused_in_words(what: str, words: str, several: dict) -> None:
    assert words in (several["refused"][what] or "")


def test_a_prior_film_is_compared_with_and_sections_are_written_as_asked(several: dict) -> None:
    assert several["prior"]["given"]["films"] == [True]
    assert all(several["prior"]["given"]["known"])
    assert several["prior"]["none"] == {"films": [], "known": [False] * len(several["prior"]["given"]["known"])}
    assert several["sections"] == "separate"


def test_without_views_and_laterals_films_are_put_together_as_the_checkpoint_says(several: dict) -> None:
    assert all(several["places"]["own"])
    assert several["places"]["laterals"] == several["places"]["own"]
    assert several["places"]["average"] == [None, None]
