"""Results as one page of Markdown with plots. All figures come from the JSON."""

import statistics

from figures import HEADERS, number, ratio, ratio_text, spread, values
from plot import Panel, svg
from rows import GROUPS
from systems import SYSTEMS

HEAD = """\
# Results of the bench

Written by `bench/all` from [results.json](results.json), which has all samples; [how to read
it](README.md). A figure is the median over rounds (p10–p90). *Ours to it* compares the first figure
that a row has: the median of the rounds' own ratios. The command of a row measures it alone."""


def write(directory, results):
    """Writes the page and its plots into `directory`."""
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    parts = [HEAD]
    for group in GROUPS:
        rows = [Measured(row, results) for row in group.rows if row.id in results["rows"]]
        if not rows:
            continue
        parts += [f"## {group.title}", group.about]
        # Rows may be of several runs, if some were measured again.
        parts += [circumstances(results["runs"][run]) for run in {row.run: 0 for row in rows}]
        lines = list(plot_lines(group, rows))
        if lines:
            (plots / f"{group.id}.svg").write_text(svg(group.title, lines))
            parts.append(f"![{group.title}](plots/{group.id}.svg)")
        parts.append("\n".join(table(group, rows)))
    (directory / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


class Measured:
    """A row and what was measured of it: samples by system, and why others have none."""

    def __init__(self, row, results):
        self.row = row
        self.results = results
        self.run = results["rows"][row.id]["run"]
        systems = results["rows"][row.id]["systems"]
        self.samples = {name: seen["samples"] for name, seen in systems.items()}
        self.why = {name: seen["why"] for name, seen in systems.items() if "why" in seen}
        for name, why in row.absent:
            self.samples[name], self.why[name] = [], why

    def subject(self):
        """The one of ours that the row is about, the first that was measured: its samples."""
        ours = (seen for name, seen in self.samples.items() if SYSTEMS[name].kind == "ours")
        return next((seen for seen in ours if any(seen)), [])

    def has(self, figure):
        return any(values(seen, figure) for seen in self.samples.values())

    def verdict(self, target):
        """What is wanted, and whether it is there, in words."""
        wanted, told, is_met = self.judge(target)
        if target.otherwise:
            other = self.judge(target.otherwise)
            wanted, told = f"{wanted} or {other[0]}", f"{told}, {other[1]}"
            is_met = other[2] if not is_met else is_met
        said = {True: "met", False: "**missed**", None: "not measured"}[is_met]
        return f"target: {wanted}; {told}: {said}" if told else f"target: {wanted}; {said}"

    def judge(self, target):
        """A target, what there is of it, and whether that is enough; `None` if nothing is known."""
        figure, of, ours = target.figure, target.of, self.subject()
        if of is None:
            wanted, told = number(target.bound), number
            found = statistics.median(values(ours, figure)) if values(ours, figure) else None
        else:
            wanted, told = f"{ratio_text(target.bound)} {label(of)}", ratio_text
            found = ratio(ours, self.of(of), figure)
        wanted = f"{HEADERS[figure]} {'≤' if target.at_most else '≥'} {wanted}"
        if found is None:
            return wanted, "", None
        is_met = found <= target.bound if target.at_most else found >= target.bound
        return wanted, told(found), is_met

    def of(self, name):
        """The samples of a system, of several one after the other, or ours of another row."""
        if isinstance(name, tuple):
            return [in_turn(seen) for seen in zip(*map(self.of, name))]
        for group in GROUPS:
            for row in group.rows:
                if row.id == name and name in self.results["rows"]:
                    return Measured(row, self.results).subject()
        return self.samples.get(name, [])


def label(of):
    """What a figure is compared with, in words."""
    if isinstance(of, tuple):
        return " and then ".join(map(label, of))
    return SYSTEMS[of].label if of in SYSTEMS else f"`{of}`"


def in_turn(samples):
    """A round of several systems: the rate of what does the work of one after that of the other."""
    rates = [seen["rate"] for seen in samples if seen and seen.get("rate")]
    return {"rate": 1 / sum(1 / rate for rate in rates)} if len(rates) == len(samples) else {}


def circumstances(run):
    """When, where and of what the figures are."""
    is_slow = "" if run["profile"] == "release" else f" **Built with profile {run['profile']}.**"
    missing = "".join(f"\n**Missing: {name}**: {why}." for name, why in run["missing"].items())
    return f"""\
`{run["command"]}` on {run["date"]}, at most {run["rounds"]} rounds of {run["seconds"]:g} s.
manyhands {run["commit"]}, {run["python"]}, {run["rustc"]}.{is_slow}
{run["machine"]}, load {run["load"]:.1f} at the start. Queues on disk: {run["disk"]}.{missing}"""


def table(group, rows):
    """A line for every row, followed by one for each of its systems."""
    # What the plots are about comes first.
    figures = [*group.plots, *(figure for figure in HEADERS if figure not in group.plots)]
    figures = [figure for figure in figures if any(row.has(figure) for row in rows)]
    yield cells(["what", *(HEADERS[figure] for figure in figures), "ours to it"])
    yield cells(["---"] * (len(figures) + 2))
    for row in rows:
        verdicts = [row.verdict(target) for target in row.row.targets]
        command = f"`bench/all --only {row.row.id}`"
        yield cells(
            ["<br>".join([f"**{row.row.what}**", *verdicts, command]), *[""] * (len(figures) + 1)]
        )
        first = next((figure for figure in figures if row.has(figure)), figures[0])
        for name, seen in row.samples.items():
            found = [spread(values(seen, figure)) for figure in figures]
            if name in row.why:
                found[0] = f"{found[0]} *{row.why[name]}*".strip()
            ours = row.subject()
            to_it = "" if seen is ours else ratio_text(ratio(ours, seen, first))
            yield cells([SYSTEMS[name].label, *found, to_it])


def cells(texts):
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def plot_lines(group, rows):
    """The panels of each row, one for each plotted figure that it has."""
    for row in rows:
        panels = [panel(row, figure) for figure in group.plots if row.has(figure)]
        if panels:
            yield panels


def panel(row, figure):
    drawn = Panel(row.row.what, HEADERS[figure])
    for name, seen in row.samples.items():
        if values(seen, figure):
            drawn.add(SYSTEMS[name].label, SYSTEMS[name].kind, values(seen, figure))
    return drawn
