"""Time of `tokdsl check`: a cold process beside `import torch`, and growth with the program.

Run with ``python -m benchmarks.checking``; writes a table and ``benchmarks/results/checking.json``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPEATS = 5

BLOCK = """
# A feed-forward block with a gate of its own, number {n}.
block gated_{n}(x: [*, d]; hidden: int, scale: float = 1.0) -> [*, d] {{
  gate = linear(x; hidden)
  up = linear(x; hidden)
  mixed = silu(gate) * up
  scaled = mixed * scale
  down = linear(scaled; d)
}}
"""
LAYER = "    residual {{ rmsnorm(); gated_{n}(hidden = 4 * d) }}"


def program(lines: int) -> str:
    """Return a program of about so many lines: definitions, and a model that uses them all."""
    each = BLOCK.count("\n") + 1
    count = max(1, lines // each)
    blocks = "".join(BLOCK.format(n=n) for n in range(count))
    layers = "\n".join(LAYER.format(n=n) for n in range(count))
    return f"""{blocks}
model long(vocab: int = 256, d: int = 64) {{
  stage text(ids: tokens[vocab]) {{
    embed(d)
{layers}
    unembed(vocab)
  }}
  objective next_token(text, ids)
  require causal
}}
"""


def seconds(command: list[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def interleaved(commands: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """Return the median time of each command, run in turn so that load falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command))
    return {name: statistics.median(values) for name, values in times.items()}


def cold() -> dict[str, float]:
    """Return cold times of `check` on every example, and of `import torch`."""
    commands = {"import torch": [sys.executable, "-c", "import torch"]}
    for path in sorted((ROOT / "examples").glob("*.tok")):
        commands[path.stem] = [sys.executable, "-m", "tokdsl", "check", str(path)]
    interleaved(commands, 1)
    return interleaved(commands, REPEATS)


def growth() -> dict[int, float]:
    """Return the time to check programs of growing length, in one warm process."""
    from tokdsl.driver import check_text

    found: dict[int, float] = {}
    check_text(program(100))
    for lines in (200, 500, 1000, 2000, 5000):
        text = program(lines)
        start = time.perf_counter()
        report = check_text(text)
        found[text.count("\n")] = time.perf_counter() - start
        assert not report.has_errors, [d.message() for d in report]
    return found


def main() -> int:
    """Measure, print and save."""
    times = cold()
    torch = times.pop("import torch")
    print(f"import torch: {torch:.3f} s")
    print(f"{'example':<16}{'check (s)':>10}{'ratio':>8}")
    for name, value in times.items():
        print(f"{name:<16}{value:>10.3f}{value / torch:>8.2f}")
    grown = growth()
    print(f"\n{'lines':<8}{'check (s)':>10}{'ms / line':>11}")
    for lines, value in grown.items():
        print(f"{lines:<8}{value:>10.3f}{1000 * value / lines:>11.3f}")
    RESULTS.mkdir(exist_ok=True)
    data = {"import_torch": torch, "check": times, "growth": grown}
    (RESULTS / "checking.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
