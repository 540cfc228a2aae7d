"""The formulas in the docstrings of operations, typeset as MathML.

A docstring of a Function begins with its formula and, after two spaces or on a later line, that of its gradient:
`y = a * b.  ga = gy * b, gb = gy * a.` Here a name such as gy becomes a g with the index y.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

TOKEN = re.compile(r"-=|\d+(?:\.\d+)?|[A-Za-z]\w*|<=|>=|\S|\s+")
GREEK = {name: f"&{name};" for name in ("beta", "gamma", "epsilon", "pi", "mu", "sigma")}
OPERATORS = {"*": "&sdot;", "<=": "&le;", ">=": "&ge;", "-": "&minus;", "<": "&lt;", ">": "&gt;"}
CLOSING = {"(": ")", "[": "]"}
ENDS = set("+-=<>,;:|") | {"<=", ">=", "-=", "@"}  # what ends a product
AFTER_A_NAME = {"where", "with", "else", "and", "over", "in", "for", "of"}  # the a before it is no article
SPACE = "<mtext>&#160;</mtext>"


class Formulas(NamedTuple):
    """What a docstring says of an operation, as text."""

    forward: str
    backward: str
    rest: str


def formulas_of(docstring: str | None) -> Formulas:
    """The formula, that of the gradient, and what follows, of a Function's docstring."""
    parts = re.split(r"\.? {2,}|\n\s*\n", inspect.cleandoc(docstring or ""), maxsplit=2)
    texts = [re.sub(r"\s+", " ", part).strip() for part in parts] + ["", ""]
    if not re.match(r"\w+(\[[^\]]*\])? (=|is|adds|as|repeats)|Each g", texts[1]):
        return Formulas(texts[0].rstrip("."), "", " ".join(texts[1:]).strip())
    return Formulas(texts[0].rstrip("."), texts[1].rstrip("."), texts[2])


def input_names(cls: type, count: int) -> list[str]:
    """The names of the inputs of a Function, as its `forward` has them."""
    names: list[str] = []
    for name, parameter in list(inspect.signature(cls.forward).parameters.items())[1:]:  # type: ignore[attr-defined]
        several = parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{name}{i}" for i in range(count - len(names))] if several else [name]
    return names[:count]


def gradients(text: str) -> list[str]:
    """The formulas of the gradients, one by one."""
    return re.split(r"[,;] (?=g\w+ = )", text) if text else []


def typeset(text: str, names: Iterable[str] = ()) -> str:
    """A formula as MathML. Words stay words. names: those of the arrays, so that gweight is read as one's gradient."""
    tokens = [token if token.strip() else " " for token in TOKEN.findall(text)]
    return f'<math displaystyle="true">{"".join(_Setter(tokens, names).row())}</math>'


def typeset_wrapped(text: str, names: Iterable[str] = ()) -> str:
    """A formula in parts between which a narrow page can break the line: before with and where, before a sum and a
    factor with an index, and after a comma."""
    breaks = r" (?=with |where |[+] sum over )|(?<=\]) (?=\* \w+\[)|(?<=,) (?=\w+ = )"
    known = {*names, *re.findall(r"\w+", text)}
    return " ".join(typeset(part, known) for part in re.split(breaks, text))


def name_of(name: str) -> str:
    """The name of an array as HTML: gweight is a g with the index weight."""
    plain = name[0] + f"<sub>{escape(name[1:])}</sub>" if name.startswith("g") and len(name) > 1 else escape(name)
    return escape(name) if name in GREEK else plain


def bracket(opening: str, inner: str, closing: str) -> str:
    """In brackets, which are tall only around fractions."""
    flat = "" if "<mfrac>" in inner else ' stretchy="false"'
    return f"<mrow><mo{flat}>{opening}</mo>{inner}<mo{flat}>{closing}</mo></mrow>"


def bare(factor: str) -> str:
    """Without the round brackets around all of it, which a fraction does not need."""
    found = re.fullmatch(r"<mrow><mo[^>]*>\(</mo>(.*)<mo[^>]*>\)</mo></mrow>", factor)
    return found[1] if found and found[1].count("<mrow>") == found[1].count("</mrow>") else factor


class _Setter:
    """Reads tokens from left to right and gives MathML."""

    def __init__(self, tokens: list[str], names: Iterable[str]) -> None:
        self.tokens, self.at = tokens, 0
        self.names = {token for token in tokens if token[0].isalpha()} | {"x", "y", *names}

    def peek(self, skip: bool = False) -> str:
        """The next token; skip: after spaces."""
        at = self.at
        while skip and at < len(self.tokens) and self.tokens[at] == " ":
            at += 1
        return self.tokens[at] if at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def row(self, closing: str = "") -> list[str]:
        """Everything up to the closing bracket, which is taken, too."""
        done: list[str] = []
        product: list[str] = []  # the factors so far, which a / would divide
        words = False  # whether it holds words, so that nobody knows what a / divides
        space = False
        while self.at < len(self.tokens):
            token = self.peek()
            if token == closing:
                self.take()
                break
            if token == " ":
                self.take()
                space = True
                continue
            if token in ENDS and not (token == "|" and self._opens()):
                done += [*product, f"<mo>{OPERATORS.get(self.take(), token)}</mo>"]
                product, words = [], False
            elif token == "/":
                self.take()
                if words or not product:
                    product.append("<mo>/</mo>")
                else:
                    below = self._denominator()
                    above = bare(product[0]) if len(product) == 1 else "".join(product)
                    product = [f"<mfrac><mrow>{above}</mrow><mrow>{bare(below)}</mrow></mfrac>"]
            elif token == "*":
                self.take()
                product.append("<mo>&sdot;</mo>")
            else:
                factor = self.factor()
                if (
                    space
                    and product
                    and product[-1] != "<mo>&sdot;</mo>"
                    and "<mtext>" in (factor[:7], product[-1][:7])
                ):
                    product.append(SPACE)
                    words = True
                product.append(factor)
            space = False
        return done + product

    def _opens(self) -> bool:
        """Whether this | begins an absolute value: it has a partner without an operator before it."""
        before = next((t for t in reversed(self.tokens[: self.at]) if t != " "), "=")
        return before in ENDS | set("(/*")

    def _denominator(self) -> str:
        """What stands below a line: one factor, or a number and a name that touch it, as in 2N."""
        while self.peek() == " ":
            self.take()
        below = self.factor()
        while self.peek()[:1].isalpha():
            below += self.factor()
        return below

    def factor(self) -> str:
        """A number, name or bracket, with its index and exponent."""
        token = self.take()
        if token in CLOSING:
            base = bracket(token, "".join(self.row(CLOSING[token])), CLOSING[token])
        elif token == "|":
            base = bracket("|", "".join(self.row("|")), "|")
        elif token[0].isdigit():
            base = f"<mn>{token}</mn>"
        elif token == "sum":
            return self._sum()
        elif token == "sqrt":
            while self.peek() == " ":
                self.take()
            inner = self.factor() if self.peek() != "(" else self._inside()
            return f"<msqrt>{inner}</msqrt>"
        elif token[0].isalpha():
            base = self._name(token)
            if self.peek() == "[":
                if not base.startswith("<mi>"):  # a word, or a gradient, which has an index already
                    base += bracket("[", self._inside(), "]")
                else:
                    base = f"<msub>{base}<mrow>{self._inside()}</mrow></msub>"
        else:
            base = f"<mo>{escape(token)}</mo>"
        if self.peek() == "^":
            self.take()
            sign = "<mo>&minus;</mo>" if self.peek() == "-" else ""
            if sign:
                self.take()
            power = self._inside() if self.peek() == "(" else self.factor()
            base = f"<msup>{base}<mrow>{sign}{power}</mrow></msup>"
        return base

    def _inside(self) -> str:
        """What is in the bracket that begins here, without it."""
        return "".join(self.row(CLOSING[self.take()]))

    def _sum(self) -> str:
        """`sum of`, `sum over i, j, c of` or `sum(`."""
        words = "".join(self.tokens[self.at :])
        if over := re.match(r" over ([\w, ]+?) of ", words):
            end = self.at + len(TOKEN.findall(over[0]))
            self.at = end
            return f"<munder><mo>∑</mo><mtext>{escape(over[1])}</mtext></munder>"
        if words.startswith(" of "):
            self.at += 3
        return "<mo>∑</mo>"

    def _name(self, name: str) -> str:
        if name in GREEK:
            return f"<mi>{GREEK[name]}</mi>"
        if len(name) > 1 and name[0] == "g" and (name[1:] in self.names or name == "gy"):
            return f"<msub><mi>g</mi>{self._name(name[1:])}</msub>"
        if name.endswith("_hat"):
            return f"<mover><mi>{name.removesuffix('_hat')}</mi><mo>^</mo></mover>"
        if name.startswith("padded_"):
            return f"<mrow><mtext>padded&#160;</mtext>{self._name(name.removeprefix('padded_'))}</mrow>"
        if numbered := re.fullmatch(r"([a-zA-Z]+)_(\d)", name):
            return f"<msub>{self._name(numbered[1])}<mn>{numbered[2]}</mn></msub>"
        word = self.peek(skip=True)
        if len(name) == 1 and not (name == "a" and len(word) > 1 and word.isalpha() and word not in AFTER_A_NAME):
            return f"<mi>{name}</mi>"
        return f"<mtext>{escape(name)}</mtext>"
