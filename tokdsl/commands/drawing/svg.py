"""A scene as SVG: dark text on white, one colour per kind, readable in print."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from tokdsl.commands.drawing.layout import ROUND, SLOPE, Circle, Line, Rect, Scene, Text
from tokdsl.commands.drawing.parts import Box, Frame, Kind

#: fill and outline by kind; the lightness differs too, so that they differ without colour
COLORS: dict[Kind, tuple[str, str]] = {
    "attention": ("#fde7cf", "#b45f06"),
    "feed-forward": ("#dce9f9", "#2f5f9e"),
    "router": ("#e8defa", "#6b3fa0"),
    "norm": ("#f7f3d2", "#8a7a1c"),
    "embedding": ("#f9dfe4", "#a8384f"),
    "clock": ("#d5f0ea", "#1f7a68"),
    "other": ("#eef0f2", "#5b6570"),
    "objective": ("#eef0f2", "#5b6570"),
}
INK, GREY, FRAME = "#1a1f24", "#5b6570", "#9aa4ae"
FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"

STYLE = f"""
text {{ font-family: {FONT}; fill: {INK}; }}
.head {{ font-size: 18px; font-weight: 700; }}
.tag {{ font-size: 15px; font-weight: 700; }}
.box {{ font-size: 13px; font-weight: 600; }}
.note, .detail {{ font-size: 10.5px; fill: {GREY}; }}
.code {{ font-size: 10.5px; }}
.detail {{ fill: #3a434c; }}
.shape {{ font-size: 10px; fill: {GREY}; }}
.dots {{ font-size: 15px; fill: {GREY}; }}
.title {{ font-size: 13px; font-weight: 700; fill: {INK}; }}
.name {{ font-size: 10.5px; font-weight: 700; }}
.sign {{ font-size: 14px; font-weight: 600; }}
.line {{ fill: none; stroke: {INK}; stroke-width: 1.2; stroke-linejoin: round; }}
.dashed {{ stroke: {FRAME}; stroke-dasharray: 3 3; }}
"""


def svg(scene: Scene, title: str) -> str:
    """Return the text of an SVG file; the same scene gives the same bytes."""
    width, height = number(scene.width), number(scene.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "<defs>",
        _marker("arrow", INK),
        _marker("pale", FRAME),
        "</defs>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_frame(rect) for rect in scene.frames),
        *(_line(line) for line in sorted(scene.lines, key=lambda line: not line.dashed)),
        *(_box(rect) for rect in scene.boxes),
        *(_circle(circle) for circle in scene.circles),
        *(_swatch(*place) for place in scene.legend),
        *(_text(text) for text in scene.texts),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{round(value, 1):g}" if abs(value) < 1e5 else f"{value:.0f}"


def _marker(name: str, color: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="6.5" '
        f'markerHeight="6.5" orient="auto"><path d="M0 0.6 L8 4 L0 7.4 z" fill="{color}"/></marker>'
    )


def _frame(rect: Rect) -> str:
    part = rect.part
    style = 'fill="#ffffff" stroke-width="1.4"'
    radius = 10
    if isinstance(part, Frame) and part.style == "repeat":
        style = 'fill="#f8f9fa" stroke-width="1.2" stroke-dasharray="6 4"'
    elif isinstance(part, Frame) and part.style == "block":
        style, radius = 'fill="#ffffff" stroke-width="1"', 6
    elif isinstance(part, Frame):
        style = 'fill="#eef8f5" stroke-width="1.4"'
    elif not hasattr(part, "column"):
        style, radius = 'fill="#ffffff" stroke-width="1"', 6
    return f'<rect {_place(rect)} rx="{radius}" stroke="{FRAME}" {style}/>'


def _place(rect: Rect) -> str:
    x, y, w, h = map(number, (rect.x, rect.y, rect.width, rect.height))
    return f'x="{x}" y="{y}" width="{w}" height="{h}"'


def _line(line: Line) -> str:
    marker = f' marker-end="url(#{"pale" if line.dashed else "arrow"})"' if line.arrow else ""
    kind = "line dashed" if line.dashed else "line"
    return f'<path class="{kind}" d="{_path(line)}"{marker}/>'


def _path(line: Line) -> str:
    """Return a path with small round corners."""
    points = line.points
    text = f"M{number(points[0][0])} {number(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _toward(corner, before), _toward(corner, after)
        text += f" L{number(start[0])} {number(start[1])}"
        text += f" Q{number(corner[0])} {number(corner[1])}"
        text += f" {number(end[0])} {number(end[1])}"
    return text + f" L{number(points[-1][0])} {number(points[-1][1])}"


def _toward(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = (dx * dx + dy * dy) ** 0.5
    if not length:
        return corner
    part = min(6.0, length / 2) / length
    return corner[0] + dx * part, corner[1] + dy * part


def _box(rect: Rect) -> str:
    part = rect.part
    assert isinstance(part, Box)
    fill, stroke = COLORS[part.kind]
    paint = f'fill="{fill}" stroke="{stroke}" stroke-width="1.2"'
    if part.form == "plain":
        shape = f'<rect {_place(rect)} rx="5" {paint}/>'
    else:
        shape = f'<path d="{_slanted(rect, part.form == "narrow")}" {paint}/>'
    x = number(rect.x + rect.width / 2)
    top = rect.y + 18.5
    rows = [f'<text class="box" x="{x}" y="{number(top)}" text-anchor="middle">'
            f"{escape(rect.title)}</text>"]  # fmt: skip
    for i, detail in enumerate(part.details):
        y = number(top + 14 * (i + 1))
        rows.append(
            f'<text class="detail" x="{x}" y="{y}" text-anchor="middle">{escape(detail)}</text>'
        )
    return "<g>" + shape + "".join(rows) + "</g>"


def _slanted(rect: Rect, narrow: bool) -> str:
    """Return the outline of a box that gets narrower, or wider, on the way down."""
    left, right, slope = rect.x, rect.x + rect.width, SLOPE
    up, down = (0.0, slope) if narrow else (slope, 0.0)
    corners = [
        (left + up, rect.y),
        (right - up, rect.y),
        (right - down, rect.bottom),
        (left + down, rect.bottom),
    ]
    inner = " L".join(f"{number(x)} {number(y)}" for x, y in corners)
    return f"M{inner} Z"


def _circle(circle: Circle) -> str:
    x, y = number(circle.x), number(circle.y)
    return (
        f'<circle cx="{x}" cy="{y}" r="{number(ROUND)}" fill="#ffffff" stroke="{INK}" '
        f'stroke-width="1.2"/><text class="sign" x="{x}" y="{number(circle.y + 4.8)}" '
        f'text-anchor="middle">{escape(circle.sign)}</text>'
    )


def _swatch(x: float, y: float, kind: Kind) -> str:
    fill, stroke = COLORS[kind]
    place = f'x="{number(x)}" y="{number(y)}" width="10" height="10"'
    return f'<rect {place} rx="2" fill="{fill}" stroke="{stroke}"/>'


def _text(text: Text) -> str:
    anchor = "" if text.anchor == "start" else f' text-anchor="{text.anchor}"'
    place = f'x="{number(text.x)}" y="{number(text.y)}"'
    lead = ""
    if text.lead:
        size = "title" if text.style == "note" else "name"
        lead = f'<tspan class="{size}">{escape(text.lead)}</tspan>'
    if lead and text.text:
        lead += '<tspan dx="8"> </tspan>'
    return f'<text class="{text.style}" {place}{anchor}>{lead}{escape(text.text)}</text>'
