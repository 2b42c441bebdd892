"""Macros and templates: what a reader wrote comes back as it was, mistakes are named, and a template of MRRT reads as it looks."""

import time
import tomllib
from pathlib import Path

import pytest

from emrrg_core.errors import EmrrgError
from emrrg_core.report.macros import Macro, Macros, Template, builtin, default_path, fields, from_mrrt
from emrrg_core.report.report import FIELDS, Fields, Report
from emrrg_core.text.consistency import contradictions
from emrrg_core.text.labeler import NO_FINDING, Status, labels

ROOT = Path(__file__).resolve().parent.parent
HARD = 'Say "yes"\\no, C:\\new, """three""", \ttab,\r\nŁódź 张 😀 \x7f\x00 [side] # no comment\n\n"'


# ------------------------------------------------------------------------------------------------------------- the file


def test_what_is_written_comes_back_exactly():
    mine = Macros(
        (Macro(".x", HARD), Macro("ß[1]", "One line.", "impression"), Macro('"q"', "\nFirst line empty\\")),
        (Template("A & “B”", Fields("Cough", "", HARD), HARD, "\n"), Template("Empty")),
    )
    assert Macros.from_toml(mine.to_toml()) == mine
    assert Macros.from_toml(Macros().to_toml()) == Macros()
    for character in map(chr, (*range(0x300), 0x2028, 0xFEFF, 0x10FFFF)):
        one = Macros((Macro(".x", f"a{character}\n{character}b"),))
        assert Macros.from_toml(one.to_toml()) == one, repr(character)


def test_several_lines_stand_as_lines_in_the_file_so_that_a_person_can_change_them():
    text = Macros((), (Template("T", findings="The lungs are clear.\nThe heart is normal."),)).to_toml()
    assert "\nThe lungs are clear.\nThe heart is normal." in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[macro]]\nword = ".a"\ntext = broken', "line 3"),
        ("a = [" * 5000, "cannot be read"),
        ("[[makro]]", "“makro”"),
        ('[macro]\nword = ".a"\ntext = "b"', r"\[\[macro\]\]"),
        ('macro = ["a"]', r"\[\[macro\]\]"),
        ('[[macro]]\nword = ".a"\ntext = "b"\n[[macro]]\ntext = "c"', "Macro number 2"),
        ('[[macro]]\nword = ".a"', "“.a” has no “text”"),
        ('[[macro]]\nword = ".a"\ntext = ""', "“.a” has no text"),
        ('[[macro]]\nword = ".a"\ntext = 5', "“.a”.*quotation marks"),
        ('[[macro]]\nword = 5\ntext = "a"', "Macro number 1.*quotation marks"),
        ('[[macro]]\nword = ".a"\ntext = "b"\nwhere = "c"', "“.a” has “where”"),
        ('[[macro]]\nword = ".a"\ntext = "b"\nsection = "history"', "“.a” is for “history”"),
        ('[[macro]]\nword = "a b"\ntext = "c"', "“a b” needs one word"),
        ('[[macro]]\nword = ""\ntext = "c"', "needs one word"),
        ('[[macro]]\nword = ".A"\ntext = "b"\n[[macro]]\nword = ".a"\ntext = "c"', "“.a” stands there twice"),
        ('[[template]]\nfindings = "a"', "Template number 1 has no “name”"),
        ('[[template]]\nname = " "', "needs a name"),
        ('[[template]]\nname = "T"\nhistory = "a"', "“T” has “history”"),
        ('[[template]]\nname = "T"\n[[template]]\nname = "t"', "“t” stands there twice"),
    ],
)
def test_a_mistake_in_the_file_is_named(text, named):
    with pytest.raises(EmrrgError, match=named) as caught:
        Macros.from_toml(text)
    assert str(caught.value).endswith(".")


def test_half_a_character_is_refused_before_it_can_spoil_the_file():
    for make in (lambda: Macro(".a", "\ud800"), lambda: Template("T", Fields(technique="\udfff"))):
        with pytest.raises(EmrrgError, match="broken character"):
            make()


def test_a_file_is_read_and_where_there_is_none_there_are_no_macros(tmp_path):
    path = tmp_path / "macros.toml"
    assert Macros.read(path) == Macros()
    path.write_text(builtin().to_toml(), encoding="utf-8")
    assert Macros.read(path) == builtin()


@pytest.mark.parametrize("spoiled", [b"[[macro", b"\xff\xfe", b"# " + b"x" * 1_000_001, None])
def test_a_file_that_cannot_be_read_is_said_in_words_without_its_path_and_left_as_it_is(tmp_path, spoiled):
    path = tmp_path / "macros.toml"
    if spoiled is None:
        path.mkdir()
    else:
        path.write_bytes(spoiled)
    with pytest.raises(EmrrgError, match=r"^The macros.*\.$") as caught:
        Macros.read(path)
    assert str(tmp_path) not in str(caught.value)
    assert spoiled is None or path.read_bytes() == spoiled


def test_the_file_lies_where_the_system_keeps_settings(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/there")
    assert default_path() == Path("/there/emrrg/macros.toml")
    for unset in ("", "relative"):  # the specification has a relative path ignored
        monkeypatch.setenv("XDG_CONFIG_HOME", unset)
        assert default_path() == Path.home() / ".config" / "emrrg" / "macros.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_path() == Path.home() / ".config" / "emrrg" / "macros.toml"


# ---------------------------------------------------------------------------------------------------------- what is there


def test_the_later_one_wins_by_word_and_by_name_in_its_old_place():
    ours = Macros((Macro(".a", "old"), Macro(".b", "kept")), (Template("T", findings="old"),))
    theirs = Macros((Macro(".A", "new"), Macro(".c", "more")), (Template("t", findings="new"), Template("U")))
    both = ours.merged(theirs)
    assert [(macro.word, macro.text) for macro in both.macros] == [(".A", "new"), (".b", "kept"), (".c", "more")]
    assert [(template.name, template.findings) for template in both.templates] == [("t", "new"), ("U", "")]
    assert ours.merged(Macros()) == ours


def test_a_macro_expands_where_it_is_meant_to():
    mine = Macros((Macro(".any", "a"), Macro(".here", "b", "impression")))
    assert mine.find(".ANY", "technique") == mine.macros[0]
    assert mine.find(".here", "impression") == mine.macros[1]
    assert mine.find(".here", "findings") is None
    assert mine.find(".none", "findings") is None


@pytest.mark.parametrize(
    ("text", "blanks"),
    [
        ("A [small] [left/right] effusion.", ["[small]", "[left/right]"]),
        ("None.", []),
        ("[a[b]c] [] [no\nend] x[1]", ["[b]", "[1]"]),
        (f"[{'x' * 60}] [{'x' * 61}]", [f"[{'x' * 60}]"]),
    ],
)
def test_the_places_to_fill_in_are_found_in_order(text, blanks):
    assert [text[start:end] for start, end in fields(text)] == blanks


def test_what_comes_with_emrrg_is_a_few_macros_that_are_no_words_of_prose_and_a_normal_chest():
    ours = builtin()
    assert 10 <= len(ours.macros) <= 30
    assert all(macro.word.startswith(".") and macro.text.endswith(".") for macro in ours.macros)
    assert {macro.section for macro in ours.macros} >= {"", "findings", "impression", "comparison", "technique"}
    (normal,) = ours.templates
    assert set(normal.parts) == {*FIELDS, "findings", "impression"}
    assert all(normal.parts.values())
    assert fields(normal.findings + normal.impression) == ()
    said = labels(f"{normal.findings}\n{normal.impression}")
    assert said[NO_FINDING] is Status.POSITIVE
    assert list(contradictions(normal.findings, normal.impression)) == []
    assert Macros.from_toml(ours.to_toml()) == ours


def test_the_file_that_comes_with_emrrg_is_in_the_package():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["emrrg_core"]
    assert "report/*.toml" in built


def test_a_template_becomes_a_report():
    (normal,) = builtin().templates
    report = Report()
    for name in FIELDS:
        report = report.with_field(name, normal.parts[name])
    report = report.retype("findings", normal.findings).retype("impression", normal.impression)
    assert report.fields == normal.fields
    assert report.findings.split() == normal.findings.split()
    assert all(line.choice == "added" for line in report.lines)  # the reader's, not the model's


# ----------------------------------------------------------------------------------------------------------------- MRRT


def page(*sections: str, head: str = "<title>Chest</title>") -> str:
    return f"<!DOCTYPE html>\n<html>\n<head>{head}</head>\n<body>\n{''.join(sections)}\n</body>\n</html>"


def section(name: str, *inner: str) -> str:
    return f'<section class="level1" data-section-name="{name}">\n<header class="level1">{name}</header>\n{"".join(inner)}\n</section>'


def findings(*inner: str) -> str:
    return from_mrrt(page(section("Findings", *inner))).findings


HEAD = """<title>X-ray of the chest &amp; ribs</title><meta charset="utf-8"/><meta name="dcterms.creator" content="Someone"/>
<link rel="stylesheet" href="http://127.0.0.1:9/style.css"/>
<script type="text/xml"><template_attributes><top-level-flag>false</top-level-flag><coded_content>
<entry origtxt="findings"><term><code meaning="Findings" value="59776-5" scheme="LOINC"></code></term></entry>
</coded_content></template_attributes></script>"""
WHOLE = page(
    section(
        "Procedure Information",
        '<p><label for="CHECKBOX_1567">Technique:</label><span id="CHECKBOX_1567" data-field-type="CHECKBOX">'
        '<br /><input id="CHECKBOX_1567_0" type="checkbox" name="CHECKBOX_1567" value="PA view." checked="">PA view.</input>'
        '<br /><input id="CHECKBOX_1567_1" type="checkbox" name="CHECKBOX_1567" value="AP view.">AP view.</input>'
        '<br /><span><input id="CHECKBOX_1567_2" type="checkbox" name="CHECKBOX_1567" value="Other"/>'
        '<input id="CHECKBOX_1567_2_FreeText" type="text" value="Other"/></span></span></p>',
    ),
    section(
        "Clinical Information",
        '<p><label for="clinicalInformationText">Text:</label>'
        '<textarea id="clinicalInformationText" name="" data-field-type="TEXTAREA"></textarea></p>',
    ),
    section(
        "Comparison",
        '<p><input list="LIST_1476" id="INPUT_1476" name="" value=""/>'
        '<datalist id="LIST_1476"><option value="None." selected="">None.</option><option value="Film of today.">Film of today.'
        "</option></datalist></p>",
    ),
    section(
        "Findings",
        '<p><label for="SELECTION_LIST_1459">Lungs:</label><select id="SELECTION_LIST_1459" name="" data-field-type="SELECTION_LIST">'
        "<option>Opacity.</option><option selected>Clear.</option></select></p>",
        '<p><label for="TEXT_1562">Pleura:</label> <input type="text" id="TEXT_1562" name="" value="No effusion"/></p>',
        '<p>A nodule of <input type="number" name="size"/> mm in the <select name="side"><option>right<option>left</select> lung</p>',
        '<section class="level2" data-section-name="Devices:"><header class="level2">Devices:</header><p>None seen</p></section>',
    ),
    section("Bones", "<p>No fracture.</p>"),
    section("Impression", '<p><textarea id="impressionText" name="">1. Normal film.\n2. No change.</textarea></p>'),
    head=HEAD,
)


def test_a_template_reads_as_it_looks():
    made = from_mrrt(WHOLE)
    assert made.name == "X-ray of the chest & ribs"
    assert made.fields == Fields("[clinical information]", "None.", "Technique: PA view.")
    assert made.findings.split("\n") == [
        "Lungs: Clear.",
        "Pleura: No effusion.",
        "A nodule of [size] mm in the [right/left] lung.",
        "Devices: None seen.",
        "Bones: No fracture.",
    ]
    assert made.impression == "1. Normal film.\n2. No change."
    assert from_mrrt(WHOLE.encode()) == from_mrrt(b"\xef\xbb\xbf" + WHOLE.encode()) == made
    assert Macros.from_toml(Macros((), (made,)).to_toml()).templates == (made,)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Procedure", "technique"),
        ("PROCEDURE INFORMATION", "technique"),
        ("Technique:", "technique"),
        ("Clinical information", "indication"),
        ("Indication", "indication"),
        (" History ", "indication"),
        ("Comparisons", "comparison"),
        ("Findings", "findings"),
        ("impression", "impression"),
        ("Conclusion", "impression"),
    ],
)
def test_a_section_goes_to_its_place_by_its_name(name, place):
    made = from_mrrt(page(section(name, "<p>Words.</p>")))
    assert {where: text for where, text in made.parts.items() if text} == {place: "Words."}


def test_a_page_without_section_names_is_read_by_its_headings():
    made = from_mrrt(
        "<h1>Chest</h1><p>Left out</p><h2>Findings</h2><p>Clear<h3>Heart</h3>Normal<h2>Conclusion</h2><div>Good"
    )
    assert (made.findings, made.impression) == ("Clear.\nHeart: Normal.", "Good.")
    made = from_mrrt(
        "<section><h2>Findings</h2><p>Clear.</p></section><section><header>Impression</header>Normal.</section>"
    )
    assert (made.findings, made.impression) == ("Clear.", "Normal.")
    made = from_mrrt(
        page('<section data-section-name="Report"><h2>Findings</h2>Clear.<h2>Impression</h2>Normal.</section>')
    )
    assert (made.findings, made.impression) == ("Clear.", "Normal.")


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ('<label for="a">Effusion</label> <input type="checkbox" id="a" checked>', "Effusion."),
        ('<label for="a">Effusion</label> <input type="checkbox" id="a">Heart normal', ""),
        ('<p><input type="checkbox" id="a"><label for="a">Effusion</label></p><p>Normal</p>', "Normal."),
        ('<label><input type="checkbox" checked> <b>Large</b> effusion</label>', "Large effusion."),
        ('<label><input type="checkbox"> <b>Large</b> effusion</label>', ""),
        ('<input type="checkbox" value="Effusion" checked>', "Effusion."),
        ('<p>Signs: <input type="checkbox" value="a">a<input type="checkbox" value="b">b</p><p>Normal</p>', "Normal."),
        ('Side: <input type="radio" name="s">left <input type="radio" name="s" checked>right', "Side: right."),
        ('Side: <input type="radio" name="s">left <input type="radio" name="s">right', "Side: [left/right]."),
        ('Side: <input type="radio" name="s" value="L"> <input type="radio" name="s" value="R">', "Side: [L/R]."),
    ],
)
def test_a_box_says_its_words_only_where_it_is_ticked_and_an_open_choice_stays_open(inner, said):
    made = from_mrrt(page(section("Findings", f"<div>{inner}</div>"), section("Impression", "<p>Known.</p>")))
    assert made.findings == said


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ('<input type="text" name="side">', "[side]"),
        ('<input name="TEXT_1562002262896">', "[findings]"),
        ('<label for="x">Liver:</label><input id="x" name="">', "Liver: [liver]."),
        ('<label for="x">Text:</label><input id="x" name="Text">', "[findings]"),
        ('<input placeholder="size [mm]" type="number">', "[size mm]"),
        ('<input name="a" value="Clear">.', "Clear."),
        ('<input type="hidden" name="a" value="secret"><input type="submit" value="Send">Clear', "Clear."),
        ("<select><option>one</option></select> Clear", "[findings] Clear."),
        (f"<select name='place'>{''.join(f'<option>choice number {n}' for n in range(9))}</select>", "[place]"),
        ("<select multiple><option selected>a<option>b<option selected>c</select>", "a, c."),
        ('<select value="b"><option>a<option>b</select>', "b."),
        ("<textarea>one &lt;b&gt;\n\ntwo</textarea>", "one <b>\ntwo"),
        (f"<input name='{'long ' * 30}'>", f"[{('long ' * 30)[:60].strip()}]"),
    ],
)
def test_a_field_says_what_stands_in_it_or_its_name_in_brackets(inner, said):
    assert findings(f"<p>{inner}</p>") == said


def test_a_label_or_a_heading_alone_belongs_to_what_follows():
    assert findings("<p><b>Lungs:</b></p><ul><li>clear</li><li>large</li></ul>") == "Lungs: clear.\nlarge."
    assert findings("<p>Lungs:</p><p>Right:</p><p>clear</p>") == "Lungs: Right: clear."
    assert findings("<h4>Lungs</h4><p>Clear</p><h4>Heart</h4><p>Normal</p>") == "Lungs: Clear.\nHeart: Normal."
    assert findings("<p>Clear</p>", section("Heart", section("Size", "<p>Normal</p>")), "<p>More</p>") == (
        "Clear.\nSize: Normal.\nMore."
    )
    assert findings("<table><tr><td>Heart</td><td>normal</td></tr><tr><td>Lungs</td><td>clear</td></tr></table>") == (
        "Heart normal.\nLungs clear."
    )


def test_nothing_of_a_page_is_run_fetched_or_taken_for_text(recwarn):
    hostile = page(
        '<section data-section-name="Findings" onclick="alert(1)"><!-- <p>comment</p> --><script>document.write("evil")</script>'
        '<SCRIPT src="http://127.0.0.1:9/x.js">evil</SCRIPT ><style>evil</style><img src=x onerror="evil()">'
        '<iframe src="http://127.0.0.1:9/">evil</iframe><object data="x">evil</object><svg><text>evil</text></svg>'
        '<p hidden>evil <p>evil</p></p><template><p>evil</p></template><a href="javascript:evil()">Clear</a> &lt;script&gt;x&lt;/script&gt;'
        "<?php evil ?><![CDATA[evil]]> size < 3 cm</section>"
    )
    assert from_mrrt(hostile).findings == "Clear <script>x</script> size < 3 cm."
    assert findings("<p>a\x00b\x1b&#xD800;&#0;c\x85</p>").isprintable()
    assert findings("<p>Clear<script>evil") == "Clear."
    assert not recwarn.list


@pytest.mark.parametrize(
    "text",
    ["", "No template.", "<p>Findings: clear</p>", "<section><p>Clear</p></section>", "<h2>Recipe</h2><p>Flour</p>"],
)
def test_what_is_no_template_is_refused_in_words(text):
    with pytest.raises(EmrrgError, match="no report template"):
        from_mrrt(text)
    with pytest.raises(EmrrgError, match="no report template"):
        from_mrrt(text.encode())


@pytest.mark.parametrize(
    ("html", "words"),
    [
        (page(section("Findings")), "no words"),
        ("é".encode("latin-1") + page(section("Findings", "a")).encode(), "UTF-8"),
        (page(section("Findings", "x" * 1_000_000)), "larger than 1 MB"),
        (page(section("Findings", "é" * 600_000)), "larger than 1 MB"),
        (b"x" * 1_000_001, "larger than 1 MB"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_words(html, words):
    with pytest.raises(EmrrgError, match=words):
        from_mrrt(html)


BROKEN = ["<a ", "<a =", "<a x=\"<b y='", "</a"]
WELL = [
    "<!--a>",
    "<a x='>",
    "<script>",
    "<section data-section-name=a>x",
    "<select><option>a",
    "<label for=a>",
    "<div>",
    "<p>a:</p>",
]
WELL += ["<input type=radio name=a>b", "&#x", "<textarea>", "<![", "<p hidden>"]


@pytest.mark.parametrize("unit", [*BROKEN, *WELL])
def test_a_large_hostile_page_is_done_with_in_seconds(unit):
    """html.parser alone takes minutes, or hours, for the broken ones."""
    text = "<h2>Findings</h2><p>Clear.</p>" + unit * (200_000 // len(unit))
    began = time.perf_counter()
    if unit in BROKEN:
        with pytest.raises(EmrrgError, match="damaged"):
            from_mrrt(text)
    else:
        assert "Clear." in from_mrrt(text).findings
    assert time.perf_counter() - began < 10
