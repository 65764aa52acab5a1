"""The picture and the table of the README, made from the figures of one run of the demo.

``guardrails demo --compartments auto --headless --json docs/demo.json`` makes the figures. This script then
writes docs/demo-light.svg, docs/demo-dark.svg, and the table between the markers of README.md and index.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "demo.json"
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md"]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 860, 250, 34, 58, 26, 44
PANEL = (WIDTH - LEFT - GAP - 16) / 2
COLOURS = {
    "light": ("#1c1d1f", "#5d6168", "#dfe1e4", "#f3c34a55", {"plain": "#c2410c", "guarded": "#0e7490"}),
    "dark": ("#eceded", "#a0a5ad", "#34373c", "#eab30833", {"plain": "#fb923c", "guarded": "#22d3ee"}),
}
"""Of each scheme: text, quiet text, lines of the grid, the time of the fault, and the two twins."""

PANELS = {
    "good_by_second": "Orders, the locked table: good answers per second",
    "bystander_good_by_second": "Items, another table: good answers per second",
}
WORDS = {"plain": "plain", "guarded": "with guardrails"}
LABEL = "Good answers per second before, during and after a table lock, plain and with guardrails"
STYLE = """<style>
text {{ font: 12px system-ui, sans-serif; fill: {quiet} }}
.title {{ font-weight: 600; fill: {ink} }}
path {{ fill: none; stroke-width: 2; stroke-linejoin: round }}
.grid {{ stroke: {edge}; stroke-width: 1 }}
.fault {{ fill: {fault} }}
.plain {{ stroke: {plain} }}
.guarded {{ stroke: {guarded} }}
</style>"""


def picture(figures, scheme):
    """Both panels: the endpoint of the locked table, and one that never uses that table."""
    ink, quiet, edge, fault, lines = COLOURS[scheme]
    most = max(value for twin in WORDS for panel in PANELS for value in figures[twin][panel])
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg {box} role="img" aria-label="{LABEL}">',
        STYLE.format(ink=ink, quiet=quiet, edge=edge, fault=fault, **lines),
    ]
    for at, (twin, words) in zip((LEFT, LEFT + 90), WORDS.items(), strict=True):
        parts += [f'<path class="{twin}" d="M{at} 14h22"/>', text(at + 28, 18, words)]
    for index, (key, title) in enumerate(PANELS.items()):
        parts += panel(figures, key, title, LEFT + index * (PANEL + GAP), -(-most // 10) * 10)
    return "\n".join([*parts, "</svg>", ""])


def text(x, y, words, *more):
    """One piece of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}"{"".join(f" {each}" for each in more)}>{words}</text>'


def panel(figures, key, title, left, top):
    """The parts of one chart."""
    height = HEIGHT - TOP - BOTTOM
    seconds = len(figures["plain"][key])

    def x(second):
        return left + PANEL * second / seconds

    def y(value):
        return TOP + height * (1 - value / top)

    begins, ends = x(figures["fault"]["start_s"]), x(figures["fault"]["end_s"])
    yield text(left, TOP - 14, title, 'class="title"')
    yield f'<rect class="fault" x="{begins:.1f}" y="{TOP}" width="{ends - begins:.1f}" height="{height}"/>'
    yield text((begins + ends) / 2, TOP + 13, "lock", 'text-anchor="middle"')
    for value in range(0, top + 1, 10 if top > 20 else 5):
        yield f'<path class="grid" d="M{left:.0f} {y(value):.1f}h{PANEL:.0f}"/>'
        yield text(left - 6, y(value) + 4, value, 'text-anchor="end"')
    for second in range(0, seconds + 1, 10):
        yield text(x(second), HEIGHT - 8, f"{second} s", 'text-anchor="middle"')
    for twin in WORDS:
        points = (f"{x(second + 0.5):.1f} {y(value):.1f}" for second, value in enumerate(figures[twin][key]))
        yield f'<path class="{twin}" d="M{"L".join(points)}"/>'


def table(figures):
    """The rows that a reader decides by."""
    twins = [figures[twin] for twin in WORDS]
    middle = [f"{twin['answer_p50_ms']['fault']:,.0f} ms" for twin in twins]
    rows = {
        "users served after the lock is released": [
            percent(twin["users_ok_ratio"]["recovery"]) for twin in twins
        ],
        "good again after": [recovered(twin["recovered_after_s"]) for twin in twins],
        "users of other tables served during the lock": [
            percent(twin["bystander_ok_ratio"]["fault"]) for twin in twins
        ],
        "an answer during the lock takes (p50)": [
            f"{middle[0]}, the client's limit",
            f"{middle[1]}, a 503 with `Retry-After`",
        ],
        "most requests inside the app": [f"{twin['max_in_flight']:,}" for twin in twins],
    }
    lines = [f"| {what} | {' | '.join(values)} |" for what, values in rows.items()]
    return "\n".join(["| | plain | guarded |", "|---|---|---|", *lines])


def percent(share):
    """As the pages write it; rounded down, so that 100 % is every user."""
    return f"{int(share * 100)} %"


def recovered(seconds):
    """The seconds until the service was good again."""
    if seconds is None:
        return "never in 45 s"
    return "less than 1 s" if seconds < 1 else f"{seconds:.0f} s"


def filled(page, figures):
    """A page with the table between its markers."""
    new = f"\\1\n{table(figures)}\n\n\\2"
    return re.sub(r"(<!-- demo -->\n).*?(<!-- end -->)", new, page, flags=re.DOTALL)


def main():
    """Writes the files."""
    figures = json.loads(FIGURES.read_text())
    for scheme in COLOURS:
        (FIGURES.parent / f"demo-{scheme}.svg").write_text(picture(figures, scheme))
    for page in PAGES:
        page.write_text(filled(page.read_text(), figures))


if __name__ == "__main__":
    main()
