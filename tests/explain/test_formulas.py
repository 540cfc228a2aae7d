"""Every operation says its formula and its gradient, and both are typeset."""

from __future__ import annotations

from html import unescape
from xml.etree import ElementTree

import pytest

import autoencoders.layers
import minigrad
from minigrad.tensor import Function
from minigrad.tools.explain.formulas import formulas_of, gradients, name_of, typeset, typeset_wrapped

MODULES = ("minigrad.ops.", autoencoders.layers.__name__)
FUNCTIONS = {
    cls.__name__: cls
    for cls in Function.__subclasses__()
    if cls.__module__.startswith(MODULES) and "Chain" not in cls.__name__
}


def text(formula: str, names: str = "") -> str:
    """A formula as markup without the tags that only group."""
    found = typeset(formula, names.split())
    ElementTree.fromstring(unescape(found.replace("&lt;", "").replace("&gt;", "")))  # well formed
    return found.removeprefix('<math displaystyle="true">').removesuffix("</math>")


@pytest.mark.parametrize("cls", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_docstring_has_the_formula_and_the_gradient(cls: type[Function]) -> None:
    found = formulas_of(cls.__doc__)
    assert found.forward.startswith(("y ", "z "))
    assert found.backward.startswith(("g", "Each g")) or cls is minigrad.ops.catalogue.selection.Minimum
    for formula in (found.forward, *gradients(found.backward)):
        assert text(formula)


@pytest.mark.parametrize(
    ("formula", "markup"),
    [
        ("y = a * b", "<mi>y</mi><mo>=</mo><mi>a</mi><mo>&sdot;</mo><mi>b</mi>"),
        ("gy / 2N", "<mfrac><mrow><msub><mi>g</mi><mi>y</mi></msub></mrow><mrow><mn>2</mn><mi>N</mi></mrow></mfrac>"),
        ("x^2", "<msup><mi>x</mi><mrow><mn>2</mn></mrow></msup>"),
        ("e^-x", "<msup><mi>e</mi><mrow><mo>&minus;</mo><mi>x</mi></mrow></msup>"),
        ("sqrt(v + epsilon)", "<msqrt><mi>v</mi><mo>+</mo><mi>&epsilon;</mi></msqrt>"),
        ("a / (1 - b)", "<mfrac><mrow><mi>a</mi></mrow><mrow><mn>1</mn><mo>&minus;</mo><mi>b</mi></mrow></mfrac>"),
        ("y[n, f]", "<msub><mi>y</mi><mrow><mi>n</mi><mo>,</mo><mi>f</mi></mrow></msub>"),
        ("x < 0", "<mi>x</mi><mo>&lt;</mo><mn>0</mn>"),
        ("m_hat", "<mover><mi>m</mi><mo>^</mo></mover>"),
        ("beta_1", "<msub><mi>&beta;</mi><mn>1</mn></msub>"),
    ],
)
def test_a_formula_is_typeset(formula: str, markup: str) -> None:
    assert text(formula) == markup


def test_a_gradient_is_a_g_with_an_index() -> None:
    assert text("gweight", "weight") == "<msub><mi>g</mi><mtext>weight</mtext></msub>"
    indexed = text("gx[n]").replace(' stretchy="false"', "")
    assert indexed == "<msub><mi>g</mi><mi>x</mi></msub><mrow><mo>[</mo><mi>n</mi><mo>]</mo></mrow>"
    assert text("gamma") == "<mi>&gamma;</mi>"
    assert name_of("gbias") == "g<sub>bias</sub>"
    assert name_of("gamma") == "gamma"
    assert name_of("g<b>") == "g<sub>&lt;b&gt;</sub>"


def test_a_long_formula_can_be_broken() -> None:
    formula = "y[n] = bias[f] + sum over i, c of x[n, i, c] * weight[i, c] where h = p + i, w = q"
    parts = typeset_wrapped(formula).split("</math> ")
    assert len(parts) == 5
    assert [part.count("<munder>") for part in parts] == [0, 1, 0, 0, 0]


def test_gradients_are_taken_apart() -> None:
    found = formulas_of("y = a @ b.  ga = gy @ b^T, gb = a^T @ gy.\n\n    More\n    words.")
    assert found == ("y = a @ b", "ga = gy @ b^T, gb = a^T @ gy", "More words.")
    assert gradients(found.backward) == ["ga = gy @ b^T", "gb = a^T @ gy"]
    assert formulas_of(None) == ("", "", "")
