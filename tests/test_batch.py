"""`python -m emrrg_core batch`: a folder in, a line of JSON for each study out, whatever happens in between."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emrrg_core.__main__ import main
from emrrg_core.errors import DataError, EmrrgError
from emrrg_core.reporter import Reporter
from emrrg_core.scale import batch
from emrrg_core.scale.batch import Study, Tally, find_studies, merge
from emrrg_core.text.labeler import LABELS
from tests.phantom import make_phantom

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> dict[str, Path]:
    """Two films and a file that only looks like one."""
    folder = tmp_path_factory.mktemp("pool")
    make_phantom(1, height=140, width=150).save_png(folder / "a.png")
    make_phantom(2, height=150, width=140).save_dicom(folder / "b")
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:300])
    return {"png": folder / "a.png", "dicom": folder / "b", "bad": folder / "bad.png"}


@pytest.fixture
def films(tmp_path, pool) -> Path:
    return laid(
        tmp_path / "films",
        pool,
        **{"Doe^Jane.png": "png", "1.2.840.1": "dicom", "broken.PNG": "bad", "notes.txt": None, ".hidden.png": "png"},
    )


def laid(folder: Path, pool: dict[str, Path], **files: str | None) -> Path:
    for name, kind in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pool[kind].read_bytes() if kind else b"no film")
    return folder


@pytest.fixture(scope="module")
def reporter(checkpoint) -> Reporter:
    return Reporter.load(checkpoint, download=False)


def rows(out: Path) -> list[dict]:
    text = out.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def never() -> Reporter:
    raise AssertionError("nothing was left to draft")


@pytest.fixture
def run(capsys, checkpoint):
    """Runs the command line here: (status, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = main(["batch", *map(str, arguments), "--checkpoint", str(checkpoint)])
        return status, *capsys.readouterr()

    return call


# ------------------------------------------------------------------------------------------------------------- studies


def test_a_film_is_known_by_its_ending_or_as_dicom_by_content_and_the_rest_is_passed_over(films):
    assert [study.name for study in find_studies(films)] == ["1.2.840.1", "Doe^Jane.png", "broken.PNG"]


def test_folders_within_are_searched_when_asked_and_names_are_paths_from_the_folder(tmp_path, pool):
    folder = laid(tmp_path / "f", pool, **{"a.png": "png", "x/y/b.png": "png", "x/c.dcm": "dicom", ".old/d.png": "png"})
    assert [study.name for study in find_studies(folder)] == ["a.png"]
    assert [study.name for study in find_studies(folder, recursive=True)] == ["a.png", "x/c.dcm", "x/y/b.png"]


def test_each_folder_may_be_a_study(tmp_path, pool):
    files = {"s/1.png": "png", "s/2.dcm": "dicom", "t/deep/3.png": "png", "loose.png": "png", "u/notes.txt": None}
    folder = laid(tmp_path / "f", pool, **files)
    assert find_studies(folder, per_folder=True) == [Study("s", (folder / "s/1.png", folder / "s/2.dcm"))]
    deep = find_studies(folder, per_folder=True, recursive=True)
    assert [study.name for study in deep] == ["s", "t/deep"]


def test_a_folder_without_a_film_is_refused_and_so_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("no film")
    with pytest.raises(DataError, match="holds no film"):
        find_studies(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        find_studies(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------------------- the lines


def test_every_study_has_a_line_and_a_bad_one_only_says_why(run, films, tmp_path, reporter):
    out = tmp_path / "drafts.jsonl"
    status, said, err = run(films, "--out", out)
    assert (status, err) == (3, "")
    assert "2 drafted, 1 failed, 0 already there" in said
    first, second, bad = rows(out)
    assert [row["study"] for row in (first, second, bad)] == ["1.2.840.1", "Doe^Jane.png", "broken.PNG"]
    assert bad.keys() == {"schema", "study", "files", "content", "error"}
    assert "damaged or cut short" in bad["error"]
    expected = reporter.draft([reporter.read(films / "1.2.840.1", name="Film 1")]).to_dict()
    untimed = {name: value for name, value in expected.items() if name not in ("schema", "tokens", "timings")}
    assert json.loads(json.dumps(untimed)).items() <= first.items()
    assert first.keys() == expected.keys() - {"tokens"} | {"study", "files", "content", "error", "settings"}
    assert first["settings"] == {"views": "average", "laterals": False}
    assert (first["schema"], first["error"], first["films"][0]["name"]) == ("emrrg.batch/1", None, "Film 1")


def test_labels_and_tokens_are_there_when_asked_for(run, films, tmp_path):
    out = tmp_path / "drafts.jsonl"
    status, *_ = run(films, "--out", out, "--label", "--tokens", "--limit", "1")
    (row,) = rows(out)
    assert status == 0
    assert tuple(row["labels"]) == LABELS
    assert set(row["labels"].values()) <= {"positive", "negative", "uncertain", "not mentioned"}
    assert "".join(token["text"] for token in row["tokens"])


def test_hashed_names_tell_no_path_and_still_go_on(run, films, tmp_path):
    out = tmp_path / "drafts.jsonl"
    run(films, "--out", out, "--names", "hash")
    assert "Doe" not in out.read_text()
    assert not re.search(r"\.png|1\.2\.840", out.read_text(), re.IGNORECASE)
    assert all(re.fullmatch("[0-9a-f]{16}", row["study"]) for row in rows(out))
    status, said, _ = run(films, "--out", out, "--names", "hash")
    assert (status, len(rows(out))) == (3, 3)
    assert "0 drafted, 0 failed, 3 already there (1 of them failed)" in said


def test_a_folder_of_two_films_is_one_draft_and_one_of_five_is_refused_in_its_line(run, tmp_path, pool):
    two = {"two/a.png": "png", "two/b": "dicom"}
    folder = laid(tmp_path / "f", pool, **two, **{f"five/{n}.png": "png" for n in range(5)})
    status, *_ = run(folder, "--study-per-folder", "--out", tmp_path / "d.jsonl")
    five, pair = rows(tmp_path / "d.jsonl")
    assert status == 3
    assert "at most 4 films" in five["error"]
    assert (pair["study"], pair["files"]) == ("two", ["a.png", "b"])
    assert [film["format"] for film in pair["films"]] == ["PNG", "DICOM"]


def test_all_well_is_status_0(run, tmp_path, pool):
    folder = laid(tmp_path / "f", pool, **{"a.png": "png"})
    assert run(folder, "--out", tmp_path / "new" / "d.jsonl")[0] == 0
    assert len(rows(tmp_path / "new" / "d.jsonl")) == 1


def test_what_nobody_foresaw_is_a_line_too_and_its_words_are_not_kept(films, tmp_path, reporter, monkeypatch):
    def fails(*_):
        raise RuntimeError("/home/Doe^Jane/film.png")

    monkeypatch.setattr(reporter, "draft", fails)
    assert batch.run(find_studies(films), tmp_path / "d.jsonl", lambda: reporter, hashed=True) == Tally(failed=3)
    assert "RuntimeError" in rows(tmp_path / "d.jsonl")[0]["error"]
    assert "Doe" not in (tmp_path / "d.jsonl").read_text()


# ------------------------------------------------------------------------------------------------------------- resuming


def test_what_is_there_is_not_done_again_and_no_model_is_loaded_for_it(films, tmp_path, reporter):
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    assert batch.run(studies[:1], out, lambda: reporter) == Tally(drafted=1)
    assert batch.run(studies, out, lambda: reporter) == Tally(drafted=1, failed=1, known=1)
    before = out.read_bytes()
    assert batch.run(studies, out, never) == Tally(known=3, known_failed=1)
    assert out.read_bytes() == before


def test_a_film_with_other_content_under_the_same_name_is_done_again(films, tmp_path, reporter, pool):
    out = tmp_path / "d.jsonl"
    batch.run(find_studies(films), out, lambda: reporter)
    (films / "broken.PNG").write_bytes(pool["png"].read_bytes())
    assert batch.run(find_studies(films), out, lambda: reporter) == Tally(drafted=1, known=2)
    assert [row["error"] is None for row in rows(out) if row["study"] == "broken.PNG"] == [False, True]


@pytest.mark.parametrize("left", [1, 9, 20, -40, -1])
def test_a_last_line_that_was_cut_is_written_anew(films, tmp_path, reporter, left):
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    batch.run(studies, out, lambda: reporter)
    whole = rows(out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:left])
    assert batch.run(studies, out, lambda: reporter) == Tally(failed=1, known=2)
    assert rows(out) == whole
    out.write_bytes(lines[0][:left])
    assert batch.run(studies, out, lambda: reporter) == Tally(drafted=2, failed=1)
    assert [row["study"] for row in rows(out)] == [row["study"] for row in whole]


def test_the_keyboard_stops_it_between_lines_and_the_same_command_goes_on(run, films, tmp_path, monkeypatch):
    out, draft, begun = tmp_path / "d.jsonl", Reporter.draft, []

    def stopped(self, *given):
        begun.append(given)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return draft(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "draft", stopped)
        status, said, _ = run(films, "--out", out)
    assert status == 130
    assert "goes on from there" in said
    assert len(rows(out)) == 1
    assert "1 drafted, 1 failed, 1 already there" in run(films, "--out", out)[1]


@pytest.mark.parametrize("otherwise", [["--beams", "2"], ["--views", "stitch"], ["--laterals"]])
def test_drafts_made_otherwise_do_not_go_into_the_same_file(films, tmp_path, reporter, run, otherwise):
    out = tmp_path / "d.jsonl"
    batch.run(find_studies(films)[:1], out, lambda: reporter)
    before = out.read_bytes()
    status, _, err = run(films, "--out", out, *otherwise)
    assert status == 2
    assert "name another file" in err
    assert out.read_bytes() == before


def test_asking_for_what_the_checkpoint_does_anyway_goes_on_and_so_do_lines_that_do_not_tell(films, tmp_path, reporter):
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    batch.run(studies[:1], out, lambda: reporter)
    assert batch.run(studies[:2], out, lambda: reporter, views="average") == Tally(drafted=1, known=1)
    old = [{name: value for name, value in row.items() if name != "settings"} for row in rows(out)]
    out.write_text("".join(f"{json.dumps(row)}\n" for row in old))
    assert batch.run(studies, out, lambda: reporter, views="stitch") == Tally(failed=1, known=2)


@pytest.mark.parametrize(
    "held", [b"my only copy", b'{"schema": "emrrg.draft/2"}\n', b'{"schema": "emrrg.batch/1"}\n', b"\x89PNG"]
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(films, tmp_path, held):
    out = tmp_path / "d.jsonl"
    out.write_bytes(held)
    with pytest.raises(DataError, match="name another"):
        batch.run(find_studies(films), out, never)
    assert out.read_bytes() == held


def test_a_file_that_cannot_be_written_is_told(films, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmrrgError, match="cannot be written"):
        batch.run(find_studies(films), tmp_path / "file" / "d.jsonl", never)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "d.jsonl"], "FOLDER"),
        (["nowhere"], "--out"),
        (["nowhere", "--out", "d.jsonl"], "is no folder"),
        (["nowhere", "--out", "d.jsonl", "--limit", "0"], "at least 1"),
        (["nowhere", "--out", "d.jsonl", "--beams", "0"], "beams must be"),
        (["--merge", "--out", "nowhere.jsonl"], "no nowhere.jsonl"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- several processes


def test_processes_share_the_studies_and_the_last_to_end_merges(films, tmp_path, reporter):
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    batch.run(studies, out, lambda: reporter, rank=1, processes=2)
    assert not out.exists()
    assert [row["study"] for row in rows(tmp_path / "d.jsonl.1-of-2")] == ["Doe^Jane.png"]
    batch.run(studies, out, lambda: reporter, rank=0, processes=2)
    assert [row["study"] for row in rows(out)] == ["1.2.840.1", "Doe^Jane.png", "broken.PNG"]
    assert {path.name for path in tmp_path.iterdir()} == {"films", "d.jsonl"}


def test_a_broken_run_of_two_may_be_finished_by_one_or_by_three(films, tmp_path, reporter):
    studies = find_studies(films)
    for processes in (1, 3):
        out = tmp_path / str(processes) / "d.jsonl"
        batch.run(studies, out, lambda: reporter, rank=1, processes=2)
        done = [batch.run(studies, out, lambda: reporter, rank=n, processes=processes) for n in range(processes)]
        assert sum(tally.drafted + tally.failed for tally in done) == 2
        assert sum(tally.known for tally in done) == 1
        assert [row["study"] for row in rows(out)] == [study.name for study in studies]
        assert [path.name for path in out.parent.iterdir()] == ["d.jsonl"]


def test_a_process_that_runs_again_is_waited_for(films, tmp_path, reporter):
    """The sign that it had ended once does not count: the other would take its file away while it writes."""
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    batch.run(studies, out, lambda: reporter, rank=1, processes=2)

    def load() -> Reporter:  # the other process begins and ends while this one is at work
        batch.run(studies, out, lambda: reporter, rank=0, processes=2)
        assert not out.exists()
        return reporter

    (films / "Doe^Jane.png").write_bytes((films / "1.2.840.1").read_bytes())
    batch.run(studies, out, load, rank=1, processes=2)
    assert [row["study"] for row in rows(out)].count("Doe^Jane.png") == 2
    assert len(rows(out)) == 4


def test_merge_gathers_what_is_there_and_leaves_out_a_cut_line(films, tmp_path, reporter, run):
    out, studies = tmp_path / "d.jsonl", find_studies(films)
    batch.run(studies, out, lambda: reporter, rank=0, processes=2)
    with (tmp_path / "d.jsonl.0-of-2").open("ab") as file:
        file.write(b'{"schema": "emrrg.ba')
    status, said, _ = run("--merge", "--out", out)
    assert (status, [row["study"] for row in rows(out)]) == (3, ["1.2.840.1", "broken.PNG"])
    assert "2 studies" in said
    assert merge(out) == Tally(known=2, known_failed=1)
    assert {path.name for path in tmp_path.iterdir()} == {"films", "d.jsonl"}


def test_two_processes_started_by_accelerate_do_what_one_does(films, tmp_path, checkpoint):
    alone, out = tmp_path / "alone.jsonl", tmp_path / "two.jsonl"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "train/accelerate/cpu.yaml", "-m"]
    given = ["emrrg_core", "batch", str(films), "--checkpoint", str(checkpoint), "--out"]
    done = subprocess.run(
        [*command, *given, str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"Process (\d) of 2: (\d) drafted, (\d) failed", done.stdout)) == [
        ("1", "1", "1"),
        ("2", "1", "0"),
    ]
    assert main([*given[1:], str(alone)]) == 3
    untimed = [[{**row, "timings": None} for row in rows(path)] for path in (alone, out)]
    assert untimed[0] == untimed[1]
