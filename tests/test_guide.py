"""The guide stays true: what it shows is there, and what it tells to press can be pressed."""

import html
import re
from pathlib import Path

import pytest
from PIL import Image

from docs.screenshots import make
from ui import exports, messages, teach_html, viewer

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs/guide.md"
TEXT = GUIDE.read_text(encoding="utf-8")
PAGES = (GUIDE, ROOT / "README.md", ROOT / "MODEL_CARD.md")
SOURCES = "\n".join(
    html.unescape(path.read_text(encoding="utf-8"))
    for path in (ROOT / "app.py", *sorted((ROOT / "ui").glob("*.py")), *sorted((ROOT / "ui").glob("*.js")))
)
# bold for its own sake: no label of the screen
PLAIN = {
    "one",
    "not given to the model",
    "Letters in the picture",
    "the map",
    "how probable",
    "not assessed",
    "the gates",
    "your",
    "code",
    "your key",
}


def links(page: Path) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in target]


def headings(page: Path) -> set[str]:
    """Of a Markdown page, as GitHub names their anchors."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_button_that_the_guide_names_is_on_the_screen() -> None:
    bold = [re.sub(r"\s+", " ", each) for each in re.findall(r"\*\*([^*]+)\*\*", TEXT.partition("\n## ")[2])]
    named = [each for each in bold if each not in PLAIN]
    assert len(named) > 50
    missing = [each for each in named if not re.search(rf"[\"'>]{re.escape(each)}[\"'<]", SOURCES)]
    assert missing == []


def test_the_guide_names_every_export_every_preset_every_fill_and_every_key() -> None:
    named = [kind.label for kind in exports.KINDS] + [preset.name for preset in viewer.PRESETS]
    assert [each for each in [*named, *(label for _, label in teach_html.FILLS)] if f"**{each}**" not in TEXT] == []
    keys = [row for row in TEXT.partition("### Keys")[2].partition("\n\nThey rest")[0].splitlines() if "|" in row]
    cells = [[cell.strip() for cell in row.split("|")[1:5]] for row in keys[2:]]
    in_report, on_film = ({row[column] for row in cells} for column in (0, 2))
    assert in_report == set(re.findall("<dt>(.*?)</dt>", messages.keys()))
    assert {key for cell in on_film for key in cell.split(", ")} == {name for name, _ in viewer.KEYS}


def test_no_picture_is_stale_or_large() -> None:
    shown = {link.rpartition("/")[2] for page in PAGES for link in links(page) if link.endswith(".png")}
    there = sorted(make.HERE.glob("*.png"))
    assert {path.name for path in there} == shown, "pictures that no page shows, or pages that show what is not there"
    for path in there:
        assert path.stat().st_size <= make.MOST_BYTES, path.name
        with Image.open(path) as picture:
            assert picture.width <= 1440


def test_every_picture_is_made_by_the_command_that_the_guide_names() -> None:
    assert "python -m docs.screenshots.make" in TEXT
    source = Path(make.__file__).read_text(encoding="utf-8")
    made = {
        (name, "390" if "390" in more else "1440") for name, more in re.findall(r'shoot\(page, "(\w+)"(.*)\)', source)
    }
    assert {f"{name}-{width}.png" for name, width in made} == {path.name for path in make.HERE.glob("*.png")}
