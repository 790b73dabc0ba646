"""Rows, targets and their Markdown."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Target:
    """What a row should reach; a ratio is ours to CPython's, a floor ratio ours to the floor's."""

    ratio_max: float = None
    ratio_min: float = None
    ratio_at_least: float = None
    or_floor_ratio_min: float = None
    floor_ratio_max: float = None
    value_max: float = None

    def text(self):
        if self.value_max is not None:
            return f"≤ {self.value_max:,}"
        if self.floor_ratio_max is not None:
            return f"≤ {self.floor_ratio_max} × floor"
        if self.ratio_max is not None:
            return f"≤ {ratio_text(self.ratio_max)}"
        if self.ratio_at_least is not None:
            return f"≥ {self.ratio_at_least} ×"
        if self.ratio_min is not None:
            return f"≥ {self.ratio_min} × or ≥ {self.or_floor_ratio_min} × floor"
        return ""

    def verdict(self, value, ratio, floor_ratio):
        if self.value_max is not None:
            return value <= self.value_max
        if self.floor_ratio_max is not None:
            return floor_ratio <= self.floor_ratio_max
        if self.ratio_max is not None:
            return ratio is not None and ratio <= self.ratio_max
        if self.ratio_at_least is not None:
            return ratio >= self.ratio_at_least
        if self.ratio_min is not None:
            return ratio >= self.ratio_min or floor_ratio >= self.or_floor_ratio_min
        return None


@dataclass
class Row:
    """One measured thing: per server its figures, one per round."""

    name: str
    unit: str
    figures: dict
    target: Target = field(default_factory=Target)
    floor: str = "canned"

    def markdown(self):
        ratio, floor_ratio = self.ratio("cpython"), self.ratio(self.floor)
        met = self.target.verdict(statistics.median(self.figures["manyhands"]), ratio, floor_ratio)
        cells = [
            f"{self.name} ({self.unit})",
            spread(self.figures.get("cpython")),
            spread(self.figures["manyhands"]),
            ratio_text(ratio),
            spread(self.figures.get(self.floor)),
            ratio_text(floor_ratio),
            self.target.text(),
            {True: "yes", False: "**no**", None: ""}[met],
        ]
        return "| " + " | ".join(cells) + " |"

    def ratio(self, other):
        """Ours to `other`'s: the median of the rounds' own ratios."""
        theirs = self.figures.get(other)
        if not theirs:
            return None
        return statistics.median(a / b for a, b in zip(self.figures["manyhands"], theirs))


HEADER = """\
| what | CPython | manyhands | ratio | floor | ratio to floor | target | met |
|---|---|---|---|---|---|---|---|"""


def ratio_text(ratio):
    if ratio is None:
        return ""
    return f"1/{1 / ratio:.0f}" if ratio < 0.1 else f"{ratio:.2f} ×"


def spread(figures):
    """The median, with the range that holds four fifths of the rounds."""
    if not figures:
        return ""
    low, median, high = (quantile(figures, share) for share in (0.1, 0.5, 0.9))
    if len(figures) == 1:
        return number(median)
    return f"{number(median)} ({number(low)}–{number(high)})"


def quantile(figures, share):
    ordered = sorted(figures)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
