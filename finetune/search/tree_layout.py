"""The layout of a search tree: layers by distance from the root, ordered so that few edges cross."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from finetune.search.search_tree import NodeValue
from pretrain.tasks.prosqa.prosqa_graph import Graph

NUM_SWEEPS = 8
"""Sweeps that order the layers by their neighbours, downwards and upwards in turn (Sugiyama, Tagawa and Toda 1981)."""


class TreeNode(NamedTuple):
    name: str
    place: tuple[float, float]
    """(x, y), with the root at y = 0."""
    value: float
    is_root: bool
    is_target: bool
    is_frontier: bool


class TreeEdge(NamedTuple):
    parent: int
    child: int
    is_shortest: bool
    """Whether it is on a shortest path from root to target."""


@dataclass(frozen=True, kw_only=True)
class TreeView:
    """What is reachable from the root."""

    nodes: dict[int, TreeNode]
    """By their number in the graph."""
    edges: list[TreeEdge]
    width: int
    """Nodes of the widest layer."""
    depth: int
    """Layers."""


def view_tree(graph: Graph, values: Sequence[NodeValue]) -> TreeView:
    """The layout of a graph with the values of its nodes after one number of thoughts."""
    by_name = {value.name: value for value in values}
    layers = _layers(graph)
    places = {
        node: (place - (len(layer) - 1) / 2, -float(depth))
        for depth, layer in enumerate(layers)
        for place, node in enumerate(layer)
    }
    nodes = {}
    for node, place in places.items():
        value = by_name.get(graph.idx_to_symbol[node])
        nodes[node] = TreeNode(
            name=graph.idx_to_symbol[node],
            place=place,
            value=value.value if value else 0.0,
            is_root=node == graph.root,
            is_target=node == graph.target,
            is_frontier=value is not None and value.distance == value.num_thoughts,
        )
    on_path = {edge for path in graph.shortest_paths() for edge in pairwise(path)}
    edges = [TreeEdge(parent, child, (parent, child) in on_path) for parent, child in graph.edges if parent in nodes]
    return TreeView(nodes=nodes, edges=edges, width=max(map(len, layers)), depth=len(layers))


def _layers(graph: Graph) -> list[list[int]]:
    """The reachable nodes by distance, each layer in its order."""
    distances = graph.distances(graph.root)
    layers: list[list[int]] = []
    for node, distance in sorted(enumerate(distances), key=lambda pair: pair[1] if pair[1] is not None else -1):
        if distance is not None:
            layers += [[] for _ in range(distance + 1 - len(layers))]
            layers[distance].append(node)
    for sweep in range(NUM_SWEEPS):
        order = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        neighbours = graph.parents if sweep % 2 == 0 else graph.children
        for depth in order:
            across = {node: place - (len(layer) - 1) / 2 for layer in layers for place, node in enumerate(layer)}
            middle = {}
            for node in layers[depth]:
                near = [across[other] for other in neighbours[node] if other in across and distances[other] != depth]
                middle[node] = sum(near) / len(near) if near else across[node]
            layers[depth].sort(key=middle.__getitem__)
    return layers
