"""Orders, Sinkhorn normalisation and time-invariant state spaces, and the probe made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.run.test_library import model
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "ssmprobe.tok"
ORDERS = ("raster", "reverse", "column_major", "snake", "hilbert", "spiral", "shuffled")
SMALL = {"rows": "4", "columns": "4", "d": "6", "width": "5", "state": "3", "classes": "4"}


def probe(folder: Path, **settings: str) -> Any:
    """Return the example at a small size."""
    built = build(SPEC, folder, {**SMALL, "key": "4", **settings})
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory).Model()


def orders(folder: Path, rows: int, columns: int) -> dict[str, list[int]]:
    """Return all fixed scans of a grid."""
    calls = ", ".join(f"{name}(step; columns = {columns})" for name in ORDERS)
    made = model(
        folder,
        f"""
        use std.orders {{ {", ".join(ORDERS)} }}
        model scans() {{
          stage out(x: [d: 1]) {{
            step = arange(slot: {rows * columns})
            stack({calls}; scan: {len(ORDERS)}) + int(it)
          }}
        }}
        """,
    )
    found = made(torch.zeros(1, 1)).out.reshape(rows * columns, len(ORDERS))
    return dict(zip(ORDERS, found.T.tolist(), strict=True))


def test_scans_of_a_grid_by_hand(tmp_path: Path) -> None:
    found = orders(tmp_path, 4, 4)
    assert found["raster"] == list(range(16))
    assert found["reverse"] == list(range(16))[::-1]
    assert found["column_major"] == [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    assert found["snake"] == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12]
    assert found["spiral"] == [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4, 5, 6, 10, 9]
    assert found["hilbert"] == [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (8, 8), (3, 5), (1, 6), (6, 1)])
def test_scans_visit_every_token_once(tmp_path: Path, rows: int, columns: int) -> None:
    found = orders(tmp_path, rows, columns)
    for name, order in found.items():
        assert sorted(order) == list(range(rows * columns)), name
    cells = {name: [divmod(k, columns) for k in order] for name, order in found.items()}
    for name in ("snake", "spiral", *(["hilbert"] if (rows, columns) == (8, 8) else [])):
        pairs = zip(cells[name], cells[name][1:], strict=False)
        assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairs), name


def systems(folder: Path, steps: int, d: int, state: int) -> Any:
    """Return a model that computes one system in its three forms."""
    return model(
        folder,
        f"""
        use std.state_space {{ lti_convolution, lti_last, lti_scan }}
        model forms() {{
          stage out(u: [step: {steps}, d: {d}]) {{
            decay = weight(d: {d}, state: {state})
            gain  = weight(d: {d}, state: {state})
            read  = weight(d: {d}, state: {state})
            h = lti_scan(u, decay, gain)
            aux scanned = sum(h * read; over = state)
            aux convolved = lti_convolution(u, decay, gain, read)
            aux last = at(h; over = step, index = -1)
            lti_last(u, decay, gain)
          }}
          objective mean(out) + mean(aux.scanned) + mean(aux.convolved) + mean(aux.last)
        }}
        """,
    )


def parts(made: Any, u: Tensor) -> list[Tensor]:
    """Return the scan, the convolution, the last state and the closed form."""
    output = made(u)
    names = ("scanned", "convolved", "last")
    return [*(getattr(output.aux, name)[0] for name in names), output.out]


def test_recurrence_closed_form_and_convolution_agree(tmp_path: Path) -> None:
    made = systems(tmp_path, 13, 3, 4)
    with torch.no_grad():
        made.out.decay.uniform_(0.0, 1.0)
        made.out.gain.normal_()
        made.out.read.normal_()
    u = torch.randn(2, 13, 3)
    scanned, convolved, last, closed = parts(made, u)
    h, rows = torch.zeros(2, 3, 4), []
    for t in range(13):
        h = made.out.decay * h + made.out.gain * u[:, t, :, None]
        rows.append((h * made.out.read).sum(-1))
    wanted = torch.stack(rows, dim=1)
    kernel = torch.stack([(made.out.read * made.out.decay**k * made.out.gain).sum(-1)
                          for k in range(13)], dim=-1)  # fmt: skip
    padded = torch.nn.functional.pad(u.mT, (12, 0))
    by_torch = torch.nn.functional.conv1d(padded, kernel.flip(-1).unsqueeze(1), groups=3).mT
    for found in (scanned, convolved, by_torch):
        assert (found - wanted).abs().max() < 2e-6
    assert (last - h).abs().max() < 1e-6
    assert (closed - h).abs().max() < 1e-6


def test_order_matters_as_much_as_the_system_forgets(tmp_path: Path) -> None:
    made = systems(tmp_path, 3, 1, 1)

    def read(decay: float, u: tuple[float, ...]) -> float:
        with torch.no_grad():
            made.out.decay.fill_(decay)
            made.out.gain.fill_(1.0)
        found = parts(made, torch.tensor(u, dtype=torch.float32).view(1, 3, 1))
        assert found[2].item() == found[3].item()
        return found[3].item()

    assert read(0.5, (1, 2, 4)) == 5.25
    assert read(0.5, (4, 2, 1)) == 3.0
    assert read(0.5, (4, 1, 2)) == 3.5
    assert {read(1.0, u) for u in ((1, 2, 4), (4, 2, 1), (4, 1, 2))} == {7.0}
    assert read(0.0, (1, 2, 4)) == 4.0


def sinkhorn(folder: Path, size: int, temperature: float, iterations: int = 20) -> Any:
    """Return a function from logits [token, slot] to the soft order."""
    made = model(
        folder,
        f"""
        use std.orders {{ sinkhorn }}
        model soft() {{
          stage out(logits: [T: {size}, slot: {size}]) {{
            sinkhorn(iterations = {iterations}, temperature = {temperature})
          }}
        }}
        """,
    )
    return lambda logits: made(logits.unsqueeze(0)).out[0]


def test_sinkhorn_by_hand(tmp_path: Path) -> None:
    soft = sinkhorn(tmp_path, 3, 0.1)
    # rows of the published matrix are slots
    logits = torch.tensor([[0.0, 1, 2], [2, 0, 1], [1, 2, 0]]).T
    found = soft(logits)
    assert found.argmax(0).tolist() == [2, 0, 1]
    assert found.max(0).values.tolist() == pytest.approx([0.99995] * 3, abs=1e-5)
    assert torch.allclose(soft(torch.zeros(3, 3)), torch.full((3, 3), 1 / 3))


def test_constants_of_a_token_or_a_slot_change_nothing(tmp_path: Path) -> None:
    logits, soft = torch.randn(5, 5), sinkhorn(tmp_path, 5, 1.0, 100)
    for shift in (torch.randn(5), torch.randn(5, 1)):
        assert (soft(logits + 3 * shift) - soft(logits)).abs().max() < 1e-5


def test_sums_are_one_and_low_temperatures_sort(tmp_path: Path) -> None:
    found = sinkhorn(tmp_path, 9, 1.0)(torch.randn(9, 9))
    assert (found.sum(0) - 1).abs().max() < 1e-6  # over tokens: normalised last
    assert (found.sum(1) - 1).abs().max() < 1e-4
    s, ranks = torch.randn(9), torch.randn(9).sort().values
    (tmp_path / "cold").mkdir()
    hard = sinkhorn(tmp_path / "cold", 9, 1e-4)(-((s[:, None] - ranks) ** 2))
    assert torch.isfinite(hard).all()
    # the assignment of least squared distance puts both in rising order
    (tmp_path / "long").mkdir()
    long = sinkhorn(tmp_path / "long", 9, 1e-2, 400)(-((s[:, None] - ranks) ** 2))
    assert long.argmax(0).tolist() == s.argsort().tolist()


def test_orders_are_undone(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.orders { harden, mix_tokens, reorder, restore, sinkhorn, spiral, unmix_tokens }
        model there_and_back() {
          stage out(x: [T: 9, d: 4], logits: [T: 9, slot: 9]) {
            order = spiral(arange(slot: 9); columns = 3)
            soft  = sinkhorn(logits; temperature = 0.01)
            aux slots = reorder(x, order)
            aux mixed = mix_tokens(x, soft)
            aux hard = reorder(x, harden(soft))
            stack(restore(reorder(x, order), order, x), unmix_tokens(mix_tokens(x, soft), soft),
                  restore(mix_tokens(x, soft), harden(soft), x); way: 3)
          }
        }
        """,
    )
    x, turn = torch.randn(2, 9, 4), torch.randperm(9)
    logits = torch.eye(9)[turn].expand(2, 9, 9)  # token i goes to slot turn[i]
    output = made(x, logits)
    assert (output.out - x.unsqueeze(-1)).abs().max() < 1e-5
    slots, mixed, hard = (found[0] for found in output.aux)
    assert torch.equal(slots, x[:, [0, 1, 2, 5, 8, 7, 6, 3, 4]])
    assert torch.equal(hard, x[:, turn.argsort()])
    assert (mixed - hard).abs().max() < 1e-5


def test_probe_depends_on_the_order_of_a_fixed_scan_only(tmp_path: Path) -> None:
    x, turn = torch.randn(3, 16, 6), torch.randperm(16)
    differences = {}
    for order in ("hilbert", "learned", "routed"):
        made = probe(tmp_path / order, order=order)
        with torch.no_grad():
            made.image.lti_pool.log_delta.fill_(0.0)  # forgets within a few steps
            before, after = made(x).image, made(x[:, turn]).image
            differences[order] = (before - after).abs().max().item()
            if order == "learned":  # the rows of the logits go with the tokens
                made.image.ordered.logits.table.copy_(made.image.ordered.logits.table[turn])
                assert (made(x[:, turn]).image - before).abs().max() < 1e-5
    assert differences["hilbert"] > 1e-2
    assert differences["learned"] > 1e-5
    assert differences["routed"] < 1e-5


def test_learned_order_begins_at_a_fixed_one_and_gets_no_worse(tmp_path: Path) -> None:
    made, fixed = probe(tmp_path / "soft", order="learned"), probe(tmp_path, order="snake")
    found = orders(tmp_path, 4, 4)["snake"]
    with torch.no_grad():
        for mine, other in zip(list(made.parameters())[1:], fixed.parameters(), strict=True):
            mine.copy_(other)
        made.image.ordered.logits.table.copy_(2 * torch.eye(16)[torch.tensor(found).argsort()])
    x, label = torch.randn(8, 16, 6), torch.randint(4, (8,))
    start, wanted = made.loss(x, label).total, fixed.loss(x, label).total
    assert start.item() == pytest.approx(wanted.item(), abs=1e-4)
    (slope,) = torch.autograd.grad(start, made.image.ordered.logits.table)
    with torch.no_grad():
        made.image.ordered.logits.table -= 0.1 * slope
    assert made.loss(x, label).total <= start


def test_mixing_alone_is_average_pooling(tmp_path: Path) -> None:
    made = probe(tmp_path, iterations="200", temperature="1.0")
    x = torch.randn(2, 16, 6)
    slots = made.image.ordered(x)
    assert (slots.mean(1) - x.mean(1)).abs().max() < 1e-4


def test_parameters_and_gradients(tmp_path: Path) -> None:
    rest = 6 * 5 + (2 * 5 * 3 + 2 * 5) + (5 * 4 + 4)
    more = {"hilbert": 0, "learned": 16 * 16, "routed": 16 * 4 + 4 * 6}
    for order, own in more.items():
        made = probe(tmp_path / order, order=order)
        assert sum(p.numel() for p in made.parameters()) == rest + own
        x = torch.randn(3, 16, 6, requires_grad=True)
        loss = made.loss(x, torch.tensor([0, 3, 1]))
        loss.total.backward()
        assert x.grad is None
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())
        assert torch.equal(made(x).image, made.eval()(x).image)
        wanted = torch.nn.functional.cross_entropy(made(x).image, torch.tensor([0, 3, 1]))
        assert loss.terms["classification"].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_rates_and_times_begin_where_they_should(tmp_path: Path) -> None:
    pool = probe(tmp_path, width="400").image.lti_pool
    times = pool.log_delta.exp()
    assert 0.001 <= times.min() < 0.0015 and 0.065 < times.max() <= 0.1
    assert pool.log_rate.eq(0).all() and pool.skip.eq(1).all()
    # a zero-order hold: B is what a constant input of 1 leaves after one time step
    u = torch.zeros(1, 7, 400)
    u[:, -1] = 1.0
    rate = -torch.arange(1, 4)
    gain = (torch.exp(times[:, None] * rate) - 1) / rate
    wanted = (gain * pool.read).sum(-1) + 1.0
    numbers = (torch.arange(3) + 1, 6 - torch.arange(7))
    assert (pool(u, *numbers) - wanted).abs().max() < 1e-5


def test_routing_learns_to_find_a_marked_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = probe(tmp_path, width="16", temperature="0.5", iterations="5")
    optimizer = torch.optim.Adam(made.parameters(), 3e-2)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        x, label = torch.randn(count, 16, 6), torch.randint(4, (count,))
        place = torch.randint(16, (count,))
        x[..., 5] = 0.0
        x[torch.arange(count), place] = torch.cat(
            (2 * torch.nn.functional.one_hot(label, 4), torch.zeros(count, 1),
             torch.full((count, 1), 4.0)), dim=1)  # fmt: skip
        return x, label

    for _ in range(120):
        loss = made.loss(*batch(48)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, label = batch(500)
    accuracy = (made(x).image.argmax(-1) == label).float().mean()
    assert accuracy > 0.95
