"""Notebooks show tensors, modules and functions with pictures. Imports go one way, so the method that notebooks call is
added from here; what it needs is loaded when it is called."""

from __future__ import annotations

from typing import Any

from ..nn import Module
from ..tensor import Function, Tensor


def _tensor(self: Tensor) -> str:
    from .explain.notebook import tensor_html

    return tensor_html(self)


def _module(self: Module) -> str:
    from .explain.notebook import module_html

    return module_html(self)


def _function(self: Function) -> str:
    from .explain.notebook import function_html

    return function_html(self)


def show_in_notebooks() -> None:
    """Add `_repr_html_` to the three classes."""
    methods: list[tuple[Any, Any]] = [(Tensor, _tensor), (Module, _module), (Function, _function)]
    for cls, method in methods:
        cls._repr_html_ = method
