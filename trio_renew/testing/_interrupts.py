"""Interrupts: one scenario, run again and again, with a KeyboardInterrupt at another line each time.

Invariants:

* A line is told by Python's line tracing, in the main thread, and only while the scenario runs.
* The tracer that was there before (coverage, a debugger) is put back where it was taken away: in the same frame, so
  that it never sees an end without a beginning. It does not see what runs meanwhile.
* What an interrupt does is decided by the handler that is installed at that moment, Trio's unless the scenario has its
  own: it gets the frame, as from a signal.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import sys
import threading
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from . import _bytecode, _internals
from ._arguments import check_functions, check_number
from ._report import SweepReport
from ._runs import Run, leaves, nothing_but
from ._sweeps import arguments, raise_finding, steps_allowed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable
    from types import CodeType, FrameType

__all__ = ("interrupt_at_every_line",)

T = TypeVar("T")
_KIT = __name__.rpartition(".")[0]


class Within(dict[object, bool]):
    """Which modules, by name, are interrupted; answers for names are remembered."""

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        super().__init__()
        self._exits: dict[CodeType, _bytecode.Exits] = {}
        self._modules = [(module.__name__, hasattr(module, "__path__")) for module in modules]

    def __missing__(self, name: object) -> bool:
        self[name] = inside = isinstance(name, str) and not _belongs(name, _KIT) and self._covers(name)
        return inside

    def exits_of(self, code: CodeType) -> _bytecode.Exits:
        """Where in this code nothing must be raised; remembered too."""
        exits = self._exits.get(code)
        if exits is None:
            exits = self._exits[code] = _bytecode.exits_of(code)
        return exits

    def _covers(self, name: str) -> bool:
        return any(name == own or (is_package and _belongs(name, own)) for own, is_package in self._modules)


def _belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


class Tracer:
    """Counts the lines that are run in some modules, and interrupts at one of them.

    Args:
      within: Which modules.
      at: At which line, counted from 1; None: at none.
      stop: Called when there is nothing more to trace; the rest of the run is then as fast as ever.
    """

    def __init__(
        self, within: Within, at: int | None, stop: Callable[[], object] = functools.partial(sys.settrace, None)
    ) -> None:
        self.within = within
        self.stop = stop
        self.at = at
        self.count = 0
        self.armed = False
        #: Where that line is, once it was come by.
        self.place: str | None = None
        #: It was come by, but nothing can be raised there; the next line does.
        self.pending = False
        self.handler: Callable[[int, FrameType | None], object] = _as_a_signal_does

    def on_call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        """Python's global trace function."""
        if self.armed and self.within[frame.f_globals.get("__name__")]:
            return self.on_line
        return None

    def on_line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        """Python's local trace function."""
        if event == "line" and self.armed:
            self.count += not self.pending
            if self.count == self.at:
                self.strike(frame)
        return self.on_line

    def strike(self, frame: FrameType) -> None:
        """Do as if a signal came before the next instruction of this frame."""
        self.place = self.place or f"{frame.f_code.co_filename}:{frame.f_lineno}"
        exits = self.within.exits_of(frame.f_code)
        self.pending = frame.f_lasti in exits.unseen
        if not self.pending:
            # Without a frame Trio keeps the interrupt until it can deliver it.
            self.deliver(None if frame.f_lasti in exits.leaving else frame)

    def deliver(self, frame: FrameType | None) -> None:
        """Let the handler do the rest, once."""
        self.armed = self.pending = False
        self.stop()
        # From here on: a coroutine that was made but not awaited yet is dropped by the interrupt, not forgotten.
        _allow_unawaited_coroutines()
        self.handler(signal.SIGINT, frame)


def _as_a_signal_does(signum: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signum)
    if callable(handler):  # otherwise the scenario ignores it
        handler(signum, frame)


def _collections() -> list[int]:
    return [generation["collections"] for generation in gc.get_stats()]


def _allow_unawaited_coroutines() -> None:
    warnings.filterwarnings("ignore", message=r"coroutine .* was never awaited", category=RuntimeWarning)


class InterruptedRun(Run):
    """A run with an interrupt at a line."""

    def __init__(
        self,
        scenario: Callable[[], Awaitable[object]],
        check: Callable[..., object] | None,
        tracer: Tracer,
        *,
        most: int,
    ) -> None:
        super().__init__(scenario, check, most=most)
        self._tracer = tracer

    def launch(self) -> None:
        """Run Trio, traced."""
        previous = sys.gettrace()
        collections = _collections()
        with warnings.catch_warnings():
            try:
                sys.settrace(self._tracer.on_call)
                super().launch()
            finally:
                sys.settrace(previous)
                self.struck = self._tracer.place is not None
                self.place = self._tracer.place
            if self.struck:
                # What the interrupt left behind must go while it is allowed to. Nothing of this run is older, unless
                # the scenario has collected by itself.
                _allow_unawaited_coroutines()
                gc.collect(0 if _collections() == collections else 2)

    def is_the_users(self, error: BaseException) -> bool:
        """Say so of an exit; an interrupt that leaves the scenario with other errors is ours."""
        if self.struck and self.source == "the scenario":
            return any(isinstance(inner, SystemExit) for inner in leaves(error))
        return super().is_the_users(error)

    async def play(self) -> object:
        """Run the scenario; the interrupt may leave it, and is not kept for later."""
        tracer = self._tracer
        result: object = None
        try:
            tracer.armed = True
            result = await super().play()
        except BaseException as error:  # noqa: ASYNC103  # only the interrupt stays here
            if tracer.place is None or not nothing_but(KeyboardInterrupt, error):
                raise
        finally:
            tracer.armed = False
            if tracer.pending:  # no line came any more
                tracer.deliver(None)
        if tracer.place is not None:
            with contextlib.suppress(KeyboardInterrupt):
                await trio.lowlevel.checkpoint()
        return result  # noqa: ASYNC910 - the scenario's own


@contextlib.contextmanager
def _default_interrupts() -> Generator[None, None, None]:
    # Trio deals with interrupts only where nobody else does.
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _modules(within: ModuleType | Iterable[ModuleType]) -> list[ModuleType]:
    given: list[ModuleType] = []
    # What is no iterable is one module, or wrong.
    modules: Any = within if hasattr(within, "__iter__") else (within,)
    for module in modules:
        if not isinstance(module, ModuleType):
            raise TypeError(f"within: a module, or several of them, is needed (not its name), not {module!r}")
        given.append(module)
    if not given:
        raise ValueError("within: at least one module is needed")
    return given


def interrupt_at_every_line(
    scenario: Callable[[], Awaitable[T]],
    check: Callable[..., object] | None = None,
    *,
    within: ModuleType | Iterable[ModuleType],
    only: int | None = None,
) -> SweepReport:
    """Interrupt a scenario (control-C) at each line that it runs in some modules, and see that nothing is broken.

    The scenario is run once undisturbed. Then it is run again and again, with one KeyboardInterrupt in each run: at
    the 1st, 2nd, 3rd ... line that it executes in `within`. The interrupt does what a signal at that place does: in
    code that Trio protects (`trio.lowlevel.enable_ki_protection`), and between the body of a ``with`` and its
    ``__exit__``, Trio keeps it until the main task is at a checkpoint, at the latest until the scenario is over;
    elsewhere it is raised in place. A handler that the scenario has installed itself (`trio.open_signal_receiver`) gets
    it instead. It may leave the scenario, alone or as a group of nothing else, and a coroutine
    that is therefore never awaited is not reported.

    Runs are made as by `cancel_at_every_checkpoint`, with seed 0. Lines are found by Python's line tracing: while a
    disturbed run goes on, coverage measurements and debuggers see nothing of it. The undisturbed run they see.

    Args:
      scenario: An async function of no arguments, which makes what it uses anew for each run.
      check: What must hold after each run, sync or async; called in the same run when the scenario is over, with
        what that returned (None if it was interrupted) if it takes an argument.
      within: The module or modules whose lines are interrupted; a package stands for all of its modules. The lines
        of the kit itself never are.
      only: Repeat just this execution of a line, counted from 1.

    Returns:
      How many executions of lines there were.

    Raises:
      SweepFailure: The scenario raises anything but the interrupt, the check raises something, or a run never ends.
        It names the line and the call that repeats just this one.
      ValueError: The scenario executes no line of these modules, or `only` is beyond the last.
      KeyboardInterrupt, SystemExit: As raised by the undisturbed scenario; SystemExit also later.
      RuntimeError: Not in the main thread, inside of a Trio run, or while another sweep is going on.

    Example::

        import myapp.tokens

        async def scenario():
            async with myapp.tokens.open_client() as client:
                await client.token()

        interrupt_at_every_line(scenario, check=nothing_is_left_locked, within=myapp.tokens)
    """
    __tracebackhide__ = True
    caller = "interrupt_at_every_line"
    check_functions(scenario=scenario, check=check)
    modules = _modules(within)
    if only is not None:
        check_number("only", only, 1)
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"{caller}: interrupts come in the main thread, so it must be called there")
    named = modules[0].__name__ if len(modules) == 1 else f"[{', '.join(module.__name__ for module in modules)}]"
    call = f"{caller}({arguments(scenario, check)}, within={named}"
    covered = Within(modules)

    with _internals.borrowed_state(caller) as seed_all, _default_interrupts():
        seed_all(0)
        first = Run(scenario, check)
        first.go()
        raise_finding(first, when="the scenario fails undisturbed", again=f"{call})")

        def lines_before(at: int) -> int:
            __tracebackhide__ = True
            tracer = Tracer(covered, at)
            seed_all(0)
            run = InterruptedRun(scenario, check, tracer, most=steps_allowed(first))
            run.go()
            struck = run.struck
            raise_finding(
                run,
                when=f"step {at} of {caller} fails" if struck else "the scenario fails undisturbed",
                again=f"{call}, only={at})" if struck else f"{call})",
                step=at if struck else None,
            )
            return tracer.count if not struck else -1

        if only is not None:
            lines = lines_before(only)
            if lines >= 0:
                raise ValueError(f"only={only}: the scenario executes {lines} lines of {named}")
            return SweepReport(1)
        at = 1
        while (lines := lines_before(at)) < 0:
            at += 1
        if not lines:
            raise ValueError(f"{caller}: nothing was tested, because the scenario executes no line of {named}")
        return SweepReport(lines)
