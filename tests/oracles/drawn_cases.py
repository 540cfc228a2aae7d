"""Calls of every public operation with shapes that Hypothesis draws: empty, one element, broadcast, odd geometries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive
import numpy as np
from hypothesis import assume, strategies as st
from op_cases import BINARY, INTEGER, UNARY, Case, case

from minigrad import ops

Draw = Callable[[st.SearchStrategy[Any]], Any]
SIZES = st.integers(0, 4)
SOME = st.integers(1, 4)


def shape(draw: Draw, size: st.SearchStrategy[int] = SIZES, least: int = 0) -> tuple[int, ...]:
    return tuple(draw(st.lists(size, min_size=least, max_size=4)))


def broadcast(draw: Draw, full: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to the full one."""
    ones = tuple(draw(st.sampled_from((n, 1))) for n in full)
    return ones[draw(st.integers(0, len(full))) :]


def axis_of(draw: Draw, x: tuple[int, ...], least: int = 0) -> Any:
    """An argument `axis`: all, several or one."""
    axes = draw(st.lists(st.integers(0, max(len(x) - 1, 0)), unique=True, min_size=least, max_size=len(x)))
    return draw(st.sampled_from([None, tuple(axes), *axes[:1]]))


def _unary(op: str) -> Callable[[Draw], Case]:
    return lambda draw: case(op, shape(draw), kinds=UNARY[op])


def _binary(op: str) -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        full = shape(draw)
        return case(op, broadcast(draw, full), broadcast(draw, full))

    return drawn


def _clip(draw: Draw) -> Case:
    low, high = sorted(draw(st.lists(st.sampled_from([-2, -1, 0, 1, 2]), min_size=2, max_size=2)))
    return case("clip", shape(draw), constants=(low, high))


def _pow(draw: Draw) -> Case:
    exponent = draw(st.sampled_from([-2, -1.5, -1, 0, 0.5, 1, 2, 2.5, 3]))
    return case("pow", shape(draw), kinds="any" if float(exponent).is_integer() else "positive", exponent=exponent)


def _reshape(draw: Draw) -> Case:
    before = shape(draw)
    count = int(np.prod(before))
    divisors = [n for n in range(1, count + 1) if count % n == 0] or [1, 3]
    first = draw(st.sampled_from(divisors))
    after = (first, count // first) if count else (first, 0)
    return case("reshape", before, constants=after[:: draw(st.sampled_from((1, -1)))])


def _transpose(draw: Draw) -> Case:
    before = shape(draw)
    axes = tuple(draw(st.permutations(range(len(before)))))
    return case("transpose", before, constants=(axes,) if axes and draw(st.booleans()) else ())


def _reduction(op: str) -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        # the mean and the largest of no numbers are refused or undefined: only a sum of none is zero
        before = shape(draw, SIZES if op == "sum" else SOME)
        return case(op, before, axis=axis_of(draw, before), keepdims=draw(st.booleans()))

    return drawn


def _matmul(draw: Draw) -> Case:
    leading = shape(draw, SIZES)[:2]
    N, D, F = (draw(SIZES) for _ in range(3))
    return case("matmul", (*broadcast(draw, leading), N, D), (*broadcast(draw, leading), D, F))


def _dense(draw: Draw) -> Case:
    leading, D, F = shape(draw, SIZES)[:2], draw(SOME), draw(SOME)
    return case("dense", (*leading, D), (D, F), *([(F,)] if draw(st.booleans()) else []))


def _geometry(draw: Draw) -> dict[str, Any]:
    pair = st.tuples(SOME, SOME)
    g = {
        "kernel": draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        "stride": draw(pair),
        "dilation": draw(st.sampled_from([1, 1, (2, 1), (3, 2)])),
        "padding": draw(st.sampled_from(["same", "valid", 0, 1, (2, 1)])),
        "size": draw(st.tuples(st.integers(1, 8), st.integers(1, 8))),
        "channels": draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        "N": draw(st.integers(0, 3)),
    }
    assume(min(_outputs(g)) >= 1)
    return g


def _outputs(g: dict[str, Any]) -> list[int]:
    spans = [naive.span(K, D) for K, D in zip(g["kernel"], naive.pair(g["dilation"]), strict=True)]
    sides = zip(g["size"], spans, g["stride"], (0, 1), strict=True)
    return [naive.pads_and_output(H, K, S, g["padding"], axis)[1] for H, K, S, axis in sides]


def _convolved(draw: Draw) -> tuple[dict[str, Any], int, int, int, dict[str, Any]]:
    """(geometry, channels of a group, filters of a group, groups, options)."""
    g = _geometry(draw)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    options = {"stride": g["stride"], "padding": g["padding"], "dilation": g["dilation"], "groups": groups}
    return g, *g["channels"], groups, options


def _conv2d(draw: Draw) -> Case:
    g, C, F, groups, options = _convolved(draw)
    bias = [(F * groups,)] if draw(st.booleans()) else []
    return case("conv2d", (g["N"], *g["size"], C * groups), (*g["kernel"], C, F * groups), *bias, **options)


def _conv2d_transpose(draw: Draw) -> Case:
    """Back from the output of a convolution to the size of its input."""
    g, C, F, groups, options = _convolved(draw)
    bias = [(F * groups,)] if draw(st.booleans()) else []
    x, weight = (g["N"], *_outputs(g), C * groups), (*g["kernel"], F, C * groups)
    return case("conv2d_transpose", x, weight, *bias, output_size=g["size"], **options)


def _normalised(draw: Draw, least: int) -> tuple[tuple[int, ...], int]:
    C = draw(SOME)
    return (draw(st.integers(least, 4)), *shape(draw, SOME)[:2], C), C


def _batch_norm(draw: Draw) -> Case:
    x, C = _normalised(draw, 1)
    return case("batch_norm", x, (C,), (C,), epsilon=draw(st.sampled_from([1e-3, 1e-5, 0.1])))


def _batch_norm_inference(draw: Draw) -> Case:
    x, C = _normalised(draw, 0)
    rng = np.random.default_rng(C)
    return case("batch_norm_inference", x, (C,), (C,), arrays=(rng.normal(size=C), rng.uniform(0.5, 2, C)))


def _pairs(op: str, kinds: str = "any") -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        both = shape(draw, SOME, least=2 if op == "kl_to_standard_normal" else 1)
        both = both[:2] if op == "kl_to_standard_normal" else both
        return case(op, both, both, kinds=kinds)

    return drawn


def _gaussian_nll(draw: Draw) -> Case:
    both = shape(draw, SOME, least=1)
    return case("gaussian_nll", both, both, *([broadcast(draw, both)] if draw(st.booleans()) else []))


def _softmax_cross_entropy(draw: Draw) -> Case:
    N, K = draw(SOME), draw(SOME)
    labels = draw(st.lists(st.integers(0, K - 1), min_size=N, max_size=N))
    return case("softmax_cross_entropy", (N, K), arrays=(np.array(labels),))


def _pooling(op: str) -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        g = _geometry(draw)
        pads = (0, 0) if isinstance(g["padding"], str) else naive.pair(g["padding"])
        assume(all(2 * p <= K for p, K in zip(pads, g["kernel"], strict=True)))
        options = {"stride": draw(st.sampled_from([None, g["stride"]])), "padding": g["padding"]}
        sides = zip(g["size"], g["kernel"], naive.pair(options["stride"] or g["kernel"]), (0, 1), strict=True)
        assume(all(naive.pads_and_output(H, K, S, g["padding"], axis)[1] for H, K, S, axis in sides))
        if op == "avg_pool2d":
            options["count_include_pad"] = draw(st.booleans())
        return case(op, (g["N"], *g["size"], g["channels"][0]), window=g["kernel"], **options)

    return drawn


def _images(draw: Draw) -> tuple[int, ...]:
    return draw(SIZES), draw(SOME), draw(SOME), draw(SOME)


def _part(draw: Draw, size: int) -> Any:
    """An index of one axis."""
    ends = st.one_of(st.none(), st.integers(-6, 6))
    kinds = [st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -3]))]
    if size:
        numbers = st.integers(-size, size - 1)
        kinds += [numbers, st.lists(numbers, max_size=4).map(lambda found: np.array(found[:1] * 3, int))]
    kinds.append(st.lists(st.booleans(), min_size=size, max_size=size).map(lambda found: np.array(found, bool)))
    return draw(st.one_of(kinds))


def _getitem(draw: Draw) -> Case:
    x = shape(draw)
    parts = [_part(draw, size) for size in x[: draw(st.integers(0, len(x)))]]
    flags = [i for i, part in enumerate(parts) if getattr(part, "dtype", None) == "bool"]
    lists = [i for i, part in enumerate(parts) if getattr(part, "dtype", None) == "int64"]
    for i in flags if lists else flags[1:]:  # two arrays of booleans seldom have as many True
        parts[i] = slice(None)
    if len({parts[i].size for i in lists}) > 1:
        parts = [part if getattr(part, "size", 1) else slice(None) for part in parts]
    extra = draw(st.sampled_from(["", "none", "dots"]))
    if extra:
        parts.insert(
            draw(st.integers(0, len(parts))) if extra == "none" else len(parts), None if extra == "none" else ...
        )
    return case("getitem", x, constants=(tuple(parts),))


def _swapaxes(draw: Draw) -> Case:
    x = shape(draw) or (2,)
    axis = st.integers(-len(x), len(x) - 1)
    return case("swapaxes", x, constants=(draw(axis), draw(axis)))


def _flip(draw: Draw) -> Case:
    x = shape(draw)
    return case("flip", x, axis=axis_of(draw, x))


def _concatenate(draw: Draw) -> Case:
    x = shape(draw, least=1)
    axis = draw(st.integers(-len(x), len(x) - 1))
    sizes = draw(st.lists(SIZES, min_size=1, max_size=3))
    shapes = [tuple(n if i == axis % len(x) else m for i, m in enumerate(x)) for n in sizes]
    return case("concatenate", *shapes, axis=axis)


def _stack(draw: Draw) -> Case:
    x = shape(draw)
    return case("stack", *[x] * draw(st.integers(1, 3)), axis=draw(st.integers(-len(x) - 1, len(x))))


def _split(draw: Draw) -> Case:
    x = shape(draw, least=1)
    axis = draw(st.integers(-len(x), len(x) - 1))
    parts = draw(st.sampled_from([n for n in (1, 2, 3) if x[axis] % n == 0]))
    cuts = draw(st.one_of(st.just(parts), st.lists(st.integers(0, 5)).map(sorted)))
    return case("split", x, constants=(cuts,), axis=axis)


def _pad(draw: Draw) -> Case:
    x = shape(draw, least=1)
    pair = st.tuples(st.integers(0, 3), st.integers(0, 3))
    widths = draw(st.one_of(st.integers(0, 3), pair, st.tuples(*[pair] * len(x)).map(list)))
    return case("pad", x, constants=(widths, draw(st.sampled_from([0.0, -1.5]))))


def _deviation(op: str) -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        before = shape(draw, st.integers(2, 4), least=1)
        options = {"keepdims": draw(st.booleans()), "correction": draw(st.sampled_from([0, 0.5, 1]))}
        return case(op, before, axis=axis_of(draw, before, 1), **options)

    return drawn


def _softmax(op: str) -> Callable[[Draw], Case]:
    def drawn(draw: Draw) -> Case:
        before = shape(draw, least=1)
        return case(op, before, axis=axis_of(draw, before, 1))

    return drawn


def _mask(draw: Draw, of: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(draw(st.integers(0, 99))).random(of) < 0.5


def _where(draw: Draw) -> Case:
    full = shape(draw)
    return case("where", broadcast(draw, full), broadcast(draw, full), arrays=(_mask(draw, broadcast(draw, full)),))


def _dropout(draw: Draw) -> Case:
    full = shape(draw)
    mask = _mask(draw, broadcast(draw, full))
    return case("dropout", full, arrays=(mask,), rate=draw(st.sampled_from([0, 0.1, 0.5, 0.9])))


def _squeeze(draw: Draw) -> Case:
    before = shape(draw)
    ones = [a for a, n in enumerate(before) if n == 1]
    axes = tuple(draw(st.lists(st.sampled_from(ones), unique=True))) if ones else ()
    return case("squeeze", before, axis=draw(st.sampled_from([None, axes, *axes[:1]])))


def _expand_dims(draw: Draw) -> Case:
    before = shape(draw)
    return case("expand_dims", before, axis=draw(st.integers(-len(before) - 1, len(before))))


def _einsum(draw: Draw) -> Case:
    sizes = {letter: draw(SIZES) for letter in "abcd"}
    word = st.lists(st.sampled_from("abcd"), unique=True, max_size=3).map("".join)
    inputs = draw(st.lists(word, min_size=1, max_size=2))
    result = "".join(draw(st.permutations([x for x in "abcd" if x in "".join(inputs) and draw(st.booleans())])))
    shapes = [tuple(sizes[letter] for letter in letters) for letters in inputs]
    return case("einsum", *shapes, constants=(f"{','.join(inputs)}->{result}",))


def _layer_norm(draw: Draw) -> Case:
    both = shape(draw, SOME, least=1)
    last = both[draw(st.integers(0, len(both) - 1)) :]
    return case("layer_norm", both, last, last, epsilon=draw(st.sampled_from([1e-3, 1e-5, 0.1])))


def _group_norm(draw: Draw) -> Case:
    groups, size = draw(SOME), draw(st.integers(2, 3))  # PyTorch refuses groups of one value
    C = groups * size
    return case("group_norm", (draw(SOME), *shape(draw, SOME)[:2], C), (C,), (C,), groups=groups)


def _embedding(draw: Draw) -> Case:
    count, ids = draw(SOME), shape(draw)[:2]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return case("embedding", (count, draw(SIZES)), arrays=(rng.integers(0, count, ids),))


GROUPS: list[tuple[str, Callable[[str], Callable[[Draw], Case]]]] = [
    (" ".join(UNARY), _unary),
    (" ".join(BINARY), _binary),
    ("sum mean logsumexp max min", _reduction),
    ("var std", _deviation),
    ("softmax log_softmax", _softmax),
    ("max_pool2d avg_pool2d", _pooling),
    ("mse kl_to_standard_normal", _pairs),
]
ALONE = (
    _clip, _pow, _reshape, _transpose, _matmul, _dense, _conv2d, _conv2d_transpose, _batch_norm, _batch_norm_inference,
    _gaussian_nll, _softmax_cross_entropy, _getitem, _flip, _swapaxes, _concatenate, _stack, _split, _pad, _where,
    _dropout, _squeeze, _expand_dims, _einsum, _layer_norm, _group_norm, _embedding,
)  # fmt: skip
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
DRAWN: dict[str, Callable[[Draw], Case]] = {op: made(op) for names, made in GROUPS for op in names.split()}
DRAWN |= {function.__name__[1:]: function for function in ALONE}
DRAWN |= {
    "bce_with_logits": _pairs("bce_with_logits", "any unit"),
    "upsample_nearest": lambda draw: case("upsample_nearest", _images(draw), factor=draw(st.tuples(SOME, SOME))),
    "resize_bilinear": lambda draw: case("resize_bilinear", _images(draw), size=draw(SIDES)),
}
assert set(DRAWN) == set(ops.__all__) - set(INTEGER)
