"""The graph of a computation as text, DOT and SVG.

    print(minigrad.graph(loss))
    Path("graph.svg").write_text(minigrad.graph(loss).svg)

Rows are operations in the order in which they ran. A result has a lane from its row to the row of its last use, so what
is to the left of a row is what the step still needs there.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from ...higher_order import creators
from ...nn import Module
from ...tensor import Tensor
from ..watch import names_alive
from .origins import Origin

ROW, LANE, LEFT, TEXT = 26, 16, 14, 14  # pixels
COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"


@dataclass
class Node:
    """An operation, or data.

    Attributes:
        name: of the class; "data" for what is no result. shape: of the result.
        inputs: the numbers of the nodes that it reads. extras: its other inputs, parameters and numbers.
        path: (identity, name, class) of the modules that it ran in, the outermost first.
        origin: the line of the model that asked for it. variable: what the model calls data.
    """

    name: str
    shape: tuple[int, ...]
    inputs: list[int]
    extras: list[str] = field(default_factory=list)
    path: list[tuple[int, str, str]] = field(default_factory=list)
    origin: Origin | None = None
    variable: str = ""

    @property
    def layer(self) -> str:
        """The name of the innermost module that has one."""
        return next((name for _, name, _ in reversed(self.path) if name), "")

    @property
    def label(self) -> str:
        """Its layer, name, shape and other inputs."""
        layer = f"{self.path[-1][1]}: " if self.path and self.path[-1][1] else ""
        extras = f" with {', '.join(self.extras)}" if self.extras else ""
        return f"{layer}{self.name} {shape_text(self.shape)}{extras}"


class Edge(NamedTuple):
    """From a result to one that reads it."""

    source: int
    target: int


class Graph:
    """Nodes in the order in which they ran. `str` gives a table; `dot` and `svg` are texts for files."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.edges = list(dict.fromkeys(Edge(x, i) for i, node in enumerate(nodes) for x in node.inputs))
        self.lanes = lanes(nodes)

    def __str__(self) -> str:
        width = len(str(len(self.nodes)))
        names = [node.label for node in self.nodes]
        longest = max(map(len, names), default=0)
        rows = zip(range(len(names)), names, self.nodes, strict=True)
        return "\n".join(
            f"{i:>{width}}  {name:<{longest}}  {'of ' + ', '.join(map(str, n.inputs)) if n.inputs else ''}".rstrip()
            for i, name, n in rows
        )

    __repr__ = __str__

    @property
    def dot(self) -> str:
        """For Graphviz."""
        nodes = (
            f'  n{i} [label="{quoted(node.label)}"{", shape=box" if node.inputs else ""}];'
            for i, node in enumerate(self.nodes)
        )
        edges = (f"  n{a} -> n{b};" for a, b in self.edges)
        return "\n".join(["digraph {", *nodes, *edges, "}"])

    @property
    def svg(self) -> str:
        """A picture that needs nothing else."""
        left = LEFT + LANE * (max(self.lanes, default=0) + 1)
        longest = max((len(node.label) for node in self.nodes), default=0)
        width, height = left + TEXT + 8 * longest, ROW * len(self.nodes) + 8
        parts = [f'<path d="{self._path(edge)}" stroke="{self._colour(edge.source)}"/>' for edge in self.edges]
        for i, node in enumerate(self.nodes):
            x, y = self._place(i)
            parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{self._colour(i)}" stroke="#fff"/>')
            parts.append(
                f'<text x="{left + TEXT - 8}" y="{y + 4}" stroke="none" fill="#222">{escape(node.label)}</text>'
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="none" stroke-width="2">{"".join(parts)}</svg>'
        )

    def _repr_html_(self) -> str:
        return self.svg

    def _place(self, i: int) -> tuple[int, int]:
        return LEFT + LANE * self.lanes[i], ROW * i + ROW // 2

    def _colour(self, i: int) -> str:
        return COLOURS[self.lanes[i] % len(COLOURS)]

    def _path(self, edge: Edge) -> str:
        """Down in the lane of the result, and over to the reader in the last row."""
        (x, y), (to_x, to_y) = self._place(edge.source), self._place(edge.target)
        turn = to_y - ROW
        down = f"V{turn}" if turn > y else ""
        return f"M{x},{y}{down}C{x},{to_y - ROW // 3} {to_x},{turn + ROW // 3} {to_x},{to_y}"


def lanes(nodes: list[Node]) -> list[int]:
    """A lane for each node, which nobody else has until the node's result was last used."""
    last = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for x in node.inputs:
            last[x] = i
    taken: dict[int, int] = {}  # lane -> the row where it ends
    found = []
    for i in range(len(nodes)):
        free = (lane for lane in range(len(nodes)) if taken.get(lane, -1) <= i)
        lane = next(free)
        taken[lane] = last[i]
        found.append(lane)
    return found


def graph_of(y: Tensor) -> Graph:
    """The graph that y was made with.

    Raises:
        TypeError: y is no Tensor. ValueError: it was made by no operation. RuntimeError: the graph was used by
            `backward` and released.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"graph: expected a Tensor, found a {type(y).__name__}")
    if y.creator is None:
        raise ValueError("graph: this tensor is no result of an operation on tensors that require a gradient")
    steps = creators([y])
    for function, _ in steps:
        if function.inputs is None:
            raise RuntimeError(
                f"graph: the graph through this {function.name} was released by backward; call graph before it, or "
                "backward(retain_graph=True)"
            )
    names = names_of_tensors()
    numbers: dict[int, int] = {}  # of a function's order, or of a leaf's identity
    nodes: list[Node] = []
    for function, result in steps:
        inputs, extras = [], []
        for x in function.inputs or ():
            if x is None:
                continue
            key = id(x) if x.creator is None else x.creator.order
            if x.creator is None and (id(x) in names or x.shape == ()):
                extras.append(names.get(id(x)) or f"{x.item():g}")
                continue
            if key not in numbers:
                numbers[key] = len(nodes)
                nodes.append(Node("data", x.shape, []))
            inputs.append(numbers[key])
        numbers[function.order] = len(nodes)
        nodes.append(Node(function.name, result.shape, inputs, extras))
    return Graph(nodes)


def names_of_tensors() -> dict[int, str]:
    """{id(tensor): name} of the parameters and buffers of all models there are."""
    modules = names_alive()
    found: dict[int, str] = {}
    for module in [x for x in gc.get_objects() if issubclass(type(x), Module) and id(x) in modules]:
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                layer = modules[id(module)]
                found[id(value)] = f"{layer}.{name}" if layer else name
    return found


def shape_text(shape: tuple[int, ...]) -> str:
    """(4, 28, 28, 1) as 4 x 28 x 28 x 1; a single number has no shape."""
    return " x ".join(map(str, shape)) or "number"


def quoted(text: str) -> str:
    """For a string of DOT."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
