"""Derived decoders of models that read more than their stream: it is read once, with the prompt."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package
from tokdsl.training.sampling import missing_inputs
from tokdsl.verification import causality, streaming
from tokdsl.verification.result import Verdict
from tokdsl.verification.subject import Subject

ROOT = Path(__file__).parents[2]

CROSS = """
use std.attention { gqa, rope }

attention cross(x: [T, d], memory: [S, d]; heads: int) -> [T, d] {
  q    = linear(x; heads, head_dim: d // heads)
  read = rmsnorm(memory)
  k    = rope(linear(read; heads, head_dim: d // heads))
  v    = linear(read; heads, head_dim: d // heads)
  linear(attend(q, k, v); d, over = [heads, head_dim])
}
"""

TRANSLATE = f"""{CROSS}
# Scales a stream by a vector; used once for a vector of the source and once for one of the stream.
block scaled(x: [T, d], by: [d]) -> [T, d] {{ x * sigmoid(linear(by; d)) }}

model translate(d: int = 16) {{
  table = weight(50, d; init = normal(std = 0.5))

  stage encoder(source: tokens[50]) {{
    lookup(table, source)
    repeat 2 {{ residual {{ rmsnorm(); gqa(heads = 2, rotary = rope, mask = full) }} }}
  }}
  stage decoder(target: tokens[50], encoder: [S, d]) {{
    lookup(table, target)
    # layers on the memory alone, inside of the decoder
    memory = rmsnorm(encoder)
    gist   = mean(memory; over = T)
    repeat 2 {{
      residual {{ rmsnorm(); gqa(heads = 2, rotary = rope, mask = sliding(window = 4)) }}
      residual {{ rmsnorm(); cross(it, memory; heads = 2) }}
      residual {{ scaled(it, gist) }}
    }}
    dot(rmsnorm(it), table; over = d)
  }}

  objective next_token(decoder, target)
  require streaming
}}
"""

CAPTION = f"""{CROSS}
model caption(d: int = 16) {{
  stage image(pixels: [channels: 3, height: 16, width: 16], kind: i64[]) {{
    linear(patches(pixels; 4, pixel: 48); d) + lookup(weight(3, d; init = normal(std = 0.5)), kind)
    residual {{ rmsnorm(); gqa(heads = 2, mask = full) }}
  }}
  stage text(ids: tokens[40], image: [S, d]) {{
    embed(d)
    residual {{ rmsnorm(); gqa(heads = 2, rotary = rope) }}
    residual {{ rmsnorm(); cross(it, image; heads = 2) }}
    unembed(40)
  }}
  # what else is said of the image is no part of a step
  stage classes(image: [S, d]) {{ linear(mean(image; over = patches); names: 5) }}

  objective next_token(text, ids) + 0.1 * mean(square(classes))
  require streaming
}}
"""

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
LENGTH, SOURCE, ROWS = 11, 7, 3

Make = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Make:
    found: dict[str, ModuleType] = {}

    def make(text: str) -> ModuleType:
        if text not in found:
            folder = tmp_path_factory.mktemp("spec")
            (folder / "spec.tok").write_text(text, "utf-8")
            built = build(folder / "spec.tok", folder / "out", {})
            assert not [finding.message() for finding in built.report]
            assert built.directory is not None
            found[text] = import_package(built.directory)
        return found[text]

    return make


@pytest.fixture
def translate(packages: Make) -> Any:
    return drawn(packages(TRANSLATE))


def drawn(package: ModuleType) -> Any:
    torch.manual_seed(3)
    return package.Model().eval()


def source_and_target(rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Return source, which of its tokens are padding (on either side), and target."""
    random = torch.Generator().manual_seed(5)
    source = torch.randint(50, (rows, SOURCE), generator=random)
    target = torch.randint(50, (rows, LENGTH), generator=random)
    valid = torch.ones(rows, SOURCE, dtype=torch.bool)
    valid[0, 4:] = False
    valid[-1, :2] = False
    return source, valid, target


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("pieces", [(11,), (1,) * 11, (0, 4, 7), (3, 1, 5, 2)], ids=str)
def test_prefill_and_steps_are_the_whole_pass(
    translate: Any, pieces: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = translate.to(dtype)
    source, valid, target = source_and_target()
    whole = model(source, target, valid).decoder
    state = model.new_state(batch=ROWS)
    prompt, *steps = target.split(pieces, dim=1)
    found = [model.prefill(prompt, state, source, valid)]
    found += [model.step(ids, state) for ids in steps]
    assert (torch.cat(found, dim=1) - whole).abs().max() < LIMITS[dtype]


def test_a_padded_row_gives_what_it_gives_alone(translate: Any) -> None:
    source, valid, target = source_and_target()
    state = translate.new_state(batch=ROWS)
    found = [translate.prefill(target[:, :3], state, source, valid)]
    found += [translate.step(target[:, t : t + 1], state) for t in range(3, LENGTH)]
    for row in range(ROWS):
        alone = translate(source[row][valid[row]][None], target[row : row + 1]).decoder
        assert (torch.cat(found, dim=1)[row] - alone[0]).abs().max() < 1e-5


def test_prompts_are_padded_on_the_left_apart_from_the_source(translate: Any) -> None:
    source, valid, target = source_and_target()
    padding = torch.tensor([2, 0, 1])
    given = torch.arange(4) >= padding[:, None]
    state = translate.new_state(batch=ROWS)
    found = [translate.prefill(target[:, :4], state, source, valid, given)]
    found += [translate.step(target[:, t : t + 1], state) for t in range(4, 7)]
    for row, gone in enumerate(padding.tolist()):
        alone = translate(
            source[row : row + 1], target[row : row + 1, gone:7], valid[row : row + 1]
        )
        mine = torch.cat(found, dim=1)[row, gone:]
        assert (mine - alone.decoder[0]).abs().max() < 1e-5


def test_what_is_read_once_is_computed_once(translate: Any) -> None:
    calls: list[str] = []
    decoder = translate.decoder
    parts = {"encoder": translate.encoder, "memory": decoder.memory}
    for i, layer in enumerate(decoder.layers):
        parts |= {f"k{i}": layer.cross.k, f"v{i}": layer.cross.v, f"norm{i}": layer.cross.read}
        parts |= {f"gist{i}": layer.scaled.linear}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    source, valid, target = source_and_target()
    state = translate.new_state(batch=ROWS)
    translate.prefill(target[:, :2], state, source, valid)
    for t in range(2, LENGTH):
        translate.step(target[:, t : t + 1], state)
    assert sorted(calls) == sorted(parts)


def test_beams_change_places_with_what_was_read_once(translate: Any) -> None:
    source, valid, target = source_and_target()
    state = translate.new_state(batch=ROWS)
    translate.prefill(target[:, :5], state, source, valid)
    index = torch.tensor([2, 0, 2, 1])
    state.reorder(index)
    found = translate.step(target[index, 5:], state)
    whole = translate(source[index], target[index], valid[index]).decoder
    assert (found - whole[:, 5:]).abs().max() < 1e-5


def test_one_row_becomes_several_beams(translate: Any) -> None:
    source, _, target = source_and_target()
    state = translate.new_state(batch=1)
    translate.prefill(target[:1, :5], state, source[:1])
    state.reorder(torch.zeros(4, dtype=torch.long))
    found = translate.step(target[:1, 5:].expand(4, -1), state)
    whole = translate(source[:1], target[:1]).decoder
    assert (found - whole[:, 5:]).abs().max() < 1e-5


def test_a_snapshot_holds_what_was_read_once(translate: Any) -> None:
    source, valid, target = source_and_target()
    state = translate.new_state(batch=ROWS)
    translate.prefill(target[:, :5], state, source, valid)
    saved, held = state.snapshot(), state.bytes()
    for _ in range(2):
        found = translate.step(target[:, 5:], state)
        whole = translate(source, target, valid).decoder
        assert (found - whole[:, 5:]).abs().max() < 1e-5
        state.reorder(torch.tensor([1, 1, 1]))
        translate.prefill(target[:, :1], state, source.flip(0), valid)
        state.restore(saved)
    assert held > 0


def test_tokens_are_forgotten_and_the_source_is_not(packages: Make) -> None:
    model = drawn(packages(TRANSLATE.replace("sliding(window = 4)", "causal")))
    source, valid, target = source_and_target()
    state = model.new_state(batch=ROWS)
    model.prefill(target.flip(1), state, source, valid)
    state.crop(0)
    found = model.step(target, state)
    assert (found - model(source, target, valid).decoder).abs().max() < 1e-5


def test_a_prompt_reads_the_source_anew(packages: Make) -> None:
    model = drawn(packages(TRANSLATE.replace("sliding(window = 4)", "causal")))
    source, valid, target = source_and_target()
    state = model.new_state(batch=ROWS)
    model.prefill(target, state, source.flip(0))
    state.crop(0)
    found = model.prefill(target, state, source, valid)
    assert (found - model(source, target, valid).decoder).abs().max() < 1e-5


def test_a_step_needs_a_prompt_before(translate: Any) -> None:
    target = source_and_target()[2]
    with pytest.raises(ValueError, match="`prefill` comes before `step`"):
        translate.step(target, translate.new_state(batch=ROWS))


def test_an_image_is_read_once(packages: Make) -> None:
    model = drawn(packages(CAPTION))
    calls: list[str] = []
    for name in ("image", "classes"):
        part = getattr(model, name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    pixels, kind = torch.randn(2, 3, 16, 16), torch.tensor([2, 0])
    ids = torch.randint(40, (2, 6))
    state = model.new_state(batch=2)
    found = [model.prefill(ids[:, :2], state, pixels, kind)]
    found += [model.step(ids[:, t : t + 1], state) for t in range(2, 6)]
    assert calls == ["image", "classes"]
    whole = model(pixels, kind, ids).text
    assert (torch.cat(found, dim=1) - whole).abs().max() < 1e-5


def test_generation_gives_what_is_read_once(packages: Make) -> None:
    package = packages(TRANSLATE)
    model = drawn(package)
    generation = importlib.import_module(f"{package.__name__}.generation")
    source, valid, target = source_and_target()
    once = {"source": source, "source_valid": valid}
    tokens = generation.generate(model, target[:, :1], max_new_tokens=6, temperature=0, once=once)
    for t in range(1, 7):
        wanted = model(source, tokens[:, :t], valid).decoder[:, -1].argmax(-1)
        assert torch.equal(tokens[:, t], wanted)


def test_the_command_says_which_inputs_it_cannot_give(packages: Make) -> None:
    assert missing_inputs(drawn(packages(TRANSLATE))) == ["source"]
    assert missing_inputs(drawn(packages(CAPTION))) == ["pixels", "kind"]


@pytest.mark.parametrize("text", [TRANSLATE, CAPTION], ids=["translate", "caption"])
def test_the_contract_holds(packages: Make, text: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.tok"
    file.write_text(text, "utf-8")
    checked = check_file(file)
    (program,) = checked.programs
    subject = Subject(packages(text), program, checked.facts[program.name])
    results = [*streaming.check_steps(subject), *streaming.check_state(subject)]
    results += [*causality.check_prefix(subject), *causality.check_padding(subject)]
    assert not [f"{r.group} {r.name}: {r.text}" for r in results if r.verdict is Verdict.FAILED]
    ran = {r.group for r in results if r.verdict is Verdict.PASSED}
    assert ran == {"step", "state", "prefix", "padding"}


def test_what_is_read_once_is_no_part_of_the_cost_of_a_step() -> None:
    numbers = check_file(ROOT / "examples" / "t5.tok").facts["t5"].numbers
    heads, layers = 12 * 64, 12
    # keys and values of the target alone, two numbers of two bytes each
    assert numbers["cache_per_token"] == layers * heads * 2 * 2
    # a step multiplies with about half of the parameters: the encoder has the other half
    assert numbers["decode_flops_per_token"] < 2 * numbers["params"]


def test_a_value_of_the_model_that_is_no_parameter_is_refused(tmp_path: Path) -> None:
    text = TRANSLATE.replace("  stage encoder", "  twice = 2.0 * table\n  stage encoder", 1)
    (tmp_path / "spec.tok").write_text(text.replace("(table, source)", "(twice, source)"), "utf-8")
    built = build(tmp_path / "spec.tok", tmp_path / "out", {})
    assert [f.code for f in built.report] == ["TOK501"]
    assert built.directory is None
