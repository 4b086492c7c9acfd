"""Moirai-MoE: a gate by distances, tags in the place of positions, a mixture of distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor

from tests.run.test_library import model
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "moirai_moe.tok"
SIZES = {
    "d": "16", "layers": "2", "head_dim": "8", "patch": "4", "hidden": "8", "experts": "6",
}  # fmt: skip


def made(folder: Path, **sizes: object) -> Any:
    """Return the class of the small model with some sizes changed."""
    place = folder / "_".join(["moirai", *(f"{k}{v}" for k, v in sizes.items())])
    built = build(SPEC, place, SIZES | {k: str(v).lower() for k, v in sizes.items()})
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("moirai"))


@pytest.fixture(scope="module")
def unscaled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("unscaled"), scaling=False)


def fresh(package: Any) -> Any:
    torch.manual_seed(0)
    return package.Model().double()


def series(
    samples: int = 1, variates: int = 2, steps: int = 5, patch: int = 4
) -> dict[str, Tensor]:
    """Return tagged tokens of random series in one row, the last patch of each to be predicted."""
    tags = [(s, t, v) for s in range(1, samples + 1) for v in range(variates) for t in range(steps)]
    sample, time, variate = torch.tensor(tags).T.unsqueeze(1).unbind(0)
    return {
        "target": 3.0 + 2.0 * torch.randn(1, len(tags), patch, dtype=torch.float64),
        "observed": torch.rand(1, len(tags), patch) < 0.8,
        "sample": sample,
        "time": time,
        "variate": variate,
        "predicted": time == steps - 1,
    }


# --------------------------------------------------------------------------- the gate


@pytest.mark.parametrize(
    ("farthest", "picks", "weights"),
    [("true", [2, 1], [0.731059, 0.268941]), ("false", [3, 0], [0.622459, 0.377541])],
)
def test_the_two_farthest_centroids_or_the_two_nearest(
    tmp_path: Path, farthest: str, picks: list[int], weights: list[float]
) -> None:
    gate = model(
        tmp_path,
        f"""
        use std.routers {{ centroid_topk }}
        model gate() {{
          stage out(x: [T, d: 2]) {{
            r = centroid_topk(it; experts = 4, top = 2, farthest = {farthest})
            stack(r.weight, f32(r.pick); both: 2)
          }}
        }}
        """,
    )
    (centroids,) = gate.buffers()
    assert centroids.dtype == torch.float64
    centroids.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.5]]))
    both = gate(torch.zeros(1, 1, 2)).out[0, 0]
    assert both[:, 1].tolist() == picks
    assert both[:, 0].tolist() == pytest.approx(weights, abs=1e-6)
    # the same vector added to tokens and centroids changes nothing, unlike with a linear gate
    x, away = torch.randn(2, 5, 2), torch.tensor([7.0, -3.0])
    before = gate(x).out
    centroids.add_(away)
    assert torch.allclose(gate(x + away).out, before, atol=1e-5)


def test_the_gate_is_not_trained_and_its_token_is(package: Any) -> None:
    moirai = fresh(package)
    router = moirai.forecast.layers[0].moe.router
    assert not list(router.parameters())
    assert [name for name, _ in router.named_buffers()] == ["centroids"]
    assert "forecast.layers.1.moe.router.centroids" in moirai.state_dict()
    u = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    route = router(u, None)
    (gradient,) = torch.autograd.grad(route.weight.square().sum(), u)
    assert gradient.abs().max() > 0
    assert not router.centroids.requires_grad


def test_equal_experts_are_one_and_their_order_does_not_matter(package: Any) -> None:
    moe = fresh(package).forecast.layers[0].moe
    u = torch.randn(2, 7, 16, dtype=torch.float64)
    with torch.no_grad():
        before = moe(u, None)
        order = torch.randperm(6)
        for tensor in (moe.router.centroids, *(m.weight for m in moe.expert.children())):
            tensor.copy_(tensor[order].clone())
        assert torch.allclose(moe(u, None), before, atol=1e-12)
        for m in moe.expert.children():
            m.weight.copy_(m.weight[:1].expand_as(m.weight).clone())
    gate, up, down = (m.weight[0] for m in (moe.expert.gate, moe.expert.up, moe.expert.down))
    assert torch.allclose(moe(u, None), (F.silu(u @ gate.T) * (u @ up.T)) @ down.T, atol=1e-12)


# --------------------------------------------------------------------------- scaling


def test_statistics_are_of_what_was_observed_of_the_own_variate(package: Any) -> None:
    given = series(samples=2)
    parts = fresh(package)(**given).forecast
    for s in (1, 2):
        for v in (0, 1):
            mine = (given["sample"] == s) & (given["variate"] == v)
            known = given["observed"] & ~given["predicted"].unsqueeze(-1)
            values = given["target"][mine][known[mine]]
            wanted = torch.stack((values.mean(), (values.var() + 1e-5).sqrt()))
            found = parts[mine][..., 12:]
            assert torch.allclose(found, wanted.expand_as(found), rtol=1e-9)


def test_padding_has_mean_zero_and_deviation_one(package: Any) -> None:
    given = series()
    given["sample"] = given["sample"] * (given["variate"] == 0)
    parts = fresh(package)(**given).forecast[given["sample"] == 0]
    assert torch.equal(parts[..., 12], torch.zeros_like(parts[..., 12]))
    assert torch.equal(parts[..., 13], torch.ones_like(parts[..., 13]))


def test_scaling_a_series_scales_its_forecast(package: Any) -> None:
    moirai, given = fresh(package), series(variates=1)
    # many units wide, so that the floor of the deviation does not matter
    given["target"] = 100 * given["target"]
    before = moirai(**given).forecast
    after = moirai(**{**given, "target": 5.0 * given["target"] - 40.0}).forecast
    assert torch.allclose(after[..., :12], before[..., :12], atol=1e-6)
    assert torch.allclose(after[..., 12], 5.0 * before[..., 12] - 40.0, rtol=1e-9)
    assert torch.allclose(after[..., 13], 5.0 * before[..., 13], rtol=1e-6)


# --------------------------------------------------------------------------- tags


def test_with_fixed_scales_a_later_patch_changes_nothing_earlier(unscaled: Any) -> None:
    moirai, given = fresh(unscaled), series()
    before = moirai(**given).forecast
    for time in range(5):
        target = given["target"].clone()
        target[given["time"] == time] += 1.0
        changed = (moirai(**{**given, "target": target}).forecast != before).flatten(2).any(-1)
        assert not changed[given["time"] < time].any()
        # other variates of the same time and later ones do change
        assert changed[given["time"] >= time].all()


def test_with_scales_of_the_context_a_later_value_changes_earlier_tokens(package: Any) -> None:
    moirai, given = fresh(package), series()
    given["observed"][:] = True
    before = moirai(**given).forecast
    target = given["target"].clone()
    target[given["time"] == 3] += 1.0
    changed = (moirai(**{**given, "target": target}).forecast != before).flatten(2).any(-1)
    assert changed[given["time"] == 0].all()


def test_samples_packed_into_a_row_are_as_alone(package: Any) -> None:
    moirai, given = fresh(package), series(samples=2)
    packed = moirai(**given).forecast
    for s in (1, 2):
        mine = given["sample"][0] == s
        alone = moirai(**{name: value[:, mine] for name, value in given.items()}).forecast
        assert torch.allclose(packed[:, mine], alone, atol=1e-10)


def test_tokens_may_stand_in_any_order(package: Any) -> None:
    moirai, given = fresh(package), series(samples=2)
    before, order = moirai(**given).forecast, torch.randperm(20)
    after = moirai(**{name: value[:, order] for name, value in given.items()}).forecast
    assert torch.allclose(after, before[:, order], atol=1e-10)


# --------------------------------------------------------------------------- the distribution


def reference(parts: Tensor, y: Tensor) -> Tensor:
    """Return the negative log-density by the distributions of torch."""
    place, scale = parts[..., 12], parts[..., 13]
    x = (y - place) / scale
    p = parts.unbind(-1)

    def width(x: Tensor) -> Tensor:
        return F.softplus(x)

    inside = [x == x, x == x, x >= 0, x > 0]
    count, n = width(p[8]), x.clamp(min=0)
    binomial = torch.lgamma(count + n) - torch.lgamma(1 + n) - torch.lgamma(count)
    binomial = binomial + count * F.logsigmoid(-p[9]) + n * F.logsigmoid(p[9])
    each = [
        D.StudentT(2 + F.softplus(p[4]), p[5], width(p[6])).log_prob(x),
        D.Normal(p[7], 1e-3).log_prob(x),
        binomial,
        D.LogNormal(p[10], width(p[11])).log_prob(torch.where(x > 0, x, 1.0)),
    ]
    density = torch.stack(
        [torch.where(ok, value, -torch.inf) for ok, value in zip(inside, each, strict=True)]
    )
    weights = torch.stack(p[:4]).log_softmax(0)
    return scale.log() - (weights + density).logsumexp(0)


def test_the_loss_is_the_negative_log_density_of_the_values_that_count(package: Any) -> None:
    moirai, given = fresh(package), series(samples=2)
    future = 3.0 + 2.0 * torch.randn_like(given["target"])
    wanted = torch.rand(future.shape) < 0.5
    found = moirai.loss(**given, future=future, wanted=wanted).total
    with torch.no_grad():
        each = reference(moirai(**given).forecast, future)
    assert ((future - 3) < 0).any()  # some values only two components can give
    assert found.item() == pytest.approx(each[wanted].mean().item(), rel=1e-9)
    found.backward()
    for name, parameter in moirai.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_binomial_of_whole_numbers_is_that_of_torch(tmp_path: Path) -> None:
    density = model(
        tmp_path,
        """
        use std.distributions { negative_binomial }
        model counts() {
          stage out(y: [T], total: [T], logits: [T]) { negative_binomial(y, total, logits) }
        }
        """,
    )
    y, total, logits = torch.arange(6.0), torch.rand(6) + 0.5, torch.randn(6)
    found = density(y.unsqueeze(0), total.unsqueeze(0), logits.unsqueeze(0)).out[0]
    wanted = D.NegativeBinomial(total, logits=logits).log_prob(y)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_few_steps_of_training_find_a_regular_series(package: Any) -> None:
    torch.manual_seed(0)
    moirai = package.Model()
    wave = torch.sin(torch.arange(48) * 0.7).view(1, 12, 4)
    tags = torch.arange(12).unsqueeze(0)
    given = {
        "target": wave, "observed": torch.ones_like(wave, dtype=torch.bool),
        "sample": torch.ones_like(tags), "time": tags, "variate": 0 * tags, "predicted": tags > 12,
    }  # fmt: skip
    wanted = torch.ones_like(wave, dtype=torch.bool)
    wanted[:, -1] = False
    future = wave.roll(-1, dims=1)
    optimizer = torch.optim.Adam(moirai.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        total = moirai.loss(**given, future=future, wanted=wanted).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0] - 0.3
