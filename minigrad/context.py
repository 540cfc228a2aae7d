"""Settings such as `no_grad`: contexts that are decorators, too, of functions and generators."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Any


class Setting:
    """A context that counts itself in a ContextVar, so each thread and each async task has its own. It may be entered
    again, inside or afterwards.

    Args:
        name: for messages.
        active: the Settings of this kind that are entered now; () if there are none.
    """

    def __init__(self, name: str, active: ContextVar[tuple[Setting, ...]]) -> None:
        self.name, self.active = name, active

    def __enter__(self) -> None:
        self.active.set((self, *self.active.get()))

    def __exit__(self, *error: object) -> None:
        active = list(self.active.get())
        if self in active:  # absent if a generator is closed in another thread than the one that started it
            active.remove(self)
        self.active.set(tuple(active))

    def around(self, function: Any) -> Any:
        """The decorated function; without one, this context."""
        return self if function is None else self(function)

    def __call__(self, function: Any) -> Callable[..., Any]:
        """The function, or generator, running inside this context.

        Raises:
            TypeError: this cannot be decorated. Or, when it is called, its steps would run outside the context.
        """
        if isinstance(function, type | staticmethod) or not callable(function):
            raise TypeError(f"{self.name}: {function} cannot be decorated; decorate the function or method inside it")

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, Generator):
                return Steps(self, result)
            if isinstance(result, Iterator | Coroutine | AsyncIterator | ContextDecorator):
                raise TypeError(
                    f"{self.name}: {function} returned a {type(result).__name__}, whose steps would run outside; "
                    f"write `with {self.name}():` around them"
                )
            return result

        return wrapper


class Steps(Generator[Any, Any, Any]):
    """A generator whose steps run inside a context. The code that reads from it does not."""

    def __init__(self, context: Setting, steps: Generator[Any, Any, Any]) -> None:
        self.context, self.steps = context, steps

    def send(self, value: Any) -> Any:
        """The next item."""
        with self.context:
            return self.steps.send(value)

    def throw(self, *error: Any) -> Any:
        """The next item, after an error inside."""
        with self.context:
            return self.steps.throw(*error)
