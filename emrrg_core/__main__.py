"""The command line: `python -m emrrg_core draft | batch | serve | archive | listen | label | convert | doctor`. It parses, calls and prints.

Each command imports what it needs when it runs: torch takes seconds, and `label` does without.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from emrrg_core.config import MOST_FILMS
from emrrg_core.errors import CheckpointError, ConfigError, DataError, EmrrgError, FilmError
from emrrg_core.model.threads import wait_quietly

if TYPE_CHECKING:
    from emrrg_core.films.film import Film
    from emrrg_core.memory.cases import Memory
    from emrrg_core.report.draft import Draft
    from emrrg_core.reporter import Reporter

T = TypeVar("T")
DOCTOR_SCHEMA = "emrrg.doctor/1"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, or 2 with one line on stderr for what the user can mend.

    `batch` has two more: 3 where a study could not be drafted, 130 where it was stopped by the keyboard. `archive` has 3 too.
    """
    wait_quietly()
    try:
        arguments = _parser().parse_args(argv)
        said: str | tuple[str, int] = arguments.run(arguments)
    except EmrrgError as error:
        print("emrrg:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    lines, status = said if isinstance(said, tuple) else (said, 0)
    print(lines)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m emrrg_core", description="Research and teaching only, not a medical device.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    draft = commands.add_parser("draft", help="draft the report of one study", description="Drafts one study's report.")
    draft.add_argument(
        "films", nargs="+", metavar="FILE", help=f"its 1 to {MOST_FILMS} films: DICOM, PNG, JPEG or TIFF"
    )
    draft.add_argument(
        "--sections",
        choices=("joint", "separate"),
        help="both in one go, or the Impression anew from the Findings; default: as the checkpoint was trained",
    )
    draft.add_argument("--maps", type=Path, metavar="DIR", help="write each sentence's heat map there, as float32 .npy")
    draft.add_argument(
        "--prior",
        action="append",
        default=[],
        metavar="FILE",
        help="a film of an earlier study, to compare with; may be given up to four times",
    )
    draft.add_argument(
        "--why", action="store_true", help="test whether the film, and each map's place, mattered (slow)"
    )
    draft.set_defaults(run=_draft)
    batch = commands.add_parser(
        "batch",
        help="draft every study of a folder",
        description="Drafts every study of a folder; one line of JSON each.",
    )
    batch.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="where the films are")
    batch.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="what is in it is not done again")
    batch.add_argument("--recursive", action="store_true", help="look into the folders within folders too")
    batch.add_argument(
        "--study-per-folder", action="store_true", help=f"each folder in it is one study of 1 to {MOST_FILMS} films"
    )
    batch.add_argument(
        "--names", choices=("path", "hash"), default="path", help="what stands for a study; default: path"
    )
    batch.add_argument("--label", action="store_true", help="add CheXpert's 14 labels of each draft")
    batch.add_argument("--tokens", action="store_true", help="keep the trace of every token")
    batch.add_argument("--limit", type=int, metavar="N", help="only the first N studies, in the order of their names")
    batch.add_argument("--merge", action="store_true", help="only gather the files that several processes left")
    batch.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: each process takes its own GPU")
    batch.set_defaults(run=_batch)
    remember = commands.add_parser(
        "remember",
        help="keep cases that drafts are compared with",
        description="Keeps films with reports, or reports alone, on this machine; drafts show those most like them (docs/memory.md).",
    )
    remember.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="films NAME.dcm with NAME.txt, reports NAME.txt, or .jsonl",
    )
    remember.add_argument("--remove", nargs="+", default=[], metavar="ID", help="forget these, for good")
    remember.add_argument("--list", action="store_true", help="one line a case: id, labels, first words")
    remember.add_argument("--anyway", action="store_true", help="read films too that a reader may let in")
    remember.set_defaults(run=_remember)
    serve = commands.add_parser(
        "serve",
        help="draft for programs, in several processes or on several machines",
        description="Runs replicas of the model behind Ray Serve, and a door that speaks HTTP (docs/scaling.md).",
    )
    serve.add_argument("--replicas", type=int, default=1, metavar="N", help="processes with a model each; default: 1")
    serve.add_argument("--most", type=int, metavar="N", help="let them grow to N while requests wait")
    serve.add_argument(
        "--threads", type=int, metavar="N", help="of each replica; default: the cores divided among them"
    )
    serve.add_argument(
        "--waiting", type=int, default=64, metavar="N", help="requests that may wait; default: 64, the next is refused"
    )
    serve.add_argument("--host", default="127.0.0.1", help="where the door listens; default: this machine alone")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000")
    serve.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster that runs; default: one of its own, here")
    serve.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU for each replica")
    serve.set_defaults(run=_serve)
    archive = commands.add_parser(
        "archive",
        help="draft studies of an archive and store the results there",
        description="Fetches studies by DICOMweb, drafts, and stores report, PDF and heat map into the same study (docs/hospital.md).",
    )
    archive.add_argument("url", metavar="URL", help="of its DICOMweb service")
    archive.add_argument("--study", action="append", default=[], metavar="UID", help="a study; may be given repeatedly")
    archive.add_argument("--date", metavar="YYYYMMDD", help="all studies with films of a day, or YYYYMMDD-YYYYMMDD")
    archive.set_defaults(run=_archive)
    listen = commands.add_parser(
        "listen",
        help="draft the films that are sent here, and send the results on",
        description="Takes CR and DX films by C-STORE, drafts each study, and sends the results to an archive (docs/hospital.md).",
    )
    listen.add_argument("--to", required=True, metavar="URL|HOST:PORT/AET", help="where results go")
    listen.add_argument("--port", type=int, default=11112, help="default: 11112")
    listen.add_argument("--aet", default="EMRRG", help="our application entity title; default: EMRRG")
    listen.add_argument("--from", dest="allowed", action="append", default=[], metavar="AET", help="only this may send")
    listen.add_argument("--host", default="127.0.0.1", help="where it listens; default: this machine alone")
    listen.add_argument(
        "--quiet", type=float, default=10, metavar="S", help="seconds without a new film before drafting; default: 10"
    )
    listen.set_defaults(run=_listen)
    doctor = commands.add_parser("doctor", help="tell what runs here", description="Tells what runs on this machine.")
    doctor.set_defaults(run=_doctor)
    convert = commands.add_parser(
        "convert", help="bring released weights into our format", description="Converts a released .pth file, strictly."
    )
    convert.add_argument("file", type=Path, metavar="FILE.pth", help="weights that the authors released")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for what comes of it")
    convert.add_argument("--json", action="store_true", help="print one JSON object that names every key")
    convert.set_defaults(run=_convert)
    label = commands.add_parser(
        "label",
        help="read the labels in report text",
        description="Reads CheXpert's 14 labels in report text; prints JSON.",
    )
    what = label.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE.txt", help="the text of one report; - for standard input")
    what.add_argument(
        "--reports", metavar="FILE.jsonl", help="many: rows with id, findings and impression; prints a line for each"
    )
    label.set_defaults(run=_label)
    for command in (draft, batch):
        command.add_argument("--beams", type=int, default=1, metavar="N", help="width of the beam search; 1 is greedy")
        command.add_argument(
            "--views",
            choices=("average", "stitch"),
            help="several films: each by itself and averaged, or side by side as one; default: as the checkpoint was trained",
        )
        command.add_argument(
            "--laterals",
            action="store_true",
            default=None,
            help="read lateral films too; default: only where the checkpoint has learned them",
        )
        command.add_argument(
            "--anyway", action="store_true", help="use films too that a rule refuses which a reader may override"
        )
    for command in (draft, remember):
        command.add_argument("--memory", metavar="DIR", help="of remembered cases; off: none; default: the user's own")
    for command in (archive, listen):
        command.add_argument("--outbox", type=Path, metavar="DIR", help="where results wait for a lost link")
    for command in (draft, batch, serve, archive, listen, remember):
        command.add_argument(
            "--language-model", metavar="DIR", help="use this one, not the one that the checkpoint names"
        )
    for command in (draft, batch, serve, archive, listen, remember, doctor):
        command.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the one that comes with EMRRG")
    for command in (draft, doctor):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


# ------------------------------------------------------------------------------------------------------------ convert


def _convert(arguments: argparse.Namespace) -> str:
    from emrrg_core.model.convert import Stage
    from emrrg_core.model.convert import convert as convert_released

    done = convert_released(arguments.file, arguments.out)
    if arguments.json:
        return json.dumps(done.to_dict(), indent=2)
    what = "checkpoint" if done.stage is Stage.FINETUNED else "tower"
    lines = [f"A {done.stage} {what} of size {done.size}, in {done.folder}: {len(done.placed)} weights placed."]
    for why in dict.fromkeys(done.left_out.values()):
        names = [name for name, reason in done.left_out.items() if reason == why]
        more = f" and {len(names) - 3} more (--json names all)" if len(names) > 3 else ""
        lines.append(f"Left out {', '.join(names[:3])}{more}: {why}.")
    if done.fresh:
        lines.append(f"Not in the file, and started anew: {', '.join(done.fresh)}.")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- label


def _label(arguments: argparse.Namespace) -> str:
    from emrrg_core.text.labeler import labels_of_row, read_report

    if arguments.file:
        return json.dumps(read_report(_text(arguments.file)), indent=2)
    rows = []
    for number, line in enumerate(_text(arguments.reports).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows.append(json.dumps(labels_of_row(row if isinstance(row, dict) else {})))
            except (json.JSONDecodeError, DataError) as error:
                raise DataError(f"{Path(arguments.reports).name}, line {number}: {error}") from error
    return "\n".join(rows)


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error


# -------------------------------------------------------------------------------------------------------------- draft


def _draft(arguments: argparse.Namespace) -> str:
    from emrrg_core.config import DecodeConfig, Sections
    from emrrg_core.films.film import read_film
    from emrrg_core.reporter import Reporter

    sections = Sections(arguments.sections) if arguments.sections else None
    decoding = DecodeConfig(beams=arguments.beams, sections=sections)
    anyway = _anyway(arguments)
    # before the models: what will not do is refused at once
    films = _each(arguments.films, lambda path, name: read_film(path, name=name, anyway=anyway))
    prior = _each(arguments.prior, lambda path, name: read_film(path, name=name, anyway=anyway), "Prior film")
    if arguments.maps:
        with _writing_to(arguments.maps):
            arguments.maps.mkdir(parents=True, exist_ok=True)
    reporter = Reporter.load(arguments.checkpoint, language_model=arguments.language_model, share_cores=True)
    films = _each(films, lambda film, _: reporter.check(film, anyway=anyway))
    prior = _each(prior, lambda film, _: reporter.check(film, anyway=anyway), "Prior film")
    study = reporter.study(arguments.views, arguments.laterals)
    draft = reporter.draft(films, decoding, study, prior=prior)
    maps = _save_maps(draft, arguments.maps) if arguments.maps else {}
    looking = reporter.looking(films, draft) if arguments.why and draft.tokens else None
    why = [reporter.why(films, draft, number) for number in range(len(draft.sentences))] if arguments.why else []
    memory = _memory(arguments.memory)
    near = memory.nearest(draft.read) if memory is not None and draft.read is not None else []
    if arguments.json:
        found = draft.to_dict(maps)
        found["remembered"] = [case.to_dict() for case in near]
        if arguments.why:
            found["looking"] = looking.to_dict() if looking else None
            for row, one in zip(found["sentences"], why, strict=True):
                row["why"] = one.to_dict() if one else None
        return json.dumps(found, indent=2, allow_nan=False)
    warnings = [f"\nWarning: {warning}" for warning in draft.warnings]
    tests = [f"\nIs it looking? {looking.verdict}"] if looking else []
    tests += [f"\nWhy sentence {one.sentence + 1}? {one.verdict}" for one in why if one]
    paths = [f"\nMap of sentence {n + 1}: {path}" for n, saved in maps.items() for path in saved]
    shown = [f"\nRemembered, {case.similarity:.2f} alike ({case.id}): {case.text()}" for case in near]
    more = [*warnings, *tests, *paths, *shown]
    return "".join([draft.text().rstrip("\n"), "\n" if more else "", *more])


def _anyway(arguments: argparse.Namespace) -> frozenset[str]:
    from emrrg_core.films.film import OVERRIDABLE

    return OVERRIDABLE if arguments.anyway else frozenset()


def _each(films: Sequence[T], read: "Callable[[T, str], Film]", called: str = "Film") -> "list[Film]":
    """The films under neutral names: a path or a header may hold a patient's."""
    if len(films) > MOST_FILMS:
        raise FilmError(f"One study has at most {MOST_FILMS} films here; {len(films)} were given. Leave some out.")
    done = []
    for number, film in enumerate(films, 1):
        try:
            done.append(read(film, f"{called} {number}"))
        except FilmError as error:
            hint = " If you know better, add --anyway." if error.overridable else ""
            raise FilmError(
                f"{called} {number}: {error}{hint}", rule=error.rule, overridable=error.overridable
            ) from error
    return done


def _save_maps(draft: "Draft", folder: Path) -> dict[int, list[str]]:
    """One file per sentence and film; a sentence for which the model did not look has none. Paths by sentence number."""
    import numpy as np

    from emrrg_core.explain.heat_map import heat_map

    saved: dict[int, list[str]] = {}
    for number, sentence in enumerate(draft.sentences):
        for film in range(len(draft.films)):
            heat = heat_map(draft, film, sentence)
            if heat is not None:
                path = folder / f"sentence-{number + 1:02}-film-{film + 1}.npy"
                with _writing_to(folder):
                    np.save(path, heat, allow_pickle=False)
                saved.setdefault(number, []).append(str(path))
    return saved


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or error
        raise EmrrgError(f"The maps cannot be written to {folder} ({said}): name another folder.") from error


# -------------------------------------------------------------------------------------------------------------- batch

FAILED, STOPPED = 3, 130


def _batch(arguments: argparse.Namespace) -> tuple[str, int]:
    from emrrg_core.config import DecodeConfig
    from emrrg_core.scale.batch import find_studies, merge, run

    out: Path = arguments.out
    if arguments.merge:
        whole = merge(out)
        return (
            f"{whole.known} studies in {out}, {whole.known_failed} of them failed.",
            FAILED if whole.known_failed else 0,
        )
    if arguments.folder is None:
        raise ConfigError("Name the FOLDER with the films, or add --merge.")
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {arguments.limit}.")
    decoding = DecodeConfig(beams=arguments.beams)
    studies = find_studies(arguments.folder, recursive=arguments.recursive, per_folder=arguments.study_per_folder)
    # as `accelerate launch` and torchrun tell each process
    rank, processes, local = (
        int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )

    def load() -> "Reporter":
        import torch

        from emrrg_core.reporter import Reporter

        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("There is no GPU that torch can use here: leave --device out.")
        device = f"cuda:{local}" if arguments.device == "cuda" else "cpu"
        # with torch's own number of threads: the last digits must not depend on what else runs here
        return Reporter.load(arguments.checkpoint, language_model=arguments.language_model, device=device)

    try:
        done = run(
            studies[: arguments.limit],
            out,
            load,
            decoding=decoding,
            views=arguments.views,
            laterals=arguments.laterals,
            tokens=arguments.tokens,
            label=arguments.label,
            hashed=arguments.names == "hash",
            anyway=_anyway(arguments),
            rank=rank,
            processes=processes,
        )
    except KeyboardInterrupt:
        return f"Stopped. What was drafted is in {out}: the same command goes on from there.", STOPPED
    failed = done.failed + done.known_failed
    who = f"Process {rank + 1} of {processes}: " if processes > 1 else ""
    said = f"{who}{done.drafted} drafted, {done.failed} failed, {done.known} already there ({done.known_failed} of them failed). {out}"
    # a launcher ends every process as soon as one ends with another status than 0
    return said, FAILED if failed and processes == 1 else 0


# ----------------------------------------------------------------------------------------------------------- remember


def _memory(name: str | None) -> "Memory | None":
    from emrrg_core.memory.cases import Memory

    return None if name == "off" else Memory(Path(name) if name else None)


def _remember(arguments: argparse.Namespace) -> tuple[str, int]:
    memory = _memory(arguments.memory)
    if memory is None or not (arguments.source or arguments.remove or arguments.list):
        raise ConfigError("Name the FOLDER to remember, or --remove ID, or --list.")
    lines = []
    if unknown := [id for id in arguments.remove if not memory.remove(id)]:
        raise DataError(f"No case has the id {unknown[0]}: --list tells them all.")
    if arguments.remove:
        lines.append(f"{len(arguments.remove)} forgotten, for good.")
    refused = 0
    if arguments.source:
        new, known, refused = _take_in(memory, arguments)
        lines.append(
            f"{new} remembered, {known} known or removed before, {refused} refused. {len(memory)} in {memory.folder}"
        )
    if arguments.list:
        lines += [
            f"{case.id}  {'film, ' if case.film else ''}{', '.join(case.stated) or 'nothing stated'}: "
            f"{' '.join((case.findings or case.impression).split())[:60]}"
            for case in memory.cases()
        ]
    return "\n".join(lines), FAILED if refused else 0


def _take_in(memory: "Memory", arguments: argparse.Namespace) -> tuple[int, int, int]:
    """How many were new, known before, and refused; why goes to stderr."""
    from emrrg_core.memory.folder import read_folder
    from emrrg_core.reporter import Reporter

    reporter: Reporter | None = None
    new = known = refused = 0
    for case in read_folder(arguments.source):
        sha256, read = None, None
        try:
            if case.films:
                reporter = reporter or Reporter.load(
                    arguments.checkpoint, language_model=arguments.language_model, share_cores=True
                )
                films = [reporter.read(path, anyway=_anyway(arguments)) for path in case.films]
                sha256, read = films[0].sha256, reporter.findings(films)
            elif not (case.findings or case.impression).strip():
                raise DataError("it has no text")
        except EmrrgError as error:
            print(f"emrrg: {case.name} was not remembered: {' '.join(str(error).split())}", file=sys.stderr)
            refused += 1
            continue
        added = memory.add([(sha256, case.findings, case.impression, read)])
        new, known = new + added, known + 1 - added
    return new, known, refused


# -------------------------------------------------------------------------------------------------------------- serve


def _serve(arguments: argparse.Namespace) -> str:
    import signal

    from emrrg_core.scale import serve

    def leave(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    print("Starting the replicas: each loads the model.", flush=True)
    try:
        serve.start(
            replicas=arguments.replicas,
            most=arguments.most,
            threads=arguments.threads,
            waiting=arguments.waiting,
            host=arguments.host,
            port=arguments.port,
            cluster=arguments.cluster,
            checkpoint=arguments.checkpoint,
            language_model=arguments.language_model,
            device=arguments.device,
        )
        signal.signal(signal.SIGTERM, leave)  # Ray has put its own there
        print(f"POST films to http://{arguments.host}:{arguments.port}/draft (stop with Ctrl+C)", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        serve.stop()
    return "Stopped."


# ------------------------------------------------------------------------------------------------------------ archive


def _archive(arguments: argparse.Namespace) -> tuple[str, int]:
    import re

    from emrrg_core.hospital.archive import Outcome, run
    from emrrg_core.hospital.destination import Archive
    from emrrg_core.hospital.outbox import Outbox
    from emrrg_core.reporter import Reporter

    archive = Archive(arguments.url)
    if not (arguments.study or arguments.date):
        raise ConfigError("Name a study with --study UID, or a day with --date YYYYMMDD.")
    if arguments.date and not re.fullmatch(r"\d{8}(-\d{8})?", arguments.date):
        raise ConfigError("--date is YYYYMMDD or YYYYMMDD-YYYYMMDD.")
    if not all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in arguments.study):
        raise ConfigError("--study is a Study Instance UID: digits and dots, at most 64.")
    with contextlib.closing(Outbox(arguments.outbox, archive.address)) as outbox, _logged():
        studies = [*arguments.study, *(archive.studies(arguments.date) if arguments.date else [])]
        reporter = Reporter.load(arguments.checkpoint, language_model=arguments.language_model, share_cores=True)
        found = run(archive, dict.fromkeys(studies), reporter, outbox)
    said = f"{found[Outcome.STORED]} stored, {found[Outcome.KNOWN]} there already, {found[Outcome.REFUSED]} without a draft, "
    return f"{said}{found[Outcome.WAITS]} wait.", FAILED if found[Outcome.REFUSED] or found[Outcome.WAITS] else 0


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """What the hospital's room logs, on stderr with the time."""
    import logging

    from emrrg_core.hospital import log

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


# ------------------------------------------------------------------------------------------------------------- listen


def _listen(arguments: argparse.Namespace) -> str:
    import signal

    from emrrg_core.hospital.destination import destination
    from emrrg_core.hospital.listen import Listener
    from emrrg_core.hospital.outbox import Outbox
    from emrrg_core.reporter import Reporter

    def leave(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    to = destination(arguments.to, arguments.aet)
    with contextlib.closing(Outbox(arguments.outbox, to.address)) as outbox, _logged():
        reporter = Reporter.load(arguments.checkpoint, language_model=arguments.language_model, share_cores=True)
        listener = Listener(
            reporter,
            to,
            outbox,
            host=arguments.host,
            port=arguments.port,
            aet=arguments.aet,
            allowed=arguments.allowed,
            quiet=arguments.quiet,
        )
        if arguments.host not in ("127.0.0.1", "localhost", "::1"):
            print(
                "Warning: whoever reaches this port can send films, unencrypted; a title proves nothing. Let a firewall or a "
                "proxy with TLS stand before it.",
                file=sys.stderr,
                flush=True,
            )
        before = signal.signal(signal.SIGTERM, leave)
        try:
            with listener:
                print(
                    f"{arguments.aet} listens on {arguments.host}, port {listener.port} (stop with Ctrl+C)", flush=True
                )
                listener.run()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
    return "Stopped."


# ------------------------------------------------------------------------------------------------------------- doctor


def _doctor(arguments: argparse.Namespace) -> str:
    import torch
    import transformers

    from emrrg_core.config import VISION_PRESETS
    from emrrg_core.model.language_model import language_status, prefers_bfloat16
    from emrrg_core.reporter import DEFAULT_CHECKPOINT

    checkpoint, language = _checkpoint_status(arguments.checkpoint or DEFAULT_CHECKPOINT)
    found = {
        "schema": DOCTOR_SCHEMA,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "bf16": prefers_bfloat16(),
        "scan": _scan_status(),
        "language_model": language_status(language),
        "checkpoint": checkpoint,
        "presets": {name: _tower_size(name) for name in VISION_PRESETS},
    }
    return json.dumps(found, indent=2, allow_nan=False) if arguments.json else _in_words(found)


def _scan_status() -> dict[str, Any]:
    from emrrg_core.model.selective_scan import available_backends, chosen_backend, chosen_isa

    status: dict[str, Any] = {"available": list(available_backends()), "in_use": None, "isa": None}
    try:
        status["in_use"] = chosen_backend("cpu")  # where the command line and the app run their models
        status["isa"] = chosen_isa() if status["in_use"] == "cpu" else None
    except (EmrrgError, ValueError) as error:  # EMRRG_SCAN or EMRRG_SCAN_ISA names what cannot be had
        status["problem"] = str(error)
    return status


def _checkpoint_status(folder: Path) -> tuple[dict[str, Any], str]:
    """What a checkpoint is, and the language model that it names; of one that cannot be used, why, and the default."""
    from emrrg_core.model import checkpoint as checkpoints

    status: dict[str, Any] = {"name": folder.absolute().name, "folder": str(folder), "found": False}
    language = "smollm2-135m"
    try:
        config = checkpoints.read_config(folder)["model"]
        language = config.language
        status |= {"found": True, "sha256": checkpoints.fingerprint(folder), "vision": config.vision.to_dict()}
        status |= {"gate": str(config.hybrid.gate), "every_n": config.hybrid.every_n, "language_model": language}
    except CheckpointError as error:
        status |= {"found": False, "problem": str(error)}
    except OSError as error:
        status |= {"found": False, "problem": f"The weights cannot be read ({error.strerror or error})."}
    return status, language


def _tower_size(preset: str) -> dict[str, int]:
    import torch

    from emrrg_core.config import VISION_PRESETS
    from emrrg_core.model.vision_mamba import VisionMamba

    with torch.device("meta"):  # shapes only
        tower = VisionMamba(VISION_PRESETS[preset])
    return {
        "tower_parameters": sum(parameter.numel() for parameter in tower.parameters()),
        "tower_tensors": len(tower.state_dict()),
    }


def _in_words(found: dict[str, Any]) -> str:
    scan, language, checkpoint = found["scan"], found["language_model"], found["checkpoint"]
    in_use = f"{scan['in_use']} with {scan['isa']}" if scan["isa"] else scan["in_use"]
    rows = [
        ("Python", f"{found['python']}, torch {found['torch']}, transformers {found['transformers']}"),
        ("Threads", str(found["threads"])),
        ("bfloat16", "native on this processor" if found["bf16"] else "not native on this processor"),
        ("Scan", scan.get("problem") or f"{in_use} (available: {', '.join(scan['available'])})"),
        ("Language model", language.get("problem") or _named(language)),
        ("Checkpoint", checkpoint.get("problem") or _named(checkpoint)),
        *(
            (f"Preset {name}", f"{size['tower_parameters']:,} tower parameters in {size['tower_tensors']} tensors")
            for name, size in found["presets"].items()
        ),
    ]
    return "\n".join(f"{name + ':':<16} {value}" for name, value in rows)


def _named(status: dict[str, Any]) -> str:
    return f"{status['name']}, SHA-256 {status['sha256']}, in {status['folder']}"


if __name__ == "__main__":
    sys.exit(main())
