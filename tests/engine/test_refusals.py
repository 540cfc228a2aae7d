"""What operations and layers refuse: the error's kind and how its message begins.

A row is a call, two spaces (or a new line and four) and the beginning of the message. `x(2, 3)` is a tensor of zeros.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, ops


def x(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape))


NAMES = {"x": x, "np": np, "nn": nn, "Tensor": Tensor} | {name: getattr(ops, name) for name in ops.__all__}
REFUSED = {
    ValueError: """
conv2d(x(2, 8, 8, 3), x(3, 3, 4, 16))  conv2d: x has 3 channels but weight expects 4 (x (2, 8, 8, 3), weight
conv2d_transpose(x(2, 8, 8, 3), x(3, 3, 4, 16))
    conv2d_transpose: x has 3 channels but weight expects 16 (x (2, 8, 8, 3)
conv2d(x(8, 8, 3), x(3, 3, 3, 1))  conv2d: x must be (N, H, W, C) and weight must have 4 axes (x (8, 8, 3)
conv2d(x(1, 8, 8, 3), x(3, 3, 3, 2), x(3))  conv2d: bias is (3,) but must be (2,) (x (1, 8, 8, 3)
conv2d_transpose(x(1, 8, 8, 2), x(3, 3, 3, 2), x(2))  conv2d_transpose: bias is (2,) but must be (3,)
conv2d(x(1, 2, 8, 1), x(3, 3, 1, 1))  convolution: kernel (3, 3) is larger than the padded input (input (2, 8)
conv2d(x(1, 0, 8, 1), x(3, 3, 1, 1), padding="same")  convolution: sizes must be positive (input (0, 8), kernel (3, 3))
conv2d(x(1, 8, 8, 1), x(3, 3, 1, 1), stride=0)  convolution: stride is 0 but must be an int >= 1, or a pair of them
conv2d(x(1, 8, 8, 1), x(3, 3, 1, 1), padding=(1, -1))
    convolution: padding is (1, -1) but must be an int >= 0, or a pair of them
conv2d_transpose(x(1, 3, 3, 1), x(3, 3, 1, 1), stride=2, output_size=(4, 6))
    conv2d_transpose: output_size (4, 6) does not fit:
dense(x(2, 3), x(4, 5))  dense: x has 3 features but weight expects 4 (x (2, 3), weight (4, 5))
dense(x(2, 3), x(3, 5), x(3))  dense: bias is (3,) but weight (3, 5) needs (5,)
dense(x(2, 4), x(1, 4, 5))  dense: x must be (..., D) and weight (D, F) (x (2, 4), weight (1, 4, 5))
matmul(x(2, 3), x(4, 5))  matmul: needs (..., I, J) @ (..., J, K), found (2, 3) @ (4, 5)
matmul(x(3), x(3, 5))  matmul: needs (..., I, J) @ (..., J, K), found (3,) @ (3, 5)
batch_norm(x(2, 3), x(2), x(3))  batch_norm: x (..., C) needs gamma and beta (C,) (x (2, 3), gamma (2,), beta (3,))
batch_norm_inference(x(2, 3), x(3), x(1), np.zeros(3), np.ones(3))
    batch_norm: x (..., C) needs gamma and beta (C,) (x (2, 3), gamma (3,), beta (1,))
batch_norm_inference(x(2, 3), x(3), x(3), np.zeros(1), np.ones(3))
    batch_norm: mean and variance must be float64 (3,), found [('float64', (1,)),
batch_norm(x(0, 3), x(3), x(3))  batch_norm: no values to take statistics of (x (0, 3))
mse(x(2, 3), x(3))  mse: x (2, 3) and targets (3,) must have one shape and not be empty
mse(x(0), x(0))  mse: x (0,) and targets (0,) must have one shape and not be empty
bce_with_logits(x(2, 3), x(2, 1))
    bce_with_logits: logits (2, 3) and targets (2, 1) must have one shape and not be empty
gaussian_nll(x(2, 3), x(3, 2))  gaussian_nll: mean (2, 3) and targets (3, 2) must have one shape and not be empty
gaussian_nll(x(2, 3), x(2, 3), x(5, 2, 3))  input operand has more dimensions
kl_to_standard_normal(x(2, 3), x(2))
    kl_to_standard_normal: mean (2, 3) and log_variance (2,) must have one shape and not be empty
softmax_cross_entropy(x(2, 3), np.zeros(3, int))
    softmax_cross_entropy: needs logits (N, K), N and K >= 1, and labels (N,), found (2, 3) and (3,)
softmax_cross_entropy(x(2, 3, 1), np.zeros(2, int))
    softmax_cross_entropy: needs logits (N, K), N and K >= 1, and labels (N,), found (2, 3, 1) and (2,)
softmax_cross_entropy(x(2, 3), np.array([0, 3]))  softmax_cross_entropy: labels must lie in 0 ... 2, found 0 ... 3
softmax_cross_entropy(x(2, 3), np.array([-1, 0]))  softmax_cross_entropy: labels must lie in 0 ... 2, found -1 ... 0
clip(x(2), 1, -1)  clip: low 1 is above high -1
clip(x(2), np.nan, 1.0)  clip: low nan
clip(x(2), 0.0, np.nan)  clip: low 0.0 is above high nan
sum(x(2, 3), axis=2)  sum: axis 2 is out of range or repeated for a tensor with 2 axes
sum(x(2, 3), axis=(0, 0))  sum: axis (0, 0) is out of range or repeated
mean(x(0, 3), axis=0)  mean: no elements to average over axis 0 of shape (0, 3)
add(x(2, 3), x(2, 4))  operands could not be broadcast
reshape(x(2, 3), 4)  cannot reshape array of size 6
transpose(x(2, 3), 1, -1)  transpose: axis (1, -1) is out of range or repeated for a tensor with 2 axes
conv2d(x(1, 4, 4, 1), x(3, 3, 1, 1), dilation=(1, 2))
    convolution: kernel (3, 3) is larger than the padded input (input (4, 4), padding 0, dilation (1, 2))
conv2d(x(1, 4, 4, 4), x(3, 3, 4, 2), groups=2)  conv2d: x has 4 channels but weight expects 8 in 2 groups
conv2d(x(1, 4, 4, 4), x(3, 3, 2, 3), groups=2)  conv2d: groups is 2 but must be an int >= 1 that divides axis 3
max(x(2, 0), axis=1)  max: there are no elements over axis 1 of shape (2, 0)
min(x(0))  min: there are no elements over axis None of shape (0,)
argmax(x(0, 3), axis=0)  argmax: there are no elements over axis 0 of shape (0, 3)
var(x(2, 3), 0, correction=2)  var: 2 elements over axis 0 of shape (2, 3) are too few for correction 2.0
std(x(0))  std: 0 elements over axis None of shape (0,) are too few for correction 0.0
where(np.array([1, 0]), x(2), x(2))  where: condition is int64 but must be boolean, such as x > 0 (condition
squeeze(x(2, 1), axis=0)  squeeze: axis 0 of shape (2, 1) must have size 1
expand_dims(x(2), 2)  expand_dims: axis 2 is out of range or repeated for a tensor with 2 axes
einsum("ij,jk", x(2, 3), x(3, 4))
    einsum: 'ij,jk' of shapes (2, 3), (3, 4): needs one or two operands and letters such as 'ij,jk->ik'
einsum("ij,j->i", x(2, 3))  einsum: 'ij,j->i' of shapes (2, 3): each operand needs one letter per axis
einsum("ii->i", x(2, 2))
    einsum: 'ii->i' of shapes (2, 2): a letter may occur only once in each operand and in the result
einsum("ij,jk->ik", x(2, 3), x(4, 5))  einsum: 'ij,jk->ik' of shapes (2, 3), (4, 5): j has the sizes 3 and 4
einsum("ij->ik", x(2, 3))  einsum: 'ij->ik' of shapes (2, 3): no operand has k
layer_norm(x(2, 3), x(2), x(2))
    layer_norm: gamma and beta must have the shape of x's last axes (x (2, 3), gamma (2,), beta (2,))
layer_norm(x(2, 3), x(), x())
    layer_norm: gamma and beta must have the shape of x's last axes (x (2, 3), gamma (), beta ())
group_norm(x(2, 4), x(3), x(4), groups=2)  group_norm: x (N, ..., C) needs gamma and beta (C,) (x (2, 4), gamma (3
group_norm(x(2, 4), x(4), x(4), groups=3)  group_norm: 3 groups do not divide 4 channels (x (2, 4), gamma (4,),
dropout(x(2), [True, False], rate=1)  dropout: rate is 1 but must be at least 0 and below 1
dropout(x(1, 3), np.ones((2, 3), bool), rate=0.5)
    dropout: kept must be boolean and broadcast to x (kept bool (2, 3), x (1, 3))
embedding(x(3), [0])  embedding: weight must be (K, D) (weight (3,), ids (1,))
embedding(x(3, 2), [0.0])  embedding: ids are float64 but must be integers (weight (3, 2), ids (1,))
embedding(x(3, 2), [1, -1])  embedding: ids must be in 0 ... 2, found -1 ... 1 (weight (3, 2), ids (2,))
embedding(x(3, 2), [[3]])  embedding: ids must be in 0 ... 2, found 3 ... 3 (weight (3, 2), ids (1, 1))
concatenate([])  concatenate: needs at least one tensor
concatenate([x(3, 4), x(4, 3)])  concatenate: shapes must be equal but for axis 0, found (3, 4), (4, 3)
concatenate([x(), x()])  concatenate: shapes must be equal but for axis 0, found (), ()
concatenate([x(3, 4), x(4)])  concatenate: shapes must be equal but for axis 0, found (3, 4), (4,)
concatenate([x(3, 4)] * 99 + [x(4, 3)])
    concatenate: shapes must be equal but for axis 0, found (3, 4), (3, 4), (3, 4), (3, 4), (3, 4), (3, 4) and 94 more
concatenate([x(3, 4), x(3, 4)], 2)  concatenate: axis 2 is out of range or repeated for
stack([])  stack: needs at least one tensor
stack([x(3, 4), x(4)])  stack: shapes must be equal, found (3, 4), (4,)
stack([x(3, 4), x(3, 4)], 3)  stack: axis 3 is out of range or repeated for a tensor with 3 axes
split(x(3, 4), 2)  split: axis 0 of size 3 has no 2 equal parts (x (3, 4))
split(x(3, 4), 0)  split: axis 0 of size 3 has no 0 equal parts (x (3, 4))
pad(x(3, 4), [(0, 1), (0, -1)])  pad: widths are [(0, 1), (0, -1)] but must be
pad(x(3, 4), [(0, 1)])
    pad: widths are [(0, 1)] but must be an int >= 0, a pair (before, after), or a pair for each axis (x (3, 4))
pad(1.0, 1)  pad: widths are (1, 1) but must be an int >= 0, a pair (before, after), or a pair for each axis (x ())
max_pool2d(x(6, 5, 1), 2)  max_pool2d: x must be (N, H, W, C) (x (6, 5, 1))
avg_pool2d(x(2, 6, 5, 1), 6)  avg_pool2d: window (6, 6) is larger than the padded input (input (6, 5)
max_pool2d(x(2, 6, 5, 1), 0)  max_pool2d: window is 0 but must be an int >= 1, or a pair of them
avg_pool2d(x(2, 6, 5, 1), (4, 3), padding=2)  avg_pool2d: padding is 2 but must be at most half
max_pool2d(x(2, 0, 5, 1), 1)  max_pool2d: sizes must be positive (input (0, 5), window (1, 1))
upsample_nearest(x(2, 6, 5, 1), 1.5)  upsample_nearest: factor is 1.5 but must be an int >= 1
resize_bilinear(x(2, 6, 5, 1), (3, 0))  resize_bilinear: size is (3, 0) but must be an int >= 1
resize_bilinear(x(2, 6, 0, 1), 3)  resize_bilinear: x has no pixels (x (2, 6, 0, 1))
nn.UpSample2D(2, "cubic")  UpSample2D: mode is 'cubic' but must be "nearest" or "bilinear"
nn.Conv2D(4, 6, 3, groups=3)  Conv2D: 3 groups do not divide 4 channels and 6 filters
nn.Conv2DTranspose(4, 6, 3, groups=4)  Conv2DTranspose: 4 groups do not divide 4 channels and 6 filters
nn.GroupNorm(0, 4)  GroupNorm: 0 groups do not divide 4 channels
nn.Dropout(-0.1)  Dropout: rate is -0.1 but must be at least 0 and below 1
softmax_cross_entropy(x(2, 3), [0, 1.5])
    softmax_cross_entropy: labels must be whole numbers, the classes; found 1.5 among them
softmax_cross_entropy(x(2, 3), np.array(["a", "b"]))
    softmax_cross_entropy: labels must be whole numbers, the classes; found <U1
softmax_cross_entropy(x(2, 3), np.array([0, 1j]))
    softmax_cross_entropy: labels must be whole numbers, the classes; found complex128
conv2d(x(1, 8, 8, 1), x(3, 3, 1, 1), padding="full")
    convolution: padding is 'full' but must be an int >= 0, or a pair of them
dense(x(), x(4, 5))  dense: x must be (..., D) and weight (D, F) (x (), weight (4, 5))
batch_norm_inference(x(2, 3), x(3), x(3), np.zeros(3), np.ones(3, "f4"))
    batch_norm: mean and variance must be float64 (3,), found [('float64', (3,)), ('float32', (3,))]
softmax_cross_entropy(x(0, 3), np.zeros(0, int))
    softmax_cross_entropy: needs logits (N, K), N and K >= 1, and labels (N,), found (0, 3) and (0,)
conv2d_transpose(x(1, 4, 4, 4), x(3, 3, 2, 4), groups=0)  conv2d_transpose: groups is 0 but must be an int >= 1 that
einsum("i,i,i->i", x(2), x(2), x(2))
    einsum: 'i,i,i->i' of shapes (2,), (2,), (2,): needs one or two operands and letters such as 'ij,jk->ik'
einsum("ijk->i", x(2, 3))  einsum: 'ijk->i' of shapes (2, 3): each operand needs one letter per axis
einsum("i.->i", x(2, 2))
    einsum: 'i.->i' of shapes (2, 2): a letter may occur only once in each operand and in the result
dropout(x(2, 3), np.ones((2, 3)), rate=0.5)
    dropout: kept must be boolean and broadcast to x (kept float64 (2, 3), x (2, 3))
upsample_nearest(x(6, 5, 1), 2)  upsample_nearest: x must be (N, H, W, C) (x (6, 5, 1))
softmax_cross_entropy(x(2, 3), np.array([0, np.nan]))
    softmax_cross_entropy: labels must be whole numbers, the classes; found nan among them
""",
    IndexError: """
x(3, 4)[3]  getitem: index 3 is out of bounds for axis 0 with size 3 (x (3, 4))
x(3, 4)[:, [0, 4]]  getitem: index 4 is out of bounds for axis 1 with size 4 (x (3, 4))
x(3, 4)[0, 0, 0]  getitem: too many indices
x(3, 4)[np.array([True, False])]  getitem: boolean index did not match
x(3, 4)[[0, 1], [0, 1, 2]]  getitem: shape mismatch
""",
    TypeError: """
x(3, 4)[1.0]  getitem: an index is a float but must be an int, a slice, ..., None, or an array of integers or booleans
x(3, 4)[np.float32([1.0])]
    getitem: an index is an array of float32 but must be an int, a slice, ..., None, or an array of integers or booleans
x(3, 4)[True]  getitem: an index is a bool but must be an int, a slice, ..., None, or an array of integers or booleans
x(3, 4).__setitem__(0, 1.0)  Tensor:
pow(x(2), x(2))  pow: exponent is a Tensor but must be a number
softmax_cross_entropy(x(2, 3), None)  expected an array or real numbers, found NoneType
softmax_cross_entropy(x(2, 3), np.ma.masked_array([0, 1], [True, False]))
    expected an array without a mask; choose values for the masked
softmax_cross_entropy(x(2, 3), Tensor([0.0, 1.0]))  Tensor: search, convert or assign to its array
x(3, 4)[Tensor([1.0])]
    getitem: an index is a Tensor but must be an int, a slice, ..., None, or an array of integers or booleans
""",
}
ROWS = [
    (kind, *re.split(r"  |\n    ", row, maxsplit=1))
    for kind, text in REFUSED.items()
    for row in re.split(r"\n(?! )", text.strip())
]


@pytest.mark.parametrize(("kind", "call", "message"), ROWS, ids=[call for _, call, _ in ROWS])
def test_refused_with_what_was_found(kind, call, message):
    with pytest.raises(kind) as error:
        eval(call, dict(NAMES))
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 300


OTHER_DEVICE = """
where(np.ones(2, bool), there, there); embedding(there.reshape(2, 1), np.zeros(2, int)); there == x(2);
dropout(there, np.ones(2, bool), rate=0.5); maximum(there, x(2)); there[np.array([0])]
"""


@pytest.mark.parametrize("call", [call.strip() for call in OTHER_DEVICE.split(";")])
@pytest.mark.usefixtures("cupy_double", "restored_backends")
def test_an_array_of_another_device_is_refused(call):
    there = Tensor(minigrad.use(device="cuda", kernels="plain").from_host(np.zeros(2)))
    names = r"(Where|embedding|Dropout|Maximum|comparison|GetItem): "
    with pytest.raises(TypeError, match=names + r".*cuda:0.*cpu"):
        eval(call, NAMES | {"there": there})
