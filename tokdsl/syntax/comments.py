"""Comments: where they are, and which of them document a definition."""

from __future__ import annotations

from bisect import bisect_left


class Comments:
    """The comments of a text, in order.

    Args:
        text: the text.
        places: start and end of each comment.
    """

    def __init__(self, text: str, places: list[tuple[int, int]]) -> None:
        self.text = text
        self.places = places
        self._starts = [start for start, _ in places]

    def doc_above(self, start: int) -> str:
        """Return the text of the comment block directly above the line of ``start``."""
        lines = []
        begin = self.text.rfind("\n", 0, start) + 1
        place = bisect_left(self._starts, begin) - 1
        while place >= 0:
            low, high = self.places[place]
            line = self.text.rfind("\n", 0, low) + 1
            if high + 1 != begin or self.text[line:low].strip():
                break
            lines.append(comment_text(self.text[low:high]))
            begin = line
            place -= 1
        return "\n".join(reversed(lines))


def comment_text(comment: str) -> str:
    """Return what a comment says, without its sign."""
    return comment.rstrip().removeprefix("#").removeprefix(" ")
