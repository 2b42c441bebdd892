"""Plain text, as a reader would paste it."""

from emrrg_core.export import EMPTY, HEADINGS, Reader, banner, header, notice, passages, preface
from emrrg_core.report.draft import NOT_REVIEWED
from emrrg_core.report.report import Report


def to_text(report: Report, *, reader: Reader | None = None) -> bytes:
    """Header, fields and sections with the notice, UTF-8; the mark at the top and before every sentence that nobody has reviewed.

    reader: who signed.
    """
    return plain(report, reader).encode()


def plain(report: Report, reader: Reader | None = None) -> str:
    """The same as text."""
    parts = [top] if (top := banner(report)) else []
    parts.append("\n".join(f"{name}: {value}" for name, value in header(report, reader)))
    parts += [f"{heading.upper()}:\n{words}" for heading, words in preface(report)]
    for section, heading in HEADINGS.items():
        body = " ".join(f"[{NOT_REVIEWED}] {text}" if marked else text for text, marked in passages(report, section))
        parts.append(f"{heading.upper()}:\n{body or EMPTY}")
    return "\n\n".join([*parts, notice(report, reader)]) + "\n"
