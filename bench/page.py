"""Results as one page of Markdown with plots. All of it comes from the JSON."""

import statistics

from figures import HEADERS, number, ratio, ratio_text, spread, values
from plot import Panel, svg

TITLE = "Results of the bench"
NOTE = """\
Written by `bench/all` from [results.json](results.json), which has all samples; [how to read
it](README.md). A figure is the median over rounds (p10–p90); *ours to it* is the median of the
rounds' own ratios of the first figure. The command after a row measures it alone."""


def write(directory, results):
    """Writes the page and its plots into `directory`."""
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    parts = [f"# {TITLE}", NOTE]
    rows = {row["id"]: row for group in results["groups"] for row in group["rows"]}
    for group in results["groups"]:
        lines = list(plot_lines(group))
        if lines:
            (plots / f"{group['id']}.svg").write_text(svg(group["title"], lines))
        parts += section(group, rows, results["runs"], bool(lines))
    (directory / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


def section(group, all_rows, runs, is_plotted):
    yield f"## {group['title']}"
    yield group["about"]
    # Rows may be of several runs, if some were measured again.
    for run in dict.fromkeys(row["run"] for row in group["rows"]):
        yield circumstances(runs[run])
    if is_plotted:
        yield f"![{group['title']}](plots/{group['id']}.svg)"
    yield "\n".join(table(group, all_rows))


def circumstances(run):
    """When, where and of what the figures are."""
    missing = "".join(f"\n**Missing: {name}**: {why}." for name, why in run["missing"].items())
    return f"""\
`{run["command"]}` on {run["date"]}, at most {run["rounds"]} rounds of {run["seconds"]:g} s.
manyhands {run["commit"]}, {run["python"]}, {run["rustc"]}.
{run["machine"]}, load {run["load"]:.1f} at the start. Queues on disk: {run["disk"]}.{missing}"""


def table(group, all_rows):
    """A line for every row, followed by one for each of its systems."""
    columns = [
        figure
        for figure in HEADERS
        if any(values(seen["samples"], figure) for row in group["rows"] for seen in systems(row))
    ]
    # What the plots are about comes first.
    columns.sort(key=lambda figure: rank(group, figure))
    yield cells(["what", *(HEADERS[figure] for figure in columns), "ours to it"])
    yield cells(["---"] * (len(columns) + 2))
    for row in group["rows"]:
        command = f"`bench/all --only {row['id']}`"
        verdicts = [verdict(row, target, all_rows) for target in row["targets"]]
        head = "<br>".join([f"**{row['what']}**", *verdicts, command])
        yield cells([head, *[""] * (len(columns) + 1)])
        ours, main = subject(row), main_figure(group, row)
        for seen in systems(row):
            found = [spread(values(seen["samples"], figure)) for figure in columns]
            if seen.get("why"):
                found[0] = f"{found[0]} *{seen['why']}*".strip()
            to_it = ""
            if ours is not seen:
                to_it = ratio_text(ratio(ours["samples"], seen["samples"], main))
            yield cells([seen["label"], *found, to_it])


def cells(texts):
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def systems(row):
    return row["systems"].values()


def subject(row):
    """The one of ours that a row is about: the first that was measured."""
    ours = [seen for seen in systems(row) if seen["kind"] == "ours" and any(seen["samples"])]
    return ours[0] if ours else {"samples": []}


def rank(group, figure):
    return group["plots"].index(figure) if figure in group["plots"] else len(group["plots"])


def main_figure(group, row):
    """The first of the group's plotted figures that the row has."""
    for figure in group["plots"]:
        if any(values(seen["samples"], figure) for seen in systems(row)):
            return figure
    return next(iter(HEADERS))


def verdict(row, target, all_rows):
    """What is wanted, and whether it is there, in words."""
    figure, of, bound = target["figure"], target["of"], target["bound"]
    ours = subject(row)["samples"]
    sign = "≤" if target["at_most"] else "≥"
    if of is None:
        wanted, told = number(bound), number
        found = statistics.median(values(ours, figure)) if values(ours, figure) else None
    else:
        wanted, told = f"{ratio_text(bound)} {target['label']}", ratio_text
        theirs = row["systems"].get(of) or subject(all_rows.get(of, {"systems": {}}))
        found = ratio(ours, theirs["samples"], figure)
    text = f"target: {HEADERS[figure]} {sign} {wanted}"
    if found is None:
        return f"{text}; not measured"
    is_met = found <= bound if target["at_most"] else found >= bound
    return f"{text}; {told(found)}, {'met' if is_met else '**missed**'}"


def plot_lines(group):
    """The panels of each row, one for each plotted figure that it has."""
    for row in group["rows"]:
        panels = []
        for figure in group["plots"]:
            panel = Panel(row["what"], HEADERS[figure])
            for seen in systems(row):
                if values(seen["samples"], figure):
                    panel.add(seen["label"], seen["kind"], values(seen["samples"], figure))
            if panel.bars:
                panels.append(panel)
        if panels:
            yield panels
