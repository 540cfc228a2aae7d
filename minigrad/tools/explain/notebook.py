"""How tensors, modules and functions look in a notebook: HTML with arrays as small pictures."""

from __future__ import annotations

from html import escape

from ...nn import Module, Parameter
from ...tensor import Function, Tensor
from .arrays import Limits, data_url, sheet, shot_of
from .formulas import formulas_of, gradients, input_names, typeset
from .graph import shape_text

SMALL = Limits(images=4, channels=16, pixels=32)
WIDTH, HEIGHT = 320, 120  # pixels of a picture
MOST_LAYERS = 100


def tensor_html(x: Tensor) -> str:
    """Shape, dtype, device, the numbers at a glance, and a picture; of its gradient, too."""
    made_by = "" if x.creator is None else f", made by {escape(x.creator.name)}"
    if x.size == 1:
        return f"<code>Tensor({x.item():g})</code> {x.dtype}, {x.device}{made_by}"
    rows = [f"<div><b>Tensor</b> {shape_text(x.shape)}, {x.dtype}, {x.device}{made_by}</div>", array_html(x)]
    if x.grad is not None:
        rows.append(f"<div>its gradient</div>{array_html(Tensor(x.grad))}")
    return f"<div>{''.join(rows)}</div>"


def array_html(x: Tensor) -> str:
    """A picture, and what numbers are in it."""
    shot = shot_of(x.numpy(), "weight" if isinstance(x, Parameter) and x.ndim == 4 else "")
    if not shot.sample.size:
        return "<div>no elements</div>"
    drawn = sheet(shot, SMALL)
    height, width = drawn.codes.shape
    scale = max(1, min(12, WIDTH // width, HEIGHT // height))
    style = f"image-rendering:pixelated;width:{width * scale}px;height:{height * scale}px;background:#e3e7ec;margin:0"
    note = f"; shown: {drawn.note}" if drawn.note else ""
    bad = f", {shot.bad} not finite" if shot.bad else ""
    return (
        f'<img alt="picture of the array" src="{data_url(drawn.png)}" style="{style}">'
        f"<div><small>min {shot.least:.4g}, mean {shot.mean:.4g}, max {shot.most:.4g}{bad}{note}</small></div>"
    )


def module_html(module: Module) -> str:
    """A table of all layers with their tensors as pictures."""
    rows = []
    layers = list(module.modules())
    for name, layer in layers[:MOST_LAYERS]:
        tensors = [(n, x) for n, x in vars(layer).items() if isinstance(x, Tensor)]
        cells = "".join(
            f'<div style="display:inline-block;vertical-align:top;margin-right:1em"><small>{escape(n)} '
            f"{shape_text(x.shape)}</small><br>{array_html(x)}</div>"
            for n, x in tensors
        )
        rows.append(f"<tr><td>{escape(name)}</td><td>{escape(type(layer).__name__)}</td><td>{cells}</td></tr>")
    more = f"<div>and {len(layers) - MOST_LAYERS} more layers</div>" if len(layers) > MOST_LAYERS else ""
    count = sum(parameter.size for parameter in module.parameters())
    head = f"<b>{escape(type(module).__name__)}</b>, {count:,} parameters"
    return f"<div>{head}<table>{''.join(rows)}</table>{more}</div>"


def function_html(function: Function) -> str:
    """Its formula, that of its gradient, and the shapes of its inputs."""
    found = formulas_of(type(function).__doc__)
    names = input_names(type(function), len(function.inputs or ()))
    lines = [typeset(text, names) for text in (found.forward, *gradients(found.backward)) if text]
    return f"<div><code>{escape(repr(function))}</code>{''.join(f'<div>{line}</div>' for line in lines)}</div>"
