"""The panels beside a draft: every word once, with its tokens; the numbers of a chart those of the data; nothing unescaped."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from emrrg_core import Draft, findings_table, flags
from emrrg_core.explain.faithfulness import DependenceTest, Why
from emrrg_core.explain.likelihood import factor, likelihood
from emrrg_core.model.finding_tokens import ABNORMAL, NAMES, PLACED_BY, Finding, Presence
from emrrg_core.model.writing import Token, Writing
from emrrg_core.report.draft import FilmRecord, compose, sections
from emrrg_core.text.labeler import LABELS
from ui import draft_panels

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = "The heart is enlarged. No pleural effusion. Possible left basilar opacity, unchanged. Café 2.5 cm."
IMPRESSION = "Small right pleural effusion. The lungs are clear."
CHROMIUM = Path("/usr/bin/chromium")
SLOW = 120_000  # milliseconds: the machine may be busy
HOSTILE = [
    "<script>alert(1)</script>",
    "\" onmouseover=\"alert(1)' x='",
    "</button></td></svg><img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp; ]]> <!-- ${value} {{this}} `",
]
VOID = {"img", "br", "hr", "input"}


class Node:
    """An element of what a browser would make of the HTML."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.inside = tag, attributes, []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.inside)

    @property
    def kinds(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, tag: str | None = None, kind: str | None = None) -> Iterator["Node"]:
        for part in self.inside:
            if isinstance(part, Node):
                if tag in (None, part.tag) and (kind is None or kind in part.kinds):
                    yield part
                yield from part.all(tag, kind)

    def one(self, tag: str | None = None, kind: str | None = None) -> "Node":
        (found,) = self.all(tag, kind)
        return found


class Page(HTMLParser):
    def __init__(self, body: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(body)
        self.close()
        assert self.open == [self.root], "an element is not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attributes})
        assert len(node.attributes) == len(attributes), "an attribute is there twice"
        self.open[-1].inside.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Node(tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment from the data")


def page(body: str) -> Node:
    return Page(body).root


READ = tuple(
    Finding(name, presence, probability, threshold, side, zone, severity, maps=(np.eye(4)[n % 4],))
    for n, (name, presence, probability, threshold, side, zone, severity) in enumerate(
        [
            ("abnormal", Presence.PRESENT, 0.97, 0.5, "", "", ""),
            ("opacity", Presence.OPEN, 0.31, 0.6, "", "", ""),
            ("nodule", Presence.ABSENT, 0.02, 0.42, "", "", ""),
            ("effusion", Presence.PRESENT, 0.83, 0.61, "right", "", "mild"),
            ("heart", Presence.PRESENT, 0.66, 0.55, "", "", "mild"),
        ]
    )
)


def draft_of(pieces: list[str], *, seed: int = 0, forced: tuple[int, ...] = ()) -> Draft:
    """A draft of these tokens, with two hybrid layers, a grid of 2 × 2, numbers that differ from token to token, and what READ says."""
    rng = np.random.default_rng(seed)
    tokens = tuple(
        Token(
            n,
            text,
            float(np.log(rng.uniform(0.05, 1))),
            tuple(rng.uniform(-1, 1, 2).tolist()),
            rng.random((2, 4)),
            np.zeros((2, 0)),
            n in forced,
        )
        for n, text in enumerate(pieces)
    )
    findings, impression, found = sections(Writing(tokens, True, 0.0))
    return Draft(
        findings, impression, found, tokens, (3, 7), 2, (), (), {}, {}, {"seed": 0}, True, read=READ, ratio=0.53
    )  # fmt: skip


def cut(text: str, lengths: list[int]) -> list[str]:
    """A text in pieces of these lengths, over and over; of length 0: a token that only begins a character."""
    pieces, place, turn = [], 0, 0
    while place < len(text):
        pieces.append(text[place : place + lengths[turn % len(lengths)]])
        place, turn = place + lengths[turn % len(lengths)], turn + 1
    return pieces


TEXT = compose(FINDINGS, IMPRESSION)
CUTS = {
    "a word a token": re.findall(r"\s*\S+", TEXT),
    "a character a token": list(TEXT),
    "tokens across words": cut(TEXT, [7, 3, 11]),
    "blanks of their own": re.findall(r"\s+|\w+|[^\w\s]", TEXT),
    "characters of several tokens": cut(TEXT, [0, 0, 1, 2, 0, 5]),
}


@pytest.fixture(params=CUTS)
def draft(request) -> Draft:
    return draft_of(CUTS[request.param])


# --- words --------------------------------------------------------------------------------------------------------------


def test_every_drafted_word_is_there_once_and_the_words_are_the_sentence(draft):
    shown = page(draft_panels.words_html(draft))
    lines = list(shown.all("span", "rr-line"))
    assert [line.text for line in lines] == [sentence.text for sentence in draft.sentences]
    for number, line in enumerate(lines):
        words = list(line.all("button", "rr-word"))
        assert [word.text for word in words] == draft.sentences[number].text.split()
        assert [(word["data-sentence"], word["data-word"]) for word in words] == [
            (str(number), str(place)) for place in range(len(words))
        ]


def test_a_word_has_the_tokens_that_wrote_it_and_every_token_of_a_sentence_is_some_words(draft):
    for sentence in draft.sentences:
        text = draft.findings if sentence.section == "findings" else draft.impression
        covered = set()
        for word in draft_panels.words(draft, sentence):
            assert text[word.start : word.end] == word.text
            assert word.text in "".join(token.text for token in draft.tokens[word.first : word.last])
            for edge in (word.first, word.last - 1):  # no token too many at either end but one without a letter
                written = draft.tokens[edge].text.strip()
                assert not written or set(written) & set(word.text)
            covered |= set(range(word.first, word.last))
        assert covered == set(range(*sentence.tokens))


def test_where_a_token_is_a_word_the_words_part_the_tokens():
    draft = draft_of(CUTS["a word a token"])
    for sentence in draft.sentences:
        found = draft_panels.words(draft, sentence)
        assert [(word.first, word.last) for word in found] == [(n, n + 1) for n in range(*sentence.tokens)]


def test_a_model_s_own_tokens_map_to_its_words(tiny, tokenizer):
    ids = tokenizer(
        "Findings: Café, naïve “lungs” are clear. 肺 is seen.\nImpression: Ré-expanded.", add_special_tokens=False
    )
    pieces, whole = [], ""
    for end in range(1, len(ids.input_ids) + 1):  # as emrrg_core.model.generation gives a token its text
        now = tokenizer.decode(ids.input_ids[:end])
        pieces.append("" if now.endswith("\N{REPLACEMENT CHARACTER}") else now[len(whole) :])
        whole += pieces[-1]
    draft = draft_of(pieces)
    assert "" in pieces
    assert [s.text for s in draft.sentences] == ["Café, naïve “lungs” are clear.", "肺 is seen.", "Ré-expanded."]
    for sentence in draft.sentences:
        for word in draft_panels.words(draft, sentence):
            assert "".join(t.text for t in draft.tokens[word.first : word.last]).strip() == word.text


def test_what_the_browser_names_is_what_was_shown(draft):
    for item in page(draft_panels.words_html(draft)).all("button", "rr-pick"):
        index = [int(item["data-sentence"]), int(item["data-word"]) if item["data-word"] else None]
        chosen = draft_panels.picked(draft, index)
        assert (str(chosen.first), str(chosen.last)) == (item["data-first"], item["data-last"])
        again = page(draft_panels.words_html(draft, chosen))
        pressed = [other for other in again.all("button") if other["aria-pressed"] == "true"]
        assert [(p["data-sentence"], p["data-word"]) for p in pressed] == [(item["data-sentence"], item["data-word"])]
        assert [other for other in again.all("button") if other["tabindex"] == "0"] == pressed


@pytest.mark.parametrize(
    "index", [None, "00", [], [0], [99, None], [-1, None], [0, 99], [0, -1], ["0", 0], [0, 0.5], [0, "0"]]
)
def test_a_place_that_the_draft_does_not_have_is_no_selection(index):
    assert draft_panels.picked(draft_of(CUTS["a word a token"]), index) is None


def test_tab_reaches_one_item_and_a_colour_is_never_alone(draft):
    shown = page(draft_panels.words_html(draft))
    buttons = list(shown.all("button"))
    assert [button["tabindex"] for button in buttons] == ["0"] + ["-1"] * (len(buttons) - 1)
    names = {kind: name for kind, name, _, _ in draft_panels.BANDS} | dict([draft_panels.UNKNOWN])
    for button in buttons:
        kinds = set(button.kinds) & set(names)
        assert bool(kinds) == ("rr-head" in button.kinds), "the colours are the sentences'"
        assert all(names[kind] in button["aria-label"] and names[kind] in button.text for kind in kinds)
    assert [item.text.split()[0] for item in shown.one("ul", "rr-bands").all("li")] == ["probable", "less", "doubtful"]
    assert "measured on films kept apart" in shown.one("ul", "rr-bands")["aria-label"]


def test_a_confidence_is_the_geometric_mean_of_its_tokens_probabilities(draft):
    for sentence in draft.sentences:
        assert draft_panels.confidence(draft, *sentence.tokens) == pytest.approx(sentence.confidence)
        for word in draft_panels.words(draft, sentence):
            shares = [math.exp(token.log_prob) for token in draft.tokens[word.first : word.last]]
            assert draft_panels.confidence(draft, word.first, word.last) == pytest.approx(
                math.prod(shares) ** (1 / len(shares))
            )


def test_words_about_an_earlier_film_are_marked_and_the_sentence_says_so():
    draft = draft_of(CUTS["a word a token"])
    found = flags(draft.findings, draft.impression, has_prior=False)
    shown = page(draft_panels.words_html(draft, None, found))
    assert [word.text for word in shown.all("button", "rr-flagged")] == ["unchanged."]
    tagged = {
        row.one("span", "rr-line").text: [tag.text for tag in row.all("span", "rr-tag")]
        for row in shown.all("div", "rr-sentence")
    }
    assert tagged["Possible left basilar opacity, unchanged."] == ["⚑ earlier film"]
    assert tagged["No pleural effusion."] == tagged["Small right pleural effusion."] == ["⚑ contradiction"]
    assert tagged["The heart is enlarged."] == []


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking"], timeout=SLOW
        )
        yield browser
        browser.close()


def test_the_keyboard_reaches_every_word_and_a_click_names_the_place(browser):
    draft = draft_of(CUTS["a word a token"])
    shown = browser.new_page()
    shown.set_default_timeout(SLOW)
    shown.set_content(f'<button id="before">before</button><div id="here">{draft_panels.words_html(draft)}</div>')
    shown.evaluate(  # as gr.HTML runs js_on_load
        "(js) => { window.told = []; new Function('element', 'trigger', js)("
        "document.getElementById('here'), (name, data) => window.told.push([name, data.index])); }",
        draft_panels.PICK,
    )
    here = (
        "(() => { const {sentence, word} = document.activeElement.dataset; "
        "return [Number(sentence), word === '' ? null : Number(word)]; })()"
    )

    def press(*keys: str) -> list:
        for key in keys:
            shown.keyboard.press(key)
        return shown.evaluate(here)

    shown.focus("#before")
    assert press("Tab") == [0, None]
    assert press("ArrowRight") == [0, 0]
    assert press("ArrowLeft", "ArrowLeft") == [0, None], "before the first there is nothing"
    seen = [press("ArrowRight") for _ in range(sum(1 + len(s.text.split()) for s in draft.sentences) - 1)]
    assert (
        seen
        == [[number, word] for number, s in enumerate(draft.sentences) for word in (None, *range(len(s.text.split())))][
            1:
        ]
    )
    assert press("Home") == [0, None]
    assert press("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight") == [2, 1]
    assert press("ArrowUp") == [2, None]
    assert press("ArrowUp") == [1, None]
    assert press("End", "Enter") == seen[-1]
    shown.click("[data-sentence='1'][data-word='']")
    shown.keyboard.press("Space")
    assert shown.evaluate("window.told") == [["select", seen[-1]], ["select", [1, None]], ["select", [1, None]]]
    pressed = (
        "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.sentence + '/' + b.dataset.word)"
    )
    assert shown.evaluate(pressed) == ["1/"]
    assert shown.evaluate("document.querySelectorAll('.rr-pick[tabindex=\"0\"]').length") == 1
    shown.close()


# --- what was read of the film ------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def about(text: str, **changes) -> str:
    """What stands below a drafted sentence of these words."""
    draft = replace(draft_of(re.findall(r"\s*\S+", compose(text, "")), seed=1), **changes)
    return plain(page(draft_panels.words_html(draft)).one("small", "rr-about-it").text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("There is a small right pleural effusion.", "pleural effusion 83 %, stated from 61 %"),
        ("No pleural effusion.", "pleural effusion 83 %, stated from 61 % (read as present, yet denied)"),
        (
            "Possible opacity and an enlarged heart.",
            "airspace opacity 31 %, stated from 60 % (left open, yet stated); enlarged heart 66 %, stated from 55 %",
        ),
        ("No pneumonia.", "airspace opacity 31 %, stated from 60 % (left open, yet denied)"),
        ("No nodule.", "nodule or mass 2 %, stated from 42 %"),
        ("There is a nodule.", "nodule or mass 2 %, stated from 42 % (ruled out, yet stated)"),
        ("No acute disease.", "any abnormality 97 %, stated from 50 % (read as present, yet denied)"),
        ("The trachea is midline.", "any abnormality 97 %, stated from 50 %"),
        (
            "No pneumothorax or pleural effusion.",
            "pleural effusion 83 %, stated from 61 % (read as present, yet denied); pneumothorax: not assessed",
        ),
        ("There is a rib fracture.", "fractures: not assessed"),
    ],
)
def test_a_sentence_shows_the_probability_of_its_findings_and_not_of_its_words(text, said):
    assert about(text) == said
    sure = draft_of(re.findall(r"\s*\S+", compose(text, "")))
    sure = replace(sure, tokens=tuple(replace(token, log_prob=-0.001) for token in sure.tokens))
    assert about(text, tokens=sure.tokens) == said, "however sure the words are"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("There is a right pleural effusion.", "rr-sure"),
        ("No pleural effusion.", "rr-unsure"),
        ("The heart is enlarged.", "rr-less"),
        ("The heart is normal in size.", "rr-unsure"),
        ("No nodule.", "rr-sure"),
        ("No airspace opacity.", "rr-less"),  # left open, and denied all the same
        ("There is a right pleural effusion and the heart is enlarged.", "rr-less"),  # the less probable of the two
        ("No acute disease.", "rr-unsure"),
        ("The chest looks abnormal, but no single finding can be named.", "rr-sure"),
        ("There is a rib fracture.", "rr-unknown"),
    ],
)
def test_the_colour_of_a_sentence_is_how_probable_what_it_says_is(text, kind):
    draft = draft_of(re.findall(r"\s*\S+", compose(text, "")))
    (head,) = page(draft_panels.words_html(draft)).all("button", "rr-head")
    assert kind in head.kinds
    assert draft_panels.band(draft, draft.sentences[0])[0] == kind


def rows_of(draft: Draft, chosen: str | None = None) -> dict[str, Node]:
    found = page(draft_panels.read_html(draft, chosen))
    return {row.one("button")["data-finding"]: row for row in found.one("tbody").all("tr")}


def test_every_assessed_finding_stands_in_the_table_with_probability_threshold_presence_and_place(draft):
    rows = rows_of(draft)
    assert list(rows) == [finding.name for finding in READ]
    cells = {name: [plain(cell.text) for cell in row.inside] for name, row in rows.items()}
    assert cells["effusion"] == ["pleural effusion", "83 %, stated from 61 %", "+ stated", "right, small"]
    assert cells["heart"][3] == "mild"
    assert [float(row.one("td", "rr-likely")["data-probability"]) for row in rows.values()] == [
        finding.probability for finding in READ
    ]
    for finding in READ:
        meter = rows[finding.name].one("span", "rr-meter")
        assert (meter.one("i")["style"], meter.one("b")["style"]) == (
            f"width:{100 * finding.probability:.1f}%",
            f"left:{100 * finding.threshold:.1f}%",
        )


def test_an_open_finding_is_shown_as_left_open_and_an_absent_one_as_ruled_out(draft):
    state = {name: (row["data-presence"], row.one("td", "rr-state").text) for name, row in rows_of(draft).items()}
    assert state["opacity"] == ("open", "? left open")
    assert state["nodule"] == ("absent", "− ruled out")
    assert "left open is neither stated nor denied" in draft_panels.read_html(draft)


def test_what_is_not_assessed_is_listed_devices_and_fractures_among_it(draft):
    said = page(draft_panels.read_html(draft)).one("p", "rr-not-assessed").text
    assert said.startswith("Not assessed: enlarged mediastinum, edema, consolidation, atelectasis, pneumothorax, ")
    assert "fractures" in said
    assert "devices (tubes, lines, pacemakers)" in said
    assert "effusion" not in said
    fracture = Finding("fracture", Presence.OPEN, 0.1, 0.5)
    assert "fractures" not in draft_panels.read_html(replace(draft, read=(*READ, fracture)))


@pytest.mark.parametrize(
    ("views", "warned"), [(["AP"], True), (["PA", "AP"], True), (["PA"], False), ([None], False), (["LATERAL"], False)]
)
def test_the_cardiothoracic_ratio_comes_with_a_warning_on_an_ap_film(draft, views, warned):
    films = tuple(FilmRecord("Film 1", "PNG", "0", 8, 8, None, view, ()) for view in views)
    said = page(draft_panels.read_html(replace(draft, films=films))).one("p", "rr-ratio").text
    assert "0.53" in said
    assert ("AP film: overestimates" in said) == warned
    assert ("view is not known" in said) == (views == [None])
    assert "not measured" in draft_panels.read_html(replace(draft, ratio=None))


def test_the_chosen_finding_is_the_one_that_is_pressed(draft):
    pressed = {name: row.one("button")["aria-pressed"] for name, row in rows_of(draft, "nodule").items()}
    assert [name for name, state in pressed.items() if state == "true"] == ["nodule"]
    assert "neither stated nor denied" in draft_panels.finding_caption(READ[1], shown=True)
    assert "the sum that its probability is made of" in draft_panels.finding_caption(READ[3], shown=True)
    assert "drop the films again" in draft_panels.finding_caption(READ[3], shown=False)


def test_a_checkpoint_that_reads_nothing_shows_no_probability(draft):
    silent = replace(draft, read=None, ratio=None)
    assert "reads no findings" in draft_panels.read_html(silent)
    assert "rr-about-it" not in draft_panels.words_html(silent)
    assert "%" not in "".join(node.text for node in page(draft_panels.words_html(silent)).all("div", "rr-sentence"))


# --- what was read of the film, to work with -----------------------------------------------------------------------------


def finds_of(draft: Draft, **more) -> tuple[Node, list[str], list[str]]:
    """The panel, and the findings that stand in it at first and folded away."""
    shown = page(draft_panels.findings_html(draft, **more))
    folded = [item for part in shown.all("details", "rr-finds-rest") for item in part.all("button", "rr-find")]
    names = [item["data-finding"] for item in folded]
    every = [item["data-finding"] for item in shown.all("button", "rr-find")]
    assert every[len(every) - len(names) :] == names, "what is folded away stands last"
    return shown, every[: len(every) - len(names)], names


def folds(shown: Node) -> list[str]:
    return [part.one("summary").text for part in shown.all("details")]


def test_stated_findings_stand_first_and_what_is_open_or_absent_is_folded_away(draft):
    shown, first, folded = finds_of(draft)
    assert first == ["effusion", "heart"]
    assert folded == ["opacity", "nodule"]
    assert folds(shown)[0] == "1 left open, 1 ruled out"
    assert not any("open" in part.attributes for part in shown.all("details"))
    assert plain(shown.one("h2").text) == "Findings read any abnormality 97 %"
    calm = replace(draft, read=tuple(replace(finding, presence=Presence.ABSENT) for finding in READ))
    shown, first, folded = finds_of(calm)
    assert first == []
    assert shown.one("p", "rr-none").text == "No finding is stated."
    assert folds(shown)[0] == "4 ruled out"
    stated = replace(draft, read=tuple(replace(finding, presence=Presence.PRESENT) for finding in READ))
    shown, _, folded = finds_of(stated)
    assert folded == []
    assert [words.partition(":")[0] for words in folds(shown)] == ["Not assessed"], "nothing else is left to fold away"


def test_a_finding_that_the_reader_speaks_of_stands_first_too(draft):
    for value in draft_panels.SAYS:
        _, first, _ = finds_of(draft, says={"nodule": value})
        assert first == (["nodule", "effusion", "heart"] if value else ["effusion", "heart"])


def test_each_finding_shows_probability_threshold_place_and_its_own_colour(draft):
    shown, first, folded = finds_of(draft)
    rows = {row.one("button", "rr-find")["data-finding"]: row for row in shown.all("li")}
    assert list(rows) == first + folded
    for finding in READ[1:]:
        row = rows[finding.name]
        assert row["data-presence"] == finding.presence.value
        assert row["style"] == f"--finding:{draft_panels.COLOURS[finding.name]}"
        assert row.one("button", "rr-eye")["data-eye"] == finding.name
        assert row.one("button", "rr-eye")["aria-pressed"] == "false", "overlay.js knows what is drawn"
        assert float(row.one("span", "rr-likely")["data-probability"]) == finding.probability
        meter = row.one("span", "rr-meter")
        assert (meter.one("i")["style"], meter.one("b")["style"]) == (
            f"width:{100 * finding.probability:.1f}%",
            f"left:{100 * finding.threshold:.1f}%",
        )
    assert plain(rows["effusion"].one("button", "rr-find").text) == "pleural effusion right, small"
    assert plain(rows["effusion"].one("span", "rr-likely").text) == "83 %, stated; stated from 61 %"
    assert plain(rows["opacity"].one("span", "rr-likely")["title"]) == "left open; stated from 60 %"
    for row in rows.values():  # all controls have a name that says of what
        name = row.one("button", "rr-find").inside[0].strip()
        assert name in row.one("button", "rr-eye")["aria-label"]
        assert name in row.one("select")["aria-label"]


def test_a_side_can_be_said_where_a_finding_has_one_and_what_was_said_is_chosen():
    read = tuple(Finding(name, Presence.PRESENT, 0.9, 0.5) for name in NAMES)
    draft = replace(draft_of(["Clear."]), read=read)
    shown, first, _ = finds_of(draft, says={"effusion": "left", "heart": "absent"})
    assert first == [name for name in NAMES if name != ABNORMAL]
    for row in shown.all("li"):
        name, choices = row.one("select")["data-says"], list(row.one("select").all("option"))
        sides = {"right", "left", "bilateral"} if name in PLACED_BY else set()
        assert {choice["value"] for choice in choices} == {"", "present", "absent", "silent"} | sides, name
        assert [choice.text for choice in choices] == [draft_panels.SAYS[choice["value"]] for choice in choices]
        chosen = [choice["value"] for choice in choices if "selected" in choice.attributes]
        assert chosen == [{"effusion": "left", "heart": "absent"}.get(name, "")]


def test_the_finding_whose_map_is_shown_is_pressed_and_nothing_can_be_said_without_films(draft):
    shown, *_ = finds_of(draft, chosen="nodule", ready=False)
    pressed = [b["data-finding"] for b in shown.all("button", "rr-find") if b["aria-pressed"] == "true"]
    assert pressed == ["nodule"]
    assert all("disabled" in choice.attributes for choice in shown.all("select"))
    assert not any("disabled" in choice.attributes for choice in finds_of(draft)[0].all("select"))


def test_the_findings_come_with_ratio_and_what_is_not_assessed_and_are_empty_without_a_draft(draft):
    shown, *_ = finds_of(draft)
    assert "0.53" in shown.one("p", "rr-ratio").text
    assert "fractures" in shown.one("p", "rr-not-assessed").text
    assert folds(shown)[-1] == "Not assessed: devices, fractures and 6 more", "what a reader misses most, first"
    assert draft_panels.findings_html(None) == ""
    assert "reads no findings" in draft_panels.findings_html(replace(draft, read=None))


@pytest.mark.parametrize("words", HOSTILE)
def test_a_place_cannot_write_into_the_panel(draft, words):
    hostile = replace(draft, read=tuple(replace(finding, side=words, severity=words) for finding in READ))
    calm = replace(draft, read=tuple(replace(finding, side="right", severity="mild") for finding in READ))
    body = draft_panels.findings_html(hostile)
    assert shape(page(body)) == shape(page(draft_panels.findings_html(calm)))
    assert words in page(body).text


# --- tokens and gates ---------------------------------------------------------------------------------------------------


def test_tokens_show_their_probabilities_and_a_forced_one_says_so():
    draft = draft_of(CUTS["a word a token"], forced=(4,))
    shown = page(draft_panels.tokens_html(draft, 2, 6))
    items = list(shown.all("li"))
    assert [float(item["data-probability"]) for item in items] == [math.exp(t.log_prob) for t in draft.tokens[2:6]]
    assert [item.one("code").text.replace("␣", " ") for item in items] == [t.text for t in draft.tokens[2:6]]
    assert [item.one("small").text for item in items].index("forced") == 2
    assert "not chosen by the model" in shown.one("figcaption").text
    mean = draft_panels.percent(draft_panels.confidence(draft, 2, 6))
    assert shown.one("figcaption").text.startswith(f"Word confidence {mean}")
    assert "forced" not in draft_panels.tokens_html(draft, 0, 4)


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.9999, "&gt;99 %"), (0.5, "50 %"), (0.001, "&lt;1 %"), (0, "&lt;1 %")]
)
def test_a_share_says_all_or_nothing_only_where_it_is(share, text):
    assert draft_panels.percent(share).replace("\N{NO-BREAK SPACE}", " ") == text


def test_the_gates_of_a_selection_are_its_tokens_mean_strength():
    draft = draft_of(CUTS["a word a token"])
    shown = page(draft_panels.gates_html(draft, 2, 6))
    cells = [cell for cell in shown.all("td", "rr-figure") if "data-gate" in cell.attributes]
    strength = np.abs([token.gates for token in draft.tokens[2:6]]).mean(0)
    assert [float(cell["data-gate"]) for cell in cells] == pytest.approx(strength)
    heads = [head for head in shown.all("th") if head["scope"] == "row"]
    assert [(head.text, head["title"]) for head in heads] == [
        ("Gate 1", "Layer 3 of the language model"),
        ("Gate 2", "Layer 7 of the language model"),
    ]
    assert plain(shown.one("caption").text).startswith("How far each gate was open 0 adds nothing of the film")


def test_shut_gates_and_a_model_without_gates_are_told_in_words():
    draft = draft_of(CUTS["a word a token"])
    shut = replace(draft, tokens=tuple(replace(token, gates=(0.0, 0.0)) for token in draft.tokens))
    assert "did not look" in draft_panels.gates_html(shut, 0, 3)
    assert "no gates" in draft_panels.gates_html(replace(draft, layers=()), 0, 3)


# --- findings and flags -------------------------------------------------------------------------------------------------


def test_the_table_states_what_findings_table_states_what_is_stated_first():
    rows = findings_table(FINDINGS, IMPRESSION)
    table = page(draft_panels.findings_table_html(rows, FINDINGS, IMPRESSION)).one("table")
    assert table.one("caption").text
    assert [head["scope"] for head in table.one("thead").all("th")] == ["col"] * 3
    shown = {}
    for line in table.one("tbody").all("tr"):
        label, state, said = (cell for cell in line.inside if isinstance(cell, Node))
        assert label["scope"] == "row"
        texts = [quote.text.strip("“”") for quote in said.all("span", "rr-quote")]
        shown[label.text] = (state.text[2:], texts)
    own = {"findings": FINDINGS, "impression": IMPRESSION}
    assert shown == {
        row.label: (
            row.status.value if row.status else "not mentioned",
            [own[place.section][place.start : place.end] for place in row.places],
        )
        for row in rows
    }
    states = [state for state, _ in shown.values()]
    assert states == sorted(states, key=["positive", "uncertain", "negative", "not mentioned"].index)
    assert set(shown) == set(LABELS)
    assert len(set(states)) == 4, "the example has a label in every state"


def test_a_normal_report_has_a_row_that_follows_from_the_others():
    rows = findings_table("The bones are osteopenic.", "")
    lines = page(draft_panels.findings_table_html(rows, "The bones are osteopenic.", "")).one("tbody").all("tr")
    assert {line.inside[0].text: line.inside[2].text for line in lines}["No Finding"] == "follows from the other labels"


def test_flags_stand_where_they_are_in_the_sentence_with_the_reason():
    found = flags(FINDINGS, IMPRESSION, has_prior=False)
    shown = page(draft_panels.flag_html(found, FINDINGS, IMPRESSION))
    marks = [mark.text for mark in shown.all("mark")]
    assert marks.count("unchanged") == 1
    assert {"No pleural effusion.", "Small right pleural effusion."} <= set(marks)
    assert [quote.text for quote in shown.all("span", "rr-quote") if "unchanged" in quote.text] == [
        "“Possible left basilar opacity, unchanged.”"
    ]
    assert [reason.text for reason in shown.all("p", "rr-reason")] == list(
        dict.fromkeys(flag.message for flag in found)
    )
    assert shown.one("div", "rr-flags")["role"] == "group"


def test_a_prior_film_leaves_no_flag_and_an_empty_report_says_what_will_be_here():
    text = "The opacity is unchanged."
    assert "No contradiction was found" in draft_panels.flag_html(flags(text, "", has_prior=True), text, "")
    for empty in (
        draft_panels.flag_html([], "", " "),
        draft_panels.findings_table_html(findings_table("", ""), "", ""),
    ):
        assert "No report yet" in empty
    assert "No draft yet" in draft_panels.words_html(None)
    assert draft_panels.tags_html(flags(text, "", has_prior=False), "impression", 0, 99) == ""


# --- charts -------------------------------------------------------------------------------------------------------------

WHYS = {
    "matters": Why(0, -20.0, 1.25, tuple(np.linspace(-0.2, 0.4, 19).tolist()), (1, 2), 0),
    "not more than elsewhere": Why(0, -20.0, 0.2, (0.5, 0.1, 0.3, 0.0, 0.2, 0.25, -0.1, 0.4), (1,), 0),
    "likelier when masked": Why(0, -20.0, -0.9, tuple(np.linspace(-2.5, -0.1, 8).tolist()), (1,), 2),
    "nothing moves": Why(0, -20.0, 0.0, (0.0,) * 8, (1,), 0),
    "far": Why(0, -20.0, 38.4, tuple(np.linspace(0, 12, 19).tolist()), (1,), 0),
    "with its finding": Why(0, -20.0, 1.25, (0.1,) * 19, (1,), 0, 1.25, "effusion", 0.83, 0.41, 0.79),
}


def factor_of(label: str) -> float:
    """Nats of a tick's label: ×1.5, ×10¹²."""
    number = label.removeprefix("×")
    power = number.removeprefix("10").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"))
    return math.log(float(number)) if number.isascii() else int(power) * math.log(10)


def place_of(node: Node, name: str) -> float:
    return float(node[name].removesuffix("%"))


@pytest.mark.parametrize("why", WHYS.values(), ids=WHYS)
def test_the_marks_of_why_lie_where_the_numbers_are(why):
    shown = page(draft_panels.why_html(why, "The heart is <enlarged>."))
    chart = shown.one("svg")
    own, mean, dots = (
        chart.one("circle", "rr-here"),
        chart.one("line", "rr-mean"),
        list(chart.all("circle", "rr-random")),
    )
    assert float(own["data-nats"]) == why.drop
    assert float(mean["data-nats"]) == why.mean
    assert [float(dot["data-nats"]) for dot in dots] == list(why.random)
    labels = [t for t in chart.all("text") if "data-nats" in t.attributes]
    for tick in labels:
        assert factor_of(tick.text) == pytest.approx(abs(float(tick["data-nats"])), abs=1e-6)
    ticks = [(float(t["data-nats"]), place_of(t, "x")) for t in labels]
    slope, start = np.polyfit(*np.transpose(ticks), 1)
    marks = [(own, "cx"), (mean, "x1"), *((dot, "cx") for dot in dots)]
    for mark, name in marks:
        assert place_of(mark, name) == pytest.approx(start + slope * float(mark["data-nats"]), abs=0.01)
        assert 4.99 <= place_of(mark, name) <= 95.01
    assert 2 <= len(ticks) <= 8
    assert "×1" in [t.text for t in labels]
    titles = [t.text for t in chart.all("text", "rr-axis-title")]
    assert titles[0] == "times less likely when a place is hidden"
    assert titles[1:] == ["left of ×1: times more likely"] * (min(why.drop, *why.random) < 0)
    assert max(float(t["y"]) for t in chart.all("text")) < float(chart["height"])
    assert chart["role"] == "img"
    assert f"the sentence is {likelihood(why.drop)}; with {len(why.random)} other places" in chart["aria-label"]
    assert f"Highlighted place: {likelihood(why.drop, '×')}" in chart.text
    assert shown.inside[0].inside[1].text.removeprefix("Take care. ") == why.verdict, (
        "the answer first, the figures behind it"
    )
    assert ("Take care." in shown.text) != why.matters
    figures, each = shown.all("details")
    assert figures.one("svg") is chart
    assert figures.inside[0].text == "The figures"
    table = [row.inside[1].text for row in each.one("tbody").all("tr")]
    assert table == [likelihood(bar.nats, "×") for bar in why.bars]


def test_why_tells_the_finding_before_and_after_and_the_whole_effect_where_it_differs():
    why = WHYS["with its finding"]
    table = page(draft_panels.why_html(why, "Effusion.")).one("table", "rr-before-after")
    assert [plain(row.inside[1].text) for row in table.all("tr")] == ["83 %", "41 %", "79 %"]
    assert [row.one("th").text.split(",")[0] for row in table.all("tr")] == [
        "In the film",
        "With the highlighted place hidden",
        "With another place hidden",
    ]
    assert "from the prompt too" not in draft_panels.why_html(why, "Effusion.")
    whole = draft_panels.why_html(replace(why, whole=4.5), "Effusion.")
    assert "from the prompt too, the sentence is 90 times less likely." in whole
    assert "rr-before-after" not in draft_panels.why_html(WHYS["matters"], "The trachea is midline.")


LOOKS = {
    "looks": DependenceTest(0.4, 1.1, 0.35, 0.02, 80),
    "barely": DependenceTest(0.01, 0.02, -0.03, 0.001, 80),
    "likelier without": DependenceTest(-0.2, -0.5, -0.1, 0.001, 80),
}


@pytest.mark.parametrize("looking", LOOKS.values(), ids=LOOKS)
def test_the_bars_of_looking_are_as_long_as_the_numbers(looking):
    shown = page(draft_panels.looking_html(looking))
    bars = list(shown.all("rect"))
    assert [float(bar["data-nats"]) for bar in bars] == [*(bar.nats for bar in looking.bars), looking.moved]
    zero = place_of(shown.one("line", "rr-zero"), "x1")
    line = shown.one("line", "rr-threshold")
    assert float(line["data-nats"]) == looking.threshold
    nat = (place_of(line, "x1") - zero) / looking.threshold
    for bar in bars:
        nats, left, width = float(bar["data-nats"]), place_of(bar, "x"), place_of(bar, "width")
        assert width == pytest.approx(abs(nats) * nat, abs=0.01 + abs(nats) / looking.threshold * 0.001)
        assert (left if nats >= 0 else left + width) == pytest.approx(zero, abs=0.01)
    assert shown.inside[0].inside[0].text.removeprefix("Take care. ") == looking.verdict
    assert ("Take care." in shown.text) != looking.looks
    figures, chart = shown.one("details"), shown.one("svg")
    assert figures.one("svg") is chart
    assert figures.inside[0].text == "The figures"
    assert f"Threshold for the mean: {factor(looking.threshold)} times" in chart["aria-label"]
    assert f"Dashed line: ×{factor(looking.threshold)}," in figures.text
    for name, nats in looking.bars:
        assert f"{name}: {likelihood(nats, '×')}" in chart.text
        assert f"{name.lower()} {likelihood(nats)}" in chart["aria-label"]
    for tick in chart.all("text"):
        if "data-nats" in tick.attributes:
            assert place_of(tick, "x") == pytest.approx(zero + float(tick["data-nats"]) * nat, abs=0.05)


def test_a_sentence_without_a_map_says_why_there_is_no_chart():
    shown = page(draft_panels.why_html(None, "The heart is enlarged."))
    assert "This sentence has no map" in shown.text
    assert not list(shown.all("svg"))
    assert "Is it looking?" in draft_panels.looking_html(None)


@pytest.mark.parametrize("low", [0.0, -0.001, -0.2, -3.0, -1000.0])
@pytest.mark.parametrize("high", [0.0, 0.004, 0.2, 0.73, 1.3, 2.4, 5.0, 6.9, 12.0, 999.0])
def test_an_axis_holds_its_numbers_and_a_few_ticks_at_round_factors(low, high):
    scale = draft_panels._Scale.over([low, high])
    assert scale.low <= low <= high <= scale.high
    assert scale.low <= 0 <= scale.high
    assert 2 <= len(scale.ticks) <= 8
    assert (0, "×1") in scale.ticks
    places = [at for at, _ in scale.ticks]
    assert scale.low <= min(places) <= max(places) <= scale.high
    assert min(np.diff(places)) >= 0.14 * (scale.high - scale.low), "so that labels do not meet on a telephone"
    assert max(np.diff(places)) <= 0.75 * (scale.high - scale.low)
    for at, label in scale.ticks:
        assert factor_of(label) == pytest.approx(abs(at), abs=1e-6)
    assert all(len(label) <= 6 for _, label in scale.ticks)


@pytest.mark.parametrize(
    ("high", "labels"),
    [
        (0.05, "×1 ×1.01 ×1.02 ×1.03 ×1.04 ×1.05"),
        (1.1, "×1 ×1.2 ×1.5 ×2 ×3"),
        (1.7, "×1 ×1.5 ×2 ×3 ×5"),
        (4.0, "×1 ×2 ×5 ×10 ×20 ×50"),
        (12.0, "×1 ×10 ×100 ×1000 ×10⁴ ×10⁵"),
    ],
)
def test_the_ticks_of_an_axis_are_the_factors_that_people_know(high, labels):
    assert " ".join(label for _, label in draft_panels._Scale.over([high]).ticks) == labels


def test_no_panel_speaks_of_nats_or_layers():
    panels = every_panel(FINDINGS, IMPRESSION) | {
        name: draft_panels.why_html(replace(why, whole=4.5), "Effusion.") for name, why in WHYS.items()
    }
    panels |= {name: draft_panels.looking_html(looking) for name, looking in LOOKS.items()}
    for name, body in panels.items():
        shown = page(body)
        told = [shown.text, *(node.attributes.get("aria-label", "") for node in shown.all())]
        assert not re.search(r"\bnats?\b|\blayers?\b|\btokens?\b", " ".join(told), re.IGNORECASE), name


# --- nothing from the data is markup ------------------------------------------------------------------------------------


def every_panel(findings: str, impression: str) -> dict[str, str]:
    draft = draft_of(cut(compose(findings, impression), [5, 0, 2, 9]), forced=(3,))
    found = flags(draft.findings, draft.impression, has_prior=False)
    rows = findings_table(draft.findings, draft.impression)
    said = draft.sentences[0].text
    return {
        "table": draft_panels.findings_table_html(rows, draft.findings, draft.impression),
        "flags": draft_panels.flag_html(found, draft.findings, draft.impression),
        "read": draft_panels.read_html(draft, "effusion"),
        "findings": draft_panels.findings_html(draft, "effusion", {"opacity": "left"}),
        "words": draft_panels.words_html(draft, draft_panels.picked(draft, [0, 0]), found),
        "tokens": draft_panels.tokens_html(draft, 0, len(draft.tokens)),
        "gates": draft_panels.gates_html(draft, 0, len(draft.tokens)),
        "why": draft_panels.why_html(WHYS["matters"], said),
        "no why": draft_panels.why_html(None, said),
        "looking": draft_panels.looking_html(LOOKS["barely"]),
    }


def shape(node: Node) -> set[tuple[str, str]]:
    return {(part.tag, name) for part in node.all() for name in ("", *part.attributes)}


@pytest.mark.parametrize("seed", range(12))
def test_hostile_words_stay_words(seed):
    rng = np.random.default_rng(seed)
    calm = "Large left effusion, unchanged. No pleural effusion. Heart size is normal. Possible pneumonia."
    words = calm.split()
    for text in HOSTILE if not seed else rng.permutation(HOSTILE)[: rng.integers(1, 4)]:
        words.insert(int(rng.integers(len(words))), str(text))
    known = {name: shape(page(body)) for name, body in every_panel(FINDINGS, IMPRESSION).items()}
    for name, body in every_panel(" ".join(words), " ".join(words[::-1])).items():
        assert shape(page(body)) <= known[name], name  # no element and no attribute that calm words do not bring
    shown = page(every_panel(" ".join(words), "Normal.")["words"])
    written = "".join(line.text for line in shown.all("span", "rr-line"))
    assert "".join(written.split()) == "".join((" ".join(words) + "Normal.").split())


def test_nothing_names_another_host_or_carries_a_script_of_its_own():
    everything = (
        "".join(every_panel(FINDINGS, IMPRESSION).values())
        + (ROOT / "ui/draft_panels.css").read_text()
        + draft_panels.PICK
        + draft_panels.PICK_FINDING
    )
    assert not re.search(
        r"https?:|//|url\(|<script|\son\w+=|\bid=", everything.replace("  // ", "").replace("  //", "")
    )


def test_the_panels_need_neither_torch_nor_gradio():
    program = "import sys; from ui import draft_panels; from emrrg_core import flags; t = 'It is unchanged.'; "
    program += (
        "print(draft_panels.flag_html(flags(t, '', has_prior=False), t, ''), {'torch', 'gradio'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("</div> set()\n")
