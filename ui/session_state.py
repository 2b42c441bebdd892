"""What one tab holds: its films and draft, the report made of the draft, and the session that keeps both on the disk.

Films, and the files that DICOM exports refer to, live in memory only and go with the tab. Report and draft are kept by
emrrg_core's Sessions; what is not stored can be dropped again and finds its place by the hash of its pixels.
"""

import os
import re
import secrets
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Finding, Report, Reporter, Sessions
    from emrrg_core.explain.faithfulness import DependenceTest
    from emrrg_core.explain.marks import Mark
    from emrrg_core.films.arrivals import Arrival, LeftOut, Study
    from emrrg_core.memory.cases import Case, Memory
    from emrrg_core.report.cautions import Caution
    from emrrg_core.report.links import Offer
    from emrrg_core.report.session_store import Session
    from emrrg_core.report.told import Said
    from ui.draft_panels import Selection

MOST_FILMS = 4  # given to the model; as many earlier ones may lie beside them
MOST_RULES = 8  # that one film may break
MOST_STUDIES = 200  # that one browser's worklist shows
READERS = 8  # drafts that are under way at once; who comes after waits
_DICOM = "DICOM"
_KEY = re.compile(r"[0-9a-f]{16}")


def core() -> Any:
    """What the screens take from emrrg_core, each name imported when first needed (ui.lazy)."""
    from ui import lazy

    return lazy


def as_read(finding: "Finding") -> "Said":
    """What a reader would say of a finding who says what was read."""
    present = {"present": True, "absent": False}.get(finding.presence.value)
    said: Said = core().Said(present, finding.side if present else "")
    return said


@dataclass(frozen=True, eq=False)
class Held:
    """A film that this tab holds. source: the file's bytes where it is DICOM, for exports that refer to it. prior: an earlier film,
    to be compared with and never given to the model."""

    film: "Film"
    source: bytes | None = None
    prior: bool = False
    ops: tuple[Mapping[str, Any], ...] = ()  # how the reader cropped and turned it, for the browser to do it again


@dataclass(frozen=True, eq=False)
class Waiting:
    """A file that was not taken, and what the reader may still do with it."""

    words: str  # why not
    offer: str  # the label of the button
    held: Held | None = None  # read already: to be added, or to take the place of the same film
    source: bytes = b""  # else the file, to be read again
    anyway: tuple[str, ...] = ()  # the rules that the reader would then override
    other: str = ""  # the label of a second button
    prior: Held | None = None  # what that one adds


def _held(arrival: "Arrival") -> Held:
    """A film that arrived, with its file where exports refer to it."""
    film, source = arrival.film, arrival.source
    if film is None:
        raise ValueError("this file was refused")
    if film.format != _DICOM:
        return Held(film)
    return Held(film, source if isinstance(source, bytes) else source.read_bytes())


def _asked(arrival: "Arrival", name: str) -> Waiting:
    """A file that a rule refused and that the reader may know better about."""
    error, source = arrival.error, arrival.source
    if error is None:
        raise ValueError("this file was not refused")
    data = source if isinstance(source, bytes) else source.read_bytes()
    return Waiting(
        f"{name} was not taken. {error} (Rule: {error.rule}.)", "Use it anyway", source=data, anyway=(error.rule or "",)
    )


def _read_anyway(arrival: "Arrival") -> list[Held]:
    """A film that the reader used in spite of a rule before the page was loaded again."""
    data = arrival.source if isinstance(arrival.source, bytes) else arrival.source.read_bytes()
    rules: tuple[str, ...] = (arrival.error.rule or "",) if arrival.error else ()
    with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
        path = Path(folder) / "film"
        path.write_bytes(data)
        for _ in range(MOST_RULES):
            try:
                film = core().read_film(path, name=arrival.name, anyway=rules)
            except core().FilmError as error:
                if not error.overridable:
                    return []
                rules = (*rules, error.rule)
            else:
                return [Held(film, data if film.format == _DICOM else None)]
    return []


def _changed(held: Held, op: Mapping[str, Any]) -> Held:
    """A film cropped to corners or turned by quarters. Raises FilmError, and ValueError or TypeError for what makes no sense."""
    film = held.film
    if "corners" in op:
        film = core().straighten(film, [(float(x), float(y)) for x, y in op["corners"]])
    if "turn" in op:
        film = core().turned(film, int(op["turn"]))
    return replace(held, film=film, ops=(*held.ops, dict(op)))


def _left_out(rows: "Sequence[LeftOut]", first: int | None) -> list[str]:
    """What was no film, a sentence or more for each reason: a disc may hold hundreds of slices."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        reasons.setdefault((row.reason, row.rule), []).append(row.name if first is not None else "The example")
    return [
        f"{names[0]}{f' and {len(names) - 1} more were' if len(names) > 1 else ' was'} not taken. {reason} (Rule: {rule}.)"
        for (reason, rule), names in reasons.items()
    ]


def _places(arrivals: "Sequence[Arrival]", paths: Sequence[Path], zips: Sequence[int]) -> list[int]:
    """Which files of the drop these came from; of a zip: the zip."""
    found = []
    for each in arrivals:
        if isinstance(each.source, Path) and each.source in paths:
            found.append(list(paths).index(each.source))
        else:
            found += zips
    return found


@dataclass(frozen=True, eq=False)
class Desk:
    """A study that is not open now. key: under which the browser keeps its films; id: of its session, empty where nothing is kept yet.

    held: its films, where this tab read them; label: a few words without a name; state: "new", "drafted" or "signed".
    """

    key: str
    id: str = ""
    label: str = "no film"
    state: str = "new"
    held: tuple[Held, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    marks: "Mapping[str, tuple[Mark, ...]]" = field(default_factory=dict)


class SessionState:
    """One tab's work. Its methods may be called from several threads at once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stop = False  # the draft under way has to end: Stop was pressed, or the tab was closed
        self.left = False
        self.wanted = False  # a draft was asked for and has not begun
        self.busy = False  # a draft is under way, or a kept report is being opened
        self.others: tuple[Desk, ...] = ()  # this browser's other studies, in the order of the worklist
        self.arrived: dict[str, Any] = {}  # which study each file of the last drop went to, for the browser to keep
        self.templates: tuple[str, ...] = ()  # names of those that an empty report may begin with
        self.clear()

    def __deepcopy__(self, memo: Any) -> "SessionState":
        return SessionState()  # Gradio copies the first one for every tab

    def halt(self) -> None:
        """The reader pressed Stop."""
        self.stop = True

    def leave(self) -> None:
        """The tab is gone."""
        self.stop = self.left = True

    def clear(self, key: str = "") -> None:
        """Start with nothing, as for a new study. key: of the study, where the browser has one."""
        self.key = key if _KEY.fullmatch(key) else secrets.token_hex(8)
        self.marks: dict[str, tuple[Mark, ...]] = {}  # what the reader measured, by the films' digests
        self.offers: tuple[Offer, ...] = ()  # what the last change suggests in the other section
        self.held: tuple[Held, ...] = ()
        self.waiting: tuple[Waiting, ...] = ()
        self.draft: Draft | None = None
        self.report: Report | None = None
        self.session: Session | None = None
        self.looked: DependenceTest | None = None
        self.picked: Selection | None = None  # the sentence or word of the draft that was chosen last
        self.near: tuple[Case, ...] = ()  # remembered cases like the draft's film
        self.found: str | None = None  # the finding that was chosen since, by its name
        self.missed: tuple[str, ...] = ()  # hashes of the prior films that a kept report was compared with
        self._burned: dict[tuple[str, str], str | None] = {}
        self.gone = False  # the session was closed elsewhere, or has expired
        self.earlier = ""  # what the reader had written before the report was drafted anew

    # -- studies ---------------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> str:
        """Of the open study: "new", "drafted" or "signed"."""
        if self.report is None or not (self.report.lines or self.report.edits):
            return "new"
        return "signed" if self.report.signed is not None else "drafted"

    def listed(self) -> list[Desk]:
        """The worklist: this browser's studies, the open one among them."""
        from ui import messages

        mine = Desk(self.key, self.session.id if self.session else "", messages.title(self), self.standing)
        keys = [each.key for each in self.others]
        rows = [mine if each.key == self.key else each for each in self.others]
        return rows if self.key in keys else [*rows, mine]

    def know(self, rows: Any) -> None:
        """Take over the studies that the browser remembers: [{"key", "id", "label", "state"}]. What is none is passed over."""
        with self.lock:
            known = {each.key for each in self.others}
            for row in rows if isinstance(rows, list) else ():
                match row:
                    case {
                        "key": str(key),
                        "id": str(id),
                        "label": str(label),
                        "state": "new" | "drafted" | "signed" as state,
                    }:
                        if _KEY.fullmatch(key) and key not in known and len(self.others) < MOST_STUDIES:
                            known.add(key)
                            self.others += (Desk(key, id[:64], label[:60], state),)

    def park(self) -> None:
        """Put the open study aside, as it is, and have none open."""
        with self.lock:
            (mine,) = [each for each in self.listed() if each.key == self.key]
            mine = replace(mine, held=self.held, waiting=self.waiting, marks=dict(self.marks))
            empty = not (mine.id or mine.held or mine.waiting)
            self.others = tuple(each for each in self.others if each.key != self.key) if empty else self._with(mine)
            self.clear()

    def _with(self, desk: Desk) -> tuple[Desk, ...]:
        """The other studies with this one, in its place where it has one."""
        if any(each.key == desk.key for each in self.others):
            return tuple(desk if each.key == desk.key else each for each in self.others)
        return (*self.others, desk)

    def switch(self, key: str, store: "Sessions") -> None:
        """Open another study of this browser. Raises EmrrgError where its report cannot be opened; the open one then stays."""
        with self.lock:
            wanted = next((each for each in self.others if each.key == key), None)
            if wanted is None or key == self.key:
                return
            session = store.load(wanted.id) if wanted.id else None
            self.park()
            self.clear(key)
            self.held, self.waiting, self.marks = wanted.held, wanted.waiting, dict(wanted.marks)
            if session is not None:
                self.open(session)
                self._order()

    def next_key(self) -> str:
        """Of the study after the open one that is not signed, round and round; empty where there is none."""
        rows = self.listed()
        here = next(n for n, each in enumerate(rows) if each.key == self.key)
        later = [each for each in (*rows[here + 1 :], *rows[:here]) if each.state != "signed"]
        return later[0].key if later else ""

    # -- what the reader has to decide, and said ---------------------------------------------------------------------------

    @property
    def cautions(self) -> "tuple[Caution, ...]":
        """The warnings that are not decided yet, each at its sentence."""
        if self.report is None or self.report.signed is not None:
            return ()
        every = core().cautions(self.report, self.draft, has_prior=self.has_prior)
        return tuple(each for each in every if each.key not in self.report.decided)

    @property
    def says(self) -> dict[str, str]:
        """What the reader says of findings, as the list shows it."""
        found = {}
        for name, said in (self.report.says if self.report else {}).items():
            finding = self.draft.finding(name) if self.draft else None
            if finding is not None and said == as_read(finding):
                continue
            found[name] = "silent" if said.present is None else "absent" if not said.present else said.side or "present"
        return found

    def mark_film(self, film: str, given: Any) -> None:
        """What the reader measured on a film, all of it. Raises EmrrgError for anything else, and for a film that is not here."""
        if film not in {each.sha256 for each in self.shown} or not isinstance(given, list):
            raise core().EmrrgError("That film is not here any more: load the page again.")
        marks = tuple(core().Mark.of(each) for each in given[: core().MOST_MARKS])
        with self.lock:
            self.marks[film] = marks

    # -- films -----------------------------------------------------------------------------------------------------------

    @property
    def films(self) -> "list[Film]":
        """Those that the model is given, in their order."""
        return [held.film for held in self.held if not held.prior]

    @property
    def earlier_films(self) -> "list[Film]":
        """Those that the reader marked as prior."""
        return [held.film for held in self.held if held.prior]

    @property
    def shown(self) -> "list[Film]":
        """All of them, the prior ones last."""
        return [held.film for held in self.held]

    @property
    def priors(self) -> frozenset[int]:
        """The places of the prior films among `shown`."""
        return frozenset(number for number, held in enumerate(self.held) if held.prior)

    @property
    def has_prior(self) -> bool:
        """Whether an earlier film was given, now or before the page was loaded again."""
        return bool(self.missed) or any(held.prior for held in self.held)

    @property
    def places(self) -> list[int]:
        """The number in the draft of each film that the model was given, as `films` are ordered."""
        known = [record.sha256 for record in self.draft.films] if self.draft else []
        return [known.index(film.sha256) for film in self.films if film.sha256 in known]

    @property
    def missing(self) -> list[int]:
        """The numbers of the draft's films that this tab does not hold: films are not stored."""
        return sorted(set(range(len(self.draft.films) if self.draft else 0)) - set(self.places))

    def source(self, number: int) -> bytes | None:
        """The file of a film of the draft; None where there is none, or where this tab does not hold it."""
        if self.draft is None:
            return None
        wanted = self.draft.films[number].sha256
        return next((held.source for held in self.held if held.film.sha256 == wanted and not held.prior), None)

    def film(self, number: int) -> "Film | None":
        """A film of the draft by its number; None where this tab does not hold it."""
        wanted = self.draft.films[number].sha256 if self.draft else None
        return next((film for film in self.films if film.sha256 == wanted), None)

    @property
    def burned(self) -> list[str]:
        """What is known of text burned into the films: to be read before anything is exported."""
        for film in self.shown:
            if (film.sha256, film.name) not in self._burned:
                self._burned[film.sha256, film.name] = core().burned_in_warning(film)
        return [words for film in self.shown if (words := self._burned[film.sha256, film.name])]

    def take(self, paths: Sequence[Path], first: int | None, again: Mapping[str, Any] | None = None) -> list[str]:
        """Add files: films, zips, whatever was dropped, sorted into studies. Returns a sentence for what was not taken and cannot be used anyway.

        Good files are kept though others are refused. Files are called by their place in the drop, "File 2", never by their names. The first study
        is opened where none is, the others wait in the worklist. first: None for an example, which needs no number. again: what the browser kept of
        the open study ({"films", "prior", "ops"}), after a reload; then only these films are taken.
        """
        with self.lock:
            self.waiting, self.arrived = (), {}
            if self.busy:
                return ["Nothing was taken: wait until the draft is done."]
            found = core().sort(paths, scratch=os.environ.get("GRADIO_TEMP_DIR"))
            if again is not None:
                self._take_again(found.studies, again)
                return []
            words = _left_out(found.left_out, first)
            zips = [place for place, path in enumerate(paths) if zipfile.is_zipfile(path)]
            sent: dict[str, list[int]] = {}
            studies = list(found.studies)
            before = {place for study in studies for place in study.earlier[:1]}  # these lie beside the newer study
            whole = [n for n in range(len(studies)) if n not in before]
            open_one = self.draft is not None or bool(self.held)
            if len(whole) > 1 and all(each.key != self.key for each in self.others):
                self.others += (Desk(self.key),)  # its place in the worklist is before those that wait
            for place, n in enumerate(whole):
                study = studies[n]
                earlier = studies[study.earlier[0]].films if study.earlier else ()
                here = place == 0 and (not open_one or len(whole) == 1)
                if here:
                    words += self.take_study(study.films, earlier, first)
                    key = self.key
                else:
                    key = self._set_aside(study.films, earlier)
                sent.setdefault(key, []).extend(_places((*study.films, *earlier), paths, zips))
            aside = len(whole) - (0 if open_one and len(whole) > 1 else min(1, len(whole)))
            if aside:
                words.append(f"{aside} more {'study waits' if aside == 1 else 'studies wait'} in the list of studies.")
            self.arrived = {
                "number": secrets.token_hex(4),
                "studies": {key: sorted(set(at)) for key, at in sent.items()},
            }
            return words

    def take_study(self, films: "Sequence[Arrival]", earlier: "Sequence[Arrival]", first: int | None) -> list[str]:
        """Add the films of one study to the open one, those of an earlier study as prior films."""
        count = len(self.films)
        if self.draft is None and count + len(films) > MOST_FILMS:
            have = f"{count} here and {len(films)} more were" if count else f"{len(films)} were"
            return [
                f"A study may have at most {MOST_FILMS} films; {have} given. Leave some out and drop the others again."
            ]
        words = []
        for each in films:
            name = each.name if first is not None else "The example"
            if each.film is None:
                self.waiting += (_asked(each, name),)
            elif said := self._add(_held(each), name):
                words.append(said)
        for each in earlier:
            if each.film is not None and (said := self._add(replace(_held(each), prior=True), each.name)):
                words.append(said)
        return words

    def _set_aside(self, films: "Sequence[Arrival]", earlier: "Sequence[Arrival]") -> str:
        """Put a study that arrived with others into the worklist; its key."""
        aside = SessionState()
        aside.take_study(films[:MOST_FILMS], earlier[:MOST_FILMS], 1)
        (desk,) = aside.listed()
        self.others = self._with(replace(desk, held=aside.held, waiting=aside.waiting))
        return aside.key

    def _take_again(self, studies: "Sequence[Study]", again: Mapping[str, Any]) -> None:
        """Films of the open study that the browser kept over a reload: those that were in it, as they were."""
        wanted, prior, ops = (again.get(name) or () for name in ("films", "prior", "ops"))
        for each in (each for study in studies for each in study.films):
            found = [_held(each)] if each.film else []
            if not found and each.error:
                found = _read_anyway(each)
            for held in found:
                with suppress(core().EmrrgError, TypeError, ValueError, OverflowError, AttributeError):
                    for op in dict(ops or {}).get(held.film.sha256, ()):
                        held = _changed(held, op)
                if held.film.sha256 in (*wanted, *prior):
                    self._add(replace(held, prior=held.film.sha256 in prior), each.name)

    @property
    def kept_films(self) -> dict[str, Any]:
        """What the browser keeps beside the files of this study, to bring them back as they are."""
        return {
            "films": [held.film.sha256 for held in self.held if not held.prior],
            "prior": [held.film.sha256 for held in self.held if held.prior],
            "ops": {held.film.source_sha256: list(held.ops) for held in self.held if held.ops},
        }

    def straighten(self, number: int, action: Mapping[str, Any]) -> str | None:
        """Crop and straighten a film to four corners ("corners"), or turn it by quarters ("turn"). Returns a sentence where that cannot be done."""
        with self.lock:
            if not 0 <= number < len(self.held):
                return None
            if self.draft is not None:
                return "This study has a draft already: its films stay as they are."
            op = {name: action[name] for name in ("corners", "turn") if name in action}
            try:
                held = _changed(self.held[number], op)
            except (TypeError, ValueError, OverflowError):
                return "That did not arrive whole: set the corners again."
            self.held = (*self.held[:number], held, *self.held[number + 1 :])
            self._order()
            return None

    def _read(self, path: Path, name: str, anyway: tuple[str, ...] = ()) -> str | None:
        try:
            film = core().read_film(path, name=name, anyway=anyway)
        except core().FilmError as error:
            words = f"{name} was not taken. {error} (Rule: {error.rule}.)"
            if not error.overridable:
                return words
            self.waiting += (Waiting(words, "Use it anyway", source=path.read_bytes(), anyway=(*anyway, error.rule)),)
            return None
        return self._add(Held(film, path.read_bytes() if film.format == _DICOM else None), name)

    def _add(self, held: Held, name: str) -> str | None:
        film = held.film
        if same := next((other for other in self.shown if other.sha256 == film.sha256), None):
            return f"{name} was not taken, because it is the same image as {same.name}."
        known = [record.sha256 for record in self.draft.films] if self.draft else []
        if film.sha256 in self.missed:
            held = replace(held, prior=True)
        elif self.draft and film.sha256 not in known and not held.prior:
            words = f"{name} was not taken, because this study has a draft already, and no two patients may be mixed."
            prior = replace(held, prior=True)
            self.waiting += (
                Waiting(words, "Begin a new study with it", held=held, other="Show it as a prior film", prior=prior),
            )
            return None
        if held.prior and len(self.priors) >= MOST_FILMS:
            return f"{name} was not taken: at most {MOST_FILMS} prior films can be shown."
        self.held += (held,)
        self._order()
        return None

    def _order(self) -> None:
        """Put films in the order of the draft, the prior ones last, and name each by its place."""
        known = [record.sha256 for record in self.draft.films] if self.draft else []
        current = [held for held in self.held if not held.prior]
        if known:
            current.sort(key=lambda held: known.index(held.film.sha256) if held.film.sha256 in known else len(known))
        prior = [held for held in self.held if held.prior]
        names = [
            f"Film {(known.index(h.film.sha256) if h.film.sha256 in known else n) + 1}" for n, h in enumerate(current)
        ]
        names += [f"Prior film {n}" if len(prior) > 1 else "Prior film" for n in range(1, len(prior) + 1)]
        self.held = tuple(
            replace(held, film=replace(held.film, name=name))
            for held, name in zip([*current, *prior], names, strict=True)
        )

    def use_other(self, number: int) -> str | None:
        """The reader chose the other thing that was offered: the film is shown as a prior one."""
        with self.lock:
            if not (0 <= number < len(self.waiting) and self.waiting[number].prior):
                return None
            asked = self.waiting[number]
            self.waiting = (*self.waiting[:number], *self.waiting[number + 1 :])
            return self._add(asked.prior, asked.prior.film.name) if asked.prior else None

    def use(self, number: int) -> str | None:
        """The reader said yes to what was offered for a file. Returns a sentence where that cannot be done."""
        with self.lock:
            if not 0 <= number < len(self.waiting):
                return None
            asked = self.waiting[number]
            self.waiting = (*self.waiting[:number], *self.waiting[number + 1 :])
            if asked.prior and asked.held:  # a film of another study: those that were refused with it go along
                rest = [each.held for each in self.waiting if each.prior and each.held]
                self.waiting = tuple(each for each in self.waiting if not each.prior)
                self.park()
                for held in (asked.held, *rest)[:MOST_FILMS]:
                    self._add(held, held.film.name)
                return None
            if asked.held:
                place = next((n for n, h in enumerate(self.held) if h.film.sha256 == asked.held.film.sha256), None)
                if place is None:
                    return self._add(asked.held, asked.held.film.name)
                self.held = (*self.held[:place], asked.held, *self.held[place + 1 :])
                return None
            if self.draft is None and len(self.films) >= MOST_FILMS:
                return f"It was not taken: a study may have at most {MOST_FILMS} films."
            # only a path can be read; the file lies where uploads do, for as long as that takes
            with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
                path = Path(folder) / "film"
                path.write_bytes(asked.source)
                return self._read(path, "The file", asked.anyway)

    def check(self, reporter: "Reporter") -> bool:
        """Whether the model takes every film for a chest film, or the reader said that it is one. Each other film goes to `waiting`."""
        with self.lock:
            self.waiting = ()
            for held in self.held:
                if held.prior and not reporter.reads_prior:
                    continue
                try:
                    reporter.check(held.film)
                except core().FilmError as error:
                    words = f"{held.film.name} was not read. {error} (Rule: {error.rule}.)"
                    film = reporter.check(held.film, anyway=[error.rule]) if error.overridable else None
                    offer = (Waiting(words, "Use it anyway", held=replace(held, film=film)),) if film else ()
                    self.waiting += offer or (Waiting(words, ""),)
            return not self.waiting

    def remove(self, number: int) -> None:
        """Remove a film. One that the draft was written about stays."""
        with self.lock:
            if 0 <= number < len(self.held) and (self.held[number].prior or self.draft is None):
                gone = self.held[number].film.sha256
                self.missed = tuple(sha256 for sha256 in self.missed if sha256 != gone)
                self.held = (*self.held[:number], *self.held[number + 1 :])
                self._order()

    def mark(self, number: int) -> str | None:
        """Mark a film as prior, or as one of the study again. Returns a sentence where that cannot be done."""
        with self.lock:
            if not 0 <= number < len(self.held):
                return None
            held = self.held[number]
            if self.draft is not None:
                return "This study has a draft already: what was given to the model stays as it is."
            if held.prior and len(self.films) >= MOST_FILMS:
                return f"A study may have at most {MOST_FILMS} films."
            if not held.prior and len(self.priors) >= MOST_FILMS:
                return f"At most {MOST_FILMS} prior films can be shown."
            changed = replace(held, prior=not held.prior)
            self.held = (*self.held[:number], *self.held[number + 1 :], changed)
            self._order()
            return None

    # -- the report and where it is kept -----------------------------------------------------------------------------------

    @property
    def texts(self) -> tuple[str, str]:
        """Findings and Impression of the report, empty where there is none."""
        return (self.report.findings, self.report.impression) if self.report else ("", "")

    @property
    def has_words(self) -> bool:
        """Whether there is any text that closing the study would delete."""
        return bool(self.earlier or (self.report and self.report.lines))

    def open(self, session: "Session") -> None:
        """Open a kept session. Its films have to be dropped again."""
        with self.lock:
            self.session, self.draft, self.report = session, session.draft, session.report
            self.near = ()
            settings = session.settings
            self.earlier, self.missed = str(settings.get("earlier", "")), tuple(settings.get("priors", ()))
            looked = settings.get("looking")
            self.looked = core().DependenceTest(**looked) if looked else None
            kept = settings.get("marks") or {}
            self.marks |= {film: tuple(core().Mark.of(each) for each in marks) for film, marks in kept.items()}

    def recall(self, memory: "Memory | None") -> None:
        """Find the remembered cases that are like the draft's film; none where nothing is remembered or was read."""
        read = self.draft.read if self.draft else None
        self.near = tuple(memory.nearest(read)) if memory is not None and read else ()

    def keep(self, store: "Sessions") -> str | None:
        """Write report and draft to the server's disk: a sentence for the reader where something went wrong.

        What could not be kept is tried again with the next change.
        """
        with self.lock:
            if self.report is None:
                return None
            priors = [held.film.sha256 for held in self.held if held.prior]
            settings = {
                "earlier": self.earlier,
                "priors": list(dict.fromkeys((*self.missed, *priors))),
                "looking": asdict(self.looked) if self.looked else None,
                "marks": {film: [mark.to_dict() for mark in each] for film, each in self.marks.items() if each},
            }
            self.gone = False
            films = tuple(film.sha256 for film in (self.draft.films if self.draft else self.films))
            try:
                if self.session is None:
                    self.session = store.begin(self.draft, self.report, films=films, settings=settings)
                else:
                    changed = replace(
                        self.session, draft=self.draft, report=self.report, films=films, settings=settings
                    )
                    self.session = store.save(changed)
            except core().SessionConflictError as conflict:
                self.session = conflict.mine
                return str(conflict)
            except core().SessionError as error:
                self.gone = isinstance(error, core().SessionGoneError)
                return str(error)
            return None

    def close(self, store: "Sessions") -> None:
        """Delete the session from the disk, and start with nothing. Raises SessionError where the disk cannot be written to."""
        with self.lock:
            if self.session is not None:
                store.close(self.session.id)
            self.others = tuple(each for each in self.others if each.key != self.key)
            self.clear()
