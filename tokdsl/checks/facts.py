"""What the checks establish about a program; read by ``require``, the summary and lowering."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Facts:
    """Facts by name; each is set by exactly one check.

    Args:
        causal: by stage: whether every output depends only on its own and earlier tokens.
        isolated: whether documents that are packed into a row do not see each other.
        streaming: whether the compiler can derive a step-by-step decoder.
        numbers: costs and counts by name (``params``, ``active_params``, ``flops`` ...).
        tables: structured facts for the summary, by name.
    """

    causal: dict[str, bool] = field(default_factory=dict)
    isolated: bool = False
    streaming: bool = False
    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, object] = field(default_factory=dict)
