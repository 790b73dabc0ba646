"""Bars as SVG, for a light and a dark page."""

from xml.sax.saxutils import escape

from figures import number, quantiles

LABEL_WIDTH, BAR_WIDTH, VALUE_WIDTH = 200, 170, 90
PANEL_WIDTH = LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH
BAR_HEIGHT, TITLE_HEIGHT, GAP = 18, 40, 12
STYLE = """\
.page { fill: #ffffff }
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .unit, .value { fill: #59636e } .value { font-size: 11px }
.ours { fill: #0969da } .peer { fill: #8c959f } .floor { fill: #d1d9e0 }
.spread { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117 }
text { fill: #f0f6fc } .unit, .value { fill: #9198a1 }
.ours { fill: #4493f8 } .peer { fill: #656c76 } .floor { fill: #3d444d }
.spread { stroke: #f0f6fc }
}"""


class Panel:
    """Systems side by side in one figure of one row."""

    def __init__(self, title, unit):
        self.title = title
        self.unit = unit
        self.bars = []

    def add(self, label, kind, figures):
        """A bar of the `kind` ours, peer or floor."""
        self.bars.append((label, kind, quantiles(figures)))

    def height(self):
        return TITLE_HEIGHT + BAR_HEIGHT * len(self.bars) + GAP

    def draw(self, left, top):
        most = max(high for _, _, (_, _, high) in self.bars) or 1
        yield text(left, top + 14, self.title, "title")
        yield text(left, top + 30, self.unit, "unit")
        top += TITLE_HEIGHT
        for label, kind, (low, median, high) in self.bars:
            start, middle = left + LABEL_WIDTH, top + BAR_HEIGHT / 2
            low, end, high = (start + BAR_WIDTH * max(at, 0) / most for at in (low, median, high))
            yield text(start - 6, middle + 4, label, anchor="end")
            yield (
                f'<rect class="{kind}" x="{start}" y="{top + 2}" '
                f'width="{max(end - start, 1):.1f}" height="{BAR_HEIGHT - 4}"/>'
            )
            if high - low > 1:
                yield (
                    f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" '
                    f'y1="{middle}" y2="{middle}"/>'
                )
            yield text(max(end, high) + 6, middle + 4, number(median), "value")
            top += BAR_HEIGHT


def text(x, y, words, kind="label", anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(title, lines):
    """A picture of panels, those of each of the `lines` beside each other."""
    if all(len(panels) == 1 for panels in lines):
        alone = [panel for panels in lines for panel in panels]
        lines = [alone[at : at + 2] for at in range(0, len(alone), 2)]
    parts, top = [], GAP
    for panels in lines:
        for column, panel in enumerate(panels):
            parts += panel.draw(GAP + column * PANEL_WIDTH, top)
        top += max(panel.height() for panel in panels)
    width = 2 * GAP + PANEL_WIDTH * max(len(panels) for panels in lines)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}"'
    return "\n".join(
        [
            f'{head} height="{top}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            '<rect class="page" width="100%" height="100%"/>',
            *parts,
            "</svg>\n",
        ]
    )
