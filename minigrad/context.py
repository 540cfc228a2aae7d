"""Contexts that are decorators, too: of functions, and `Setting` of generators and coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Any

KINDS: dict[str, Callable[[Any], bool]] = {
    "a generator": inspect.isgeneratorfunction,
    "a coroutine": inspect.iscoroutinefunction,
    "an async generator": inspect.isasyncgenfunction,
}


class Context:
    """Base of a context that decorates functions. It refuses a generator or coroutine, and a function that returns one
    or another lazy object: their steps would run after it was left.

    Attributes:
        name: for messages.
    """

    name: str

    def __enter__(self) -> Any:
        raise NotImplementedError

    def __exit__(self, *error: object) -> None:
        raise NotImplementedError

    def __call__(self, function: Any) -> Any:
        """The function, running inside this context.

        Raises:
            TypeError: this cannot be decorated, or what the function returns would run outside the context.
        """
        if isinstance(function, type | staticmethod) or not callable(function):
            what = "a class" if isinstance(function, type) else f"a {type(function).__name__}"
            raise TypeError(f"{self.name}: {what} cannot be decorated; decorate the function or method inside it")
        kind = next((kind for kind, test in KINDS.items() if test(function) or test(function.__call__)), "")
        return functools.wraps(function)(self._wrapper(function, kind))

    def _wrapper(self, function: Any, kind: str) -> Callable[..., Any]:
        if kind:
            raise TypeError(f"{self.name}: {kind} cannot be decorated; write `with {self.name}():` inside it")

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, Iterator | Coroutine | AsyncIterator | ContextDecorator):
                raise TypeError(
                    f"{self.name}: {function} returned a {type(result).__name__}, whose steps would run outside; "
                    f"write `with {self.name}():` around them"
                )
            return result

        return wrapper


class Setting(Context):
    """A context that counts itself in a ContextVar, so each thread and each async task has its own. It may be entered
    again, inside or afterwards. A decorated generator or coroutine runs inside the context; the code that reads from it
    does not.

    Args:
        active: the Settings of this kind that are entered now; () if there are none.
    """

    def __init__(self, name: str, active: ContextVar[tuple[Setting, ...]]) -> None:
        self.name, self.active = name, active

    def around(self, function: Any) -> Any:
        """The decorated function; without one, this context."""
        return self if function is None else self(function)

    def __enter__(self) -> None:
        self.active.set((self, *self.active.get()))

    def __exit__(self, *error: object) -> None:
        active = list(self.active.get())
        if self in active:  # else a generator is closed by another thread than the one that entered
            active.remove(self)
        self.active.set(tuple(active))

    def _wrapper(self, function: Any, kind: str) -> Callable[..., Any]:
        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            steps = function(*args, **kwargs)
            resume, value = steps.send, None
            try:
                while True:
                    with self:
                        item = resume(value)
                    try:
                        resume, value = steps.send, (yield item)
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # of throw()
                        resume, value = steps.throw, error
            except StopIteration as stop:
                return stop.value
            finally:
                with self:
                    steps.close()

        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        wrappers = {"a generator": generator, "a coroutine": coroutine}
        return wrappers.get(kind) or super()._wrapper(function, kind)
