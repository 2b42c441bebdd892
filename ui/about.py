"""About: what the model is, what it was measured to do, and what it is not for.

Everything that stands in a file is read when the page is built, so the screen is there before the model is. What is measured
on the loaded model, and what holds only for the checkpoint that was loaded, appears once it is.
"""

import html
import json
import math
import re
import tomllib
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from emrrg_core import Reporter
    from emrrg_core.model.parameter_count import Counts

ROOT = Path(__file__).resolve().parent.parent
CARD, RECIPES, RESULTS = "MODEL_CARD.md", "docs/parameters.md", "docs/results/small.json"
DRAWING = "assets/architecture.svg"
SOURCES = "What it was trained on"  # the card's section with the data and their licences

PARTS = {  # as emrrg_core counts them, in the order from film to draft
    "tower": "Vision Mamba tower",
    "adapters": "Low-rank adapters in the tower",
    "queries": "Disease queries and lung borders",
    "projector": "Projector",
    "finding tokens": "Finding tokens",
    "hybrid": "Hybrid layers: keys, values, gates",
    "LLM": "Language model",
    "LLM LoRA": "Low-rank adapters in the language model",
}
WHOLES = {  # what a share may be of
    "everything": "everything that the model holds",
    "tower + LLM": "tower and language model",
    "full fine-tuning": "full fine-tuning, which trains tower and projector",
    "tower": "the tower",
}
PATHS = {  # of the results: which way into a draft was changed, the first thing said of a checkpoint
    "own": "Nothing: its own film",
    "gates_zero": "Gates set to 0: the hybrid layers add nothing",
    "hybrid_other": "Hybrid layers see another film",
    "findings_other": "Finding tokens of another film, own patches",
    "patches_other": "Patches of another film, own finding tokens",
    "prompt_other": "Prompt of another film",
}
OF_PATHS = {  # what is shown of each
    "labels_kept": "Drafts that keep their labels",
    "labels_of_other": "Drafts with the other film’s labels",
    "normal_balanced_accuracy": "Normal or abnormal, balanced accuracy",
    "flips": "Normal and abnormal exchanged",
    "nats": "Times less likely, each piece of a word",
}
LITTLE = 0.9  # of drafts that keep their labels, from which on what was exchanged matters little
METRICS = {  # of the results: what is shown of each source
    "normal_balanced_accuracy": "Normal or abnormal, balanced accuracy",
    "called_abnormal_of_normal": "Normal films called abnormal",
    "called_abnormal_of_abnormal": "Abnormal films called abnormal",
    "label_micro_f1": "14 labels, micro-F1",
    "label_macro_f1": "14 labels, macro-F1",
}
_WAITING = '<p class="rr-quiet" role="status">Measured as soon as the model is loaded…</p>'


def screen(demo: gr.Blocks, reporter: "Future[Reporter]") -> None:
    """Put the screen into `demo`, which is open. reporter may still be loading."""
    card, results = text_of(CARD), text_of(RESULTS)
    with gr.Column(elem_id="about"):
        gr.HTML(_section("Intended use", _rows(facts()["intended_use"])))
        measured = gr.HTML(_section("What is trained, what is frozen", _WAITING), elem_id="measured")
        with gr.Accordion("What each recipe trains, in numbers", open=False, elem_id="recipes"):
            gr.Markdown(_shown(text_of(RECIPES), RECIPES), latex_delimiters=[])
        gr.HTML(_section("Architecture", _drawing(text_of(DRAWING))), elem_id="architecture")
        validation = gr.HTML(_section("Validation", _WAITING), elem_id="validation")
        with gr.Accordion("Model card", open=False, elem_id="card"):
            whose = gr.HTML("")
            gr.Markdown(_shown(card, CARD), latex_delimiters=[])
        gr.HTML(_section("Licences", _licences(card)), elem_id="licences")

    def loaded() -> tuple[str, str, str]:
        """What had to wait for the model."""
        from emrrg_core import EmrrgError

        try:
            model = reporter.result()
        except EmrrgError as error:
            words = _plain(f"There is nothing to measure, because the model is not loaded. {error}")
        except Exception:  # a bug, or a broken installation: the console of the server shows it
            words = _plain(
                "There is nothing to measure, because the model could not be loaded; the server's console says more."
            )
        else:
            return (
                _section("What is trained, what is frozen", _names(model.names) + counted(model.parameters())),
                _section(
                    "Validation", validated(results, model.names["checkpoint_sha256"], model.names["settings_sha256"])
                ),
                _card_of(card, model.names["checkpoint_sha256"]),
            )
        return _section("What is trained, what is frozen", words), _section("Validation", words), ""

    demo.load(loaded, None, [measured, validation, whose], show_progress="hidden", api_visibility="private")


def facts() -> dict[str, dict[str, str]]:
    """The intended use and the licences: about.toml."""
    return tomllib.loads((Path(__file__).parent / "about.toml").read_text(encoding="utf-8"))


def text_of(name: str) -> str | None:
    """A file of the project; None where it is not there, as in an installation of the library alone."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except OSError:
        return None


# ----------------------------------------------------------------------------------------------------- of the loaded model


def counted(counts: "Counts") -> str:
    """The model's parameters by part, trained or frozen, with shares of the whole."""
    total = counts.whole("everything")
    shown = [*(part for part in PARTS if part in counts.all), *(part for part in counts.all if part not in PARTS)]
    rows, bars = [], []
    for part in shown:
        learned, of = counts.trainable.get(part, 0), counts.all[part]
        state = "trained" if learned == of else "frozen" if not learned else f"{learned:,} trained"
        share = 100 * of / total
        kind = "rr-learns" if learned else "rr-frozen"
        bars.append(f'<span class="{kind}" style="flex-grow: {share:.4f}"></span>')
        rows.append(
            f'<tr><th scope="row"><span class="rr-dot {kind}"></span>{html.escape(PARTS.get(part, part))}</th>'
            f'<td class="rr-number">{of:,}</td><td class="rr-number">{share:.2f} %</td><td>{state}</td></tr>'
        )
    percents = "".join(
        f"<li><b>{counts.percent(name):.2f} %</b> of {words} ({counts.whole(name):,})</li>"
        for name, words in WHOLES.items()
    )
    summary = f"{counts.learned:,} of {total:,} parameters were trained in fine-tuning"
    return (
        f"<p>{summary}, the rest was frozen. That is</p><ul>{percents}</ul>"
        f'<div class="rr-shares" role="img" aria-label="{summary}">{"".join(bars)}</div>'
        '<div class="rr-wide" tabindex="0" role="region" aria-label="Parameters by part"><table><thead><tr>'
        '<th scope="col">Part</th><th scope="col" class="rr-number">Parameters</th>'
        '<th scope="col" class="rr-number">Of everything</th><th scope="col">In fine-tuning</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="rr-quiet">Counted on the tensors of the loaded model. What is frozen in fine-tuning may have been '
        "trained before, as the tower was: the model card says how.</p>"
    )


def validated(results: str | None, sha256: str, settings: str) -> str:
    """What carries the film into the drafts, then the validation table, if they belong to these weights under these settings.

    results: text of an emrrg.evaluation/1 card.
    """
    if results is None:
        return _missing(RESULTS)
    card = json.loads(results)
    if card["checkpoint_sha256"] != sha256:
        return _plain(
            f"The loaded checkpoint ({sha256[:12]}…) has no results here: those in {RESULTS} belong to another "
            f"({card['checkpoint_sha256'][:12]}…). Measure it with python -m train.evaluate."
        )
    if card.get("settings_sha256", settings) != settings:  # cards made before this key came have none
        return _plain(
            f"The loaded checkpoint has no results here: those in {RESULTS} are of the same weights under other settings (config.json). "
            "Measure it with python -m train.evaluate."
        )
    sources = sorted(card["scores"], key=lambda source: (source == "overall", source))
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in METRICS.values())
    rows = "".join(
        f'<tr><th scope="row">{html.escape(source)}</th>'
        + "".join(f"<td>{_score(card['scores'][source].get(metric))}</td>" for metric in METRICS)
        + "</tr>"
        for source in sources
    )
    return (
        f"<p>Checkpoint {sha256[:12]}…, {html.escape(card['split'])} split, {html.escape(card['decoding'])}, "
        f"{html.escape(card['precision'])}; below each value its 95 % interval ({html.escape(card['intervals'])}) and the number "
        f"of films.</p>{_paths(card.get('paths'))}"
        '<div class="rr-wide" tabindex="0" role="region" aria-label="Validation, per source"><table>'
        f'<thead><tr><th scope="col">Source</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="rr-quiet">The words of the drafts are read by EMRRG’s own reader of reports. Made with</p>'
        f"<pre><code>{html.escape(card['command'])}</code></pre>"
    )


def _paths(paths: dict[str, Any] | None) -> str:
    """What becomes of the drafts when one way from the film into them is changed; nothing for results that have not measured it."""
    measured = {name: paths[name] for name in PATHS if paths.get(name)} if paths else {}
    if not measured:
        return ""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in OF_PATHS.values())
    rows = "".join(
        f'<tr><th scope="row">{html.escape(PATHS[name])}</th>'
        + "".join(
            f"<td>{_score(_times(scores.get(metric)) if metric == 'nats' else scores.get(metric))}</td>"
            for metric in OF_PATHS
        )
        + "</tr>"
        for name, scores in measured.items()
    )
    kept = (measured.get("patches_other", {}).get("labels_kept") or {}).get("value")
    little = (
        f" The patches matter little beside the finding tokens: with another film’s patches {kept:.0%} of the drafts keep their labels."
        if kept is not None and kept >= LITTLE
        else ""
    )
    return (
        "<h3>What carries the film into a draft</h3><p>Each draft is written again with one thing changed, another film being one of the "
        f"other kind, normal or abnormal. What carries the film is what changes the labels.{html.escape(little)}</p>"
        '<div class="rr-wide rr-paths" tabindex="0" role="region" aria-label="What carries the film into a draft"><table>'
        f'<thead><tr><th scope="col">Changed</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "<h3>What the drafts say</h3>"
    )


def _times(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """A score in nats as how many times less likely: its value and interval through exp."""
    ends = ("value", "low", "high")
    return found and found | {end: math.exp(found[end]) for end in ends if found.get(end) is not None}


def _score(found: dict[str, Any] | None) -> str:
    if not found or found.get("value") is None:
        return "–"
    ends = [found.get("low"), found.get("high")]
    between = "" if None in ends else f"[{ends[0]:.2f}, {ends[1]:.2f}] · "
    return f"{found['value']:.2f}<small>{between}{found['n']}</small>"


def _names(names: dict[str, str]) -> str:
    pairs = (("Checkpoint", "checkpoint"), ("Language model", "language_model"))
    return _rows(
        {title: f"{names[key]}, SHA-256 {names[f'{key}_sha256']}" for title, key in pairs}
        | {"Settings": f"SHA-256 {names['settings_sha256']}"},
        kind="rr-facts rr-hashes",
    )


def _card_of(card: str | None, sha256: str) -> str:
    """A word of warning where the card describes another checkpoint than the loaded one."""
    if card is None or sha256[:12] in card:
        return ""
    return _plain(
        f"This card does not name the loaded checkpoint ({sha256[:12]}…): it describes the one that comes with EMRRG."
    )


# ------------------------------------------------------------------------------------------------------- as it stands here


def _licences(card: str | None) -> str:
    table = "" if card is None else _table_of(card, SOURCES)
    data = f"<h3>Data that the weights come from</h3>{table}" if table else _missing(CARD)
    return _rows(facts()["licences"]) + data


def _table_of(card: str, section: str) -> str:
    """The first table of one section of the card."""
    _, _, rest = card.partition(f"\n## {section}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[html.escape(_bare(cell.strip())) for cell in line.strip("|").split("|")] for line in lines]
    if len(cells) < 3:
        return ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in cells[0])
    rows = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in cells[2:]
    )
    return (
        f'<div class="rr-wide" tabindex="0" role="region" aria-label="Data and their licences"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _bare(cell: str) -> str:
    """Without Markdown's marks."""
    return re.sub(r"\*\*|`", "", cell)


def _drawing(svg: str | None) -> str:
    if svg is None:
        return _missing(DRAWING)
    return (
        f'<figure class="rr-drawing">{svg}<figcaption><p>The tower reads each film once: a convolutional stem, then vision Mamba blocks. It '
        "was taught first, together with the disease queries, and is kept; what it still learns in fine-tuning are two low-rank updates in "
        "every block: LoRA on the whole input projection, and partial LoRA on its X half alone, the half that is scanned.</p>"
        "<p>Learned queries, one a finding, read the tower’s tokens. A finding’s logit is the sum over the patches of how much a patch counts "
        "times what it shows, and a constant. Whether the film is normal, and whether there is an effusion, is read from the stem’s whole "
        "picture too. It is known exactly what each patch gives to a finding; what speaks for it is its map. Calibrated on films "
        "kept apart from teaching, logits become probabilities; by its thresholds a finding is stated, ruled out or left open. What could "
        "not be taught well enough is not assessed, and neither stated nor denied.</p><p>Every assessed finding becomes one token: what, whether, "
        "on which side, in which zone and how severe. These tokens and the patches are all that the language model may see of a film, "
        "and it sees them in its hybrid "
        "layers only; the prompt holds text. There, cross-attention is weighed by a gate and added before the output projection, at every "
        "token that is read or written. A gate of 0 is the language model without a film. The language model is frozen; LoRA teaches it the "
        "language of reports.</p><p>The map of a sentence goes back along the same path: gate times attention on the patches and on the "
        "findings that it speaks of; what goes to a finding’s token is laid over the patches by that finding’s own map.</p></figcaption></figure>"
    )


def _shown(markdown: str | None, name: str) -> str:
    """A page of the project as a part of this one: without front matter, title and comments, headings a step lower, tables that scroll within
    themselves, links that lead nowhere here as text."""
    if markdown is None:
        return f"{name} is not here: it comes with the project's files, not with the installed library."
    markdown = re.sub(r"<!--.*?-->\n?", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"\A---\n.*?\n---\n\s*", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"\A# .*\n", "", markdown)
    markdown = re.sub(r"^```\w+$", "```", markdown, flags=re.MULTILINE)  # colours of code are too faint to read
    markdown = re.sub(r"^(#+) ", r"#\1 ", markdown, flags=re.MULTILINE)
    wide = r'<div class="rr-wide" tabindex="0" role="group" aria-label="Table">\n\n\1\n</div>\n'  # keys can scroll it
    markdown = re.sub(r"((?:^\|.*\n)+)", wide, markdown, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", markdown)


def _section(title: str, body: str) -> str:
    return f'<section class="rr-about" aria-label="{title}"><h2>{title}</h2>{body}</section>'


def _rows(pairs: dict[str, str], kind: str = "rr-facts") -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(words)}</dd></div>" for name, words in pairs.items()
    )
    return f'<dl class="{kind}">{rows}</dl>'


def _missing(name: str) -> str:
    return _plain(f"{name} is not here: it comes with the project's files, not with the installed library.")


def _plain(words: str) -> str:
    return f'<p class="rr-say" role="status">{html.escape(words)}</p>'
