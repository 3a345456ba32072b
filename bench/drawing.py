"""Diagrams of lines, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Lines = Mapping[str, Sequence[tuple[float, float]]]
"""Points by the name of their line."""
WIDTH, HEIGHT, MARGIN = 420, 260, 50
COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b"),
    *("#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e"),
)
IN_A_ROW = 2
LEGEND, IN_A_LEGEND = 14, 3
"""Height of a line of names, and how many are in each."""


def page(panels: Mapping[str, Lines], words: str) -> str:
    """
    Diagrams side by side, two in a row.

    Args:
        panels: by title.
        words: what is along all of them.
    """
    above = LEGEND * -(-max(map(len, panels.values())) // IN_A_LEGEND)
    wide, high = WIDTH + MARGIN, HEIGHT + 2 * MARGIN + above
    rows = -(-len(panels) // IN_A_ROW)
    drawn = ""
    for number, (title, lines) in enumerate(panels.items()):
        x, y = number % IN_A_ROW * wide, number // IN_A_ROW * high
        drawn += f'<g transform="translate({x},{y})">{_panel(title, lines, above)}</g>'
    width, height = IN_A_ROW * wide + MARGIN, rows * high
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{drawn}'
        f'<text x="{width // 2}" y="{height - 8}" text-anchor="middle">{words}</text></svg>\n'
    )


def _panel(title: str, lines: Lines, above: int) -> str:
    """One diagram, from 0 on both axes, with so much room above it for names."""
    most_x = max((x for points in lines.values() for x, _ in points), default=1.0) or 1.0
    most_y = max((y for points in lines.values() for _, y in points), default=0.0) * 1.1 or 1.0
    top = MARGIN + above - LEGEND

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / most_x * WIDTH, top + HEIGHT - y / most_y * HEIGHT

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

    parts = [f'<text x="{MARGIN}" y="{MARGIN - 24}" font-weight="bold">{title}</text>']
    corners = [at(0, most_y), at(0, 0), at(most_x, 0)]
    parts.append(f'<polyline points="{path(corners)}" fill="none" stroke="black"/>')
    step = max(1.0, float(f"{most_x / 5:.0e}"))
    for number in range(1, int(most_x / step) + 1):
        x, y = at(number * step, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{number * step:,.0f}</text>')
    for value in (most_y / 1.1, most_y / 2.2):
        x, y = at(0, value)
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        x, y = MARGIN + 140 * (number % IN_A_LEGEND), MARGIN - 8 + LEGEND * (number // IN_A_LEGEND)
        drawn = path([at(*point) for point in points])
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{name}</text>')
    return "".join(parts)
