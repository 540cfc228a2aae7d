"""One table of calls for every public operation: what the tests of values, gradients, dtypes and mutation run over.

A case is the name of an operation, the shapes and kinds of its tensor inputs, and its further arguments.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
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
        return f"{self.op}-{shapes}-{extra}".replace(" ", "")

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, zlib.crc32(str(self).encode())])
        return [values(rng, shape, kind) for shape, kind in zip(self.shapes, self.kinds, strict=True)]

    def further(self, dtype: str) -> list[np.ndarray]:
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in self.arrays]

    def run(self, *tensors: Tensor) -> Tensor:
        """The package's operation."""
        k = minigrad.backend_of(tensors[0].data)
        arrays = [k.from_host(x) for x in self.further(str(tensors[0].dtype))]
        return getattr(ops, self.op)(*tensors, *arrays, *self.constants, **self.options)

    def expected(self, oracle: Any, inputs: list[np.ndarray], dtype: str = "float64") -> Any:
        """The same call of another implementation, e.g. the module naive."""
        return getattr(oracle, self.op)(*inputs, *self.further(dtype), *self.constants, **self.options)


def case(
    op: str, *shapes: tuple[int, ...], kinds: str = "any", arrays: Any = (), constants: Any = (), **options: Any
) -> Case:
    """kinds: one word per shape, or one for all."""
    words = tuple(kinds.split())
    return Case(op, shapes, words * len(shapes) if len(words) == 1 else words, tuple(arrays), tuple(constants), options)


UNARY = {
    "neg": "any",
    "abs": "any",
    "exp": "any",
    "log": "positive",
    "sqrt": "positive",
    "relu": "any",
    "leaky_relu": "any",
    "sigmoid": "any",
    "tanh": "any",
    "softplus": "any",
    "clip": "any",
}
BINARY = ("add", "sub", "mul", "div")
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
CONVOLUTIONS = [  # x, kernel, filters, options
    ((2, 5, 5, 2), (3, 3), 3, {}),
    ((1, 1, 1, 1), (1, 1), 1, {}),
    ((2, 4, 6, 1), (2, 3), 2, {"stride": 2, "padding": "same"}),
    ((1, 5, 4, 3), (3, 2), 2, {"stride": (2, 1), "padding": "same"}),
    ((2, 6, 5, 2), (3, 3), 1, {"stride": (3, 2), "padding": "valid"}),
    ((1, 4, 4, 2), (3, 3), 2, {"stride": 1, "padding": 1}),
    ((1, 3, 5, 1), (3, 1), 2, {"stride": 2, "padding": (2, 0)}),
    ((1, 7, 6, 1), (2, 2), 2, {"stride": 4, "padding": "same"}),
    ((1, 2, 2, 1), (5, 4), 2, {"stride": 1, "padding": "same"}),
    ((0, 4, 4, 2), (3, 3), 2, {"stride": 2, "padding": "same"}),
]
TRANSPOSED = [
    ((2, 3, 3, 2), (3, 3), 3, {}),
    ((1, 1, 1, 1), (1, 1), 1, {}),
    ((2, 3, 2, 1), (2, 3), 2, {"stride": 2, "padding": "same"}),
    ((1, 3, 4, 3), (3, 2), 2, {"stride": (2, 1), "padding": "same"}),
    ((2, 2, 2, 2), (3, 3), 1, {"stride": (3, 2), "padding": "valid"}),
    ((1, 4, 4, 2), (3, 3), 2, {"stride": 1, "padding": 1}),
    ((1, 2, 3, 2), (3, 3), 2, {"stride": 2, "padding": "same", "output_size": (3, 5)}),
    ((1, 2, 3, 1), (3, 2), 1, {"stride": 3, "padding": 1, "output_size": (6, 8)}),
    ((1, 2, 2, 1), (2, 2), 2, {"stride": 4, "padding": "valid"}),
    ((0, 3, 3, 2), (3, 3), 2, {"stride": 2, "padding": "same"}),
]


def _reductions() -> list[Case]:
    axes = [None, 0, -1, (0, 2), (-1, 1), ()]
    found = [
        case(op, (2, 3, 4), axis=axis, keepdims=keepdims)
        for op, axis, keepdims in itertools.product(("sum", "mean", "logsumexp"), axes, (False, True))
    ]
    found += [case(op, shape) for op, shape in itertools.product(("sum", "mean", "logsumexp"), [(), (1,), (5,)])]
    found += [case(op, (1, 3, 1), axis=axis) for op in ("sum", "mean", "logsumexp") for axis in (1, -3)]
    return [*found, case("sum", (0, 3), axis=0), case("sum", (2, 0)), case("mean", (0, 3), axis=1)]


def _convolutions() -> list[Case]:
    found = []
    for op, table in (("conv2d", CONVOLUTIONS), ("conv2d_transpose", TRANSPOSED)):
        for x, kernel, filters, options in table:
            weight = (*kernel, x[3], filters) if op == "conv2d" else (*kernel, filters, x[3])
            found += [case(op, x, weight, **options), case(op, x, weight, (filters,), **options)]
    return found


_SCALARS = np.random.default_rng(7)
_NORMALISED = [(6, 3), (2, 3, 4, 2), (5, 1), (1, 2, 2, 3), (1, 3), (2, 3, 2)]
_MEAN, _VARIANCE = _SCALARS.normal(size=3), _SCALARS.uniform(0.5, 2, 3)
CASES: list[Case] = [
    *(case(op, a, b, kinds="any") for op, (a, b) in itertools.product(BINARY, BROADCASTS)),
    *(case(op, s, kinds=kind) for op, kind in UNARY.items() for s in [(), (1,), (2, 3, 2), (0, 4)]),
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
    *(
        case("matmul", a, b)
        for a, b in [
            ((3, 4), (4, 5)),
            ((1, 1), (1, 1)),
            ((2, 3, 4), (4, 2)),
            ((3, 4), (2, 4, 2)),
            ((2, 1, 2, 3), (4, 3, 2)),
            ((2, 0), (0, 3)),
            ((0, 3), (3, 2)),
        ]
    ),
    *(
        case("dense", (N, D), (D, F), *bias)
        for (N, D, F) in [(3, 4, 5), (1, 1, 1), (7, 2, 3), (0, 3, 2)]
        for bias in ([], [(F,)])
    ),
    *_convolutions(),
    *(
        case("batch_norm", s, (s[-1],), (s[-1],))
        for s in [(6, 3), (2, 3, 4, 2), (5, 1), (1, 2, 2, 3), (1, 3), (2, 3, 2)]
    ),
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
]
BY_OP = {name: [c for c in CASES if c.op == name] for name in ops.__all__}
