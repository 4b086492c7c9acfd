"""Routers as users write them, for the kernel of row chains: each the body behind `scores`."""

from __future__ import annotations

#: name -> (equations, choices per token, numbers of experts)
ROUTERS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "softplus above the mean": (
        """
  s = softplus(scores)
  level = mean(s; over = experts)
  w, pick = topk(where(s >= level, s, 0.0); top, over = experts)
  route(pick, w / (sum(w; over = top) + 1e-6))
""",
        2,
        (8, 60),
    ),
    "threshold at the median": (
        """
  s = sqrt(softplus(scores))
  ordered, _ = sort(s; over = experts)
  median = at(ordered; over = experts, index = experts // 2)
  w, pick = topk(relu(s - median) + 0.1 * s; top, over = experts)
  route(pick, w / sum(w; over = top))
""",
        2,
        (3, 8),
    ),
    "two levels of groups": (
        """
  g = split(scores; groups: experts // 4, member: 4, over = experts)
  outer = softmax(logsumexp(g; over = member); over = groups)
  inner = softmax(g; over = member)
  _, kept = topk(outer; keep: 2, over = groups)
  open = sum(one_hot(kept; groups: experts // 4); over = keep) > 0
  joint = merge(where(open, outer * inner, -inf); experts, over = [groups, member])
  w, pick = topk(joint; top, over = experts)
  route(pick, w / sum(w; over = top))
""",
        2,
        (8, 60, 64),
    ),
    "sparsemax with a bias": (
        """
  bias = weight(experts; init = normal(std = 0.3))
  p = sparsemax(scores + bias; over = experts)
  w, pick = topk(p; top, over = experts)
  route(pick, w)
""",
        2,
        (2, 8),
    ),
    "a temperature per expert": (
        """
  heat = weight(experts; init = normal(std = 0.3))
  s = sigmoid(scores * exp(heat))
  w, pick = topk(s; top, over = experts)
  route(pick, w / (sum(w; over = top) + 1e-20) * 2.5)
""",
        2,
        (3, 64),
    ),
    "cosines": (
        """
  s = normalize(scores; over = experts) * weight(init = constant(value = 5.0))
  w, pick = topk(softmax(s; over = experts); top, over = experts)
  route(pick, w)
""",
        1,
        (2, 8),
    ),
    "ranks by sorting": (
        """
  place = argsort(argsort(scores; over = experts, descending = true); over = experts)
  s = exp(scores - max(scores; over = experts)) * 0.5 ** place
  w, pick = topk(s; top, over = experts)
  route(pick, w / norm(w; over = top))
""",
        2,
        (3, 8),
    ),
    "relu with a floor": (
        """
  s = maximum(relu(scores), 0.05 * sigmoid(scores))
  s = s / (1.0 + max(s; over = experts))
  pick = where(s > 0.2, arange(experts), -1)
  route(rename(pick; experts, top), rename(s; experts, top); experts = experts, expected = 2.0)
""",
        0,
        (3, 8),
    ),
    "two softmaxes multiplied": (
        """
  heat = weight(experts; init = normal(std = 0.3))
  p = softmax(scores; over = experts) * softmax(scores * heat; over = experts)
  w, pick = topk(p / sum(p; over = experts); top, over = experts)
  route(pick, w)
""",
        3,
        (8, 60),
    ),
    "a bias in the choice alone": (
        """
  bias = weight(experts; init = normal(std = 0.3))
  s = sigmoid(scores)
  _, pick = topk(stop_gradient(s) + stop_gradient(bias); top, over = experts)
  w = gather(s, pick; over = experts) + gather(bias, pick; over = experts)
  route(pick, w / sum(w; over = top))
""",
        2,
        (8, 64),
    ),
    "as many as needed": (
        """
  p = softmax(scores; over = experts)
  ordered, at_first = sort(p; over = experts, descending = true)
  before = cumsum(ordered; over = experts) - ordered
  pick = where(before < 0.7, at_first, -1)
  route(rename(pick; experts, top), rename(ordered; experts, top); experts = experts,
        expected = 2.0)
""",
        0,
        (2, 8),
    ),
    "one plain and one of the rest": (
        """
  best = argmax(scores; over = experts)
  rest = where(arange(experts) == best, -inf, scores)
  other = argmax(rest; over = experts)
  pick = stack(best, other; top: 2)
  route(pick, softmax(gather(scores, pick; over = experts); over = top); experts = experts)
""",
        0,
        (2, 3, 8),
    ),
    "distance from the spread": (
        """
  far = (scores - mean(scores; over = experts)) / sqrt(variance(scores; over = experts) + 1e-3)
  w, pick = topk(log_softmax(far; over = experts); top, over = experts)
  route(pick, exp(w))
""",
        2,
        (3, 60),
    ),
    "odd experts for even places": (
        """
  number = arange(experts)
  s = where((number - 3) % 2 == 0, scores, scores * 0.5) + 0.01 * ((number - 5) // 3)
  w, pick = topk(rms_normalize(s; over = experts); top, over = experts)
  route(pick, sigmoid(w) * prod(sigmoid(w); over = top))
""",
        2,
        (8, 60),
    ),
}

#: equal scores give numbers that are equal but for rounding: which one is larger is not fixed
ROUNDED = ("two levels of groups",)

MODEL = """
router mine(x: [T, experts]{static}) -> route[experts, top] {{
  scores = precise(x)
  {equations}
}}

model m() {{
  stage out(x: [T, experts: {experts}]) {{
    r = mine(it{given})
    stack(r.weight, to(r.pick; dtype = "float"); both: 2)
  }}
  objective mean(out)
}}
"""


def spec(name: str, experts: int) -> str:
    """Return the text of a model that gives the weights and picks of a router."""
    equations, top, _ = ROUTERS[name]
    return MODEL.format(
        equations=equations.strip(),
        experts=experts,
        static="; top: int" if top else "",
        given=f"; top = {min(top, experts)}" if top else "",
    )
