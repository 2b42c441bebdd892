"""Plain text, as a reader would paste it."""

from emrrg_core.export import EMPTY, HEADINGS, banner, notice, passages
from emrrg_core.report.draft import NOT_REVIEWED
from emrrg_core.report.report import Report


def to_text(report: Report) -> bytes:
    """The two sections with the notice, UTF-8; the mark at the top and before every sentence that nobody has reviewed."""
    return plain(report).encode()


def plain(report: Report) -> str:
    """The same as text."""
    parts = [top] if (top := banner(report)) else []
    for section, heading in HEADINGS.items():
        body = " ".join(f"[{NOT_REVIEWED}] {text}" if marked else text for text, marked in passages(report, section))
        parts.append(f"{heading.upper()}:\n{body or EMPTY}")
    return "\n\n".join([*parts, notice(report)]) + "\n"
