"""Places for the parts of an outline: columns from top to bottom, stages side by side.

Every part is symmetric about the line on which the stream runs, so that the line is straight from
the input to the result however deep the frames are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.commands.drawing import metrics
from tokdsl.commands.drawing.parts import (
    Box,
    Column,
    Fan,
    Frame,
    Join,
    Kind,
    Outline,
    Part,
    StageColumn,
)

TITLE, DETAIL, SHAPE, HEAD = 13.0, 10.5, 10.0, 18.0
GAP = 26.0  # between parts of a column
LANE = 18.0  # between a part and a line that goes around it
ROUND = 8.0  # radius of the circle where branches meet
PAD = 16.0  # inside a frame
HEADER = 30.0  # of a frame with a title
SIDE = 26.0  # between branches
CHANNEL = 44.0  # between stages
MARGIN = 24.0
BOX_HEIGHT, LINE_HEIGHT, LEAST = 28.0, 14.0, 112.0
SLOPE = 16.0  # how much narrower a box gets that changes the clock
#: experts that are drawn of a kind, before and after the dots
SHOWN = 4

Point = tuple[float, float]


@dataclass(frozen=True)
class Rect:
    """A box or frame with its place; ``part`` is what it shows."""

    x: float
    y: float
    width: float
    height: float
    part: Box | Frame | Fan | StageColumn
    title: str = ""

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height


@dataclass(frozen=True)
class Line:
    """A line through points; dashed when it is not always taken."""

    points: tuple[Point, ...]
    arrow: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Text:
    """A line of text; ``style`` is one of head, title, note, shape, tag, dots, code.

    Args:
        lead: bold words before the text.
    """

    x: float
    y: float
    text: str
    style: str
    anchor: str = "start"
    lead: str = ""


@dataclass(frozen=True)
class Circle:
    """Where branches meet."""

    x: float
    y: float
    sign: str


@dataclass
class Scene:
    """Everything with its place."""

    width: float = 0.0
    height: float = 0.0
    boxes: list[Rect] = field(default_factory=list)
    frames: list[Rect] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    circles: list[Circle] = field(default_factory=list)
    legend: list[tuple[float, float, Kind]] = field(default_factory=list)


@dataclass(frozen=True)
class Ends:
    """Where the stream enters and leaves a placed part; ``solid`` if an arrow may point there."""

    enter: Point
    leave: Point
    solid: bool = True


# --------------------------------------------------------------------------- sizes


def size(part: Part) -> Point:
    """Return width and height."""
    if isinstance(part, Box):
        return _box_size(part)
    if isinstance(part, Frame):
        return _frame_size(part)
    if isinstance(part, Join):
        return _join_size(part)
    return _fan_size(part)


def _box_size(part: Box) -> Point:
    wide = metrics.width(part.title, TITLE, bold=True)
    wide = max([wide, *(metrics.width(line, DETAIL) for line in part.details)])
    slope = 0.0 if part.form == "plain" else 2 * SLOPE + 4
    return max(LEAST, wide + 28 + slope), BOX_HEIGHT + LINE_HEIGHT * len(part.details)


def column_size(column: Column) -> Point:
    """Return width and height of parts in a row, with room for lines around them."""
    sizes = [size(part) for part in column.parts]
    labels = [metrics.width(text, SHAPE) + 14 for text in column.shapes if text]
    wide = max([LEAST, *(w for w, _ in sizes), *(2 * w for w in labels)])
    lanes = 2 * LANE * len(column.skips)
    above = GAP / 2 if any(skip.first == 0 for skip in column.skips) else 0.0
    tall = sum(h for _, h in sizes) + GAP * max(0, len(sizes) - 1)
    return wide + lanes, tall + above


def _head_width(title: str, note: str) -> float:
    wide = metrics.width(title, TITLE, bold=True) + metrics.width(note, DETAIL)
    return 2 * (1.12 * wide + (10 if note else 0) + 22) if title else 0.0


def _frame_size(part: Frame) -> Point:
    wide, tall = column_size(part.inner)
    head = HEADER if part.title else PAD
    wide = max(wide + 2 * PAD, _head_width(part.title, part.note))
    return wide + 2 * _tag_width(part.tag), tall + head + PAD


def _tag_width(tag: str) -> float:
    return metrics.width(tag, TITLE + 2, bold=True) + 10 if tag else 0.0


def _join_size(part: Join) -> Point:
    sizes = [column_size(branch) for branch in part.branches]
    wide = sum(w for w, _ in sizes) + SIDE * (len(sizes) - 1)
    tall = max(h for _, h in sizes)
    fork = GAP if len(sizes) > 1 else 12.0
    return wide + (2 * LANE if part.bypass else 0), tall + fork + 18 + 2 * ROUND


def experts_drawn(part: Fan) -> list[tuple[Box, str]]:
    """Return the boxes in the row of experts; a name of "" is the dots between two."""
    drawn: list[tuple[Box, str]] = []
    limit = SHOWN if len(part.experts) == 1 else 2
    for expert, count in part.experts:
        if count <= limit:
            numbers = [str(i + 1) for i in range(count)]
        else:
            numbers = [*(str(i + 1) for i in range(limit - 2 or 1)), "", str(count)]
        drawn += [(expert, f"{expert.title} {n}" if n else "") for n in numbers]
    return drawn


def _row(part: Fan) -> list[tuple[Box, str, float, float]]:
    """Return box, name, width and height of everything in the row under a router."""
    row: list[tuple[Box, str, float, float]] = []
    for expert, name in experts_drawn(part):
        if name:
            named = Box(name, expert.details)
            wide, tall = _box_size(named)
            row.append((expert, name, wide - 10, tall))
        else:
            row.append((expert, "", 18.0, 0.0))
    for extra in part.always:
        wide, tall = _box_size(extra)
        row.append((extra, extra.title, wide, tall))
    return row


FAN_DROP = 34.0


def _fan_size(part: Fan) -> Point:
    row = _row(part)
    wide = sum(w for _, _, w, _ in row) + 12 * (len(row) - 1) + (SIDE if part.always else 0)
    tall = max(h for _, _, _, h in row)
    head = _head_width(part.title, part.note)
    if part.router is not None:
        router_wide, router_tall = _box_size(part.router)
        wide, tall = max(wide, router_wide), tall + router_tall + FAN_DROP
    total = HEADER + tall + FAN_DROP + 2 * ROUND + PAD
    return max(wide + 2 * PAD, head), total


# --------------------------------------------------------------------------- places


class Placer:
    """Puts parts on a scene, and remembers which boxes read another stage."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.reads: list[tuple[Rect, str]] = []

    def part(self, part: Part, x: float, y: float) -> Ends:
        """Place a part whose line runs at ``x`` and whose upper edge is at ``y``."""
        if isinstance(part, Box):
            return self._box(part, x, y)
        if isinstance(part, Frame):
            return self._frame(part, x, y)
        if isinstance(part, Join):
            return self._join(part, x, y)
        return self._fan(part, x, y)

    def column(self, column: Column, x: float, y: float) -> Ends:
        """Place parts from top to bottom and draw the line between them."""
        top, wide = y, column_size(column)[0]
        if any(skip.first == 0 for skip in column.skips):
            y += GAP / 2
        ends: list[Ends] = []
        for i, part in enumerate(column.parts):
            placed = self.part(part, x, y)
            if ends:
                self._connect(ends[-1].leave, placed)
                if column.shapes[i - 1]:
                    self._shape(x, ends[-1].leave[1], y, column.shapes[i - 1])
            ends.append(placed)
            y += size(part)[1] + GAP
        for lane, skip in enumerate(column.skips):
            self._skip(skip.first, skip.last, ends, x - wide / 2 + LANE * lane + 4, x)
        if not ends:
            return Ends((x, top), (x, top), solid=False)
        return Ends(ends[0].enter, ends[-1].leave, ends[0].solid)

    def _shape(self, x: float, above: float, below: float, text: str) -> None:
        self.scene.texts.append(Text(x + 7, (above + below) / 2 + 3, text, "shape"))

    def _connect(self, start: Point, ends: Ends) -> None:
        self.scene.lines.append(Line((start, ends.enter), arrow=ends.solid))

    def _skip(self, first: int, last: int, ends: list[Ends], lane: float, x: float) -> None:
        """Draw a line around parts on the left, into the side of the last."""
        fork = ends[first].enter[1] - GAP / 2
        target = ends[last].enter[1] + BOX_HEIGHT / 2
        edge = min(
            (_left_edge(rect) for rect in self.scene.boxes if rect.y <= target <= rect.bottom),
            key=lambda left: abs(left - x),
            default=x,
        )
        points = ((x, fork), (lane, fork), (lane, target), (edge, target))
        self.scene.lines.append(Line(points))

    def _box(self, part: Box, x: float, y: float, title: str = "", wide: float = 0.0) -> Ends:
        width, height = _box_size(part)
        width = wide or width
        rect = Rect(x - width / 2, y, width, height, part, title or part.title)
        self.scene.boxes.append(rect)
        self.reads += [(rect, name) for name in part.reads]
        return Ends((x, y), (x, y + height))

    def _frame(self, part: Frame, x: float, y: float) -> Ends:
        wide, tall = size(part)
        wide -= 2 * _tag_width(part.tag)
        left = x - wide / 2
        self.scene.frames.append(Rect(left, y, wide, tall, part, part.title))
        self.header(left, y, part.title, part.note)
        if part.tag:
            tag = Text(left + wide + 8, y + tall / 2 + 5, part.tag, "tag")
            self.scene.texts.append(tag)
        return self.column(part.inner, x, y + (HEADER if part.title else PAD))

    def header(self, left: float, y: float, title: str, note: str) -> None:
        """Write the title of a frame, and a note after it."""
        if title:
            self.scene.texts.append(Text(left + 12, y + 19, note, "note", lead=title))

    def _join(self, part: Join, x: float, y: float) -> Ends:
        wide, tall = size(part)
        middle = y + tall - ROUND
        inner = wide - (2 * LANE if part.bypass else 0)
        single = len(part.branches) == 1
        start = y + (12.0 if single else GAP)
        left = x - inner / 2
        entries: list[Ends] = []
        for branch in part.branches:
            width = column_size(branch)[0]
            center = x if single else left + width / 2
            entries.append(self.column(branch, center, start))
            left += width + SIDE
        self.scene.circles.append(Circle(x, middle, part.sign))
        for ends in entries:
            self._into(ends.leave, (x, middle))
        fork = (x, y) if single else (x, y + 6)
        if part.bypass:
            lane = x + wide / 2 - LANE / 2
            points = (fork, (lane, fork[1]), (lane, middle), (x + ROUND, middle))
            self.scene.lines.append(Line(points))
        if single:
            return Ends(entries[0].enter, (x, middle + ROUND), entries[0].solid)
        for ends in entries:
            points_ = (fork, (ends.enter[0], fork[1]), ends.enter)
            self.scene.lines.append(Line(points_, arrow=ends.solid))
        return Ends(fork, (x, middle + ROUND), solid=False)

    def _into(self, start: Point, middle: Point) -> None:
        """Draw the line from a branch to the circle: from above, or from its side."""
        if abs(start[0] - middle[0]) < 1:
            self.scene.lines.append(Line((start, (middle[0], middle[1] - ROUND))))
            return
        side = ROUND if start[0] > middle[0] else -ROUND
        points = (start, (start[0], middle[1]), (middle[0] + side, middle[1]))
        self.scene.lines.append(Line(points))

    def _fan(self, part: Fan, x: float, y: float) -> Ends:
        wide, tall = size(part)
        self.scene.frames.append(Rect(x - wide / 2, y, wide, tall, part, part.title))
        self.header(x - wide / 2, y, part.title, part.note)
        top = y + HEADER
        source: Point = (x, top)
        entry = Ends((x, top), (x, top), solid=False)
        if part.router is not None:
            entry = self._box(part.router, x, top)
            source = entry.leave
            top = source[1] + FAN_DROP
        middle = y + tall - PAD - ROUND
        self._experts(part, x, top, source, (x, middle), entry.enter)
        self.scene.circles.append(Circle(x, middle, "+"))
        return Ends(entry.enter, (x, middle + ROUND), entry.solid)

    def _experts(
        self, part: Fan, x: float, y: float, source: Point, target: Point, stream: Point
    ) -> None:
        row = _row(part)
        total = sum(w for _, _, w, _ in row) + 12 * (len(row) - 1)
        left = x - (total + (SIDE if part.always else 0)) / 2
        tall = max(h for _, _, _, h in row)
        first_always = len(row) - len(part.always)
        taken = _taken(row[:first_always], part)
        for i, (expert, name, width, height) in enumerate(row):
            if i == first_always:
                left += SIDE
            center = left + width / 2
            left += width + 12
            if not name:
                self.scene.texts.append(Text(center, y + tall / 2 + 4, "…", "dots", "middle"))
                continue
            self._box(expert, center, y, name, width)
            below = (center, y + height)
            if i >= first_always:
                self._always(stream, center, y, below, target)
                continue
            dashed = i not in taken
            self.scene.lines.append(Line((source, (center, y)), dashed=dashed))
            self.scene.lines.append(Line((below, _rim(below, target)), dashed=dashed))

    def _always(self, stream: Point, center: float, y: float, below: Point, target: Point) -> None:
        """Draw the way of every token: from above the router, beside it, and into the sum."""
        fork = stream[1] - 10
        points = ((stream[0], fork), (center, fork), (center, y))
        self.scene.lines.append(Line(points))
        self.scene.lines.append(
            Line((below, (below[0], target[1]), (target[0] + ROUND, target[1])))
        )


def _left_edge(rect: Rect) -> float:
    """Return where the left side of a box is halfway down; a slanted side is further in."""
    slanted = isinstance(rect.part, Box) and rect.part.form != "plain"
    return rect.x + SLOPE / 2 if slanted else rect.x


def _rim(start: Point, target: Point) -> Point:
    """Return where a line to the middle of a circle meets its rim."""
    dx, dy = target[0] - start[0], target[1] - start[1]
    length = max(1.0, (dx * dx + dy * dy) ** 0.5)
    return target[0] - dx / length * ROUND, target[1] - dy / length * ROUND


def _taken(row: list[tuple[Box, str, float, float]], part: Fan) -> set[int]:
    """Return which of the drawn experts to show as chosen: as many as a token takes."""
    drawn = [i for i, (_, name, _, _) in enumerate(row) if name]
    if part.router is None or part.chosen >= len(drawn):
        return set(drawn)
    step = len(drawn) / part.chosen
    return {drawn[min(len(drawn) - 1, int(step * k + step / 2))] for k in range(part.chosen)}


# --------------------------------------------------------------------------- stages


def lay_out(outline: Outline) -> Scene:
    """Return the whole scene."""
    scene = Scene()
    placer = Placer(scene)
    scene.texts.append(Text(MARGIN, MARGIN + HEAD - 4, outline.title, "head"))
    top = MARGIN + HEAD + 14
    if outline.subtitle:
        scene.texts.append(Text(MARGIN, top + 4, outline.subtitle, "note"))
        top += 14
    left, bottom = MARGIN, top
    places: dict[str, tuple[Rect, Ends]] = {}
    for i, stage in enumerate(outline.stages):
        left += CHANNEL if i else 0
        rect, ends, low = _place_stage(placer, stage, left, top + 8)
        places[stage.name] = rect, ends
        left += rect.width
        bottom = max(bottom, low)
    bottom = _cross(placer, outline, places, bottom)
    width = max(left, metrics.width(outline.title, HEAD, bold=True) + MARGIN)
    width = max(width, MARGIN + metrics.width(outline.subtitle, DETAIL))
    bottom, width = _objective(scene, outline.objective, bottom, width)
    bottom, width = _legend(scene, bottom, width)
    scene.width, scene.height = width + MARGIN, bottom + MARGIN
    return scene


def _place_stage(
    placer: Placer, stage: StageColumn, left: float, top: float
) -> tuple[Rect, Ends, float]:
    scene = placer.scene
    wide, tall = column_size(stage.column)
    label = f"{stage.name}: {stage.result}"
    texts = [metrics.width(text, DETAIL) + 8 for text in (*stage.inputs, label)]
    width = max([wide + 2 * PAD, _head_width(stage.name, ""), *texts])
    x = left + width / 2
    y = top
    for text in stage.inputs:
        scene.texts.append(Text(x, y + 11, text, "code", "middle"))
        y += LINE_HEIGHT
    frame_top = top + LINE_HEIGHT * max(1, len(stage.inputs)) + 16
    height = tall + HEADER + 12 + PAD
    rect = Rect(left, frame_top, width, height, stage, stage.name)
    scene.frames.append(rect)
    placer.header(left, frame_top, stage.name, "")
    ends = placer.column(stage.column, x, frame_top + HEADER + 12)
    if stage.inputs and not stage.source:
        scene.lines.append(Line(((x, y + 3), ends.enter), arrow=ends.solid))
    out = rect.bottom + 18
    scene.lines.append(Line((ends.leave, (x, out))))
    scene.texts.append(Text(x, out + 13, label, "code", "middle"))
    return rect, Ends(ends.enter, (x, out + 18), ends.solid), out + 18


def _cross(
    placer: Placer, outline: Outline, places: dict[str, tuple[Rect, Ends]], bottom: float
) -> float:
    """Draw the lines from one stage's result into another stage, below and between them."""
    wanted: list[tuple[str, Point, str]] = [
        (name, (rect.x, rect.y + rect.height / 2), _owner(places, rect))
        for rect, name in placer.reads
    ]
    for stage in outline.stages:
        if stage.source:
            wanted.append((stage.source, places[stage.name][1].enter, stage.name))
    order = [stage.name for stage in outline.stages]
    levels: dict[tuple[str, bool], float] = {}
    used: dict[str, int] = {}
    for source, target, owner in wanted:
        if source not in places:
            continue
        x, y = places[source][1].leave
        near = order.index(owner) == order.index(source) + 1
        below = y + 8 if near else bottom + 10 + 10 * len(levels)
        level = levels.setdefault((source, near), below)
        frame = places[owner][0]
        used[owner] = used.get(owner, 0) + 1
        channel = frame.x - 10 - 8 * (used[owner] - 1)
        points: tuple[Point, ...] = ((x, y), (x, level), (channel, level), (channel, target[1]))
        if target == places[owner][1].enter:
            above = frame.y - 12
            points = (*points[:3], (channel, above), (target[0], above), target)
        else:
            points = (*points, target)
        placer.scene.lines.append(Line(points))
    return max([bottom, *levels.values()])


def _owner(places: dict[str, tuple[Rect, Ends]], rect: Rect) -> str:
    return next(
        name for name, (frame, _) in places.items() if frame.x <= rect.x <= frame.x + frame.width
    )


def _objective(scene: Scene, text: str, bottom: float, width: float) -> tuple[float, float]:
    """Write the objective under the stages, in as many lines as it needs."""
    if not text:
        return bottom, width
    y = bottom + 30
    left = MARGIN + metrics.width("objective", DETAIL, bold=True) + 10
    room = max(width - left, 260.0)
    lines = [""]
    for word in text.split(" "):
        if metrics.width(f"{lines[-1]} {word}", DETAIL) > room and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for i, line in enumerate(lines):
        place = (MARGIN, "objective") if i == 0 else (left, "")
        scene.texts.append(Text(place[0], y + i * LINE_HEIGHT, line, "code", lead=place[1]))
    widest = max(metrics.width(line, DETAIL) for line in lines)
    return y + (len(lines) - 1) * LINE_HEIGHT, max(width, left + widest)


def _legend(scene: Scene, bottom: float, width: float) -> tuple[float, float]:
    """Name the colours that are there, in a row that breaks where the diagram ends."""
    kinds = dict.fromkeys(rect.part.kind for rect in scene.boxes if isinstance(rect.part, Box))
    x, y = MARGIN, bottom + 26
    for kind in kinds:
        wide = 16 + metrics.width(kind, SHAPE) + 14
        if x > MARGIN and x + wide > width:
            x, y = MARGIN, y + LINE_HEIGHT + 2
        scene.legend.append((x, y - 8, kind))
        scene.texts.append(Text(x + 15, y, kind, "shape"))
        x += wide
        width = max(width, x)
    return y, width
