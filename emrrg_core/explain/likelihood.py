"""Nats as a reader meets them: how many times less or more likely words become. Screens import this at once, so it needs no library."""

import math

MOST = 1000  # beyond it the number of times is not told


def factor(nats: float) -> str:
    """exp(|nats|), how many times: "1.02", "1.5", "12", "more than 1000". "1" where it rounds to 1.00."""
    if abs(nats) > math.log(MOST):
        return f"more than {MOST}"
    times = math.exp(abs(nats))
    if times < 1.005:
        return "1"
    return f"{times:.{2 if times < 1.095 else 1 if times < 9.95 else 0}f}"


def likelihood(lost: float, times: str = "times") -> str:
    """What a loss of so many nats means: "1.5 times less likely", below 0 "1.2 times more likely", near 0 "as likely".

    times: the word for it; "×" where there is little room.
    """
    said = factor(lost)
    return "as likely" if said == "1" else f"{said} {times} {'less' if lost > 0 else 'more'} likely"
