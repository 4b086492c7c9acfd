"""Message passing over graphs of tokens, the pooling made of it, and losses over pairs."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.run.test_library import model
from tokdsl.driver import build
from tokdsl.training.package import import_package

EXAMPLES = Path(__file__).parents[2] / "examples"
D, WIDTH = 6, 5
CONVOLUTIONS = ("gat", "gcn", "gin", "gine")


def glot(folder: Path, name: str = "glot", **settings: str) -> Any:
    """Return an example at a small size."""
    small = {"d": str(D), "width": str(WIDTH), "threshold": "0.2"}
    built = build(EXAMPLES / f"{name}.tok", folder, {**small, **settings})
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory).Model()


def convolved(folder: Path, name: str, threshold: float, d: int = D) -> Any:
    """Return a model of one convolution over the cosine graph."""
    return model(
        folder,
        f"""
        use std.graphs {{ cosine_graph, {name} }}
        model one() {{
          stage out(x: [T, d: {d}]) {{
            edges[i: T, j: T] = cosine_graph(x[i], x[j]; threshold = {threshold})
            aux edges = f32(edges)
            y[i: T] = {name}(x[i], x[j], edges; width = {WIDTH})
            rename(y; i, T)
          }}
          objective mean(out) + 0.0 * mean(aux.edges)
        }}
        """,
    )


def edges_of(x: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs (receiver, sender) of a graph, found one by one."""
    return [
        (i, j)
        for i in range(len(x))
        for j in range(len(x))
        if F.cosine_similarity(x[i], x[j], dim=0) > threshold
    ]


def by_edges(conv: Any, name: str, x: Tensor, edges: list[tuple[int, int]]) -> Tensor:
    """Return a convolution from a list of edges, token by token."""
    looped = sorted({*edges, *((i, i) for i in range(len(x)))})
    rows = []
    for i in range(len(x)):
        if name == "gat":
            mine = [j for r, j in looped if r == i]
            values = x @ conv.weight.T
            scores = torch.stack([
                conv.source @ values[j] + conv.target @ values[i] + conv.edge @ conv.attribute
                for j in mine
            ])  # fmt: skip
            share = F.leaky_relu(scores, 0.2).softmax(0)
            rows.append(share @ values[mine] + conv.bias)
        elif name == "gcn":
            degree = [sum(r == k for r, _ in looped) for k in range(len(x))]
            sent = [x[j] / degree[j] ** 0.5 for r, j in looped if r == i]
            rows.append(torch.stack(sent).sum(0) @ conv.weight.T / degree[i] ** 0.5 + conv.bias)
        else:
            sent = x if name == "gin" else (x + conv.edge + conv.bias).relu()
            total = x[i] + sum((sent[j] for r, j in edges if r == i), torch.zeros(x.shape[1]))
            rows.append(conv.down(conv.up(total).relu()))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_sums_over_edges(tmp_path: Path, name: str) -> None:
    made = convolved(tmp_path, name, 0.3)
    conv = made.out.y
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
    x = torch.randn(2, 9, D)
    found = made(x).out
    wanted = torch.stack([by_edges(conv, name, row, edges_of(row, 0.3)) for row in x])
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, wanted.abs().max().item())
    # padding on either side, of any content, changes nothing
    for left in (0, 2):
        padded = torch.full((2, 13, D), torch.nan)
        valid = torch.zeros(2, 13, dtype=torch.bool)
        padded[:, left : left + 9], valid[:, left : left + 9] = x, True
        again = made(padded, valid).out[:, left : left + 9]
        assert (again - found).abs().max() < 1e-5 * max(1.0, wanted.abs().max().item())


def test_graph_by_hand(tmp_path: Path) -> None:
    x = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]])

    def edges(threshold: float) -> tuple[list[list[int]], Any]:
        folder = tmp_path / str(threshold)
        folder.mkdir()
        made = convolved(folder, "gat", threshold, d=2)
        (found,) = made(x).aux.edges
        return found[0].long().tolist(), made

    alone, made = edges(0.7)
    assert alone == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    isolated = made.out.y.weight @ x[0, 2] + made.out.y.bias
    assert torch.allclose(made(x).out[0, 2], isolated)
    assert edges(0.5)[0] == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    none, made = edges(1.01)
    assert none == [[0, 0, 0]] * 3  # the convolution itself adds the loops
    assert torch.allclose(made(x).out[0], x[0] @ made.out.y.weight.T + made.out.y.bias)
    complete, made = edges(-1.01)
    assert complete == [[1, 1, 1]] * 3
    same = made(torch.ones(1, 4, 2)).out[0]
    assert (same - same[0]).abs().max() < 1e-6
    assert made.train()(x).aux.edges[0].equal(made.eval()(x).aux.edges[0])


@pytest.mark.parametrize("layers", ["0", "2"])
def test_order_and_padding_change_nothing(tmp_path: Path, layers: str) -> None:
    made = glot(tmp_path, layers=layers)
    x = torch.randn(2, 7, D)
    found = made(x).sentence
    assert (made(x[:, torch.randperm(7)]).sentence - found).abs().max() < 1e-5
    for left in (0, 3):
        padded = torch.randn(2, 12, D) * 9
        valid = torch.zeros(2, 12, dtype=torch.bool)
        padded[:, left : left + 7], valid[:, left : left + 7] = x, True
        assert (made(padded, valid).sentence - found).abs().max() < 1e-5


def test_layers_side_by_side_and_weighted_mean(tmp_path: Path) -> None:
    made = glot(tmp_path)
    pool = made.sentence.glot_pool
    x = torch.randn(1, 8, D)
    u, graph = x[0], edges_of(x[0], 0.2)
    h = u
    for layer in pool.token_graph.layers:
        h = by_edges(layer.y, "gat", h, graph).relu()
        u = torch.cat((u, h), dim=-1)
    assert u.shape[1] == D + 2 * WIDTH
    readout = pool.attention_readout
    assert readout.up.out_features == 128  # max(128, half of the width)
    share = readout.score(readout.up(u).tanh())[:, 0].softmax(0)
    wanted = made.sentence.linear(share @ u)
    assert (made(x).sentence[0] - wanted).abs().max() < 1e-5
    with torch.no_grad():
        readout.score.weight.zero_()  # all scores alike: the mean of all layers
    assert (made(x).sentence[0] - made.sentence.linear(u.mean(0))).abs().max() < 1e-5


def test_without_layers_it_is_attention_pooling(tmp_path: Path) -> None:
    made = glot(tmp_path, layers="0")
    x = torch.randn(2, 5, D)
    readout = made.sentence.glot_pool.attention_readout
    share = readout.score(readout.up(x).tanh()).softmax(1)
    wanted = made.sentence.linear((share * x).sum(1))
    assert (made(x).sentence - wanted).abs().max() < 1e-6


def pooled(folder: Path, name: str, jump: str = "concat") -> Any:
    """Return a model of the layers and the readout with a convolution of that name."""
    return model(
        folder,
        f"""
        use std.graphs {{ attention_readout, {name}, token_graph }}
        model pooled() {{
          stage out(x: [T, d: {D}]) {{
            token_graph(layers = 2, width = {WIDTH}, threshold = 0.2, convolution = {name},
                        jump = "{jump}")
            attention_readout()
          }}
        }}
        """,
    )


def test_tokens_that_stand_twice(tmp_path: Path) -> None:
    x = torch.randn(2, 6, D)
    twice = x.repeat_interleave(2, dim=1)
    changed = {}
    for name in CONVOLUTIONS:
        (tmp_path / name).mkdir()
        made = pooled(tmp_path / name, name)
        changed[name] = (made(twice).out - made(x).out).abs().max().item()
    # weights of attention are normalised; a sum counts how many there are
    assert changed["gat"] < 1e-5
    assert changed["gin"] > 1e-3 and changed["gine"] > 1e-3


def test_largest_and_mean_of_the_layers(tmp_path: Path) -> None:
    x = torch.randn(1, 6, D)
    for jump in ("max", "mean"):
        (tmp_path / jump).mkdir()
        made = pooled(tmp_path / jump, "gat", jump)
        h, rows = x[0], []
        for layer in made.out.token_graph.layers:
            h = by_edges(layer.y, "gat", h, edges_of(x[0], 0.2)).relu()
            rows.append(h)
        each = torch.stack(rows)
        u = each.amax(0) if jump == "max" else each.mean(0)
        readout = made.out.attention_readout
        share = readout.score(readout.up(u).tanh()).softmax(0)
        assert (made(x).out[0] - (share * u).sum(0)).abs().max() < 1e-5


def test_parameters_and_gradients(tmp_path: Path) -> None:
    made = glot(tmp_path)
    first = made.sentence.glot_pool.token_graph.layers[0]
    assert sum(p.numel() for p in first.parameters()) == D * WIDTH + 3 * WIDTH + WIDTH + WIDTH
    all_layers = D + 2 * WIDTH
    graph = (D + WIDTH) * WIDTH + 2 * 5 * WIDTH
    readout = all_layers * 128 + 128 + 128 + 1
    total = sum(p.numel() for p in made.parameters())
    assert total == graph + readout + 2 * all_layers + 2
    x = torch.randn(3, 6, D, requires_grad=True)
    label = torch.tensor([0, 1, 1])
    loss = made.loss(x, label)
    loss.total.backward()
    assert x.grad is None
    assert all(p.grad is not None for p in made.parameters())
    wanted = F.cross_entropy(made(x).sentence, label)
    assert loss.terms["classification"].item() == pytest.approx(wanted.item(), abs=1e-6)
    assert torch.equal(made(x).sentence, made.eval()(x).sentence)


class Largest(TorchFunctionMode):
    """Keeps the size of the largest result of any function."""

    entries = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function."""
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else (result,)
        self.entries = max(self.entries, *(v.numel() for v in found if isinstance(v, Tensor)), 0)
        return result


def test_nothing_is_larger_than_a_relation(tmp_path: Path) -> None:
    made = glot(tmp_path, d="32", width="32")
    x, label = torch.randn(1, 200, 32), torch.zeros(1, dtype=torch.long)
    with Largest() as largest:
        made.loss(x, label)
    assert largest.entries == 200 * 200


def test_a_signal_among_distractors_is_learned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = glot(tmp_path)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        x, label = torch.randn(count, 20, D) * 0.5, torch.randint(2, (count,))
        place = torch.randint(20, (count,))
        x[torch.arange(count), place, 0] = 4.0
        x[torch.arange(count), place, 1] = 4.0 * label - 2.0
        return x, label

    for _ in range(60):
        loss = made.loss(*batch(32)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, label = batch(300)
    assert (made(x).sentence.argmax(-1) == label).float().mean() > 0.95


def test_pairs_of_the_batch_are_told_apart(tmp_path: Path) -> None:
    made = glot(tmp_path, "glot_embedding", size="4")
    query, passage = torch.randn(5, 6, D), torch.randn(5, 9, D)
    valid = torch.arange(9) < torch.tensor([9, 4, 7, 9, 1]).unsqueeze(1)
    pair = made(query, passage, passage_valid=valid).pair
    assert torch.allclose(pair.norm(dim=-1), torch.ones(5, 2))
    scores = pair[:, 0] @ pair[:, 1].T / 0.07
    own = torch.arange(5)
    wanted = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    loss = made.loss(query, passage, passage_valid=valid).total
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    # one pooling for both sides
    swapped = made(passage, query, query_valid=valid).pair
    assert torch.allclose(swapped, pair.flip(1), atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() < inf for p in made.parameters())
