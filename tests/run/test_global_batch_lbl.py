"""Balance over the global batch in a whole model: passes, processes, recomputation, decoding."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fixtures.decoding import worst_padding, worst_split, worst_verb
from tests.run.test_balance import free_port
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "global_batch_lbl.tok"
SIZES = {
    "vocab": "40", "d": "16", "layers": "2", "heads": "2", "hidden": "8", "experts": "4",
    "top": "2", "shared": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("balanced")


@pytest.fixture(scope="module")
def package(folder: Path) -> Any:
    built = build(SPEC, folder, SIZES)
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory)


@pytest.fixture
def balanced(package: Any) -> Any:
    torch.manual_seed(0)
    return package.Model().double().train()


def tallies(made: Any) -> Tensor:
    return torch.stack([layer.moe.router.tally for layer in made.text.layers])


def given_to(made: Any, layer: int, ids: Tensor, decisions: Any) -> Tensor:
    """Return what the router of a layer reads, with the choices recorded."""
    inputs: list[Tensor] = []
    router = made.text.layers[layer].moe.router
    hook = router.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    made(ids, decisions=decisions)
    hook.remove()
    return inputs[0]


def test_the_first_pass_of_a_step_is_a_micro_batch_and_later_ones_are_not(balanced: Any) -> None:
    first, second = torch.randint(40, (2, 2, 9))
    terms = balanced.loss(first).terms
    assert terms["balance"].item() == pytest.approx(terms["micro"].item(), rel=1e-6)
    terms = balanced.loss(second).terms
    assert terms["balance"].item() != pytest.approx(terms["micro"].item(), rel=1e-4)
    assert tallies(balanced).sum(1).tolist() == [2 * 2 * 9 * 2] * 2
    balanced.end_step()
    assert tallies(balanced).sum().item() == 0
    terms = balanced.loss(second).terms
    assert terms["balance"].item() == pytest.approx(terms["micro"].item(), rel=1e-6)


def test_the_last_pass_of_a_step_knows_the_choices_of_all(package: Any, balanced: Any) -> None:
    parts = torch.randint(40, (3, 2, 9)).unbind(0)
    for part in parts[:-1]:
        balanced.loss(part)
    found = balanced.loss(parts[-1]).terms["balance"]
    wanted = []
    for i in range(2):
        counts, probs = torch.zeros(4), torch.zeros(4)
        for part in parts:
            decisions = package.Decisions()
            x = given_to(balanced.eval(), i, part, decisions)
            pick = decisions[f"text.layers.{i}.moe.router.pick"]
            counts += pick.flatten().bincount(minlength=4)
            scores = balanced.text.layers[i].moe.router.scores(x)
            probs = scores.softmax(-1).flatten(0, 1).mean(0)
        wanted.append(4 * (counts / counts.sum() * probs).sum())
    assert found.item() == pytest.approx(sum(w.item() for w in wanted) / 2, rel=1e-6)


def test_the_counts_are_no_part_of_a_checkpoint(balanced: Any) -> None:
    assert not [name for name in balanced.state_dict() if "tally" in name]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_counts_once(balanced: Any, reentrant: bool) -> None:
    ids = torch.randint(40, (2, 9))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)

    def pass_(scale: Tensor) -> Tensor:
        total: Tensor = balanced.loss(ids).total * scale
        return total

    checkpoint(pass_, scale, use_reentrant=reentrant).backward()
    assert tallies(balanced).sum(1).tolist() == [2 * 9 * 2] * 2


def test_evaluation_neither_counts_nor_knows_what_was_counted(balanced: Any) -> None:
    first, second = torch.randint(40, (2, 2, 9))
    balanced.loss(first)
    before = tallies(balanced)
    terms = balanced.eval().loss(second).terms
    assert torch.equal(tallies(balanced), before)
    assert terms["balance"].item() == pytest.approx(terms["micro"].item(), rel=1e-6)


def test_the_decoder_gives_the_whole_pass(balanced: Any) -> None:
    ids = torch.randint(40, (4, 24))
    balanced.eval()
    with torch.no_grad():
        assert worst_split(balanced, ids, balanced(ids).text) < 1e-9
        assert worst_padding(balanced, ids, "text") < 1e-9
        assert worst_verb(balanced, ids) < 1e-9


def _process(
    rank: int, folder: str, name: str, port: int, weights: Any, ids: Any, out: Any
) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(ids)
    )
    made = importlib.import_module(name).Model().double().train()
    made.load_state_dict(weights)
    made.loss(ids[rank]).total.backward()
    found = {}
    for key, parameter in made.named_parameters():
        dist.all_reduce(parameter.grad)
        found[key] = (parameter.grad / len(ids)).numpy()
    if rank == 0:
        out.update(found)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_batches_together(
    package: Any, balanced: Any, folder: Path
) -> None:
    # within a micro-batch the loss is another one: it is left out on both sides
    built = build(SPEC, folder / "global", SIZES | {"micro": "0.0"})
    assert built.directory is not None
    single = import_package(built.directory).Model().double().train()
    single.load_state_dict(balanced.state_dict())
    ids = torch.randint(40, (2, 2, 9))
    found = mp.Manager().dict()
    arguments = (str(folder / "global"), built.directory.name, free_port())
    mp.spawn(_process, (*arguments, balanced.state_dict(), ids, found), nprocs=2)
    single.loss(ids.flatten(0, 1)).total.backward()
    for name, parameter in single.named_parameters():
        wanted = parameter.grad
        assert torch.allclose(torch.from_numpy(found[name]), wanted, rtol=1e-5, atol=1e-9), name
