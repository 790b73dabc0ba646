"""What figures are called, and how they are put in words."""

import statistics

# Per figure: what heads its column. What is not here is kept in the JSON only.
HEADERS = {
    "rate": "per second",
    "mb_per_second": "MB/s",
    "ms": "ms",
    "resident": "resident bytes each",
    "start": "start after kill -9, s",
    "cpu": "server CPU, µs each",
    "client_cpu": "clients' CPU, µs each",
    "p50": "put p50, µs",
    "p99": "put p99, µs",
    "max": "longest put, µs",
    "take_p50": "get p50, µs",
    "take_p99": "get p99, µs",
    "per_sync": "tasks in one sync",
    "syncs": "syncs per put",
    "trend": "last quarter to the first",
    "disk_mb": "MB on disk at most",
}


def values(samples, figure):
    """A figure of every round that has it."""
    return [seen[figure] for seen in samples if seen and figure in seen]


def ratio(ours, theirs, figure):
    """Ours to theirs: the median of the rounds' own ratios, or nothing."""
    pairs = [
        (a[figure], b[figure])
        for a, b in zip(ours, theirs)
        if a and b and figure in a and b.get(figure)
    ]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def ratio_text(value):
    if value is None:
        return ""
    return f"1/{1 / value:.0f}" if 0 < value < 0.1 else f"{value:.2f} ×"


def spread(figures):
    """The median, with the range that holds four fifths of the rounds."""
    if not figures:
        return ""
    low, median, high = quantiles(figures)
    if len(figures) == 1:
        return number(median)
    return f"{number(median)} ({number(low)}–{number(high)})"


def quantiles(figures):
    """The 10th, 50th and 90th percentile."""
    return [quantile(figures, share) for share in (0.1, 0.5, 0.9)]


def quantile(figures, share):
    ordered = sorted(figures)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def number(value):
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
