"""A check before the `backward` of a Function: the values that forward saved must not have changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def check_unwritten(function: Any) -> None:
    """Raise RuntimeError if an input has changed since forward read it, and either forward saved the old values, or the
    input's array now has another type or dtype, so that the gradient would not fit."""
    for i, (x, read) in enumerate(zip(function.inputs, function.read, strict=True)):
        if x is None or (x.version is read[1] and x.version[0] == read[2]):
            continue
        array, version, count = read
        changed = function.needs[i] and (type(x.data) is not type(array) or x.dtype != array.dtype)
        unused = function.bilinear and i < 2 and not function.needs[1 - i]  # only the other's gradient would need it
        if version[0] != count and not unused:
            saved = _arrays_in([value for name, value in vars(function).items() if name != "read"], type(array))
            changed |= any(function.k.xp.may_share_memory(array, other) for other in saved)
        if changed:
            raise RuntimeError(
                f"{function.name}.backward: input {i}, a {x.dtype} tensor of shape {x.shape}, was changed after it was "
                "used (e.g. by optimizer.step, load_state_dict or model.to), so the gradient is lost; call backward "
                "before such a change, or compute the result again"
            )


def _arrays_in(value: Any, kind: type) -> Iterator[Any]:
    """All arrays in nested lists, tuples and dicts."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _arrays_in(part, kind)
