"""Studies of an archive, one after the other: fetched by DICOMweb, drafted, and what was made stored into the same study."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from emrrg_core.errors import EmrrgError, FilmError
from emrrg_core.hospital import log
from emrrg_core.hospital.destination import Archive, Entity
from emrrg_core.hospital.outbox import ArchiveError, LinkError, Outbox
from emrrg_core.hospital.study import Study, draft_study, in_words, read_study, stored_uids, study_name
from emrrg_core.reporter import Reporter


class Outcome(StrEnum):
    """What became of a study."""

    STORED = "stored"
    KNOWN = "known"  # the archive has our results for these films and this checkpoint
    WAITS = "waits"  # drafted; the link was lost
    REFUSED = "refused"  # no draft can be made of it


def run(archive: Archive, studies: Iterable[str], reporter: Reporter, outbox: Outbox) -> Counter[Outcome]:
    """Drafts studies of an archive by their UIDs, and stores what was made there; how many came to what.

    First stores what waits from an earlier run. Raises LinkError where the archive cannot be reached to ask it for something.
    """
    _deliver(archive, outbox)
    found: Counter[Outcome] = Counter()
    for number, uid in enumerate(studies, 1):
        name = study_name(number, uid)
        outcome, said = Outcome.STORED, "drafted and stored."
        try:
            with outbox.scratch() as folder:
                key = prepare(name, archive.films(uid, folder), reporter, outbox, archive)
        except LinkError:
            raise
        except (FilmError, ArchiveError) as error:
            outcome, said = Outcome.REFUSED, f"no draft. {' '.join(str(error).split())}"
        else:
            if key is None:
                outcome, said = Outcome.KNOWN, "the archive has our results for these films and this checkpoint."
            else:
                with contextlib.suppress(LinkError):
                    _deliver(archive, outbox)
                if outbox.waits(key):
                    outcome, said = (
                        Outcome.WAITS,
                        "drafted; its results wait in the outbox. The same command sends them.",
                    )
        log.log(logging.WARNING if outcome in (Outcome.REFUSED, Outcome.WAITS) else logging.INFO, "%s: %s", name, said)
        found[outcome] += 1
    return found


def _deliver(archive: Archive, outbox: Outbox) -> None:
    """Raises LinkError; what else keeps results from being stored is logged."""
    try:
        outbox.deliver(archive.store)
    except LinkError:
        raise
    except EmrrgError as error:
        log.warning("Results wait in the outbox. %s", error)


def prepare(
    name: str, paths: list[Path], reporter: Reporter, outbox: Outbox, destination: Archive | Entity
) -> str | None:
    """Drafts a study and puts what is stored for it into the outbox; its key there. None where the other side has it.

    Raises FilmError where no draft can be made of it, ArchiveError where the other side cannot be asked.
    """
    study = read_study(paths, reporter)
    if study.left_out:
        log.info("%s: %d left out: %s", name, len(study.left_out), in_words(study.left_out))
    key = study.key(reporter.names)
    if outbox.waits(key):
        return key
    if known(study, key, outbox, destination):
        return None
    try:
        files = draft_study(study, reporter, datetime.now().astimezone())
    except EmrrgError as error:
        raise FilmError(str(error)) from error
    except Exception as error:  # its words may quote a header, so only its kind is told
        raise FilmError(f"It could not be drafted, for a reason nobody foresaw ({type(error).__name__}).") from error
    outbox.put(key, files)
    return key


def known(study: Study, key: str, outbox: Outbox, destination: Archive | Entity) -> bool:
    """Whether the other side has our results: by its own word where it can be asked, else by our note of what was sent."""
    held = destination.holds(study.uid, list(stored_uids(key).values()))
    return outbox.sent(key) if held is None else held
