"""Rows of what is kept on a disk: ours beside each peer and beside the disk alone."""

import statistics
from dataclasses import dataclass, field

from table import number, ratio_text, spread

PEERS = ("redis", "beanstalkd")
COLUMNS = ("manyhands", *PEERS, "floor", "canned")
HEADER = (
    "| what | manyhands | Redis | beanstalkd | disk alone | replies alone | to best peer "
    "| to disk | target | met |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Row:
    """One measured thing: per system its figures, one per round."""

    name: str
    unit: str
    figures: dict
    peer_min: float = None
    floor_min: float = None
    value_max: float = None
    peers: tuple = field(default=PEERS)

    def markdown(self):
        """The row; what was not measured is empty."""
        cells = [f"{self.name} ({self.unit})"]
        cells += [spread(self.figures.get(name)) for name in COLUMNS]
        cells += [ratio_text(self.to_best_peer()), ratio_text(self.to("floor"))]
        cells += [self.target(), {True: "yes", False: "**no**", None: ""}[self.verdict()]]
        return "| " + " | ".join(cells) + " |"

    def to(self, other):
        """Ours to `other`'s: the median of the rounds' own ratios."""
        theirs = self.figures.get(other)
        if not theirs:
            return None
        return statistics.median(a / b for a, b in zip(self.figures["manyhands"], theirs))

    def to_best_peer(self):
        measured = [self.figures[name] for name in self.peers if self.figures.get(name)]
        if not measured:
            return None
        best = [max(figures) for figures in zip(*measured)]
        return statistics.median(a / b for a, b in zip(self.figures["manyhands"], best))

    def target(self):
        parts = [f"≤ {self.value_max:,}"] if self.value_max is not None else []
        parts += [f"≥ {self.peer_min} × peer"] if self.peer_min is not None else []
        parts += [f"≥ {self.floor_min} × disk"] if self.floor_min is not None else []
        return ", ".join(parts)

    def verdict(self):
        """Whether all that is wanted is there; `None` where nothing is, or a peer is missing."""
        met = []
        if self.value_max is not None:
            met.append(statistics.median(self.figures["manyhands"]) <= self.value_max)
        for least, ratio in (
            (self.peer_min, self.to_best_peer()),
            (self.floor_min, self.to("floor")),
        ):
            if least is not None and ratio is not None:
                met.append(ratio >= least)
        return all(met) if met else None


def percentiles(measured):
    """The p50 and p99 of one kind of latency, in words."""
    return f"{number(measured['p50'])} µs, p99 {number(measured['p99'])} µs"
