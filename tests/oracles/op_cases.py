"""One table of calls for every public operation: what the tests of values, gradients, dtypes and mutation run over.

A case is the name of an operation, the shapes and kinds of its tensor inputs, and its further arguments.
"""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import minigrad
from minigrad import Tensor, ops


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: str = "any") -> np.ndarray:
    """float64 numbers at least 0.1 from every integer, so from the kinks of abs, relu (0) and clip (-1 and 1)."""
    fraction = rng.uniform(0.1, 0.9, shape)
    if kind == "unit":
        return fraction
    return rng.integers({"any": -3, "positive": 0}[kind], 3, shape) + fraction


@dataclass(frozen=True, eq=False)
class Case:
    op: str
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    arrays: tuple[np.ndarray, ...] = ()  # further arguments that are arrays of the device but not tensors
    constants: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, shape)) or "scalar" for shape in self.shapes)
        extra = ",".join([*map(str, self.constants), *(f"{k}={v}" for k, v in self.options.items())])
        return "".join(f"{self.op}-{shapes}-{extra}".split())

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, zlib.crc32(str(self).encode())])
        return [values(rng, shape, kind) for shape, kind in zip(self.shapes, self.kinds, strict=True)]

    def further(self, dtype: str) -> list[np.ndarray]:
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in self.arrays]

    def run(self, *tensors: Tensor) -> Tensor:
        """The package's operation."""
        k = minigrad.backend_of(tensors[0].data)
        here = replace(self, constants=_converted(k, self.constants))
        return here.call(ops, tensors, [k.from_host(x) for x in self.further(str(tensors[0].dtype))])

    def expected(self, oracle: Any, inputs: list[np.ndarray], dtype: str = "float64") -> Any:
        """The same call of another implementation, e.g. the module naive."""
        return self.call(oracle, inputs, self.further(dtype))

    def call(self, implementation: Any, inputs: Any, arrays: Any) -> Any:
        """The operation of that name there, of these inputs and further arrays. Several results are joined."""
        given = [*([[*inputs]] if self.op in TAKE_LISTS else inputs), *arrays, *self.constants]
        if self.op in LAST_COMES_FIRST:
            given = [given[-1], *given[:-1]]
        y = getattr(implementation, self.op)(*given, **self.options)
        if not isinstance(y, list | tuple):
            return y
        return implementation.concatenate([implementation.reshape(part, math.prod(part.shape)) for part in y])


def _converted(k: minigrad.Backend, value: Any) -> Any:
    """A constant with its arrays on the device."""
    if isinstance(value, tuple):
        return tuple(_converted(k, part) for part in value)
    return k.from_host(value) if isinstance(value, np.ndarray) else value


def case(
    op: str, *shapes: tuple[int, ...], kinds: str = "any", arrays: Any = (), constants: Any = (), **options: Any
) -> Case:
    """kinds: one word per shape, or one for all."""
    words = tuple(kinds.split())
    return Case(op, shapes, words * len(shapes) if len(words) == 1 else words, tuple(arrays), tuple(constants), options)


TAKE_LISTS = ("concatenate", "stack")  # their inputs come in one list
LAST_COMES_FIRST = ("einsum", "where")  # their first argument is no input: subscripts, condition
INTEGER = ("argmax", "argmin")  # give integer arrays, so they have no case here; test_catalogue_values.py tests them
ANY_NUMBER = "neg abs exp relu leaky_relu sigmoid tanh softplus clip sin cos gelu silu"
UNARY = dict.fromkeys(ANY_NUMBER.split(), "any") | dict.fromkeys(("log", "sqrt"), "positive")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
BROADCASTS = [
    ((), ()),
    ((1,), (1,)),
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((4,), (3, 4)),
    ((3, 1), (1, 4)),
    ((), (3, 2)),
    ((3, 2), ()),
    ((2, 1, 3), (4, 1)),
    ((1, 1, 1), (2, 3, 4)),
    ((2, 3, 2, 2), (1, 3, 1, 2)),
    ((0, 3), (1, 3)),
    ((1, 3), (0, 1)),
]
FEW_BROADCASTS = [((3, 4), (3, 4)), ((3, 1), (1, 4)), ((), (3, 2)), ((3, 2), ()), ((0, 3), (1, 3))]
CONVOLUTIONS = [  # x, kernel, filters, options
    ((2, 5, 5, 2), (3, 3), 3, {}),
    ((2, 4, 6, 1), (2, 3), 2, {"stride": 2, "padding": "same"}),
    ((1, 5, 4, 3), (3, 2), 2, {"stride": (2, 1), "padding": "same"}),
    ((2, 6, 5, 2), (3, 3), 1, {"stride": (3, 2), "padding": "valid"}),
    ((1, 3, 5, 1), (3, 1), 2, {"stride": 2, "padding": (2, 0)}),
    ((1, 7, 6, 1), (2, 2), 2, {"stride": 4, "padding": "same"}),
    ((1, 2, 2, 1), (5, 4), 2, {"stride": 1, "padding": "same"}),
    ((0, 4, 4, 2), (3, 3), 2, {"stride": 2, "padding": "same"}),
    ((2, 7, 6, 2), (3, 2), 2, {"dilation": 2}),
    ((1, 6, 8, 1), (2, 3), 2, {"stride": (2, 1), "dilation": (3, 2), "padding": "same"}),
    ((1, 3, 4, 2), (3, 3), 1, {"stride": 2, "dilation": (2, 1), "padding": (2, 1)}),
    ((1, 1, 9, 1), (1, 3), 2, {"stride": 3, "dilation": 4, "padding": "valid"}),
    ((2, 4, 3, 4), (3, 2), 6, {"groups": 2, "padding": 1}),
    ((1, 5, 4, 3), (2, 3), 3, {"groups": 3, "stride": 2, "padding": "same"}),  # depthwise
    ((1, 3, 3, 2), (1, 1), 6, {"groups": 2}),  # depthwise, three filters for each channel
    ((2, 6, 5, 4), (3, 3), 4, {"groups": 4, "dilation": 2, "padding": 2, "stride": (1, 2)}),
]
TRANSPOSED = [
    ((2, 3, 3, 2), (3, 3), 3, {}),
    ((2, 3, 2, 1), (2, 3), 2, {"stride": 2, "padding": "same"}),
    ((1, 3, 4, 3), (3, 2), 2, {"stride": (2, 1), "padding": "same"}),
    ((1, 2, 3, 2), (3, 3), 2, {"stride": 2, "padding": "same", "output_size": (3, 5)}),
    ((1, 2, 3, 1), (3, 2), 1, {"stride": 3, "padding": 1, "output_size": (6, 8)}),
    ((1, 2, 2, 1), (2, 2), 2, {"stride": 4, "padding": "valid"}),
    ((0, 3, 3, 2), (3, 3), 2, {"stride": 2, "padding": "same"}),
    ((2, 3, 2, 2), (3, 2), 2, {"dilation": 2}),
    ((1, 3, 4, 1), (2, 3), 2, {"stride": (2, 1), "dilation": (3, 2), "padding": "same"}),
    ((1, 2, 3, 2), (3, 3), 1, {"stride": 2, "dilation": (2, 1), "padding": (2, 1), "output_size": (4, 5)}),
    ((2, 3, 2, 4), (3, 2), 6, {"groups": 2, "padding": 1}),
    ((1, 2, 3, 3), (2, 3), 3, {"groups": 3, "stride": 2, "padding": "same"}),
    ((2, 3, 3, 4), (3, 3), 4, {"groups": 4, "dilation": 2, "padding": 2, "stride": (1, 2)}),
]


AXES = [  # axis, keepdims
    (None, False),
    (None, True),
    (0, False),
    (-1, True),
    ((0, 2), False),
    ((-1, 1), True),
    ((), False),
]


def _reductions() -> list[Case]:
    found = []
    for op in ("sum", "mean", "logsumexp", "max", "min", "var", "std"):
        deviation = op in ("var", "std")  # that of one number is 0, where it has a kink
        axes = AXES[:-1] if deviation else AXES
        found += [case(op, (2, 3, 4), axis=axis, keepdims=keepdims) for axis, keepdims in axes]
        if not deviation:
            found += [case(op, (1, 3, 1), axis=-3), case(op, ()), case(op, (5,))]
    found += [case("sum", (0, 3), axis=0), case("sum", (2, 0)), case("mean", (0, 3), axis=1)]
    found += [case("var", (3, 4), axis=axis, correction=1) for axis in (None, 0, (1,))]
    found += [case("std", (3, 4), axis=axis, keepdims=True, correction=0.5) for axis in (None, 0, (1,))]
    found += [case("var", (2, 1), axis=1), case("var", (), axis=())]
    found += [case(op, (0, 3), axis=1, keepdims=keepdims) for op in ("max", "min", "var", "std") for keepdims in (0, 1)]
    shapes = [(2, 3, 4), (5,), (1, 1), (5, 0, 0), (0, 3)]
    found += [case(op, shape) for op, shape in itertools.product(("softmax", "log_softmax"), shapes)]
    found += [
        case(op, (2, 3, 4), axis=axis)
        for op, axis in itertools.product(("softmax", "log_softmax"), [None, 0, (0, 2), (-1, 1), ()])
    ]
    return found


EINSUMS = [
    ("ij->ji", (2, 3)),
    ("ijk->j", (2, 3, 4)),
    ("->", ()),
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("nqd,nkd->nqk", (2, 3, 4), (2, 5, 4)),
    ("nhwc,cf->nfhw", (2, 2, 3, 4), (4, 2)),
    ("i,j->ij", (3,), (2,)),
    ("i,i->", (3,), (3,)),
    ("ijk,j->i", (2, 3, 4), (3,)),  # k is in one operand alone
    ("ij,kl->", (2, 3), (2, 2)),
    ("ab, ->ba", (2, 3), ()),
    ("ij,jk->ik", (2, 0), (0, 3)),
    ("ij,jk->ki", (0, 2), (2, 3)),
]


def _convolutions() -> list[Case]:
    found = []
    for op, table in (("conv2d", CONVOLUTIONS), ("conv2d_transpose", TRANSPOSED)):
        for i, (x, kernel, filters, options) in enumerate(table):
            G = options.get("groups", 1)
            weight = (*kernel, x[3] // G, filters) if op == "conv2d" else (*kernel, filters // G, x[3])
            bias = [(filters,)] if i % 3 else []
            found.append(case(op, x, weight, *bias, **options))
    return found


POOLINGS = [  # x, window, options
    ((2, 4, 6, 2), 2, {}),
    ((1, 1, 1, 1), 1, {}),
    ((2, 5, 4, 3), (3, 2), {}),  # rows that no window reaches
    ((1, 5, 6, 2), 3, {"stride": 1}),  # they overlap
    ((1, 5, 6, 2), (2, 3), {"stride": (3, 4)}),  # they leave gaps
    ((1, 5, 4, 2), 3, {"stride": 2, "padding": 1}),
    ((1, 4, 5, 1), (2, 5), {"padding": (1, 2)}),
    ((1, 2, 3, 1), (4, 5), {"stride": 1, "padding": 2}),  # larger than the image
    ((2, 5, 4, 1), 2, {"padding": "same"}),
    ((1, 4, 5, 2), (3, 4), {"stride": (1, 2), "padding": "same"}),
    ((1, 7, 5, 1), 2, {"stride": 4, "padding": "same"}),
    ((1, 3, 3, 1), 3, {"padding": "valid"}),
    ((0, 4, 4, 2), 2, {}),
    ((2, 4, 4, 0), 2, {"padding": 1}),
]
_ROWS, _PLACES = np.array([2, 0, 2, -1]), np.array([[1, 0], [1, 1]])
_SOME = np.array([True, False, True])
KEYS: list[tuple[tuple[int, ...], Any]] = [
    ((3,), 1),
    ((3, 4), -1),
    ((3, 4), (1, 2)),
    ((3, 4), np.int64(2)),
    ((), ()),
    ((), ...),
    ((), None),
    ((3, 4), slice(None, None, -1)),
    ((5, 4), (slice(4, 0, -2), slice(-3, None))),
    ((5, 4), (slice(-10, 10, 3), 1)),
    ((3, 4), slice(2, 2)),
    ((2, 3, 4), (..., 1)),
    ((2, 3, 4), (0, ..., None)),
    ((2, 3, 4), (None, slice(None), None, -1)),
    ((3, 4), _ROWS),
    ((3, 4), [1, 1, 0]),
    ((3, 4), []),
    ((3, 4), _PLACES),
    ((3, 2), np.zeros((0, 2), int)),
    ((3, 4), np.array([1, 1], np.uint8)),
    ((3, 0), _ROWS),
    ((3, 4), (_ROWS, np.array([3, 1, 3, 3]))),
    ((3, 4), (np.array([[1], [1], [0]]), np.array([3, 3]))),
    ((3, 4), (slice(None), _ROWS)),
    ((2, 3, 4), (0, slice(None), _ROWS)),
    ((2, 3, 4), (_PLACES, slice(1, None), _PLACES)),
    ((2, 3, 4), (slice(None), _PLACES, _PLACES)),
    ((2, 3, 4), (slice(None), _PLACES, _PLACES, None)),
    ((2, 3, 4), (..., _ROWS)),
    ((2, 3, 4), (_PLACES, ..., 1)),
    ((2, 3, 4), (None, _PLACES, None, slice(0, 2))),
    ((2, 3, 4), (1, _ROWS)),
    ((3, 4), _SOME),
    ((3, 4), [True, False, True]),
    ((3, 4), np.zeros(3, bool)),
    ((2, 3), np.array([[True, False, True], [False, False, True]])),
    ((2, 3, 4), (slice(None), _SOME, slice(None, None, 2))),
    ((3, 4), (_SOME, np.array([3, 3]))),
    ((2, 3, 3), (np.array([[True, False, True], [False, False, True]]), _ROWS[:3])),
]


def _catalogue() -> list[Case]:
    found = [
        case(op, x, window=window, **options) for op in ("max_pool2d", "avg_pool2d") for x, window, options in POOLINGS
    ]
    found += [case("avg_pool2d", x, window=w, count_include_pad=True, **options) for x, w, options in POOLINGS[5:11]]
    factors = [((2, 3, 2, 2), 2), ((1, 2, 3, 1), (3, 1)), ((1, 1, 2, 3), (1, 4)), ((2, 2, 2, 1), 1), ((0, 2, 2, 1), 2)]
    found += [case("upsample_nearest", x, factor=factor) for x, factor in factors]
    sizes = [((2, 3, 4, 2), (6, 8)), ((1, 4, 4, 1), 12), ((1, 5, 7, 2), (3, 4)), ((1, 4, 3, 1), (4, 3))]
    sizes += [((1, 1, 1, 2), (3, 2)), ((1, 6, 5, 1), (1, 13)), ((0, 3, 2, 1), (6, 4)), ((1, 3, 2, 0), (6, 4))]
    found += [case("resize_bilinear", x, size=size) for x, size in sizes]
    found += [case("getitem", x, constants=(key,)) for x, key in KEYS]
    found += [case("flip", (2, 3, 4), axis=axis) for axis in (None, 0, -1, (0, 2), ())]
    found += [case("flip", ()), case("flip", (0, 3), axis=1)]
    found += [case("concatenate", (2, 3), (1, 3), (4, 3)), case("concatenate", (2, 3), (2, 0), (2, 2), axis=-1)]
    found += [case("concatenate", (2, 1, 2), (2, 2, 2), axis=1), case("concatenate", (0, 2), (0, 2))]
    found.append(case("concatenate", (3,)))
    found += [case("stack", *[(2, 3)] * 3, axis=axis) for axis in (0, 1, 2, -1, -3)]
    found += [case("stack", ()), case("stack", (), (), axis=-1), case("stack", (0, 2), (0, 2), axis=1)]
    found += [case("split", (6, 2), constants=(n,)) for n in (1, 2, 3, [2, 3], [0, 4, 4, 9], [], [4, 1], [-2])]
    found += [case("split", (2, 6), constants=(3,), axis=-1), case("split", (0, 2), constants=(3,))]
    pads = [((2, 3), 1), ((2, 3), (1, 2)), ((2, 3), [(0, 0), (2, 1)]), ((3,), 0), ((3,), [(2, 0)]), ((0, 2), 1)]
    found += [case("pad", shape, constants=(widths,)) for shape, widths in pads]
    return [*found, case("pad", (2, 1, 2), constants=([(1, 0), (0, 1), (1, 1)], -2.5))]


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape) < 0.5


_SCALARS = np.random.default_rng(7)
_MEAN, _VARIANCE = _SCALARS.normal(size=3), _SCALARS.uniform(0.5, 2, 3)
CASES: list[Case] = [
    *(case("add", a, b) for a, b in BROADCASTS),
    *(case(op, a, b) for op, (a, b) in itertools.product(BINARY, FEW_BROADCASTS) if op != "add"),
    *(case(op, s, kinds=kind) for op, kind in UNARY.items() for s in [(), (2, 3, 2), (0, 4)]),
    case("clip", (3, 5), constants=(-1, 1)),
    case("clip", (3, 5), high=0.0),
    case("clip", (3, 5), constants=(1, 1)),
    case("leaky_relu", (3, 5), slope=0.3),
    *(case("pow", (3, 4), kinds="positive", exponent=e) for e in (-1.5, 0.5, 2.5)),
    *(case("pow", (3, 4), exponent=e) for e in (0, 1, 2, 3, -2)),
    case("reshape", (2, 6), constants=(3, 4)),
    case("reshape", (2, 6), constants=((4, -1),)),
    case("reshape", (), constants=(1, 1)),
    case("reshape", (1,), constants=((),)),
    case("reshape", (0, 4), constants=(2, 0)),
    case("transpose", (2, 3, 4)),
    case("transpose", (2, 3, 4), constants=(1, 2, 0)),
    case("transpose", (2, 3, 4), constants=((-1, 0, 1),)),
    case("transpose", ()),
    case("transpose", (0, 2)),
    *_reductions(),
    *(case("matmul", a, b) for a, b in [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2))]),
    *(case("matmul", a, b) for a, b in [((2, 1, 2, 3), (4, 3, 2)), ((2, 0), (0, 3)), ((0, 3), (3, 2))]),
    *(
        case("dense", (*leading, D), (D, F), (F,))
        for (*leading, D, F) in [(3, 4, 5), (1, 1, 1), (0, 3, 2), (2, 3, 4, 5), (2, 0, 1, 3, 2), (4, 3)]
    ),
    *(case("dense", x, (2, 3)) for x in [(7, 2), (2, 5, 2), (2,)]),
    *_convolutions(),
    *(case("batch_norm", s, s[-1:], s[-1:]) for s in [(6, 3), (2, 3, 4, 2), (5, 1), (1, 3), (2, 3, 2)]),
    case("batch_norm", (6, 3), (3,), (3,), epsilon=1e-5),
    case("batch_norm_inference", (4, 3), (3,), (3,), arrays=(_MEAN, _VARIANCE)),
    case("batch_norm_inference", (2, 2, 2, 3), (3,), (3,), arrays=(_MEAN, _VARIANCE), epsilon=0.1),
    case("batch_norm_inference", (0, 3), (3,), (3,), arrays=(_MEAN, _VARIANCE)),
    *(case("mse", s, s) for s in [(3, 4), (1,), (2, 2, 3, 1)]),
    *(case("bce_with_logits", s, s, kinds="any unit") for s in [(3, 4), (1,), (2, 2, 3, 1)]),
    case("gaussian_nll", (3, 4), (3, 4)),
    case("gaussian_nll", (3, 4), (3, 4), constants=(0.7,)),
    *(case("gaussian_nll", (3, 4), (3, 4), s) for s in [(3, 4), (), (4,), (3, 1), (1, 1)]),
    case("gaussian_nll", (2, 2, 3, 1), (2, 2, 3, 1), (1,)),
    case("softmax_cross_entropy", (5, 4), arrays=(np.array([0, 3, 1, 1, 2]),)),
    case("softmax_cross_entropy", (1, 1), arrays=(np.array([0]),)),
    *(case("kl_to_standard_normal", s, s) for s in [(3, 4), (1, 1), (5, 2)]),
    *_catalogue(),
    *(case("where", a, b, arrays=(_mask(b),)) for a, b in BROADCASTS),
    *(case("where", (3, 4), (4,), arrays=(_mask(c),)) for c in [(3, 4), (3, 1, 1), ()]),
    *(case("squeeze", s, axis=axis) for s, axis in [((2, 1, 3, 1), None), ((1, 2, 1), (0, -1)), ((1, 0), 0), ((), ())]),
    *(case("swapaxes", s, constants=axes) for s, axes in [((2, 3, 4), (0, -1)), ((2, 3), (1, 1)), ((0, 2), (-2, 1))]),
    *(case("expand_dims", s, axis=axis) for s, axis in [((2, 3), 0), ((2, 3), 1), ((2, 3), -1), ((), 0), ((0, 2), 2)]),
    *(case("einsum", *shapes, constants=(subscripts,)) for subscripts, *shapes in EINSUMS),
    *(case("layer_norm", s, s[-1:], s[-1:]) for s in [(6, 3), (2, 3, 4), (1, 2), (0, 3), (4,)]),
    case("layer_norm", (2, 3, 4), (3, 4), (3, 4), epsilon=1e-5),
    case("layer_norm", (2, 3, 1), (3, 1), (3, 1)),
    *(
        case("group_norm", s, s[-1:], s[-1:], groups=groups)
        for s, groups in [((2, 3, 2, 4), 2), ((3, 6), 3), ((2, 2, 2, 3), 1), ((2, 5, 2), 2), ((0, 2, 4), 2)]
    ),
    case("group_norm", (2, 3, 4), (4,), (4,), groups=2, epsilon=0.1),
    *(
        case("dropout", s, arrays=(_mask(mask),), rate=rate)
        for s, mask, rate in [((3, 4), (3, 4), 0.4), ((2, 3, 2), (2, 1, 2), 0.1), ((), (), 0.5), ((0, 3), (0, 3), 0)]
    ),
    *(
        case("embedding", s, arrays=(np.array(ids, dtype=dtype),))
        for s, ids, dtype in [
            ((4, 3), [0, 3, 1, 1, 3, 1], "int64"),
            ((2, 1), [[1, 1, 1], [0, 1, 1]], "int32"),
            ((5, 2), 3, "uint8"),
            ((3, 2), [], "int64"),
            ((2, 0), [1, 0], "int64"),
        ]
    ),
]
BY_OP = {name: [c for c in CASES if c.op == name] for name in ops.__all__}
