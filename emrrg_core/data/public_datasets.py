"""R2Gen-style annotation.json of IU X-ray, MIMIC-CXR and CheXpert Plus → studies, and → our own films.jsonl (docs/method.md 6; docs/datasets.md).

    python -m emrrg_core.data.public_datasets annotation.json --images images --dataset iu_xray --out films.jsonl

An annotation file is an object of lists, one a split (`train`, `val`, `test`); an item has `id`, `report`, `image_path` (paths inside the
image folder) and, in MIMIC-CXR, `subject_id` and `study_id`. Any other field is left alone, a `label` vector too: its 0 stands for "absent"
and for "not mentioned" alike, and `data.Study` keeps these two apart.
"""

import argparse
import contextlib
import csv
import gzip
import json
import math
import os
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from emrrg_core.data.studies import Study
from emrrg_core.errors import DataError, EmrrgError
from emrrg_core.text.labeler import LABELS


@dataclass(frozen=True)
class _Layout:
    names: re.Pattern[str]  # groups `patient` and `study`, found in an item's id or first path
    by_id: bool  # whether they are in its id
    films: int | None = None  # of every study; None: one or more
    shared_patients: bool = False  # whether patients in two splits are warned of instead of refused


DATASETS = {
    # Open-i gives every report a number of its own, CXR1 to CXR3999, and no other name of a patient
    "iu_xray": _Layout(re.compile(r"^(?P<study>(?P<patient>[^_]+))"), by_id=True, films=2),
    "mimic_cxr": _Layout(re.compile(r"(?:^|/)p(?P<patient>\d{8})/s(?P<study>\d{8})/"), by_id=False),
    # the published tables rest on a split of their authors' own, of which nobody says whether it keeps patients apart
    "chexpert_plus": _Layout(
        re.compile(r"(?:^|/)(?P<study>(?P<patient>patient\d+)/study\d+)/"), by_id=False, shared_patients=True
    ),
}


# -------------------------------------------------------------------------------------------------------- report texts

_LIST_NUMBERS = [("1. ", ""), *((f". {n}. ", ". ") for n in range(2, 6)), *((f" {n}. ", ". ") for n in range(2, 6))]
# ":" to "[" is a slip of the released rule, which meant a hyphen; it takes : ; < = > ? @ [ (capitals are gone by then)
_IU_DELETED = re.compile(r"[.,?;*!%^&_+(){}\]:-\[]")
_MIMIC_DELETED = re.compile(r"[.,?;*!%^&_+()\[\]{}]")


def clean_report(report: str, dataset: str) -> str:
    """A report as the published scores saw it, in training and as reference: the two rules of docs/method.md 6, quirks included.

    `iu_xray` has its own rule, everything else the MIMIC-CXR rule. Empty sentences stay, "1. " goes also from "T11. ", and the MIMIC-CXR rule
    keeps a colon as a word. For comparison with published numbers; it is lower-case text that no reader would be shown.
    """
    if dataset == "iu_xray":
        text, deleted = _passes(report, "..", ".", 3), _IU_DELETED
    else:
        text = _passes(report.replace("\n", " "), "__", "_", 7)
        text, deleted = _passes(_passes(text, "  ", " ", 6), "..", ".", 8), _MIMIC_DELETED
    for old, new in _LIST_NUMBERS:
        text = text.replace(old, new)
    if dataset != "iu_xray":
        text = text.replace(":", " :")
    cleaned = [deleted.sub("", re.sub(r"[\"/\\']", "", s).strip()) for s in text.strip().lower().split(". ")]
    return " . ".join(cleaned) + " ."


def _passes(text: str, old: str, new: str, times: int) -> str:
    for _ in range(times):  # as often as the released code does it, and no more: longer runs are not collapsed whole
        text = text.replace(old, new)
    return text


# of MIMIC-CXR and CheXpert Plus; a closed list, for words in capitals inside the findings ("LINES AND TUBES:") must not end them
_HEADING = re.compile(
    r"^[ \t]*(FINDINGS|IMPRESSION|ACCESSION NUMBER|ADDENDUM|(?:CLINICAL )?(?:HISTORY|INFORMATION|INDICATION)|COMPARISONS?|END OF IMPRESSION|"
    r"EXAM|EXAMINATION|FINAL REPORT|NARRATIVE|NOTIFICATION|PROCEDURE(?: COMMENTS)?|REASON FOR EXAM(?:INATION)?|RECOMMENDATIONS?|STUDY|"
    r"SUMMARY|TECHNIQUE|WET READ)[ \t]*:",
    re.MULTILINE,
)


def sections(report: str) -> tuple[str, str]:
    """Findings and impression of a raw report, as written: what follows their headings, up to the next heading.

    A report without either heading is all findings.
    """
    found = {"FINDINGS": "", "IMPRESSION": ""}
    headings = list(_HEADING.finditer(report))
    for number, heading in enumerate(headings, 1):
        if heading[1] in found:
            end = headings[number].start() if number < len(headings) else None
            body = report[heading.end() : end].strip()
            found[heading[1]] = f"{found[heading[1]]}\n{body}".strip()
    if not any(heading[1] in found for heading in headings):
        return report.strip(), ""
    return found["FINDINGS"], found["IMPRESSION"]


# -------------------------------------------------------------------------------------------------------------- labels


def read_labels(path: Path | str, dataset: str) -> dict[str, dict[str, int]]:
    """Labels of whole studies, by study: MIMIC-CXR-JPG's `…-chexpert.csv.gz` (or negbio), or CheXpert Plus' `…_fixed.json` (JSON Lines).

    A positive label is 1, a negative one 0. An uncertain one (-1) is left out like one that is not mentioned: unknown ("U-Ignore" of the
    CheXpert paper). Raises DataError naming the row that cannot be used.
    """
    path = Path(path)
    if dataset == "iu_xray":
        raise DataError("No label file is known for iu_xray: leave out the labels.")
    table: dict[str, dict[str, int]] = {}
    try:
        for number, row in _label_rows(path):
            names = [name for name in LABELS if name in row]
            if not names:
                raise DataError(f"{path.name}, row {number}: none of the 14 labels is there, such as {LABELS[0]!r}.")
            place = row.get("study_id") or row.get("path_to_image") or row.get("Path") or ""
            study = str(place) if dataset == "mimic_cxr" else (_name(dataset, str(place), "study") or "")
            if not study:
                raise DataError(f"{path.name}, row {number}: it does not say whose study it is.")
            try:
                values = {name: _label(row[name]) for name in names}
            except (TypeError, ValueError) as error:
                raise DataError(f"{path.name}, row {number}, study {study}: {error}.") from error
            table[study] = {name: value for name, value in values.items() if value is not None}
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} is not a table of labels: {error}.") from error
    return table


def _label_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        lines = path.name.removesuffix(".gz").endswith((".json", ".jsonl"))
        rows = (json.loads(line) for line in file if line.strip()) if lines else csv.DictReader(file)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise DataError(f"{path.name}, row {number}: a row is an object with names, not {type(row).__name__}.")
            yield number, row


def _label(value: Any) -> int | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if float(value) not in (1, 0, -1):
        raise ValueError(f"a label is 1, 0, -1 or empty, not {value!r}")
    return None if float(value) == -1 else int(float(value))


# ------------------------------------------------------------------------------------------------------------- studies


def read_annotation(
    path: Path | str,
    image_folder: Path | str,
    dataset: str,
    split: str | None = None,
    *,
    clean: bool = True,
    labels: Path | str | None = None,
) -> list[Study]:
    """The studies of an annotation file, one split or all. dataset: one of DATASETS.

    clean: the report goes through `clean_report` into `findings`, whole, for published reports were never cut into sections; otherwise it
    stays as written and `sections` cuts it. A film may also lie there as PNG, JPEG or DICOM of the same name (CheXpert Plus names .jpg and
    ships .png). labels: a file for `read_labels`; without it, and for studies that are not in it, labels are unknown.

    All items are checked, whichever split is asked for. Raises DataError that counts what cannot be used, by kind, with the first study of
    each; also when a patient is in two splits (CheXpert Plus: a warning, for the published split must stay readable), and when no study is
    in the table of labels.
    """
    path, image_folder = Path(path), Path(image_folder)
    if dataset not in DATASETS:
        raise DataError(f"{dataset!r} is no data set that we know, only {', '.join(DATASETS)}.")
    lists = _lists(path)
    if split is not None and split not in lists:
        raise DataError(f"{path.name} has no split {split!r}, only {', '.join(lists)}.")
    table = read_labels(labels, dataset) if labels is not None else {}
    studies: dict[str, Study] = {}
    refused: dict[str, list[str]] = {}  # kind -> every study of it, in words
    for name, items in lists.items():
        for number, item in enumerate(items):
            try:
                study = _study(item, name, image_folder, dataset, clean, table)
                if study.id in studies:
                    raise _RefusedError("whose id is taken")
                studies[study.id] = study
            except _RefusedError as refusal:
                known = item.get("id") if isinstance(item, dict) else None
                refused.setdefault(refusal.kind, []).append(f"{known or f'number {number}'} in {name}{refusal.detail}")
    if refused:
        kinds = "; ".join(f"{len(those):,} {kind}, the first is {those[0]}" for kind, those in refused.items())
        bad, every = sum(map(len, refused.values())), sum(map(len, lists.values()))
        raise DataError(f"{path.name}: {bad:,} of {every:,} studies cannot be used: {kinds}.")
    if table and not any(study.labels for study in studies.values()):
        raise DataError(f"{path.name}: none of its studies has a label in {Path(labels or '').name}.")
    _refuse_shared_patients(path, dataset, list(studies.values()))
    return [study for study in studies.values() if split is None or study.split == split]


class _RefusedError(Exception):
    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = f" ({detail})" if detail else ""


def _lists(path: Path) -> dict[str, list[Any]]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataError(f"{path.name} is not JSON: {error}.") from error
    if not isinstance(whole, dict) or not whole or not all(isinstance(items, list) for items in whole.values()):
        raise DataError(f"{path.name} is no annotation file: an object of lists is expected, such as train, val, test.")
    return whole


def _study(
    item: Any, split: str, folder: Path, dataset: str, clean: bool, table: Mapping[str, Mapping[str, int]]
) -> Study:
    if not isinstance(item, dict):
        raise _RefusedError("that are no object", type(item).__name__)
    name, report, paths = item.get("id"), item.get("report"), item.get("image_path")
    if not isinstance(name, str | int) or not str(name).strip():
        raise _RefusedError("without an id")
    if item.get("split", split) != split:
        raise _RefusedError("whose list is not their split", str(item["split"]))
    if not isinstance(report, str) or not report.strip():
        raise _RefusedError("without a report")
    findings, impression = (clean_report(report, dataset), "") if clean else sections(report)
    if not re.search(r"\w", findings + impression):
        raise _RefusedError("of whose report nothing is left")
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) and p for p in paths):
        raise _RefusedError("without a list of films")
    wanted = DATASETS[dataset].films
    if wanted and len(paths) != wanted:
        raise _RefusedError(f"without their {wanted} films", f"{len(paths)}")
    if outside := [p for p in paths if PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts]:
        raise _RefusedError("with films outside the image folder", outside[0])
    patient = _agreed(item, dataset, "patient", "subject_id")
    of_labels = _agreed(item, dataset, "study", "study_id")
    files = [_there(folder / p) for p in paths]
    if missing := [p for p, file in zip(paths, files, strict=True) if file is None]:
        raise _RefusedError("with films that are not there", missing[0])
    return Study(
        id=str(name),
        source=dataset,
        split=split,
        patient=patient,
        files=tuple(file for file in files if file is not None),
        labels=dict(table.get(of_labels, {})),
        view="LATERAL" if dataset == "chexpert_plus" and "lateral" in PurePosixPath(paths[0]).name else None,
        findings=findings,
        impression=impression,
    )


def _name(dataset: str, text: str, group: str) -> str | None:
    found = DATASETS[dataset].names.search(text)
    return found[group] if found else None


def _agreed(item: Mapping[str, Any], dataset: str, group: str, field: str) -> str:
    """The patient or study that the places of an item name: its id or every path, and in MIMIC-CXR a field."""
    places = [str(item["id"])] if DATASETS[dataset].by_id else item["image_path"]
    named = {_name(dataset, place, group) for place in places}
    if dataset == "mimic_cxr" and item.get(field) is not None:
        named.add(str(item[field]))
    named.discard(None)
    if len(named) != 1:
        raise _RefusedError(f"that name no {group}, or more than one", ", ".join(sorted(map(str, named))))
    return str(named.pop())


def _there(path: Path) -> Path | None:
    others = (path.with_suffix(suffix) for suffix in (".png", ".jpg", ".dcm"))
    return next((file for file in (path, *others) if file.is_file()), None)


def _refuse_shared_patients(path: Path, dataset: str, studies: Sequence[Study]) -> None:
    splits: dict[str, set[str]] = {}
    for study in studies:
        splits.setdefault(study.patient, set()).add(study.split)
    if shared := [patient for patient, those in splits.items() if len(those) > 1]:
        words = f"{path.name}: {len(shared):,} patients are in more than one split, the first is {shared[0]}"
        if not DATASETS[dataset].shared_patients:
            raise DataError(f"{words}. Split by patient, or the scores will flatter.")
        warnings.warn(f"{words}: scores on this split flatter.", stacklevel=3)


def write_studies(studies: Sequence[Study], path: Path | str) -> None:
    """Write a films.jsonl that `data.read_studies` reads, its paths relative to its folder. Whole or not at all. Raises DataError."""
    path = Path(path).resolve()
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(_row(study, path.parent)) + "\n" for study in studies), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise DataError(f"{path} cannot be written: {error.strerror}.") from error


def _row(study: Study, folder: Path) -> dict[str, Any]:
    files = [Path(os.path.relpath(file.resolve(), folder)).as_posix() for file in study.files]
    row = {name: getattr(study, name) for name in ("id", "source", "split", "patient", "view", "labels", "findings")}
    return row | {"impression": study.impression, "files": files}


# -------------------------------------------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 with one line on stderr for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m emrrg_core.data.public_datasets", description="annotation.json → films.jsonl"
    )
    parser.add_argument("annotation", type=Path, metavar="ANNOTATION.json")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder that its paths start in")
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--out", type=Path, required=True, metavar="FILMS.jsonl")
    parser.add_argument("--raw", action="store_true", help="keep the reports as written, cut at their headings")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="labels of MIMIC-CXR-JPG or CheXpert Plus")
    args = parser.parse_args(argv)
    try:
        studies = read_annotation(args.annotation, args.images, args.dataset, clean=not args.raw, labels=args.labels)
        write_studies(studies, args.out)
    except EmrrgError as error:
        print("emrrg:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    splits = ", ".join(f"{name} {n:,}" for name, n in Counter(s.split for s in studies).items())
    films, known = sum(len(s.files) for s in studies), sum(bool(s.labels) for s in studies)
    print(f"{args.out}: {len(studies):,} studies ({splits}), {films:,} films; labels of {known:,} studies.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
