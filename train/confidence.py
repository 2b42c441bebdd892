"""Error rates with their intervals, and tables that are put between two markers of docs/refusals.md."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

from emrrg_core.errors import DataError, EmrrgError


def rate(errors: int, n: int) -> str:
    """errors of n as percent with Wilson's 95 % interval, which is honest for few and for none: "2.0 % (0.5–7.0), 2 of 100"."""
    if not n:
        return "–"
    z = 1.959964
    p, spread = errors / n, z * math.sqrt(errors * (n - errors) / n + z * z / 4)
    low, high = ((errors + z * z / 2 + sign * spread) / (n + z * z) for sign in (-1, 1))
    return f"{100 * p:.1f} % ({100 * max(0.0, low):.1f}–{100 * min(1.0, high):.1f}), {errors} of {n}"


def put(document: Path, mark: str, text: str) -> None:
    """Replaces what stands between `<!-- mark -->` and `<!-- /mark -->`. Raises DataError where the document has no such place."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    whole = document.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise DataError(f"{document} has no place for this table: it needs one “{begin.strip()}” and one “{end}”.")
    head, rest = whole.split(begin)
    document.write_text(f"{head}{begin}\n{text.strip()}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def publish(measure: Callable[[], str], document: Path | None, mark: str) -> int:
    """Prints what `measure` finds, and puts it into a document where one is named. Returns the exit status: 2 for an EmrrgError, which is printed."""
    try:
        text = measure()
        if document:
            put(document, mark, text)
    except EmrrgError as error:
        print(f"emrrg: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0
