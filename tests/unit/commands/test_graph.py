"""Diagrams: the structure that is drawn, and that nothing lies on anything else."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest

from tests.unit.commands.test_summary import EXAMPLES, PAIR
from tokdsl import driver
from tokdsl.commands.drawing.layout import Rect, Scene, lay_out
from tokdsl.commands.drawing.mermaid import mermaid
from tokdsl.commands.drawing.outline import outline
from tokdsl.commands.drawing.parts import (
    Box,
    Column,
    Fan,
    Frame,
    Join,
    Outline,
    Skip,
    StageColumn,
)
from tokdsl.commands.drawing.svg import svg
from tokdsl.commands.graph import graph
from tokdsl.commands.quantities import TIMES

NESTED = """
use std.attention { gqa }
use std.ffn { swiglu }
use std.routers { softmax_topk }

model nested(d: int = 64) {
  stage text(ids: tokens[256]) {
    embed(d)
    repeat 2 { transformer(heads = 4) }
    stage words() {
      repeat 6 as i {
        residual { rmsnorm(); gqa(heads = 4) }
        residual {
          rmsnorm()
          if i % 3 == 2 {
            moe(
              experts = 64,
              expert = swiglu(hidden = 32),
              router = softmax_topk(top = 6),
              shared = swiglu(hidden = 48),
            )
          } else { swiglu(hidden = 96) }
        }
      }
    }
    rmsnorm()
    unembed(256)
  }
  objective next_token(text, ids)
}
"""


def outlined(text: str, folder: Path) -> Outline:
    file = folder / "model.tok"
    file.write_text(text, "utf-8")
    checked = driver.check_file(file)
    assert not checked.report.has_errors, list(checked.report)
    return outline(checked.programs[0])


@pytest.fixture(scope="module")
def mixtral() -> Outline:
    return outline(driver.check_file(EXAMPLES / "mixtral.tok").programs[0], {"params": 46.7e9})


def test_mixtral_is_residuals_around_attention_and_experts(mixtral: Outline) -> None:
    (stage,) = mixtral.stages
    assert stage.inputs == ("ids: tokens[32000]",)
    embed, layers, norm, unembed = stage.column.parts
    assert isinstance(embed, Box) and embed.kind == "embedding"
    assert isinstance(norm, Box) and norm.kind == "norm"
    assert isinstance(unembed, Box) and unembed.title == "unembed"
    assert isinstance(layers, Frame) and layers.tag == f"{TIMES} 32"
    first, second = layers.inner.parts
    assert isinstance(first, Join) and first.bypass
    assert [p.title for p in first.branches[0].parts if isinstance(p, Box)] == ["rmsnorm", "gqa"]
    assert isinstance(second, Join) and second.bypass
    fan = second.branches[0].parts[1]
    assert isinstance(fan, Fan)
    assert fan.chosen == 2
    assert fan.router is not None and fan.router.kind == "router"
    assert [(box.title, count) for box, count in fan.experts] == [("swiglu", 8)]
    assert mixtral.subtitle == "46.7 B parameters"
    assert mixtral.objective.startswith("next_token(text, ids)")


def test_layer_patterns_are_folded(tmp_path: Path) -> None:
    (stage,) = outlined(NESTED, tmp_path).stages
    first, words = stage.column.parts[1], stage.column.parts[2]
    assert isinstance(first, Frame) and (first.title, first.tag) == ("transformer", f"{TIMES} 2")
    assert isinstance(words, Frame) and words.style == "stage"
    (pattern,) = words.inner.parts
    assert isinstance(pattern, Frame) and pattern.tag == f"{TIMES} 2"
    dense, sparse = pattern.inner.parts
    assert isinstance(dense, Frame) and dense.tag == f"{TIMES} 2"
    assert isinstance(sparse, Frame) and sparse.tag == ""


def test_a_pattern_that_is_cut_short(tmp_path: Path) -> None:
    (stage,) = outlined(NESTED.replace("repeat 6", "repeat 8"), tmp_path).stages
    words = stage.column.parts[2]
    assert isinstance(words, Frame)
    tags = [part.tag for part in words.inner.parts if isinstance(part, Frame)]
    assert tags == [f"{TIMES} 2", f"{TIMES} 2"]  # the whole pattern twice, then two dense layers


def test_shared_experts_stand_beside_the_fan(tmp_path: Path) -> None:
    scene = lay_out(outlined(NESTED, tmp_path))
    titles = [rect.title for rect in scene.boxes]
    assert [t for t in titles if t.startswith("swiglu ")] == ["swiglu 1", "swiglu 2", "swiglu 64"]
    assert any(text.style == "dots" for text in scene.texts)


def test_cross_attention_reads_the_encoder(tmp_path: Path) -> None:
    made = outlined(PAIR, tmp_path)
    assert [stage.name for stage in made.stages] == ["encoder", "decoder"]
    layers = made.stages[1].column.parts[1]
    assert isinstance(layers, Frame)
    cross = layers.inner.parts[1]
    assert isinstance(cross, Join)
    box = cross.branches[0].parts[1]
    assert isinstance(box, Box) and box.reads == ("encoder",)
    assert "T_encoder" in made.stages[0].result


def overlapping(first: Rect, second: Rect) -> bool:
    return (
        first.x < second.x + second.width
        and second.x < first.x + first.width
        and first.y < second.bottom
        and second.y < first.bottom
    )


def inside(inner: Rect, outer: Rect) -> bool:
    return (
        outer.x <= inner.x
        and inner.x + inner.width <= outer.x + outer.width
        and outer.y <= inner.y
        and inner.bottom <= outer.bottom
    )


def check_places(scene: Scene) -> None:
    for first, second in combinations(scene.boxes, 2):
        assert not overlapping(first, second), (first.title, second.title)
    for box in scene.boxes:
        for frame in scene.frames:
            assert inside(box, frame) or not overlapping(box, frame), (box.title, frame.title)
    for first, second in combinations(scene.frames, 2):
        assert inside(first, second) or inside(second, first) or not overlapping(first, second)
    whole = Rect(0, 0, scene.width, scene.height, Box("page"))
    assert all(inside(rect, whole) for rect in (*scene.boxes, *scene.frames))
    for line in scene.lines:
        assert all(0 <= x <= scene.width and 0 <= y <= scene.height for x, y in line.points)


@pytest.mark.parametrize("text", [NESTED, PAIR], ids=["nested", "pair"])
def test_nothing_overlaps(text: str, tmp_path: Path) -> None:
    check_places(lay_out(outlined(text, tmp_path)))


def test_mixtral_is_in_place(mixtral: Outline) -> None:
    check_places(lay_out(mixtral))


def test_a_clock_change_with_its_skip() -> None:
    """A hierarchical model: reduce, a stage at a coarser clock, expand with what was before."""
    chunks = Column([Box("mamba", kind="attention"), Box("mamba", kind="attention")], ["", ""])
    column = Column(
        [
            Box("embed", kind="embedding"),
            Box("cosine_chunk", ("ratio 6",), "clock", "narrow"),
            Frame("chunks", "", "stage", chunks, "learned, coarser than text"),
            Box("ema", (), "clock", "widen"),
            Join([Column([Box("a")], [""]), Column([Box("b"), Box("c")], ["", ""])], True, TIMES),
        ],
        ["T x 64", "T_chunks x 96", "", "T x 64", ""],
        [Skip(1, 3), Skip(0, 3)],
    )
    made = Outline("hnet", "", [StageColumn("text", ("ids",), "", column, "T x 64")], "a + b " * 60)
    scene = lay_out(made)
    check_places(scene)
    text = svg(scene, "hnet")
    ET.fromstring(text)
    assert text.count(' Z"') == 2  # two slanted boxes
    assert "cosine_chunk" in mermaid(made)


def test_both_files_are_well_formed_and_the_same_every_time(tmp_path: Path) -> None:
    spec = tmp_path / "pair.tok"
    spec.write_text(PAIR.replace("model pair", "# a < b & c\nmodel pair"), "utf-8")
    for ending in ("svg", "mmd"):
        first, second = tmp_path / f"one.{ending}", tmp_path / f"two.{ending}"
        assert graph(spec, first).files == [first]
        graph(spec, second)
        assert first.read_bytes() == second.read_bytes()
    root = ET.parse(tmp_path / "one.svg").getroot()
    assert root.tag.endswith("svg")
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    chart = (tmp_path / "one.mmd").read_text("utf-8")
    assert chart.count("subgraph") == chart.count("\n" + "  " * 1 + "end") + chart.count("    end")
    assert f"{TIMES} 2" in chart


def test_texts_are_escaped() -> None:
    column = Column([Box("a < b & c", ('"quoted"',))], [""])
    made = Outline("x<y", "", [StageColumn("s", (), "", column, "T")], "a < b")
    ET.fromstring(svg(lay_out(made), "x<y"))
    assert "#quot;" in mermaid(made)


def test_both_forms_without_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = graph(EXAMPLES / "mixtral.tok", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixtral.mmd", "mixtral.svg"]
    assert not drawn.report.has_errors


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ends in none of"):
        graph(EXAMPLES / "mixtral.tok", tmp_path / "model.png")
