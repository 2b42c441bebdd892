"""What one tab holds: its films and draft, the report made of the draft, and the session that keeps both on the disk.

Films, and the files that DICOM exports refer to, live in memory only and go with the tab. Report and draft are kept by
emrrg_core's Sessions; what is not stored can be dropped again and finds its place by the hash of its pixels.
"""

import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emrrg_core import Draft, Film, Report, Reporter, Sessions
    from emrrg_core.explain.faithfulness import DependenceTest
    from emrrg_core.memory.cases import Case, Memory
    from emrrg_core.report.session_store import Session
    from ui.draft_panels import Selection

MOST_FILMS = 4  # given to the model; as many earlier ones may lie beside them
READERS = 8  # drafts that are under way at once; who comes after waits
_DICOM = "DICOM"


def core() -> Any:
    """What the screens take from emrrg_core, each name imported when first needed (ui.lazy)."""
    from ui import lazy

    return lazy


@dataclass(frozen=True, eq=False)
class Held:
    """A film that this tab holds. source: the file's bytes where it is DICOM, for exports that refer to it. prior: an earlier film,
    to be compared with and never given to the model."""

    film: "Film"
    source: bytes | None = None
    prior: bool = False


@dataclass(frozen=True, eq=False)
class Waiting:
    """A file that was not taken, and what the reader may still do with it."""

    words: str  # why not
    offer: str  # the label of the button
    held: Held | None = None  # read already: to be added, or to take the place of the same film
    source: bytes = b""  # else the file, to be read again
    anyway: tuple[str, ...] = ()  # the rules that the reader would then override


class SessionState:
    """One tab's work. Its methods may be called from several threads at once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stop = False  # the draft under way has to end: Stop was pressed, or the tab was closed
        self.left = False
        self.wanted = False  # a draft was asked for and has not begun
        self.busy = False  # a draft is under way, or a kept report is being opened
        self.clear()

    def __deepcopy__(self, memo: Any) -> "SessionState":
        return SessionState()  # Gradio copies the first one for every tab

    def halt(self) -> None:
        """The reader pressed Stop."""
        self.stop = True

    def leave(self) -> None:
        """The tab is gone."""
        self.stop = self.left = True

    def clear(self) -> None:
        """Start with nothing, as for a new study."""
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

    def take(self, paths: Sequence[Path], first: int | None) -> list[str]:
        """Add files. Returns a sentence for each one that was not taken and that the reader cannot use anyway.

        Good files are kept though others are refused. Files are called by their place in the drop, "File 2", never by their
        names. first: the number of the first file; None where there is only one, which needs no number.
        """
        with self.lock:
            self.waiting = ()
            if self.busy:
                return ["Nothing was taken: wait until the draft is done."]
            count = len(self.films)
            if self.draft is None and count + len(paths) > MOST_FILMS:
                have = f"{count} here and {len(paths)} more were" if count else f"{len(paths)} were"
                return [
                    f"A study may have at most {MOST_FILMS} films; {have} given. Leave some out and drop the others again."
                ]
            words = []
            for number, path in enumerate(paths):
                name = f"File {number + first}" if first is not None else "The example"
                if said := self._read(path, name):
                    words.append(said)
            return words

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
            words = f"{name} was not taken, because this study has a draft already, and no two patients may be mixed. "
            words += "If it is an earlier film of this patient, it can be shown beside; else press New study first."
            self.waiting += (Waiting(words, "Show it as a prior film", held=replace(held, prior=True)),)
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

    def use(self, number: int) -> str | None:
        """The reader said yes to what was offered for a file. Returns a sentence where that cannot be done."""
        with self.lock:
            if not 0 <= number < len(self.waiting):
                return None
            asked = self.waiting[number]
            self.waiting = (*self.waiting[:number], *self.waiting[number + 1 :])
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
            self.clear()
