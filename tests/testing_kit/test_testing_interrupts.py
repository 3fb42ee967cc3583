"""Interrupts come at each line, as from a signal; planted defects are found, sound code is not blamed."""

import contextlib
import dis
import gc
import signal
import sys
import textwrap
import threading
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import trio

from trio_renew.testing import (
    ScriptedFetch,
    SweepFailure,
    SweepReport,
    _bytecode as bytecode,
    _interrupts as interrupts,
    _runs as runs,
    interrupt_at_every_line,
    victim,
)


def make_module(name, source, *, package=False):
    """A module made of a text; its lines are ``<name>:n``."""
    module = ModuleType(name)
    if package:
        module.__path__ = []
    exec(compile(textwrap.dedent(source), f"<{name}>", "exec"), module.__dict__)
    return module


guarded = make_module(
    "guarded",
    """\
    import trio

    class Careless:
        def __init__(self):
            self.taken = False
        async def use(self):
            self.taken = True
            await trio.sleep(1)
            self.taken = False

    class Careful:
        def __init__(self):
            self.taken = False
        async def use(self):
            with self:
                await trio.sleep(1)
                await trio.sleep(1)
        @trio.lowlevel.enable_ki_protection
        def __enter__(self):
            self.taken = True
        @trio.lowlevel.enable_ki_protection
        def __exit__(self, *exc_info):
            self.taken = False

    class Converting(Careful):
        async def use(self):
            try:
                await super().use()
            except KeyboardInterrupt:
                raise RuntimeError("hidden") from None

    class Swallowing(Careful):
        async def use(self):
            try:
                await super().use()
            except KeyboardInterrupt:
                pass

    async def used_by_three(kind):
        thing = kind()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(thing.use)
        return thing

    async def exiting(kind):
        try:
            await kind().use()
        except KeyboardInterrupt:
            raise SystemExit(3) from None
    """,
)


def not_taken():
    assert not things[-1].taken


things = []


def using(kind):
    async def scenario():
        things.append(kind())
        await things[-1].use()

    return scenario


def test_a_flag_that_stays_set_is_found_at_its_line():
    with pytest.raises(SweepFailure, match="the check raised AssertionError") as caught:
        interrupt_at_every_line(using(guarded.Careless), not_taken, within=guarded)
    failure = caught.value
    # __init__, then `self.taken = True`, then the line on which the flag is up.
    assert failure.step == 3
    assert failure.place == "<guarded>:8"
    assert failure.seed == 0
    assert "interrupt_at_every_line(scenario, not_taken, within=guarded, only=3)" in str(failure)
    with pytest.raises(SweepFailure, match="step 3"):
        interrupt_at_every_line(using(guarded.Careless), not_taken, within=guarded, only=3)
    assert interrupt_at_every_line(using(guarded.Careless), not_taken, within=guarded, only=1) == SweepReport(1)


def test_nothing_is_found_in_careful_code():
    # __init__ 1, use 3 and the with line again, __enter__ 1, __exit__ 1.
    assert interrupt_at_every_line(using(guarded.Careful), not_taken, within=guarded).steps == 7
    assert interrupt_at_every_line(using(guarded.Swallowing), not_taken, within=guarded).steps == 9


def test_a_group_of_interrupts_may_leave_but_another_error_may_not():
    async def scenario():
        things.append(await guarded.used_by_three(guarded.Careful))

    assert interrupt_at_every_line(scenario, within=guarded).steps > 15
    with pytest.raises(SweepFailure, match="the scenario raised RuntimeError: hidden") as caught:
        interrupt_at_every_line(using(guarded.Converting), within=guarded)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_interrupt_together_with_another_error_is_a_failure():
    module = make_module(
        "complaining",
        """\
        import trio
        async def work():
            await trio.lowlevel.checkpoint()
        """,
    )

    async def scenario():
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(quiet_or_complaining, scope)
                await trio.testing.wait_all_tasks_blocked()
                await module.work()
                scope.cancel()

    async def quiet_or_complaining(scope):
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if not scope.cancel_called:
                raise ValueError("complaint") from None
            raise

    with pytest.raises(SweepFailure, match="raised BaseExceptionGroup") as caught:
        interrupt_at_every_line(scenario, within=module)
    kinds = {type(error) for error in caught.value.__cause__.exceptions}
    assert kinds == {KeyboardInterrupt, ValueError}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_the_check_raises_leaves_as_itself(kind):
    def check():
        raise kind

    with pytest.raises(kind):
        interrupt_at_every_line(using(guarded.Careful), check, within=guarded)

    checks = []

    def later():
        checks.append(None)
        if len(checks) == 2:
            raise kind

    with pytest.raises(kind):
        interrupt_at_every_line(using(guarded.Careful), later, within=guarded)
    assert len(checks) == 2


def test_an_exit_leaves_as_itself():
    async def scenario():
        await guarded.exiting(guarded.Careful)

    with pytest.raises(SystemExit):
        interrupt_at_every_line(scenario, within=guarded)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_the_undisturbed_scenario_raises_leaves_as_itself(kind):
    async def scenario():
        raise kind

    with pytest.raises(kind):
        interrupt_at_every_line(scenario, within=guarded)


withs = make_module(
    "withs",
    """\
    import contextlib
    import trio

    class Taken:
        def __init__(self, log):
            self.log = log
        @trio.lowlevel.enable_ki_protection
        def __enter__(self):
            self.log.append("in")
            return self
        @trio.lowlevel.enable_ki_protection
        def __exit__(self, kind, error, traceback):
            self.log.append("out")
            return kind is ValueError
        @trio.lowlevel.enable_ki_protection
        async def __aenter__(self):
            await trio.lowlevel.checkpoint()
            self.log.append("in")
            return self
        @trio.lowlevel.enable_ki_protection
        async def __aexit__(self, kind, error, traceback):
            self.log.append("out")
            await trio.lowlevel.cancel_shielded_checkpoint()
            return kind is ValueError

    async def falls_through(log):
        with Taken(log) as taken:
            taken = None

    async def returns(log):
        with Taken(log), Taken(log):
            return log

    async def breaks_and_continues(log):
        for n in range(3):
            with Taken(log):
                if n:
                    break
                continue

    async def raises(log):
        with Taken(log):
            raise ValueError

    async def over_several_lines(log):
        with (
            Taken(log) as one,
            Taken(log) as two,
        ):
            del one, two

    async def asynchronous(log):
        async with Taken(log):
            await trio.lowlevel.checkpoint()
        async with Taken(log) as taken:
            raise ValueError
        for n in range(2):
            async with Taken(log):
                if n:
                    break
                continue
        async with Taken(log):
            return taken

    async def nested(log):
        with Taken(log):
            async with Taken(log):
                with Taken(log):
                    pass
            with contextlib.suppress(ValueError), Taken(log):
                await trio.lowlevel.checkpoint()
                raise OSError
    """,
)


@pytest.mark.parametrize(
    "name",
    ["falls_through", "returns", "breaks_and_continues", "raises", "over_several_lines", "asynchronous", "nested"],
)
def test_an_exit_is_never_skipped(name):
    logs = []

    async def scenario():
        logs.append([])
        try:
            await getattr(withs, name)(logs[-1])
        except OSError:
            pass

    def check():
        assert logs[-1].count("in") == logs[-1].count("out")

    report = interrupt_at_every_line(scenario, check, within=withs)
    assert report.steps >= 5
    assert len(logs) == report.steps + 2
    # And they were really interrupted on their way.
    assert len({len(log) for log in logs}) > 1 or name == "falls_through"


nothings = make_module(
    "nothings",
    """\
    import trio

    class Taken:
        def __init__(self, log):
            self.log = log
        @trio.lowlevel.enable_ki_protection
        def __enter__(self):
            self.log.append("in")
        @trio.lowlevel.enable_ki_protection
        def __exit__(self, *exc_info):
            self.log.append("out")

    async def lines_that_do_nothing(log):
        with Taken(log):
            try:
                await trio.lowlevel.checkpoint()
            finally:
                pass
            for n in range(2):
                with Taken(log):
                    pass
                while True:
                    try:
                        with Taken(log):
                            if n:
                                pass
                            else:
                                break
                        pass
                    finally:
                        with Taken(log):
                            pass
                    break
                try:
                    continue
                finally:
                    pass

    async def taken_before_the_try(log):
        log.append("in")
        try:
            await trio.lowlevel.checkpoint()
        finally:
            log.append("out")
    """,
)


def test_lines_that_do_nothing_do_not_skip_an_exit():
    logs = []

    async def scenario():
        logs.append([])
        await nothings.lines_that_do_nothing(logs[-1])

    def check():
        assert logs[-1].count("in") == logs[-1].count("out")

    assert interrupt_at_every_line(scenario, check, within=nothings).steps > 30


def test_what_lies_between_taking_and_trying_is_found():
    logs = []

    async def scenario():
        logs.append([])
        await nothings.taken_before_the_try(logs[-1])

    def check():
        assert logs[-1].count("in") == logs[-1].count("out")

    with pytest.raises(SweepFailure) as caught:
        interrupt_at_every_line(scenario, check, within=nothings)
    assert caught.value.step == 2
    assert caught.value.place == "<nothings>:41"


places = make_module(
    "places",
    """\
    import trio

    async def outer(log):
        try:
            await inner(log)
        except KeyboardInterrupt:
            log.append("in place")
            raise

    async def inner(log):
        log.append("start")
        await trio.sleep(1)

    @trio.lowlevel.enable_ki_protection
    async def protected(log):
        log.append("one")
        log.append("two")
        await trio.sleep(1)
        log.append("three")

    async def short(log):
        guarded(log)

    @trio.lowlevel.enable_ki_protection
    def guarded(log):
        log.append("guarded")
    """,
)


def test_it_is_raised_in_place_where_trio_does_not_protect():
    logs = []

    async def scenario():
        logs.append([])
        await places.outer(logs[-1])

    interrupt_at_every_line(scenario, within=places, only=4)
    assert logs[-1] == ["start", "in place"]
    interrupt_at_every_line(scenario, within=places, only=3)
    assert logs[-1] == ["in place"]
    interrupt_at_every_line(scenario, within=places, only=1)
    assert logs[-1] == []


def test_it_waits_where_trio_protects():
    logs = []

    async def scenario():
        logs.append([])
        try:
            await places.protected(logs[-1])
        except KeyboardInterrupt:
            logs[-1].append(trio.current_time())
            raise

    # It comes at the next checkpoint of the main task; there is one more only after the last line.
    for line in (1, 2, 3):
        interrupt_at_every_line(scenario, within=places, only=line)
        assert logs[-1] == ["one", "two", 0.0]
    interrupt_at_every_line(scenario, within=places, only=4)
    assert logs[-1] == ["one", "two", "three"]


def test_it_comes_before_the_check_at_the_latest():
    seen = []

    async def scenario():
        seen.append([])
        await places.short(seen[-1])

    async def check():
        await trio.lowlevel.checkpoint()
        await trio.sleep(1)
        seen[-1].append("checked")

    assert interrupt_at_every_line(scenario, check, within=places).steps == 2
    assert seen == [["guarded", "checked"], ["checked"], ["guarded", "checked"], ["guarded", "checked"]]


def test_the_check_gets_the_result():
    results = []

    async def scenario():
        await places.short([])
        return "result"

    interrupt_at_every_line(scenario, results.append, within=places)
    # Raised in place there is no result; kept until the scenario is over there is one.
    assert results == ["result", None, "result", "result"]


def test_a_coroutine_that_is_left_unawaited_is_no_finding():
    module = make_module(
        "unawaited",
        """\
        import trio
        async def work():
            coroutine = trio.sleep(1)
            cycle = [coroutine]
            cycle.append(cycle)
            await coroutine
        """,
    )
    unraisable = []
    previous, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert interrupt_at_every_line(module.work, within=module).steps == 4
            gc.collect()
    finally:
        sys.unraisablehook = previous
    assert unraisable == []


def test_a_coroutine_that_is_left_in_a_cycle_is_no_finding_though_the_scenario_collects():
    async def later():
        await trio.lowlevel.checkpoint()

    async def scenario():
        ring = [later()]
        ring.append(ring)
        gc.collect()
        assert ring
        await ring[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interrupt_at_every_line(scenario, within=sys.modules[__name__]).steps >= 4
        gc.collect()


def test_a_handler_of_the_scenario_gets_the_signal():
    received = []

    async def scenario():
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            mark = len(received)
            with trio.move_on_after(1):
                async for signum in signals:
                    received.append(signum)
                    break
            assert mark <= len(received)

    assert interrupt_at_every_line(scenario, within=sys.modules[__name__]).steps >= 5
    assert set(received) == {signal.SIGINT}


def test_a_scenario_may_ignore_interrupts():
    runs = []

    async def scenario():
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        runs.append("begun")
        await trio.lowlevel.checkpoint()
        runs[-1] = "ended"
        signal.signal(signal.SIGINT, previous)

    steps = interrupt_at_every_line(scenario, within=sys.modules[__name__]).steps
    assert steps == 5
    # The first line is interrupted, the others are not.
    assert runs == ["ended"] * (steps + 1)
    # The same by hand, where no tracer sees it.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.Tracer(interrupts.Within([guarded]), 1).handler(signal.SIGINT, None)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_coroutine_that_the_scenario_forgets_is_reported_as_outside():
    module = make_module(
        "forgetful",
        """\
        import trio
        async def work():
            trio.sleep(1)
            await trio.sleep(1)
        """,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        interrupt_at_every_line(module.work, within=module)
    # Undisturbed, interrupted on the line after it, and undisturbed again.
    assert [str(warning.message) for warning in caught] == ["coroutine 'sleep' was never awaited"] * 3


class Semaphores:
    """Sound code of others: nothing may be found in it."""

    async def locks(self):
        lock = trio.Lock()

        async def use():
            async with lock:
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(use)
        return lock

    async def channels(self):
        send, receive = trio.open_memory_channel(0)
        async with send, receive, trio.open_nursery() as nursery:
            nursery.start_soon(send.send, 1)
            await receive.receive()

    async def events(self):
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait)
            nursery.start_soon(event.wait)
            await trio.sleep(1)
            event.set()


@pytest.mark.parametrize("name", ["locks", "channels", "events"])
def test_trios_own_primitives_survive(name):
    within = [sys.modules["trio._sync"], sys.modules["trio._channel"], sys.modules["trio._core._parking_lot"]]
    assert interrupt_at_every_line(getattr(Semaphores(), name), within=within).steps >= 10


def test_a_package_means_all_its_modules_but_never_the_kit():
    package = make_module("pack", "async def first(): pass", package=True)
    inner = make_module("pack.inner", "async def second(): pass")
    other = make_module("package_of_others", "async def third(): pass")

    async def scenario():
        await package.first()
        await inner.second()
        await other.third()

    assert interrupt_at_every_line(scenario, within=package).steps == 2
    assert interrupt_at_every_line(scenario, within=[inner, other]).steps == 2
    assert interrupt_at_every_line(scenario, within=(inner,)).steps == 1

    import trio_renew

    async def with_the_kit():
        with victim():
            await ScriptedFetch("a")()
        await package.first()

    assert interrupt_at_every_line(with_the_kit, within=[package, trio_renew.testing]).steps == 1
    with pytest.raises(ValueError, match=r"executes no line of trio_renew\.testing"):
        interrupt_at_every_line(with_the_kit, within=trio_renew.testing)


def test_lines_of_this_module_itself():
    """A scenario's own lines, where they are asked for."""

    async def scenario():
        await trio.sleep(1)
        await trio.sleep(1)

    assert interrupt_at_every_line(scenario, within=sys.modules[__name__]).steps == 2


def test_no_line_is_an_error():
    async def scenario():
        await trio.sleep(1)

    with pytest.raises(ValueError, match="nothing was tested, because the scenario executes no line of guarded"):
        interrupt_at_every_line(scenario, within=guarded)
    with pytest.raises(ValueError, match="only=8: the scenario executes 7 lines of guarded"):
        interrupt_at_every_line(using(guarded.Careful), within=guarded, only=8)


def test_a_run_that_never_ends_after_an_interrupt():
    module = make_module(
        "stuck",
        """\
        import trio
        class Gate:
            def __init__(self):
                self.semaphore = trio.Semaphore(1)
            async def through(self):
                await self.semaphore.acquire()
                await trio.sleep(1)
                self.semaphore.release()
        """,
    )

    async def scenario():
        gate = module.Gate()
        try:
            await gate.through()
        except KeyboardInterrupt:
            pass
        await gate.through()

    with pytest.raises(SweepFailure, match="nobody can go on") as caught:
        interrupt_at_every_line(scenario, within=module)
    assert caught.value.place == "<stuck>:7"


def test_a_scenario_that_fails_undisturbed():
    async def scenario():
        await guarded.Careful().use()
        raise ValueError("always")

    with pytest.raises(SweepFailure, match="fails undisturbed") as caught:
        interrupt_at_every_line(scenario, within=guarded)
    assert caught.value.step is None
    assert "interrupt_at_every_line(scenario, within=guarded)" in str(caught.value)

    runs_made = []

    async def fails_later():
        runs_made.append(None)
        if len(runs_made) > 1:
            raise ValueError("only the first run is fine")

    with pytest.raises(SweepFailure, match="fails undisturbed"):
        interrupt_at_every_line(fails_later, within=guarded)


def test_another_handler_of_the_process_is_kept():
    def handler(signum, frame):
        raise AssertionError("not called")

    previous = signal.signal(signal.SIGINT, handler)
    try:
        assert interrupt_at_every_line(using(guarded.Careful), not_taken, within=guarded).steps == 7
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_tracer_of_the_process_sees_the_undisturbed_run_and_is_put_back():
    seen = []

    def tracer(frame, event, argument):
        if frame.f_code.co_filename == "<guarded>":
            seen.append(event)
        return

    previous = sys.gettrace()
    sys.settrace(tracer)
    try:
        interrupt_at_every_line(using(guarded.Careful), not_taken, within=guarded)
        now = sys.gettrace()
    finally:
        sys.settrace(previous)
    assert now is tracer
    # __init__, use (begun, and resumed twice), __enter__, __exit__: once, though the sweep made nine runs.
    assert seen == ["call"] * 6


def test_it_needs_the_main_thread():
    caught = []

    def elsewhere():
        try:
            interrupt_at_every_line(using(guarded.Careful), within=guarded)
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert caught == ["interrupt_at_every_line: interrupts come in the main thread, so it must be called there"]


@pytest.mark.parametrize("within", ["guarded", None, [guarded, "places"]], ids=repr)
def test_within_must_be_modules(within):
    with pytest.raises(TypeError, match="within: a module, or several of them"):
        interrupt_at_every_line(using(guarded.Careful), within=within)


def test_bad_arguments():
    with pytest.raises(ValueError, match="only must be at least 1, not 0"):
        interrupt_at_every_line(using(guarded.Careful), within=guarded, only=0)
    with pytest.raises(TypeError, match="check"):
        interrupt_at_every_line(using(guarded.Careful), 3, within=guarded)
    with pytest.raises(ValueError, match="within: at least one module"):
        interrupt_at_every_line(using(guarded.Careful), within=[])


def test_exits_in_the_bytecode():
    def work():
        with contextlib.nullcontext():
            return trio

    def plain(one):
        return plain(None)

    exits = bytecode.exits_of(work.__code__)
    names = [step.opname for step in dis.get_instructions(work) if step.offset in exits.leaving]
    # Once after the body (with its result on the stack, and behind that), once after an exception.
    assert names == ["SWAP", "LOAD_CONST", "PUSH_EXC_INFO"]
    assert not exits.unseen
    assert bytecode.exits_of(plain.__code__) == bytecode.Exits(frozenset(), frozenset())

    def missed():
        with contextlib.nullcontext():
            try:
                pass
            finally:
                trio.lowlevel.current_task()

    assert bytecode.exits_of(missed.__code__).unseen

    def handled():
        with contextlib.nullcontext() as one:
            while True:
                if one is None:
                    return

    nothing = {step.offset for step in dis.get_instructions(handled) if step.opname == "NOP"}
    assert nothing
    assert not bytecode.exits_of(handled.__code__).unseen & nothing


def test_ways_back_on_one_line_in_the_bytecode():
    def loops(some):
        for _ in some: ...  # fmt: skip
        for _ in some:
            trio.lowlevel.current_task()

    steps = list(dis.get_instructions(loops))
    jumps = [step for step in steps if step.opname == "JUMP_BACKWARD"]
    assert len(jumps) == 2
    # Only the first one comes back to the line that it is on.
    assert bytecode.ways_back(steps) == {jumps[0].offset, jumps[0].argval}
    assert bytecode.ways_back([]) == frozenset()


# The tracer itself runs where no tracer sees it, so here it is called by hand.


def frame_of(name="guarded"):
    frame = sys._getframe()
    return SimpleNamespace(
        f_globals={"__name__": name}, f_code=frame.f_code, f_lineno=frame.f_lineno, f_lasti=frame.f_lasti
    )


def by_hand(at):
    """A tracer that does not end the tracing of the test run."""
    stopped = []
    tracer = interrupts.Tracer(interrupts.Within([guarded]), at, lambda: stopped.append(True))
    tracer.stopped = stopped
    return tracer


def test_the_tracer_counts_lines_only_while_it_is_armed():
    tracer = by_hand(3)
    assert tracer.on_call(frame_of(), "call", None) is None
    tracer.armed = True
    assert tracer.on_call(frame_of("elsewhere"), "call", None) is None
    assert tracer.on_call(frame_of(), "call", None) == tracer.on_line
    for event in ("line", "return", "line", "exception"):
        assert tracer.on_line(frame_of(), event, None) == tracer.on_line
    assert (tracer.count, tracer.place) == (2, None)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        tracer.on_line(frame_of(), "line", None)
    assert not tracer.armed
    assert tracer.stopped == [True]
    assert tracer.place is not None
    tracer.on_line(frame_of(), "line", None)
    assert tracer.count == 3


def test_a_line_that_does_nothing_leaves_it_to_the_next_one():
    def work():
        with contextlib.nullcontext():
            try:
                pass
            finally:
                pass

    code = work.__code__
    gap = min(bytecode.exits_of(code).unseen)
    here = SimpleNamespace(f_code=code, f_lineno=1, f_lasti=gap)
    tracer = by_hand(1)
    tracer.armed = True
    tracer.on_line(here, "line", None)
    assert (tracer.pending, tracer.armed, tracer.count) == (True, True, 1)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        tracer.on_line(frame_of(), "line", None)
    assert (tracer.pending, tracer.armed, tracer.count) == (False, False, 1)
    assert tracer.place == f"{code.co_filename}:1"

    # Without a next one it comes when the scenario is over.
    last = by_hand(1)

    async def scenario():
        last.on_line(here, "line", None)
        await trio.lowlevel.checkpoint()
        return "result"

    seen = []
    run = interrupts.InterruptedRun(scenario, seen.append, last, most=1000)
    with warnings.catch_warnings():
        runs.Run.launch(run)
    assert (run.error, seen, last.pending) == (None, ["result"], False)


@pytest.mark.parametrize("when", ["never", "in the scenario", "with another error"])
def test_a_run_by_hand(when):
    tracer = by_hand(1)

    async def scenario():
        if when != "never":
            tracer.on_line(sys._getframe(), "line", None)

    async def odd():
        try:
            await scenario()
        except KeyboardInterrupt:
            raise ValueError("hidden") from None

    run = interrupts.InterruptedRun(odd if when == "with another error" else scenario, None, tracer, most=1000)
    with warnings.catch_warnings():
        runs.Run.launch(run)
    assert isinstance(run.error, ValueError if when == "with another error" else type(None))


def test_names_that_are_no_names():
    within = interrupts.Within([guarded])
    assert not within[None]
    assert within["guarded"]
    assert not within["guarded.sub"]
    code = guarded.exiting.__code__
    assert within.exits_of(code) is within.exits_of(code)
