"""An outline as a Mermaid flowchart, for pages that draw it themselves."""

from __future__ import annotations

from tokdsl.commands.drawing.layout import experts_drawn
from tokdsl.commands.drawing.parts import Box, Column, Fan, Frame, Join, Outline, Part
from tokdsl.commands.drawing.svg import COLORS


def mermaid(outline: Outline) -> str:
    """Return the text of a flowchart; the same outline gives the same bytes."""
    return Writer().write(outline)


class Writer:
    """Writes nodes and edges, with a number for each node."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.edges: list[str] = []
        self.kinds: dict[str, list[str]] = {}
        self.reads: list[tuple[str, str]] = []
        self.depth = 1
        self.count = 0

    def write(self, outline: Outline) -> str:
        """Return the whole chart."""
        results: dict[str, str] = {}
        sources: list[tuple[str, str]] = []
        for stage in outline.stages:
            inputs = [self._node(text, "([{}])") for text in stage.inputs]
            first, last = self._group(stage.name, stage.column)
            for node in inputs:
                self._edge(node, first)
            if stage.source:
                sources.append((stage.source, first))
            results[stage.name] = self._node(f"{stage.name}: {stage.result}", "([{}])")
            self._edge(last, results[stage.name])
        for name, node in [*sources, *((name, node) for node, name in self.reads)]:
            self._edge(results[name], node)
        styles = [
            f"  classDef {kind.replace('-', '_')} fill:{fill},stroke:{stroke},color:#1a1f24;"
            for kind, (fill, stroke) in COLORS.items()
            if kind in self.kinds
        ]
        used = [
            f"  class {','.join(nodes)} {kind.replace('-', '_')};"
            for kind, nodes in self.kinds.items()
        ]
        head = ["---", f"title: {outline.title}", "---", "flowchart TD"]
        return "\n".join([*head, *self.lines, *self.edges, *styles, *used]) + "\n"

    # ----------------------------------------------------------------- pieces

    def _line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def _node(self, text: str, form: str = "[{}]", kind: str = "") -> str:
        self.count += 1
        name = f"n{self.count}"
        self._line(name + form.format(_quoted(text)))
        if kind:
            self.kinds.setdefault(kind, []).append(name)
        return name

    def _edge(self, start: str, end: str, label: str = "", dashed: bool = False) -> None:
        arrow = "-.->" if dashed else "-->"
        text = f"|{_quoted(label)}|" if label else ""
        self.edges.append(f"  {start} {arrow}{text} {end}")

    def _group(self, title: str, column: Column) -> tuple[str, str]:
        self.count += 1
        self._line(f"subgraph g{self.count}[{_quoted(title)}]")
        self.depth += 1
        ends = self._column(column)
        self.depth -= 1
        self._line("end")
        return ends

    def _column(self, column: Column) -> tuple[str, str]:
        ends: list[tuple[str, str]] = []
        for i, part in enumerate(column.parts):
            placed = self._part(part)
            if ends:
                self._edge(ends[-1][1], placed[0], column.shapes[i - 1])
            ends.append(placed)
        for skip in column.skips:
            start = ends[skip.first - 1][1] if skip.first else ends[0][0]
            self._edge(start, ends[skip.last][0], dashed=True)
        if not ends:
            node = self._node("same", "(({}))")
            return node, node
        return ends[0][0], ends[-1][1]

    def _part(self, part: Part) -> tuple[str, str]:
        if isinstance(part, Box):
            node = self._box(part, part.title)
            return node, node
        if isinstance(part, Frame):
            title = " ".join(text for text in (part.title, part.note, part.tag) if text)
            return self._group(title, part.inner)
        if isinstance(part, Join):
            return self._join(part)
        return self._fan(part)

    def _box(self, part: Box, title: str) -> str:
        form = {"plain": "[{}]", "narrow": "[\\{}/]", "widen": "[/{}\\]"}[part.form]
        node = self._node("<br/>".join((title, *part.details)), form, part.kind)
        self.reads += [(node, name) for name in part.reads]
        return node

    def _join(self, part: Join) -> tuple[str, str]:
        fork = self._node(" ", "(({}))")
        branches = [self._column(branch) for branch in part.branches]
        meet = self._node(part.sign, "(({}))")
        for first, last in branches:
            self._edge(fork, first)
            self._edge(last, meet)
        if part.bypass:
            self._edge(fork, meet)
        return fork, meet

    def _fan(self, part: Fan) -> tuple[str, str]:
        self.count += 1
        self._line(f"subgraph g{self.count}[{_quoted(f'{part.title} {part.note}')}]")
        self.depth += 1
        entry = self._node(" ", "(({}))") if part.router is None or part.always else ""
        router = self._box(part.router, part.router.title) if part.router is not None else entry
        boxes = [
            self._box(expert, name) if name else self._node("…", "(({}))")
            for expert, name in experts_drawn(part)
        ]
        always = [self._box(extra, extra.title) for extra in part.always]
        meet = self._node("+", "(({}))")
        if entry and entry != router:
            self._edge(entry, router)
        for node in boxes:
            self._edge(router, node)
            self._edge(node, meet)
        for node in always:
            self._edge(entry, node)
            self._edge(node, meet)
        self.depth -= 1
        self._line("end")
        return entry or router, meet


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
