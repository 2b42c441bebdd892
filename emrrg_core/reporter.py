"""Reporter: films in, draft out. The one door for the screen, the command line and batch work."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from emrrg_core.config import MOST_FILMS, DecodeConfig, PromptTokens, Sections, StudyConfig, Views
from emrrg_core.errors import ConfigError, EmrrgError, FilmError
from emrrg_core.explain.faithfulness import (
    FEWEST_PLACES,
    PLACES,
    DependenceTest,
    Why,
    gate_strength,
    highlighted,
    masked,
    places,
    stand_ins,
)
from emrrg_core.explain.heat_map import patch_weights
from emrrg_core.explain.occlusion import Rescored
from emrrg_core.films.burned_in_text import burned_in_warning
from emrrg_core.films.film import Film, model_input, read_film
from emrrg_core.films.film_check import Detector, FilmCheck
from emrrg_core.films.views import stitch
from emrrg_core.model import checkpoint as checkpoints
from emrrg_core.model import prior_film
from emrrg_core.model.disease_queries import Seen
from emrrg_core.model.emrrg import Emrrg, FilmTokens
from emrrg_core.model.engine import Engine
from emrrg_core.model.finding_tokens import ABNORMAL, Finding, Presence, finding_maps, ratios_of, select_findings
from emrrg_core.model.generation import sections_of
from emrrg_core.model.language_model import LanguageModel
from emrrg_core.model.parameter_count import Counts, count
from emrrg_core.model.proposals import Phrasebook, Proposer
from emrrg_core.model.threads import use_free_cores
from emrrg_core.model.writing import Writing
from emrrg_core.report.draft import Draft, FilmRecord, Sentence, sections
from emrrg_core.report.rewrite import Rewritten, agreeing, missed
from emrrg_core.report.told import Said, switched, told
from emrrg_core.text.changes import Change, changes
from emrrg_core.text.labeler import LABELS, NO_FINDING, Status, read_findings
from emrrg_core.text.sections import split

Progress = Callable[[int, int], None]  # (readings done, readings in all)
_TOGETHER = 11  # films seen, and readings of a draft, at once: half of those that *Why this sentence?* needs

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "small"


@dataclass(frozen=True)
class Summary:
    """An Impression from Findings. unknown: labels that these state and the checkpoint does not know, so that it says nothing of them."""

    text: str
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Noted:
    """What was made of the films before the first word."""

    read: tuple[Finding, ...] | None
    ratio: float | None
    checks: Sequence[FilmCheck]
    films: tuple[FilmRecord, ...]
    at: float  # when, by time.perf_counter
    prior: tuple[FilmRecord, ...] = ()


class Reporter:
    """Drafts reports with one loaded checkpoint. Keeps nothing of a film or a draft; may be shared by many readers."""

    def __init__(
        self,
        model: Emrrg,
        *,
        names: dict[str, str],
        cautions: Sequence[str] = (),
        detector: Detector | None = None,
        proposer: Proposer | None = None,
        share_cores: bool = False,
    ) -> None:
        self._model, self.names, self._cautions = model, names, tuple(cautions)
        self._detector, self._proposer = detector, proposer
        self._engine = Engine(model, use_free_cores if share_cores else lambda: None)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        *,
        language_model: str | Path | None = None,
        device: str = "cpu",
        download: bool = True,
        share_cores: bool = False,
    ) -> Self:
        """Load a checkpoint (default: the one that comes with EMRRG) and its language model.

        share_cores: compute each time with as many threads as there are cores free (emrrg_core.model.threads); else with torch's own number.
        Raises CheckpointError or LanguageModelError with what to do.
        """
        directory = Path(checkpoint or DEFAULT_CHECKPOINT)
        model, language = checkpoints.load(directory, language_model=language_model, device=device, download=download)
        model.merge_lora()
        names = {
            "checkpoint": directory.absolute().name,
            "checkpoint_sha256": checkpoints.fingerprint(directory),
            "settings_sha256": checkpoints.settings_fingerprint(directory),
            "language_model": language.name,
            "language_model_sha256": language.sha256,
        }
        cautions = list(_cautions(checkpoints.read_config(directory), language))
        detector = Detector.load(directory)
        if detector and detector.weights != names["checkpoint_sha256"]:
            detector = None
            cautions.append(
                "Not checked: whether this is a chest film. The detector beside the checkpoint is that of other weights."
            )
        if detector:
            names["looks_sha256"] = detector.sha256
        if model.prior is not None:
            names["prior_sha256"] = prior_film.fingerprint(directory)
        elif (directory / prior_film.FILE).is_file():
            cautions.append(
                "Prior films are not read: the prior.safetensors beside the checkpoint is that of other weights."
            )
        book = Phrasebook.load(directory, model.tokenizer)
        return cls(model, names=names, cautions=cautions, detector=detector, proposer=book, share_cores=share_cores)

    def parameters(self) -> Counts:
        """The loaded model's parameters by part, counted on its tensors: all, and those that fine-tuning trained."""
        return count(self._model, self._model.learns)

    def study(self, views: Views | str | None = None, laterals: bool | None = None) -> StudyConfig:
        """Which films are read and how they are put together, as the checkpoint's settings say, but for what is given.

        Raises ConfigError for views that there are not.
        """
        given = {"views": views, "laterals": laterals}
        changed = {name: value for name, value in given.items() if value is not None}
        return StudyConfig.from_dict(self._model.config.study.to_dict() | changed)

    def read(self, path: Path | str, *, name: str | None = None, anyway: Collection[str] = ()) -> Film:
        """Read a film, and check what it looks like. Raises FilmError with the reason, in words for a radiologist, when it is not one.

        anyway: rules that the reader overrides for it, as `read_film` and `check` take them.
        """
        return self.check(read_film(path, name=name, anyway=anyway), anyway=anyway)

    def check(self, film: Film, *, anyway: Collection[str] = ()) -> Film:
        """The film itself, where it looks like a chest film or the checkpoint has no detector.

        Where it does not, and `anyway` has "looks": the film with that override in its record. Else raises FilmError of the rule "looks".
        """
        looks = self.check_film(film)
        if looks is None or looks.chest or "looks" in film.overridden:
            return film
        if "looks" not in anyway:
            raise FilmError(
                "This does not look like a chest film: choose one, or use it anyway if you know that it is.",
                rule="looks",
                overridable=True,
            )
        step = "rule looks overridden by the reader: this does not look like a chest film"
        return replace(film, overridden=(*film.overridden, "looks"), steps=(*film.steps, step))

    def check_film(self, film: Film) -> FilmCheck | None:
        """What a film looks like: frontal, lateral, upside down, sideways, mirrored, or no chest film. None where the checkpoint has no detector."""
        if self._detector is None:
            return None
        images = torch.from_numpy(self._images([film])).unsqueeze(0).to(self._model.device)
        return self._engine.run(lambda: self._looks(self._model.see(images).tokens)[0])

    def _looks(self, tokens: torch.Tensor) -> list[FilmCheck]:
        """Of what the model saw of each film; empty without a detector."""
        return self._detector(self._model.patches(tokens)) if self._detector else []

    @property
    def reads_prior(self) -> bool:
        """Whether the checkpoint has learned to compare with a prior film (emrrg_core.model.prior_film)."""
        return "prior_sha256" in self.names

    def draft(
        self,
        films: Sequence[Film],
        decoding: DecodeConfig | None = None,
        study: StudyConfig | None = None,
        *,
        prior: Sequence[Film] = (),
    ) -> Draft:
        """Findings and Impression for one to four films of one study. study: which are read and how they are put together; None: as the checkpoint's
        settings say. prior: films of one earlier study of the patient, with which what is read is compared.
        Raises FilmError for none or more than four, where none is to be read, or for a prior film that is one of the study's; ConfigError where the
        checkpoint cannot write the sections as `decoding` asks.
        """
        draft: Draft | None = None
        for draft in self.stream(films, decoding, study, prior=prior):  # noqa: B007 — the last one is wanted
            pass
        if draft is None:
            raise EmrrgError("No draft was written.")
        return draft

    def stream(
        self,
        films: Sequence[Film],
        decoding: DecodeConfig | None = None,
        study: StudyConfig | None = None,
        *,
        prior: Sequence[Film] = (),
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Draft]:
        """As `draft`, but yields the draft so far after every pass of the language model; the last one is whole and carries timings and warnings.

        stopped: whether the reader has stopped it, asked at any time and from any thread; the drafts then end, even before the first.
        """
        decoding, study = decoding or DecodeConfig(), study or self._model.config.study
        decoding = replace(decoding, sections=sections_of(self._model, decoding))
        _counted(films)
        _counted_prior(prior, films)
        begun = time.perf_counter()
        images = self._images(films)
        noted: list[_Noted] = []

        def see() -> FilmTokens:
            tokens, note = self._see(films, images, study, prior)
            noted.append(note)
            return tokens

        writing: Writing | None = None
        for writing in self._engine.stream(see, decoding, self._proposer, stopped, retell=self._retell):
            yield self._draft(writing, noted[0], decoding, partial=True)
        if writing is not None and not stopped():
            now, (note,) = time.perf_counter(), noted
            timings = {"encode": note.at - begun, "write": now - note.at, "total": now - begun}
            warnings = (*self._cautions, *_film_warnings(films, note.films, note.checks))
            warnings += tuple(_prior_warnings(note, self.reads_prior))
            if note.ratio is not None and note.read:
                warnings += tuple(_heart_warnings(films, note.read))
            yield self._draft(writing, note, decoding, partial=False, timings=timings, warnings=warnings)

    def findings(self, films: Sequence[Film], study: StudyConfig | None = None) -> tuple[Finding, ...] | None:
        """What is read in one to four films of a study, without a draft; None where the checkpoint reads no findings. Raises as `draft`."""
        _counted(films)
        images = self._images(films)
        _, note = self._engine.run(lambda: self._see(films, images, study or self._model.config.study))
        return note.read

    def _see(
        self, films: Sequence[Film], images: np.ndarray, study: StudyConfig, prior: Sequence[Film] = ()
    ) -> tuple[FilmTokens, _Noted]:
        """What the language model may see of a study, and what is noted of it. images: the films as the tower takes them, (w, 3, s, s)."""
        device = self._model.device
        seen = self._model.see(torch.from_numpy(images).unsqueeze(1).to(device))  # each film as a study of its own
        checks = self._looks(seen.tokens)
        rows = [i for i, film in enumerate(films) if study.laterals or not _is_lateral(film, checks, i)]
        if not rows:
            raise FilmError(
                "There is no frontal film among these, and this checkpoint has not learned lateral ones: add the frontal film, or choose "
                "to read lateral films too.",
                rule="lateral",
            )
        records = [_record(film, read=i in rows) for i, film in enumerate(films)]
        if study.views is Views.STITCH and len(rows) > 1:
            stitched = stitch([films[i].pixels for i in rows], [films[i].view for i in rows])
            for i, place in zip(rows, stitched.places, strict=True):
                records[i] = replace(records[i], place=place)
            whole = as_one = self._model.see(torch.from_numpy(self._images([stitched.pixels])).unsqueeze(1).to(device))
            maps_of = [0] * len(rows)
        else:
            whole = seen.select(torch.tensor(rows, device=device))
            as_one, maps_of = whole.study(), list(range(len(rows)))
        compared: list[tuple[Finding, ...]] | None = None
        before: tuple[FilmRecord, ...] = ()
        if prior:
            # on a canvas every film is smaller than alone, and so would be its findings: the films themselves are compared
            alone = seen.select(torch.tensor(rows, device=device)).study()
            compared, before = self._compared(as_one, alone, prior, study)
        tokens = self._model.project(as_one, compared)
        read = with_maps_of(tokens.findings[0], whole) if tokens.findings else None
        if read is not None:  # a map of every film, of nothing where it was not read
            where = {row: maps_of[n] for n, row in enumerate(rows)}
            none = np.zeros(self._model.config.vision.patches, np.float32)
            read = tuple(
                replace(f, maps=tuple(f.maps[where[i]] if i in where else none for i in range(len(films))))
                for f in read
            )
        ratio = ratio_of([films[i] for i in rows], seen.select(torch.tensor(rows, device=device)))
        return tokens, _Noted(read, ratio, checks, tuple(records), time.perf_counter(), before)

    def _compared(
        self, read: Seen, now: Seen, prior: Sequence[Film], study: StudyConfig
    ) -> tuple[list[tuple[Finding, ...]] | None, tuple[FilmRecord, ...]]:
        """What is read in a study and how it has changed since the prior films; None where they are not read. With their records.

        read: what was seen of the study as it is read. now: the same of its films one by one, which is compared.
        """
        if not self.reads_prior:
            return None, tuple(_record(film, read=False) for film in prior)
        device = self._model.device
        seen = self._model.see(torch.from_numpy(self._images(prior)).unsqueeze(1).to(device))
        checks = self._looks(seen.tokens)
        rows = [i for i, film in enumerate(prior) if study.laterals or not _is_lateral(film, checks, i)]
        records = tuple(_record(film, read=i in rows) for i, film in enumerate(prior))
        if not rows:
            return None, records
        before = seen.select(torch.tensor(rows, device=device)).study()
        return self._model.compare(now, before, select_findings(read, self._model.calibration)), records

    def _retell(self, read: Sequence[Finding], text: str) -> Sequence[Finding]:
        return told(read, text, changes_too=self.reads_prior)[0]

    def impression(self, films: Sequence[Film], draft: Draft, findings: str) -> Summary:
        """*Impression from these findings*: the Impression that the model writes when the findings are those of a reader's text.

        The finding tokens say what the text states and denies (`report.told`); the words are the model's own. So what the text says beyond them is
        not in it. A checkpoint with a model of its own for the Impression reads the text itself, word for word.

        films: those of the draft, in any order. Raises FilmError for other films; EmrrgError for a draft of another model, a checkpoint that neither
        reads findings nor has such a model, a text without words, or where the model writes none.
        """
        films = self._as_drafted(films, draft)
        separate = self._model.config.sections is Sections.SEPARATE
        if draft.read is None and not separate:
            raise EmrrgError("This checkpoint reads no findings: it cannot write an Impression from them.")
        if not findings.strip():
            raise EmrrgError("Write the Findings first: the Impression is made from them.")
        said, unknown = told(draft.read or (), findings, changes_too=self.reads_prior)
        images = torch.from_numpy(self._of_study([film.pixels for film in films], draft))
        device = self._model.device

        def see() -> FilmTokens:
            return self._model.project(self._model.see(images.unsqueeze(0).to(device)), [said])

        writing: Writing | None = None
        after = findings if separate else None
        for writing in self._engine.stream(see, DecodeConfig(), self._proposer, after=after):  # noqa: B007 — the last one is wanted
            pass
        whole = writing.text if writing else ""
        text = whole[slice(*split(whole)["impression"])]
        if separate and writing:  # the reader's own text may have such a heading
            text = "".join(token.text for token in writing.tokens if not token.forced).strip()
        if not text:
            raise EmrrgError("The model wrote no Impression from these Findings: write it yourself.")
        return Summary(text, () if separate else unknown)

    def rewrite(
        self, films: Sequence[Film], draft: Draft, changed: Mapping[str, Said], findings: str | None = None
    ) -> Rewritten:
        """The draft as the model writes it when some findings are as the reader says: switched on, off or to another side.

        The finding tokens say so (`report.told.switched`), and whether anything is abnormal follows; the words are the model's own. What was read of
        a prior film stays where the finding does. `Report.rewrite` takes over the sentences that rest on these findings.

        changed: what the reader says, by name of finding_tokens.NAMES; also what was said before (`Report.says`). findings: the Findings as they
        stand; what they say of all other findings counts in place of what was read. films: those of the draft, in any order. Raises FilmError for
        other films; EmrrgError for a draft of another model, a checkpoint that does not write from findings, a finding that it does not assess, a
        side where there is none, or where the model writes nothing.
        """
        films = self._as_drafted(films, draft)
        queries = self._model.config.queries
        if draft.read is None or not (queries.depth and queries.told):
            raise EmrrgError("This checkpoint does not write from findings: none can be switched.")
        said = switched(draft.read, changed, findings)
        pixels = [film.pixels for film in films]
        above, below = self._written_of(pixels, draft, said)
        if not above and not below:
            raise EmrrgError("The model wrote nothing about these findings: write the sentence yourself.")
        sides = {f.name: f.side for f in said}
        placed = {name: Said(one.present, sides[name]) if one.present else one for name, one in changed.items()}
        passed = [name for name in missed(above, below, placed) if placed[name].present]
        more = [pair for name in passed for pair in self._alone(pixels, draft, name, placed[name])]
        above = agreeing(above, placed, [findings for findings, _ in more])
        below = agreeing(below, placed, [impression for _, impression in more])
        return Rewritten(above, below, dict(changed), missed(above, below, placed))

    def _written_of(self, pixels: Sequence[np.ndarray], draft: Draft, said: Sequence[Finding]) -> tuple[str, str]:
        """Findings and Impression of a draft's study when its finding tokens say something else of it. pixels: of its films, in its order."""
        images = torch.from_numpy(self._of_study(pixels, draft))
        device, denied = self._model.device, self._model.calibration.thresholds[:, 2].tolist()
        # what is never denied has no token of absence that means anything: nothing is said of it
        told = tuple(
            replace(f, presence=Presence.OPEN)
            if f.presence is Presence.ABSENT and f.name != ABNORMAL and not denied[LABELS.index(f.label)]
            else f
            for f in said
        )

        def see() -> FilmTokens:
            return self._model.project(self._model.see(images.unsqueeze(0).to(device)), [told])

        decoding = DecodeConfig.from_dict(draft.decoding)  # a finding more may need more room than the draft had
        decoding = replace(decoding, max_new_tokens=max(decoding.max_new_tokens, DecodeConfig().max_new_tokens))
        writing: Writing | None = None
        for writing in self._engine.stream(see, decoding, self._proposer, retell=self._retell):  # noqa: B007 — the last one is wanted
            pass
        text = writing.text if writing else ""
        spans = split(text)
        return text[slice(*spans["findings"])], text[slice(*spans["impression"])]

    def _alone(self, pixels: Sequence[np.ndarray], draft: Draft, name: str, said: Said) -> list[tuple[str, str]]:
        """Findings and Impression when one finding is all that is told; without its side where they are silent of it otherwise. Empty where they are
        silent all the same. Beside others a finding that the tower does not see may be passed over; alone it is written."""
        open_ = [
            f if f.name == ABNORMAL else replace(f, presence=Presence.OPEN, side="", zone="", severity="", earlier=None)
            for f in draft.read or ()
        ]
        for wanted in dict.fromkeys((said, Said(True))):
            texts = self._written_of(pixels, draft, switched(open_, {name: wanted}))
            if not missed(*texts, {name: said}):
                return [texts]
        return []

    # -- did the film matter? -----------------------------------------------------------------------------------------

    def why(
        self,
        films: Sequence[Film],
        draft: Draft,
        sentence: int,
        *,
        regions: int = PLACES,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Why | None:
        """*Why this sentence?*: what `draft.sentences[sentence]` loses when the highlighted place is masked, beside `regions` random places.

        films: those of the draft, in any order; views share one map (docs/method.md 5.1), so the same patches are masked in all of them. The words
        are read under the model itself: without a penalty, and forced tokens do not count. None where the sentence has no map.
        Raises FilmError for other films, EmrrgError for a sentence that is not there or a draft of another model, ConfigError for fewer than
        FEWEST_PLACES regions.
        """
        films = self._as_drafted(films, draft)
        if not 0 <= sentence < len(draft.sentences):
            raise EmrrgError(
                f"The draft has {len(draft.sentences)} sentences, counted from 0: there is no sentence {sentence}."
            )
        if regions < FEWEST_PLACES:
            raise ConfigError(f"At least {FEWEST_PLACES} random regions are needed to compare with; {regions} given.")
        first, last = draft.sentences[sentence].tokens
        weights = np.mean(
            [patch_weights(draft, draft.sentences[sentence], n) for n, film in enumerate(draft.films) if film.read],
            axis=0,
        )
        if not weights.sum() > 0:
            return None
        region = highlighted(weights)
        elsewhere, wrapped = places(region, regions, np.random.default_rng(seed))
        images = self._of_study([film.pixels for film in films], draft)
        hidden = [np.zeros_like(region), region, *elsewhere]
        seen = self._encode([masked(images, mask) for mask in hidden], draft)
        found = self._read(seen, draft, progress, first=first, last=last).sum(1)
        own, drop = float(found[0]), found[0] - found[1:]
        whole = float(drop[0])
        if self._model.config.prompt.tokens is not PromptTokens.NONE:
            both = self._read(seen.select([0, 1]), draft, None, prompt=True, first=first, last=last).sum(1)
            whole = float(both[0] - both[1])
        patches = tuple(int(patch) for patch in np.flatnonzero(region))
        why = Why(sentence, own, float(drop[0]), tuple(float(d) for d in drop[1:]), patches, wrapped, whole)
        about = next((name for name in draft.sentences[sentence].findings if draft.finding(name)), None)
        if about is None or not seen.findings:  # what is not assessed has no probability
            return why
        p = [next(f.probability for f in mine if f.name == about) for mine in seen.findings]
        return replace(why, finding=about, probability=p[0], hidden=p[1], elsewhere=float(np.mean(p[2:])))

    def looking(
        self, films: Sequence[Film], draft: Draft, *, seed: int = 0, progress: Progress | None = None
    ) -> DependenceTest:
        """*Is it looking?*: what the draft loses under a blank film, noise and another chest. Read as for `why`; without hybrid layers the prompt is
        each film's own, for it holds all that is seen. Raises alike, and EmrrgError for a draft without words.
        """
        films = self._as_drafted(films, draft)
        counted = sum(not token.forced for token in draft.tokens)
        if not counted:
            raise EmrrgError("The draft is empty: there are no words that could depend on the film.")
        others = stand_ins(self._model.config.vision.image_size, np.random.default_rng(seed))
        seen = self._encode([self._of_study([film.pixels for film in films], draft), *others[:, None]], draft)
        found = self._read(seen, draft, progress, prompt=not self._model.hybrid.indices()).sum(1)
        blank, noise, swapped = ((found[0] - found[1:]) / counted).tolist()
        return DependenceTest(blank, noise, swapped, gate_strength(draft.tokens), counted)

    def rescore(
        self,
        films: Sequence[Film],
        draft: Draft,
        changed: Sequence[np.ndarray],
        *,
        earlier: Rescored | None = None,
        progress: Progress | None = None,
    ) -> Rescored:
        """*What does the model see?*: every sentence of the draft read again under changed films, beside what it is under its own.

        changed: pixels (height, width) in [0, 1] for each of `films`, in their order (`retouch.retouched`); films that are not changed give
        exactly no change. earlier: an answer about the same films and draft, whose reading of these is used again, so that half of the work is
        saved. Read as for `why`; raises alike, and ValueError for another number of films.
        """
        ordered = self._as_drafted(films, draft)
        if len(changed) != len(films):
            raise ValueError(f"{len(changed)} changed films for {len(films)} films")
        place = {film.sha256: n for n, film in enumerate(films)}
        changed = [changed[place[film.sha256]] for film in ordered]
        own = self._of_study([film.pixels for film in ordered], draft)
        other = self._of_study([np.asarray(pixels, np.float32) for pixels in changed], draft)
        studies = ([] if earlier else [own]) + ([] if np.array_equal(own, other) else [other])
        found = self._read(self._encode(studies, draft), draft, progress, prompt=True) if studies else np.zeros((0, 0))
        spans = [slice(*sentence.tokens) for sentence in draft.sentences]
        readings = [tuple(float(row[span].sum()) for span in spans) for row in found]
        before = earlier.before if earlier else readings.pop(0)
        counted = tuple(sum(not token.forced for token in draft.tokens[span]) for span in spans)
        return Rescored(before, readings.pop() if readings else before, counted)

    def _as_drafted(self, films: Sequence[Film], draft: Draft) -> list[Film]:
        """The films in the draft's order. Raises FilmError for others, and EmrrgError for a draft of another model."""
        if sorted(film.sha256 for film in films) != sorted(film.sha256 for film in draft.films):
            raise FilmError("These are not the films that this draft was written about: choose those, or draft again.")
        if any(draft.model.get(key) != self.names.get(key) for key in ("checkpoint_sha256", "language_model_sha256")):
            raise EmrrgError(
                "This draft was written by another checkpoint or language model than those in use: draft again."
            )
        order = [film.sha256 for film in draft.films]
        return sorted(films, key=lambda film: order.index(film.sha256))

    def _of_study(self, pixels: Sequence[np.ndarray], draft: Draft) -> np.ndarray:
        """The study of a draft as the tower took it: (views, 3, s, s). pixels: of its films, in its order."""
        read = [n for n, film in enumerate(draft.films) if film.read]
        if draft.films[read[0]].place is None:
            return self._images([pixels[n] for n in read])
        return self._images([stitch([pixels[n] for n in read], [draft.films[n].view for n in read]).pixels])

    def _images(self, films: Sequence[Film | np.ndarray]) -> np.ndarray:
        """As the tower takes them: (views, 3, s, s)."""
        size = self._model.config.vision.image_size
        return np.stack([model_input(film, size) for film in films])

    def _encode(self, studies: Sequence[np.ndarray], draft: Draft) -> FilmTokens:
        """What the language model may see of each study (views, 3, s, s). What it saw of a prior film for this draft, it sees in all of them."""
        device = self._model.device
        earlier = {finding.name: finding.earlier for finding in draft.read or () if finding.earlier}

        def look(some: Sequence[np.ndarray]) -> FilmTokens:
            seen = self._model.see(torch.from_numpy(np.stack(some)).to(device))
            if not earlier:
                return self._model.project(seen)
            read = select_findings(seen, self._model.calibration)
            return self._model.project(seen, [[replace(f, earlier=earlier.get(f.name)) for f in mine] for mine in read])

        def see(some: Sequence[np.ndarray]) -> FilmTokens:
            return self._engine.run(lambda: look(some))

        alike = (list(some) for _, some in groupby(studies, key=len))  # studies of as many views
        return FilmTokens.join([see(some[i : i + _TOGETHER]) for some in alike for i in range(0, len(some), _TOGETHER)])

    def _read(
        self,
        seen: FilmTokens,
        draft: Draft,
        progress: Progress | None,
        *,
        prompt: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> np.ndarray:
        """Log-probability of draft.tokens[first:last] under each of the studies: (studies, tokens), nats; 0 for a token that was forced.

        Only what the hybrid layers see is each study's own; what stands in the prompt is the first one's, unless `prompt`.
        """
        device = self._model.device
        tokens = draft.tokens[:last]
        ids = torch.tensor([[token.id for token in tokens]], device=device)
        chosen = torch.tensor([not token.forced for token in tokens], device=device)
        found = np.zeros((len(seen), len(tokens) - first))
        if not prompt:
            seen = seen.exchanged(seen.select([0] * len(seen)), prompt=True)
        for start in range(0, len(seen), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(seen)))
            log_probs = self._engine.run(
                lambda some=some: self._model.log_probs(seen.select(some), ids.expand(len(some), -1), first=first)  # type: ignore[misc]
            )
            found[some.start : some.stop] = (log_probs.double() * chosen)[:, first:].cpu().numpy()
            if progress:
                progress(some.stop, len(seen))
        return found

    # -- what a draft is made of --------------------------------------------------------------------------------------

    def _draft(
        self,
        writing: Writing,
        noted: _Noted,
        decoding: DecodeConfig,
        *,
        partial: bool,
        timings: dict[str, float] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Draft:
        findings, impression, sentences = sections(writing, partial=partial)
        if not partial:
            warnings = (*warnings, *_warnings(writing, findings, impression, noted.films, decoding))
            warnings += tuple(differences(noted.read, sentences)) if noted.read is not None else ()
        return Draft(
            findings=findings,
            impression=impression,
            sentences=sentences,
            tokens=writing.tokens,
            layers=tuple(self._model.hybrid.indices()),
            grid=self._model.config.vision.grid,
            films=noted.films,
            warnings=warnings,
            timings=timings or {},
            model=self.names,
            decoding=decoding.to_dict(),
            finished=writing.finished,
            closed=writing.closed,
            read=noted.read,
            ratio=noted.ratio,
            prior=noted.prior,
        )


def _cautions(config: dict[str, Any], language: LanguageModel) -> Iterator[str]:
    """What every draft of this reporter must say: here, that the weights were trained beside another language model."""
    trained = config.get("language_model", {})
    if trained.get("sha256") not in (None, language.sha256):
        yield (
            f"This checkpoint was trained beside other weights ({trained.get('name', 'unnamed')}, {trained['sha256'][:12]}…) than the "
            f"language model in use ({language.name}, {language.sha256[:12]}…); its drafts may be worse than measured."
        )


def _counted(films: Sequence[Film]) -> None:
    if not films:
        raise FilmError("Choose a chest film first.")
    if len(films) > MOST_FILMS:
        raise FilmError(f"A study may have at most {MOST_FILMS} films here; {len(films)} were given. Leave some out.")


def _counted_prior(prior: Sequence[Film], films: Sequence[Film]) -> None:
    if len(prior) > MOST_FILMS:
        raise FilmError(f"At most {MOST_FILMS} prior films are read here; {len(prior)} were given. Leave some out.")
    for film in prior:
        if film.sha256 in {one.sha256 for one in films}:
            raise FilmError(
                f"{film.name} is given as a prior film and is a film of this study too: a film cannot be earlier than itself."
            )


def _is_lateral(film: Film, checks: Sequence[FilmCheck], number: int) -> bool:
    return film.view == "LATERAL" or (bool(checks) and checks[number].kind == "lateral")


def with_maps_of(findings: Sequence[Finding], seen: Seen) -> tuple[Finding, ...]:
    """The findings of a study with their maps of each of its films. seen: the films, each as a study of its own."""
    maps = finding_maps(seen)  # (films, labels, 2, g²)
    return tuple(
        replace(f, maps=tuple(m[LABELS.index(f.label), int(f.presence is Presence.PRESENT)] for m in maps))
        for f in findings
    )


def ratio_of(films: Sequence[Film], seen: Seen) -> float | None:
    """The cardiothoracic ratio of the first frontal film in which both lungs are seen."""
    ratios = zip(films, ratios_of(seen), strict=True)
    return next((ratio for film, ratio in ratios if ratio is not None and film.view != "LATERAL"), None)


def differences(read: Sequence[Finding], sentences: Sequence[Sentence]) -> list[str]:
    """Where a draft states or denies otherwise than was read, as sentences for its reader; most often empty.

    The sentences are read by the label reader (emrrg_core.text.labeler), whose errors are counted in.
    """
    found = []
    positive: dict[str, set[str]] = {}
    denied: set[str] = set()
    for sentence in sentences:
        for mention in read_findings(sentence.text):
            if mention.status is Status.NEGATIVE:
                denied.add(mention.label)
            else:
                positive.setdefault(mention.label, set()).add(mention.side or "")
    present = {f.label: f for f in read if f.presence is Presence.PRESENT}
    for label, finding in present.items():
        if label == NO_FINDING:
            continue
        if label not in positive and not (label == "Lung Opacity" and "Pneumonia" in positive):
            found.append(f"Read in the film, but not stated by the draft: {finding}.")
        elif finding.side and positive.get(label, set()) - {"", finding.side}:
            found.append(f"Read in the film: {finding}. The draft names another side.")
    may_be = {"Pneumonia"} if any(f.pneumonia for f in present.values()) else set()
    implied = {"Lung Opacity"} if present.keys() & {"Consolidation", "Lung Lesion", "Edema", "Atelectasis"} else set()
    allowed = present.keys() | may_be | implied
    found += [f"Stated by the draft, but not read in the film: {label}." for label in LABELS
              if label in positive.keys() - allowed - {NO_FINDING}]  # fmt: skip
    absent = {f.label for f in read if f.presence is Presence.ABSENT} | {NO_FINDING, "Pneumonia"}
    found += [f"Denied by the draft, but not ruled out by what was read: {label}." for label in LABELS
              if label in denied - absent]  # fmt: skip
    return found + list(_changed_otherwise(read, sentences))


def _changed_otherwise(read: Sequence[Finding], sentences: Sequence[Sentence]) -> Iterator[str]:
    """Where a draft says otherwise than was read how a finding has changed since the prior film."""
    said: dict[str, set[Change]] = {}
    for sentence in sentences:
        for label, change in changes(sentence.text):
            said.setdefault("Lung Opacity" if label == "Pneumonia" else label, set()).add(change)
    for finding in read:
        told = said.pop(finding.label, set())
        if finding.change and told != {finding.change}:
            but = "does not say so" if not told else f"says: {', '.join(sorted(told))}"
            yield f"Compared with the prior film: {finding} is {finding.change}. The draft {but}."
        elif told and not finding.change:
            yield f"The draft says of {finding.label}: {', '.join(sorted(told))}. No change of it was read."
    for label, told in said.items():
        yield f"The draft says of {label}: {', '.join(sorted(told))}. No change of it was read."


def _prior_warnings(note: _Noted, reads: bool) -> Iterator[str]:
    if not note.prior:
        return
    if not reads:
        yield "The prior film was not given to the model: this checkpoint has not learned to compare with one."
    elif not any(film.read for film in note.prior):
        yield "No prior film was read: lateral films are not."
    elif not any(finding.change for finding in note.read or ()):
        yield "Compared with the prior film: no change was read surely enough to be told."


def _heart_warnings(films: Sequence[Film], read: Sequence[Finding]) -> Iterator[str]:
    heart = next((f for f in read if f.name == "heart"), None)
    if heart and heart.presence is Presence.PRESENT and any((film.view or "").startswith("AP") for film in films):
        yield "The heart looks larger on an AP film than it is: the cardiothoracic ratio overestimates it."


def _record(film: Film, *, read: bool) -> FilmRecord:
    height, width = film.pixels.shape
    return FilmRecord(
        film.name,
        film.format,
        film.sha256,
        height,
        width,
        film.spacing,
        film.view,
        tuple(film.steps),
        film.overridden,
        read,
        source_sha256=film.source_sha256,
    )


def _film_warnings(films: Sequence[Film], records: Sequence[FilmRecord], looks: Sequence[FilmCheck]) -> Iterator[str]:
    for number, film in enumerate(films):
        if film.overridden:
            yield f"{film.name} was refused ({', '.join(film.overridden)}) and used all the same, by the reader's decision."
        if not records[number].read:
            yield f"{film.name} is a lateral view: it is shown, and was not read, because this checkpoint has not learned lateral films."
        elif film.view == "LATERAL":
            yield f"{film.name} is a lateral view; this checkpoint was trained on frontal films."
        elif looks and (words := looks[number].warning(film.name)):
            yield words
        if words := burned_in_warning(film):
            yield words


def _warnings(
    writing: Writing, findings: str, impression: str, films: Sequence[FilmRecord], decoding: DecodeConfig
) -> Iterator[str]:
    if not writing.finished:
        yield f"The draft did not end by itself and was cut after {decoding.max_new_tokens} tokens."
    if writing.closed:
        names = " and ".join(section.capitalize() for section in writing.closed)
        yield f"The model began to repeat itself: {names} ended before the repeated sentence."
    if not findings:
        yield "The draft has no Findings."
    if not impression:
        yield "The draft has no Impression."
    if writing.tokens and not any(any(token.gates) for token in writing.tokens):
        yield "Every gate stayed shut: this draft did not look at the film through the hybrid layers, and has no heat maps."
    if any(film.place for film in films):
        yield "The films were stitched side by side before writing: the model saw each of them smaller than alone."
    elif sum(film.read for film in films) > 1:
        yield "The views were averaged before writing. The findings' maps are each film's own; what was looked at beside them is shared."
