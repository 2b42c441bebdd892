"""Remembered cases: what is near, what is kept, and that what was removed is gone."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from emrrg_core.__main__ import main
from emrrg_core.errors import ConfigError, DataError
from emrrg_core.memory.cases import (
    WIDTH,
    Memory,
    MemoryStoreError,
    disagreements,
    vector_of_film,
    vector_of_report,
)
from emrrg_core.memory.folder import read_folder, sections_of
from emrrg_core.memory.index import Clustered, Faiss, Flat, index_of, normalised
from emrrg_core.model.finding_tokens import Finding, Presence
from tests.phantom import make_phantom
from ui.draft_panels import near_html

NORMAL = "The lungs are clear. No pleural effusion or pneumothorax. The heart is normal in size."
EFFUSION = "There is a moderate right pleural effusion. The heart is normal in size."
LEFT = "There is a moderate left pleural effusion. The heart is normal in size."
NODULE = "A nodule is seen in the left upper lung. No pleural effusion."


def read(**present: str) -> list[Finding]:
    """What was read in a film: these findings, on that side, and none of some others."""
    names = ("abnormal", "opacity", "nodule", "effusion", "heart")
    return [
        Finding(
            n,
            Presence.PRESENT if n in present else Presence.ABSENT,
            0.9 if n in present else 0.05,
            0.5,
            present.get(n, ""),
        )
        for n in names
    ]


@pytest.fixture
def memory(tmp_path) -> Memory:
    return Memory(tmp_path / "memory")


# --------------------------------------------------------------------------------------------------------------- nearest


def test_the_nearest_cases_have_the_findings_that_were_read_and_their_side(memory):
    assert memory.add([(None, text, "", None) for text in (NORMAL, EFFUSION, LEFT, NODULE)]) == 4
    best = [case.findings for case in memory.nearest(read(abnormal="", effusion="right"), 4)]
    assert best[:2] == [EFFUSION, LEFT]
    assert memory.nearest(read(abnormal="", effusion="left"), 1)[0].findings == LEFT
    assert memory.nearest(read(abnormal="", nodule="left"), 1)[0].findings == NODULE
    found = memory.nearest(read(), 4)
    assert found[0].findings == NORMAL
    similar = [case.similarity for case in found]
    assert similar == sorted(similar, reverse=True)
    assert similar[0] > 0.5 > 0 > similar[-1]
    assert memory.nearest(read(abnormal="", effusion="right"), 1)[0].stated == ("Pleural Effusion",)


def test_a_film_without_words_is_near_by_what_was_read_in_it(memory):
    memory.add([("a" * 64, "", "", read(abnormal="", nodule="right")), ("b" * 64, "", "", read())])
    nearest = memory.nearest(read(abnormal="", nodule="right"), 2)
    assert nearest[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert nearest[0].film
    assert nearest[0].stated == ("Lung Lesion",)


@pytest.mark.parametrize(
    ("text", "index", "value"), [(NORMAL, 0, -1), (EFFUSION, 0, 1), ("A possible nodule.", 9, 0.5), (NODULE, 18, -1)]
)
def test_a_reports_vector_says_stated_suspected_and_denied(text, index, value):
    vector = vector_of_report(text)
    assert vector.shape == (WIDTH,) == vector_of_film(read()).shape
    assert vector[index] == value


def test_an_empty_memory_has_nothing_near(memory):
    assert memory.nearest(read()) == []
    assert list(memory.cases()) == []
    assert len(memory) == 0
    assert not memory.folder.exists()  # to look is not to begin one


# ----------------------------------------------------------------------------------------------------------------- index


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return normalised(np.random.default_rng(0).standard_normal((3000, 24)))


@pytest.mark.parametrize("k", [1, 7, 3500])
def test_the_flat_index_compares_with_every_vector(vectors, k, monkeypatch, tmp_path):
    monkeypatch.setattr("emrrg_core.memory.index._BLOCK", 400)
    np.save(tmp_path / "matrix.npy", vectors.astype(np.float16))
    queries = np.random.default_rng(1).standard_normal((3, 24))
    scores, numbers = Flat(np.load(tmp_path / "matrix.npy", mmap_mode="r")).search(queries, k)
    every = normalised(queries) @ vectors.astype(np.float16).astype(np.float32).T
    for row in range(3):
        order = np.argsort(-every[row], kind="stable")[:k]
        assert (numbers[row, : len(order)] == order).all()
        assert scores[row, : len(order)] == pytest.approx(every[row][order], abs=1e-6)
        assert (numbers[row, len(order) :] == -1).all()


def test_faiss_gives_the_same_answers_and_the_clustered_index_most_of_them(vectors, tmp_path):
    pytest.importorskip("faiss")
    queries = np.random.default_rng(1).standard_normal((20, 24))
    exact, same = Flat(vectors).search(queries, 10), Faiss(vectors).search(queries, 10)
    assert (exact[1] == same[1]).all()
    assert exact[0] == pytest.approx(same[0], abs=1e-5)
    near = Clustered(vectors, lists=16, bytes_each=24, probes=16).search(queries, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, exact[1], strict=True)])
    assert recall > 0.7


def test_very_many_entries_ask_for_faiss_and_say_how_to_get_it(vectors, monkeypatch):
    monkeypatch.setattr("emrrg_core.memory.index.MANY", 1000)
    assert isinstance(index_of(vectors[:999]), Flat)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        index_of(vectors)


# --------------------------------------------------------------------------------------------------------- what is kept


def test_what_was_removed_is_in_no_file_and_does_not_come_back(memory):
    memory.add([(None, NORMAL, "", None), (None, EFFUSION, "Zyzzyva effusion.", None)])
    gone = next(c.id for c in memory.cases() if "Zyzzyva" in c.impression)
    vector = vector_of_report(f"{EFFUSION}\nZyzzyva effusion.")
    memory.nearest(read())  # the flat matrix is there
    everything = b"".join(path.read_bytes() for path in memory.folder.iterdir())
    assert b"Zyzzyva" in everything
    assert vector.tobytes() in everything
    assert normalised(vector[None]).tobytes() in everything
    assert memory.remove(gone)
    memory.nearest(read())
    everything = b"".join(path.read_bytes() for path in memory.folder.iterdir())
    for trace in (b"Zyzzyva", b"effusion", vector.tobytes(), normalised(vector[None]).tobytes()):
        assert trace not in everything.replace(NORMAL.encode(), b"")
    assert memory.add([(None, EFFUSION, "Zyzzyva effusion.", None)]) == 0
    assert len(memory) == 1
    assert not memory.remove(gone)


def test_the_same_case_is_remembered_once_and_others_see_it(memory):
    assert memory.add([(None, NORMAL, "", None)] * 2) == 1
    assert memory.add([("a" * 64, NORMAL, "", read())]) == 1  # with a film it is another
    other = Memory(memory.folder)
    other.nearest(read())
    memory.add([(None, LEFT, "", None)])
    assert other.nearest(read(abnormal="", effusion="left"), 1)[0].findings == LEFT
    assert len(list(memory.folder.glob("vectors-*.npy"))) == 1


def test_the_files_are_their_owners_alone(memory):
    memory.add([(None, NORMAL, "", None)])
    assert memory.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in memory.folder.iterdir())


def test_a_damaged_memory_is_said_in_words(memory):
    memory.add([(None, NORMAL, "", None)])
    (memory.folder / "cases.sqlite").write_bytes(b"nonsense" * 1000)
    with pytest.raises(MemoryStoreError, match="cannot be used"):
        list(memory.cases())


# --------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FINDINGS: Clear lungs.\nIMPRESSION:\nNormal.", ("Clear lungs.", "Normal.")),
        ("Indication: cough\nFindings\nClear.\n\nConclusion: none", ("Clear.", "none")),
        ("Clear lungs; the findings: are normal.", ("Clear lungs; the findings: are normal.", "")),
        ("Impression: Normal.", ("", "Normal.")),
        ("FINDINGS: Clear lungs. IMPRESSION: Normal.", ("Clear lungs.", "Normal.")),
    ],
)
def test_a_reports_sections_are_told_by_their_headings(text, found):
    assert sections_of(text) == found


def test_a_folder_gives_films_with_their_reports_reports_alone_and_rows(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text(NORMAL)
    (tmp_path / "b.txt").write_text(f"Findings: {LEFT}\nImpression: Effusion.")
    (tmp_path / "film without a report.png").write_bytes(b"")
    rows = [{"id": "x", "findings": NODULE, "impression": "", "files": ["a.png"]}, {"report": EFFUSION}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cases = list(read_folder(tmp_path))
    assert [(c.findings, c.impression, [f.name for f in c.films]) for c in cases] == [
        (NORMAL, "", ["a.png"]),
        (LEFT, "Effusion.", []),
        (NODULE, "", ["a.png"]),
        (EFFUSION, "", []),
    ]


@pytest.mark.parametrize("content", ["[1]", "{", '{"id": "x"}'])
def test_a_row_that_is_no_case_is_named(tmp_path, content):
    (tmp_path / "some.jsonl").write_text(f'{{"report": "Clear."}}\n{content}')
    with pytest.raises(DataError, match=r"some\.jsonl, line 2"):
        list(read_folder(tmp_path))


def test_a_folder_without_reports_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no report"):
        list(read_folder(tmp_path))


# ---------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "cases"
    made.mkdir()
    make_phantom(1, height=160, width=190).save_png(made / "a.png")
    (made / "a.txt").write_text(NORMAL)
    (made / "b.txt").write_text(EFFUSION)
    return made


def test_remember_list_draft_and_remove(folder, tmp_path, reading_checkpoint, capsys):
    words = ["--memory", str(tmp_path / "memory"), "--checkpoint", str(reading_checkpoint)]
    assert main(["remember", str(folder), *words]) == 0
    assert "2 remembered, 0 known or removed before, 0 refused. 2 in" in capsys.readouterr().out
    assert main(["remember", str(folder), "--list", *words]) == 0
    out = capsys.readouterr().out
    assert "0 remembered, 2 known" in out
    listed = {line.split("  ")[0]: line for line in out.splitlines()[1:]}
    assert any("film, nothing stated" in line for line in listed.values())
    gone = next(id for id, line in listed.items() if "Pleural Effusion" in line)
    film = str(folder / "a.png")
    assert main(["draft", film, "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)["remembered"]
    assert {case["id"] for case in told} == set(listed)
    assert main(["remember", "--remove", gone, *words]) == 0
    assert "1 forgotten" in capsys.readouterr().out
    assert main(["draft", film, *words]) == 0
    out = capsys.readouterr().out
    assert "Remembered" in out
    assert EFFUSION not in out
    assert main(["draft", film, "--json", "--memory", "off", "--checkpoint", str(reading_checkpoint)]) == 0
    assert json.loads(capsys.readouterr().out)["remembered"] == []
    with sqlite3.connect(tmp_path / "memory" / "cases.sqlite") as db:
        assert db.execute("SELECT id FROM removed").fetchall() == [(gone,)]


def test_what_cannot_be_remembered_is_told_and_the_rest_is_kept(folder, tmp_path, reading_checkpoint, capsys):
    (folder / "c.png").write_bytes(b"no film")
    (folder / "c.txt").write_text(NODULE)
    words = ["--memory", str(tmp_path / "memory"), "--checkpoint", str(reading_checkpoint)]
    assert main(["remember", str(folder), *words]) == 3
    said = capsys.readouterr()
    assert "c.txt was not remembered" in said.err
    assert "2 remembered" in said.out
    assert main(["remember", *words]) == 2
    assert main(["remember", "--remove", "0" * 16, *words]) == 2
    assert "--list tells them all" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ the screen


def test_where_cases_and_film_disagree_is_said(memory):
    memory.add([(None, text, "", None) for text in (EFFUSION, LEFT, NODULE)])
    near = memory.nearest(read(abnormal="", effusion="right"), 3)
    assert disagreements(near, read(abnormal="", effusion="right")) == []
    said = disagreements(near, read(abnormal="", heart=""))
    assert any("Stated by 2 of the 3 nearest cases" in words and "effusion" in words for words in said)
    assert any("stated by none of the 3" in words and "heart" in words for words in said)


def test_remembered_cases_are_shown_as_text(memory):
    memory.add([(None, "Right effusion <b>old</b>.", "", None)])
    (case,) = memory.nearest(read(abnormal="", effusion="right"))
    shown = near_html([case], ["They differ & more."])
    assert "&lt;b&gt;old&lt;/b&gt;" in shown
    assert "They differ &amp; more." in shown
    assert case.id in shown
    assert near_html([]) == ""
