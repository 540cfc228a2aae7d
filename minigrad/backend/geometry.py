"""The sizes of a convolution: how the output follows from the input, the kernel, the stride and the padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral

Pair = int | tuple[int, int]
Size = tuple[int, int]


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of one convolution. Output row p reads the padded row p * stride + i * dilation with kernel row i;
    columns likewise.

    A transposed convolution is described by the convolution that it transposes: it reads images of output_size and
    gives images of input_size.

    Attributes: pairs (height, width); pads is ((top, bottom), (left, right)). groups: channels and filters are divided
        into so many parts of equal size, and a filter reads only the channels of its part.
    """

    input_size: Size
    kernel_size: Size
    stride: Size
    pads: tuple[Size, Size]
    output_size: Size
    dilation: Size = (1, 1)
    groups: int = 1

    def rows(self, i: int) -> slice:
        """The padded rows that kernel row i meets, one for each output row."""
        first = i * self.dilation[0]
        return slice(first, first + self.stride[0] * (self.output_size[0] - 1) + 1, self.stride[0])

    def columns(self, j: int) -> slice:
        """The padded columns that kernel column j meets, one for each output column."""
        first = j * self.dilation[1]
        return slice(first, first + self.stride[1] * (self.output_size[1] - 1) + 1, self.stride[1])


@lru_cache(maxsize=1024)
def conv_geometry(
    input_size: Size, kernel_size: Size, stride: Pair, padding: Pair | str, dilation: Pair = 1, groups: int = 1
) -> ConvGeometry:
    """The geometry of a convolution, axis by axis, with H the input size and K the span of the kernel,
    (kernel size - 1) * dilation + 1:

    - padding p: output (H + 2p - K) // stride + 1. "valid" is p = 0.
    - "same": output ceil(H / stride), with as few zeros as possible. If their number is odd, the bottom or right side
      gets one more, as in TensorFlow.

    Raises:
        ValueError: a size is not positive, padding is unknown, or the kernel exceeds the padded input.
    """
    strides = pair(stride, "stride", 1)
    if min(*input_size, *kernel_size) < 1:
        raise ValueError(f"convolution: sizes must be positive (input {input_size}, kernel {kernel_size})")
    pads, output_size = [], []
    for axis, (H, K, S) in enumerate(zip(input_size, _spans(kernel_size, dilation), strides, strict=True)):
        if padding == "same":
            total = max((-(-H // S) - 1) * S + K - H, 0)
            before, after = total // 2, total - total // 2
        else:
            before = after = pair(0 if padding == "valid" else padding, "padding", 0)[axis]
        if H + before + after < K:
            raise ValueError(
                f"convolution: kernel {kernel_size} is larger than the padded input "
                f"(input {input_size}, padding {padding!r}, dilation {dilation})"
            )
        pads.append((before, after))
        output_size.append((H + before + after - K) // S + 1)
    sizes = input_size, kernel_size, strides, (pads[0], pads[1]), (output_size[0], output_size[1])
    return ConvGeometry(*sizes, pair(dilation, "dilation", 1), groups)


@lru_cache(maxsize=1024)
def transposed_geometry(
    x_size: Size,
    kernel_size: Size,
    stride: Pair,
    padding: Pair | str,
    y_size: Size | None,
    dilation: Pair = 1,
    groups: int = 1,
) -> ConvGeometry:
    """The geometry whose transpose maps images of x_size to images of y_size: its output_size is x_size, its input_size
    y_size.

    Several sizes y are possible, because a convolution rounds down. If y_size is None, with OH the x_size and K as
    above, "same" gives OH * stride, "valid" gives OH * stride + max(K - stride, 0), as in Keras, and
    padding p gives (OH - 1) * stride + K - 2p.

    Raises:
        ValueError: no convolution of this kind maps y_size to x_size.
    """
    strides = pair(stride, "stride", 1)
    if y_size is None:
        sizes = []
        for axis, (OH, K, S) in enumerate(zip(x_size, _spans(kernel_size, dilation), strides, strict=True)):
            if isinstance(padding, str):
                sizes.append(OH * S + (max(K - S, 0) if padding == "valid" else 0))
            else:
                sizes.append((OH - 1) * S + K - 2 * pair(padding, "padding", 0)[axis])
        y_size = (sizes[0], sizes[1])
    geometry = conv_geometry(y_size, kernel_size, stride, padding, dilation, groups)
    if geometry.output_size != x_size:
        raise ValueError(
            f"conv2d_transpose: output_size {y_size} does not fit: with kernel {kernel_size}, stride {stride}, "
            f"padding {padding!r} and dilation {dilation} a convolution maps it to {geometry.output_size}, but x is "
            f"{x_size}"
        )
    return geometry


def _spans(kernel_size: Size, dilation: Pair) -> Size:
    DH, DW = pair(dilation, "dilation", 1)
    return (kernel_size[0] - 1) * DH + 1, (kernel_size[1] - 1) * DW + 1


def pair(value: Pair | str, name: str, least: int) -> Size:
    """(height, width) of an option that is one int for both, or two.

    Raises:
        ValueError: it is neither, or below `least`.
    """
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or any(not isinstance(v, Integral) or v < least for v in both):
        kinds = ', "same" or "valid"' if name == "padding" else ""
        raise ValueError(f"convolution: {name} is {value!r} but must be an int >= {least}, or a pair of them{kinds}")
    return int(both[0]), int(both[1])
