"""What was measured on a GPU survives a new build, as far as its kernels do."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tokdsl.driver import build
from tokdsl.emit.tuned import kept

SPEC = """
use std.attention {{ gqa }}
use std.ffn {{ swiglu }}
use std.routers {{ softmax_topk }}

# {comment}
model m(d: int = 32) {{
  stage text(ids: tokens[32]) {{
    embed(d)
    residual {{ gqa(heads = 2) }}
    residual {{
      moe(experts = {experts}, expert = swiglu(hidden = 8), router = softmax_topk(top = 2))
    }}
    {more}
    unembed(32)
  }}
  objective next_token(text, ids)
}}
"""


def made(folder: Path, comment: str = "", experts: int = 4, more: str = "") -> Path:
    path = folder / "spec.tok"
    path.write_text(SPEC.format(comment=comment, experts=experts, more=more), "utf-8")
    built = build(path, folder)
    assert built.directory is not None, [d.message() for d in built.report]
    return built.directory


def candidates(package: Path) -> dict[str, list[dict[str, int]]]:
    """Return the candidates of a package's configurations, without running it."""
    text = (package / "kernels.py").read_text("utf-8")
    value = text[text.index("= {", text.index("CONFIGS: ")) + 2 : text.index("@cache")]
    found: dict[str, list[dict[str, int]]] = ast.literal_eval(value.strip())
    return found


def test_a_new_build_keeps_what_was_measured(tmp_path: Path) -> None:
    package = made(tmp_path)
    # of two devices, the last candidate of every kernel
    best = {key: many[-1] for key, many in candidates(package).items()}
    tuned = {"NVIDIA H100": best, "AMD MI300X": best}
    (package / "tuned.json").write_text(json.dumps(tuned), "utf-8")
    assert json.loads((made(tmp_path) / "tuned.json").read_text("utf-8")) == tuned
    # lines have other numbers, and another layer has the same kernels
    moved = made(tmp_path, comment="a\n# b", more="residual { gqa(heads = 2) }")
    assert json.loads((moved / "tuned.json").read_text("utf-8")) == tuned


def test_what_was_measured_on_another_kernel_is_dropped(tmp_path: Path) -> None:
    package = made(tmp_path)
    best = {key: many[-1] for key, many in candidates(package).items()}
    (package / "tuned.json").write_text(json.dumps({"NVIDIA H100": best}), "utf-8")
    # the number of experts stands in the kernel of the router
    package = made(tmp_path, experts=7)
    left = json.loads((package / "tuned.json").read_text("utf-8"))["NVIDIA H100"]
    assert left == {key: value for key, value in best.items() if not key.startswith("rows.")}
    assert {key.split(".")[0] for key in left} >= {"attend", "dispatch"}


def test_kernels_that_are_gone_are_dropped() -> None:
    one = kernels("alpha", "beta")
    assert kept(tuned("alpha.forward", "beta.forward"), one, one) == tuned(
        "alpha.forward", "beta.forward"
    )
    assert kept(tuned("alpha.forward", "beta.forward"), one, kernels("beta")) == tuned(
        "beta.forward"
    )
    assert kept(tuned("alpha.forward"), one, kernels("beta")) == ""
    assert kept(tuned("alpha.forward"), one, "") == ""


def test_a_function_that_is_called_counts_and_a_docstring_does_not() -> None:
    one = kernels("alpha")
    assert kept(tuned("alpha.forward"), one, one.replace("Run it.", "Run it now."))
    assert not kept(tuned("alpha.forward"), one, one.replace("x + 1", "x + 2"))


def test_settings_that_a_kernel_does_not_have_are_dropped() -> None:
    one = kernels("alpha")
    assert not kept(tuned("alpha.forward"), one, one.replace('"BLOCK"', '"ROWS"'))


def test_what_is_not_readable_stays() -> None:
    for text in ("{", "[1]", '{"cpu": 3}'):
        assert kept(text, kernels("alpha"), kernels("alpha")) == text


def tuned(*keys: str) -> str:
    return json.dumps({"cpu": {key: {"BLOCK": 64} for key in keys}}, indent=2) + "\n"


def kernels(*templates: str) -> str:
    configs = {f"{name}.forward": [{"BLOCK": 32}, {"BLOCK": 64}] for name in templates}
    functions = "".join(
        f'''
@triton.jit
def _{name}_step(x):
    return x + 1

@triton.jit
def _{name}_forward(x, BLOCK: tl.constexpr):
    tl.store(x, _{name}_step(tl.load(x)))

def {name}(x):
    """Run it."""
    _{name}_forward[(1,)](x, **config("{name}.forward"))
'''
        for name in templates
    )
    head = f"CONFIGS: dict[str, list[dict[str, int]]] = {json.dumps(configs)}\n"
    return head + "def config(kernel):\n    return CONFIGS[kernel][0]\n" + functions
