"""The networkx view of the typed graph."""

from __future__ import annotations

from pathlib import Path

import networkx

from tokdsl import driver
from tokdsl.graph.view import digraph

EXAMPLE = Path(__file__).parents[3] / "examples" / "mixtral.tok"


def test_the_view_has_every_node_and_is_acyclic() -> None:
    program = driver.check_file(EXAMPLE).programs[0]
    graph = digraph(program)
    modules = program.all_modules()
    assert len(graph) == sum(len(m.nodes) + len(m.inputs) for m in modules)
    assert networkx.is_directed_acyclic_graph(graph)


def test_routers_are_found_by_what_they_compute() -> None:
    graph = digraph(driver.check_file(EXAMPLE).programs[0])
    routes = [n for n, data in graph.nodes(data=True) if data["name"] == "route"]
    assert [graph.nodes[n]["module"] for n in routes] == ["softmax_topk"]
    ancestors = {graph.nodes[n]["name"] for n in networkx.ancestors(graph, routes[0])}
    assert {"topk", "softmax", "linear"} <= ancestors


def test_repeats_name_the_bodies_that_they_run() -> None:
    graph = digraph(driver.check_file(EXAMPLE).programs[0])
    loops = [data for _, data in graph.nodes(data=True) if data["kind"] == "repeat"]
    assert [len(data["bodies"]) for data in loops] == [32]
    assert set(loops[0]["bodies"]) == {"layer"}
