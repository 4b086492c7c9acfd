"""The dynamic proofs: a sound package passes, and every broken one fails where it is broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tokdsl import driver
from tokdsl.checks.facts import Facts
from tokdsl.commands.load import import_folder
from tokdsl.commands.verify import verify
from tokdsl.graph.program import Program
from tokdsl.verification import causality, forms, isolation, learning, measured, replay, streaming
from tokdsl.verification.contract import verify_package
from tokdsl.verification.result import CheckResult, Verdict, bounded, counted
from tokdsl.verification.shrink import shrink
from tokdsl.verification.subject import Subject

SPEC = """
use std.attention { gqa, rope }
use std.ffn { swiglu }
use std.routers { softmax_topk }

model tiny(d: int = 32, vocab: int = 40, window: int = 4) {
  stage text(ids: tokens[vocab]) {
    embed(d)
    repeat 2 {
      residual { rmsnorm(); gqa(heads = 4, kv_heads = 2, rotary = rope()) }
      residual { rmsnorm(); gqa(heads = 2, mask = sliding(window = window)) }
      residual {
        rmsnorm()
        moe(experts = 4, expert = swiglu(hidden = 16), router = softmax_topk(top = 2))
      }
    }
    rmsnorm()
    unembed(vocab)
  }
  objective next_token(text, ids)
}
"""


@dataclass
class Built:
    program: Program
    facts: Facts
    files: dict[str, str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    file = tmp_path_factory.mktemp("spec") / "tiny.tok"
    file.write_text(SPEC, "utf-8")
    checked = driver.check_file(file)
    program = checked.programs[0]
    files = driver.emit_program(checked, program, file.name)
    return Built(program, checked.facts[program.name], files)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Load = Callable[..., Subject]
counter = iter(range(1000))


@pytest.fixture
def load(built: Built, tmp_path: Path) -> Iterator[Load]:
    """Return the package as a subject; texts of its files can be replaced first."""

    def make(*changes: tuple[str, str, str]) -> Subject:
        folder = tmp_path / "tiny"
        folder.mkdir()
        files = dict(built.files)
        for name, old, new in changes:
            assert old in files[name], f"{old!r} is not in {name}"
            files[name] = files[name].replace(old, new)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        module = import_folder(folder, f"verified_tiny_{next(counter)}")
        return Subject(module, built.program, built.facts)

    yield make


def verdicts(results: list[CheckResult]) -> dict[str, Verdict]:
    return {result.name: result.verdict for result in results}


def test_a_sound_package_passes(load: Load, built: Built) -> None:
    subject = load()
    results = verify_package(subject.package, built.program, built.facts)
    assert [f"{r.group} {r.name}: {r.text}" for r in results if r.failed] == []
    groups = {r.group for r in results if r.verdict is Verdict.PASSED}
    assert groups >= {
        "prefix",
        "padding",
        "isolation",
        "batch",
        "step",
        "state",
        "gradients",
        "facts",
    }


def test_attention_to_later_tokens_is_found(load: Load) -> None:
    leaking = load(("model.py", "causal=True", "causal=False"))
    results = causality.check_prefix(leaking)
    assert results[0].verdict is Verdict.FAILED
    assert "position 0 changes with what comes after it" in results[0].text


def test_a_decoder_that_forgets_is_found(load: Load) -> None:
    forgetful = load(("state.py", "self._held += count", "self._held = count"))
    found = verdicts(streaming.check_steps(forgetful))
    assert found["one piece"] is Verdict.PASSED
    assert found["pieces of 1"] is Verdict.FAILED


def test_a_state_that_ignores_its_verbs_is_found(load: Load) -> None:
    broken = load(
        ("state.py", "self._buffer = self._buffer.index_select(0, index)", "pass"),
    )
    found = verdicts(streaming.check_state(broken))
    assert found["reorder"] is Verdict.FAILED
    assert found["prompt of one token"] is Verdict.PASSED


def test_padding_that_is_read_is_found(load: Load) -> None:
    blind = load(
        ("functional.py", "def targets_ahead(", "def _targets_ahead("),
        (
            "functional.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\n\n\n"
            "def targets_ahead(ids, *, valid=None, **more):\n"
            "    return _targets_ahead(ids, valid=None, **more)\n",
        ),
    )
    found = verdicts(causality.check_padding(blind))
    assert found["results"] is Verdict.PASSED
    assert found["loss"] is Verdict.FAILED


def test_documents_that_see_each_other_are_found(load: Load) -> None:
    open_minded = load(("functional.py", ", None] != theirs[", ", None] < theirs["))
    results = isolation.check_isolation(open_minded)
    assert [r.failed for r in results] == [True] * 4


def test_a_loss_over_the_border_is_found(load: Load) -> None:
    found = verdicts(isolation.check_isolation(load(("model.py", ", starts=starts", ""))))
    assert found["neighbours"] is found["documents alone"] is Verdict.PASSED
    assert found["loss"] is found["gradients"] is Verdict.FAILED


def test_a_result_that_depends_on_the_batch_is_found(load: Load) -> None:
    mixed = load(
        (
            "model.py",
            "        return Output(text, aux)",
            "        text = text - text.mean(dim=0, keepdim=True)\n"
            "        return Output(text, aux)",
        )
    )
    assert causality.check_batch(mixed)[0].failed


def test_a_gradient_that_does_not_arrive_is_found(load: Load) -> None:
    cut = load(
        ("model.py", "self.unembed(self.rmsnorm(x))", "self.unembed(self.rmsnorm(x).detach())")
    )
    (result,) = learning.check_gradients(cut)
    assert result.failed
    assert "gets no gradient" in result.text


def test_choices_that_are_not_replayed_are_found(load: Load) -> None:
    deaf = load(("functional.py", "index = decision.keep(index)", "decision.keep(index)"))
    found = verdicts(replay.check_replay(deaf))
    assert found["own choices"] is Verdict.PASSED
    assert found["other choices"] is Verdict.FAILED


def test_scores_that_are_recorded_too_are_found(load: Load) -> None:
    frozen = load(
        ("functional.py", "values = scores.gather(dim,", "values = scores.detach().gather(dim,")
    )
    found = verdicts(replay.check_replay(frozen))
    assert found["own choices"] is Verdict.FAILED
    assert found["other choices"] is Verdict.FAILED
    assert found["choices in pieces"] is Verdict.PASSED


def test_a_record_that_starts_anew_with_each_step_is_found(load: Load) -> None:
    forgetful = load(("functional.py", "_Places(seen - count, seen,", "_Places(0, count,"))
    found = verdicts(replay.check_replay(forgetful))
    assert found["other choices"] is Verdict.PASSED
    assert found["choices in pieces"] is Verdict.FAILED


def test_a_parameter_that_nobody_counted_is_found(load: Load) -> None:
    heavier = load(
        (
            "model.py",
            "        self.unembed = Unembed()",
            "        self.unembed = Unembed()\n        self.extra = nn.Linear(3, 3)",
        )
    )
    found = verdicts(measured.check_facts(heavier))
    assert found["parameters"] is Verdict.FAILED
    assert found["cache per token"] is Verdict.PASSED


def test_a_buffer_on_the_wrong_device_is_found(load: Load) -> None:
    fixed = load(
        (
            "model.py",
            "        self.unembed = Unembed()",
            "        self.unembed = Unembed()\n"
            '        self.register_buffer("table", torch.zeros(3, device="cpu"))',
        )
    )
    assert verdicts(forms.check_initialisation(fixed))["meta device"] is Verdict.FAILED


def test_a_crash_is_a_failed_check(load: Load, built: Built) -> None:
    broken = load(("model.py", "        return Output(text, aux)", "        raise KeyError('no')"))
    results = verify_package(broken.package, built.program, built.facts)
    assert all(
        r.failed or r.verdict is Verdict.NOT_APPLICABLE for r in results if r.group == "step"
    )
    assert any("KeyError" in r.text for r in results)


# --------------------------------------------------------------------------- the command


def test_the_command_shrinks_and_reports(tmp_path: Path) -> None:
    spec = tmp_path / "wide.tok"
    spec.write_text(SPEC.replace("d: int = 32", "d: int = 1024"), "utf-8")
    result = verify(spec)
    assert result.passed, result.text
    assert int(result.sizes["d"]) < 128
    assert "determinism  build" in result.text
    assert result.text.splitlines()[-1].endswith("do not apply")
    content = json.loads(result.as_json())
    assert content["passed"] is True
    assert {"group", "name", "verdict", "text", "value", "limit"} == set(content["checks"][0])


def test_the_command_stops_at_errors(tmp_path: Path) -> None:
    spec = tmp_path / "broken.tok"
    spec.write_text("model broken() { stage text(ids: tokens[9]) { embedd(4) } }\n", "utf-8")
    result = verify(spec)
    assert result.report.has_errors
    assert not result.passed


# --------------------------------------------------------------------------- parts


def test_shrinking_keeps_what_the_compiler_accepts(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "mixtral.tok"
    checked = driver.check_file(example)
    program = checked.programs[0]

    def count(sizes: dict[str, int]) -> float | None:
        found = driver.check_file(example, {name: str(n) for name, n in sizes.items()})
        if found.report.has_errors:
            return None
        return found.facts["mixtral"].numbers["params"]

    sizes = shrink(program, checked.facts["mixtral"].numbers["params"], count)
    assert sizes["layers"] == 2
    assert 32 <= sizes["d"] <= 64
    assert "experts" not in sizes and "top" not in sizes
    assert shrink(program, 1000.0, count) == {}


def test_numbers_in_reports() -> None:
    assert counted(1234567) == "1 234 567"
    assert bounded("a", "b", 0.5, 1.0).verdict is Verdict.PASSED
    assert bounded("a", "b", float("nan"), 1.0).verdict is Verdict.FAILED
    assert bounded("a", "b", float("inf"), 1.0).verdict is Verdict.FAILED
