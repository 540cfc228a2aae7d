"""What the peers' tests share: their images have the channels before height and width, minigrad's have them last."""

from __future__ import annotations

from typing import Any


class NotOurs(Exception):
    """A sample that minigrad has no words for."""


def only(condition: bool) -> None:
    """Pass a sample over unless the condition holds."""
    if not condition:
        raise NotOurs


def last(x: Any) -> Any:
    """(N, C, ...) with the channels at the end."""
    return x.transpose(0, *range(2, x.ndim), 1)


def first(x: Any) -> Any:
    """(N, ..., C) with the channels after N."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def with_height(x: Any) -> Any:
    """(A, B, H, W) of that or of (A, B, W), whose height is 1."""
    only(x.ndim in (3, 4))
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], 1, x.shape[2])


def to_images(x: Any) -> Any:
    """(N, H, W, C) of (N, C, H, W) or (N, C, W)."""
    return last(with_height(x))


def like(y: Any, x: Any) -> Any:
    """Images (N, H, W, C) with the axes of x."""
    y = first(y)
    return y if x.ndim == 4 else y.reshape(*y.shape[:2], y.shape[3])


def filters_last(weight: Any) -> Any:
    """(F, C, KH, KW) or (F, C, K) as (KH, KW, C, F)."""
    return with_height(weight).transpose(2, 3, 1, 0)


def output_size(sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, extra: Any) -> tuple[int, ...]:
    """Of a transposed convolution. Rows that reach no pixel of x are not ours."""
    only(all(E < S for E, S in zip(extra, stride, strict=True)))
    terms = zip(sizes, kernel[:2], stride, padding, dilation, extra, strict=True)
    return tuple((n - 1) * S + (K - 1) * D + 1 - 2 * P + E for n, K, S, P, D, E in terms)
