"""EMO: pools of experts per document in training, none in inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.decoding import worst_padding, worst_split, worst_verb
from tests.run.test_library import model
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "emo.tok"
SIZES = {
    "vocab": "40", "d": "16", "layers": "2", "heads": "2", "experts": "8", "top": "2",
    "hidden": "8", "least": "2", "most": "3",
}  # fmt: skip


def made(folder: Path, **sizes: object) -> Any:
    """Return the class of the small model with some sizes changed."""
    place = folder / "_".join(["emo", *(f"{k}{v}" for k, v in sizes.items())])
    built = build(SPEC, place, SIZES | {k: str(v) for k, v in sizes.items()})
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("emo"))


@pytest.fixture
def emo(package: Any) -> Any:
    torch.manual_seed(0)
    found = package.Model()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "router" in name:
                parameter.normal_()
    return found.double()


def pooled(folder: Path, experts: int, size: int) -> Any:
    """Return a model of the pool alone, in training."""
    text = f"""
    use std.routers {{ document_pool }}
    model pooled() {{
      stage out(x: [T, experts: {experts}]) {{
        document_pool(it; least = 1, most = {experts}, fixed = {size})
      }}
    }}
    """
    return model(folder, text).train()


def test_the_pool_of_a_document_and_the_probabilities_in_it(tmp_path: Path) -> None:
    found = pooled(tmp_path, 4, 2)
    x = torch.tensor([[[2.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, -1.0]]])
    sums = x.softmax(-1).sum(1)[0]
    assert sums.tolist() == pytest.approx([0.731059, 0.880797, 0.324027, 0.064117], abs=1e-6)
    masked = found(x).out
    probs = masked.softmax(-1)[0]
    assert probs[0].tolist() == pytest.approx([0.731059, 0.268941, 0, 0], abs=1e-6)
    assert probs[1].tolist() == pytest.approx([0.119203, 0.880797, 0, 0], abs=1e-6)
    assert masked.logsumexp(-1)[0, 0].item() == pytest.approx(2.313262, abs=1e-6)
    assert x.logsumexp(-1)[0, 0].item() == pytest.approx(2.440190, abs=1e-6)
    assert torch.equal(found.eval()(x).out, x)


def test_a_later_token_changes_the_pool_in_training_and_nothing_otherwise(tmp_path: Path) -> None:
    found = pooled(tmp_path, 3, 1)
    x = torch.tensor([[[2.0, 1.9, 0.0], [0.0, 3.0, 0.0]]])

    def pool(x: Tensor) -> list[list[int]]:
        return [t.nonzero().flatten().tolist() for t in found(x).out[0].isfinite()]

    assert pool(x) == [[1], [1]]
    assert pool(x[:, :1]) == [[0]]
    found.eval()
    assert torch.equal(found(x).out[:, :1], found(x[:, :1]).out)


def test_a_pool_of_all_experts_is_no_pool(tmp_path: Path) -> None:
    found, x = pooled(tmp_path, 4, 4), torch.randn(2, 6, 4)
    assert torch.equal(found(x).out, x)


def picks(package: Any, emo: Any, ids: Tensor, **more: Tensor) -> Tensor:
    """Return what the routers of all layers pick; (layers, B, T, top)."""
    decisions = package.Decisions()
    emo(ids, decisions=decisions, **more)
    names = [n for n in decisions.names() if n.endswith("router.pick")]
    return torch.stack([decisions[n] for n in names])


DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 8] * 3)


def test_no_document_uses_more_experts_than_its_pool_has(package: Any, emo: Any) -> None:
    ids = torch.randint(40, (3, 24))
    sizes = set()
    for _ in range(4):
        found = picks(package, emo.train(), ids, documents=DOCUMENTS)
        for layer in found:
            for row in range(3):
                for document in range(3):
                    used = layer[row, DOCUMENTS[row] == document].unique()
                    assert 2 <= len(used) <= 3
                    sizes.add(len(used))
    assert sizes == {2, 3}  # sizes are drawn anew
    free = picks(package, emo.eval(), ids, documents=DOCUMENTS)
    assert max(len(layer[0, :7].unique()) for layer in free) > 3


def test_a_pool_as_large_as_the_choice_gives_all_tokens_the_same_experts(
    tmp_path: Path,
) -> None:
    found = made(tmp_path, fixed=2)
    layers = picks(found, found.Model().train(), torch.randint(40, (2, 9))).sort(-1).values
    assert torch.equal(layers, layers[:, :, :1].expand_as(layers))


@pytest.mark.parametrize("training", [True, False])
def test_documents_packed_into_a_row_are_as_alone(tmp_path: Path, training: bool) -> None:
    emo = made(tmp_path, fixed=3).Model().double().train(training)
    ids = torch.randint(40, (1, 24))
    packed = emo(ids, documents=DOCUMENTS[:1]).text
    for document in range(3):
        own = DOCUMENTS[0] == document
        assert torch.allclose(packed[:, own], emo(ids[:, own]).text, atol=1e-10)


def test_later_tokens_change_earlier_ones_in_training_alone(emo: Any) -> None:
    ids = torch.randint(40, (1, 12))
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 7) % 40
    emo.eval()
    assert torch.allclose(emo(ids).text[:, :6], emo(other).text[:, :6], atol=1e-12)
    emo.train()
    differences = []
    for seed in range(5):
        pair = []
        for x in (ids, other):
            torch.manual_seed(seed)
            pair.append(emo(x).text[:, :6])
        differences.append((pair[0] - pair[1]).abs().max().item())
    assert max(differences) > 1e-3


def test_losses_are_those_of_the_published_code(package: Any, emo: Any) -> None:
    ids = torch.randint(40, (2, 10))
    terms = emo.eval().loss(ids).terms
    decisions = package.Decisions()
    inputs: list[Tensor] = []
    hooks = [
        layer.moe.router.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for layer in emo.text.layers
    ]
    emo(ids, decisions=decisions)
    for hook in hooks:
        hook.remove()
    balance, z = [], []
    for i, x in enumerate(inputs):
        scores = x @ emo.text.layers[i].moe.router.weight.T
        probs = scores.softmax(-1).flatten(0, 1)
        pick = decisions[f"text.layers.{i}.moe.router.pick"]
        counts = pick.flatten().bincount(minlength=8)
        balance.append(8 / 2 * (counts / 20 * probs.mean(0)).sum())
        z.append(scores.logsumexp(-1).square().mean())
    assert terms["balance"].item() == pytest.approx(sum(balance).item() / 2, rel=1e-5)
    assert terms["z"].item() == pytest.approx(sum(z).item() / 2, rel=1e-5)


def test_pruned_experts_are_experts_that_are_never_in_the_pool(
    tmp_path: Path, package: Any, emo: Any
) -> None:
    small = made(tmp_path, experts=4).Model().double().eval()
    keep = torch.tensor([1, 2, 5, 7])
    weights = {
        name: value[keep] if "router.weight" in name or ".expert." in name else value
        for name, value in emo.eval().state_dict().items()
    }
    small.load_state_dict(weights)
    ids = torch.randint(40, (2, 9))

    def only_kept(router: Any, given: Any, route: Any) -> Any:
        scores = given[0] @ router.weight.T
        closed = torch.ones(8, dtype=torch.bool).index_fill(0, keep, False)
        weight, pick = scores.masked_fill(closed, float("-inf")).softmax(-1).topk(2)
        return type(route)(pick, weight)

    for layer in emo.text.layers:
        layer.moe.router.register_forward_hook(only_kept)
    assert torch.allclose(emo(ids).text, small(ids).text, atol=1e-10)


def test_the_gradient_passes_through_the_pool_and_not_to_what_is_outside(emo: Any) -> None:
    emo.train().loss(torch.randint(40, (2, 12))).total.backward()
    for name, parameter in emo.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(layer.moe.router.weight.grad.abs().max() > 0 for layer in emo.text.layers)


def test_the_decoder_has_no_pool_and_gives_the_whole_pass(emo: Any) -> None:
    ids = torch.randint(40, (4, 24))
    emo.eval()
    with torch.no_grad():
        assert worst_split(emo, ids, emo(ids).text) < 1e-9
        assert worst_padding(emo, ids, "text") < 1e-9
        assert worst_verb(emo, ids) < 1e-9
