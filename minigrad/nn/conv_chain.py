"""Fast path, read only if curious: neighbouring layers run as one operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ops import conv_chain
from ..tensor import Tensor, is_recording
from .layers import BatchNorm, Conv2D, Conv2DTranspose, ReLU
from .module import Module, Parameter, Sequential


class ConvChain(Module):
    """norm(relu(conv(x))) for each link in turn. In training all of it is one operation, which fast backends compute
    without leaving the cache.

    The layers keep their own places in the model; this only runs them, without calling their `forward`.

    Args:
        links: (convolution, ReLU, BatchNorm) by the convolution's name; the last may be (convolution,) alone.
    """

    def __init__(self, links: dict[str, tuple[Any, ...]]) -> None:
        self.links = links

    def children(self) -> Iterator[tuple[str, Module]]:
        for name, (conv, *rest) in self.links.items():
            yield name, conv
            yield from zip((f"{name}_relu", f"{name}_norm"), rest, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        links = list(self.links.values())
        uses_batch = {layers[2].uses_batch for layers in links if len(layers) == 3}
        if uses_batch == {True}:
            return self.run(x, links)
        if uses_batch == {False} and not is_recording():
            return self._infer(x, links)
        for layers in links:
            x = self.run_link(x, layers)
        return x

    def run_link(self, x: Tensor, layers: tuple[Any, ...]) -> Tensor:
        """x through one link."""
        if len(layers) == 3 and layers[2].uses_batch:
            return self.run(x, [layers])
        if not is_recording():
            return self._infer(x, [layers])
        for layer in layers:
            x = layer(x)
        return x

    def run(self, x: Tensor, links: list[tuple[Any, ...]]) -> Tensor:
        """x through some of the links as one operation, with the statistics of the batch."""
        function = conv_chain.ConvChain([_options(*layers) for layers in links])
        parameters: list[Parameter | None] = []
        for conv, *rest in links:
            parameters += [conv.weight, conv.bias, *((rest[1].gamma, rest[1].beta) if rest else (None, None))]
        y = function(x, *parameters)
        for (_, *rest), moments in zip(links, function.moments, strict=False):
            rest[1].update_statistics(*moments)
        return y

    def _infer(self, x: Tensor, links: list[tuple[Any, ...]]) -> Tensor:
        """x through some of the links as one operation, with the moving statistics."""
        arrays: list[Tensor | None] = []
        for conv, *rest in links:
            norm = rest[1] if rest else None
            statistics = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance) if norm else 4 * (None,)
            arrays += [conv.weight, conv.bias, *statistics]
        return conv_chain.ConvChainInference([_options(*layers) for layers in links])(x, *arrays)


def _options(conv: Any, relu: Any = None, norm: Any = None) -> conv_chain.Link:
    transposed = isinstance(conv, Conv2DTranspose)
    output_size = conv.output_size if transposed else None
    if not _fits(conv):
        raise ValueError(f"ConvChain: a convolution has dilation {conv.dilation} and groups {conv.groups}, not 1 and 1")
    return conv_chain.Link(conv.stride, conv.padding, transposed, output_size, norm.epsilon if norm else 0.0)


def _fits(conv: Any) -> bool:
    """Whether the kernels of a chain can run it: they have neither dilation nor groups."""
    return conv.groups == 1 and conv.dilation in (1, (1, 1), [1, 1])


def fuse(layers: dict[str, Module]) -> Sequential:
    """The layers in order, with those that follow each other as (convolution, ReLU, BatchNorm), and a convolution at
    the end of them, run as one ConvChain under the first one's name."""
    names = list(layers)
    fused_layers: dict[str, Module] = {}
    links: dict[str, tuple[Any, ...]] = {}
    while names:
        name = names.pop(0)
        match [layers[name], *(layers[n] for n in names[:2])]:
            case [Conv2D() | Conv2DTranspose() as conv, ReLU() as relu, BatchNorm() as norm] if _fits(conv):
                if not links:
                    fused_layers[name] = ConvChain(links)
                links[name] = conv, relu, norm
                del names[:2]
                continue
            case [Conv2D() | Conv2DTranspose() as conv, *_] if links and _fits(conv):
                links[name] = (conv,)
            case _:
                fused_layers[name] = layers[name]
        links = {}
    return Sequential(fused_layers)
