"""The graph of a result as text, DOT and SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, strategies as st

import minigrad
from minigrad import Tensor, nn, ops
from minigrad.tools.explain.graph import Node, lanes


def fork() -> Tensor:
    x = Tensor(np.ones((2, 3), "f4"), requires_grad=True)
    return (ops.exp(x) * 2.0 + ops.relu(x)).sum()


def test_a_graph_as_text() -> None:
    text = str(minigrad.graph(fork()))
    assert [" ".join(line.split()) for line in text.split("\n")] == [
        "0 data 2 x 3", "1 Exp 2 x 3 of 0", "2 Mul 2 x 3 with 2 of 1", "3 ReLU 2 x 3 of 0", "4 Add 2 x 3 of 2, 3",
        "5 Sum number of 4",
    ]  # fmt: skip


def test_parameters_have_their_names() -> None:
    model = nn.Sequential({"first": nn.Dense(3, 2)})
    text = str(minigrad.graph(model(Tensor(np.ones((1, 3), "f4"))).sum()))
    assert "Dense 1 x 2 with first.weight, first.bias" in text


def test_a_graph_as_dot_and_svg() -> None:
    graph = minigrad.graph(fork())
    for line in ('n0 [label="data 2 x 3"];', 'n1 [label="Exp 2 x 3", shape=box];', "n0 -> n1;", "n3 -> n4;"):
        assert line in graph.dot
    drawn = ElementTree.fromstring(graph.svg)
    tags = [part.tag.rpartition("}")[2] for part in drawn]
    assert (tags.count("path"), tags.count("circle"), tags.count("text")) == (6, 6, 6)
    assert graph._repr_html_() == graph.svg


def test_names_cannot_break_out() -> None:
    class Planted(minigrad.Function):
        def forward(self, x: np.ndarray) -> np.ndarray:
            return x * 1

        def backward(self, gy: np.ndarray) -> tuple[np.ndarray]:
            return (gy,)

    Planted.__name__ = '"]; <script>'
    graph = minigrad.graph(Planted()(Tensor(np.ones(2, "f4"), requires_grad=True)))
    assert "<script>" not in graph.svg
    assert r"\"]; <script>" in graph.dot


def test_what_has_no_graph_is_refused() -> None:
    y = fork()
    y.backward()
    with pytest.raises(RuntimeError, match="graph through this Sum was released"):
        minigrad.graph(y)
    with pytest.raises(ValueError, match="no result of an operation"):
        minigrad.graph(Tensor(1.0))
    with pytest.raises(TypeError, match="found a ndarray"):
        minigrad.graph(np.ones(2))


def test_a_chain_has_one_lane() -> None:
    assert lanes([Node("f", (), [i - 1] if i else []) for i in range(5)]) == [0, 0, 0, 0, 0]


@given(st.lists(st.lists(st.integers(0, 30), max_size=3), max_size=30))
def test_a_lane_belongs_to_one_result_at_a_time(reads: list[list[int]]) -> None:
    nodes = [Node("f", (), [x % i for x in inputs if i]) for i, inputs in enumerate(reads)]
    found = lanes(nodes)
    last = [max([j for j, node in enumerate(nodes) if i in node.inputs] or [i]) for i in range(len(nodes))]
    for i in range(len(nodes)):
        for j in range(i + 1, len(nodes)):
            assert found[i] != found[j] or last[i] <= j
