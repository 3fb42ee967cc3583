"""Interrupts find nothing in sound code, however its blocks are nested, and count what the tracer of Python counts."""

import random
import sys
import textwrap
from types import ModuleType

import pytest
import trio
import trio.testing

from trio_renew.testing import SweepReport, interrupt_at_every_line

HEAD = """\
import trio

class Taken:
    def __init__(self, log):
        self.log = log
    @trio.lowlevel.enable_ki_protection
    def __enter__(self):
        self.log.append(1)
    @trio.lowlevel.enable_ki_protection
    def __exit__(self, kind, error, traceback):
        self.log.append(-1)
        return kind is ValueError
    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self):
        await trio.lowlevel.checkpoint()
        self.log.append(1)
    @trio.lowlevel.enable_ki_protection
    async def __aexit__(self, kind, error, traceback):
        self.log.append(-1)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return kind is ValueError

"""


def module_of(name, text):
    module = ModuleType(name)
    exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    return module


class Writer:
    """Writes a random program of nested blocks; all that it takes is taken by a ``with``."""

    SIMPLE = ("pass", "pass", "...", "x = len(log)", "await trio.lowlevel.checkpoint()", "log.append(0)", "return x")
    ENDS = ("return", "raise ValueError", "return (\n{}    x, await trio.sleep(0))")
    WITHS = (
        "with Taken(log):",
        "with Taken(log) as y:",
        "with Taken(log), Taken(log):",
        "with (\n{0}    Taken(log) as y,\n{0}    Taken(log),\n{0}):",
        "with trio.CancelScope(), Taken(log):",
        "async with Taken(log):",
        "async with Taken(log) as y:",
        "async with Taken(log), Taken(log):",
    )
    LOOPS = ("for _ in range(2):", "while len(log) < 20:")

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lines = ["async def program(log):", "    x = 0"]
        self.block(1, loop=False)

    def add(self, indent, text):
        self.lines.append("    " * indent + text.replace("{0}", "    " * indent).replace("{}", "    " * indent))

    def block(self, indent, *, loop):
        for _ in range(self.random.randint(1, 3)):
            self.statement(indent, loop=loop)

    def statement(self, indent, *, loop):
        choose = self.random.choice
        kind = choose(["simple", "with", "with", "loop", "try", "if"]) if indent < 5 else "simple"
        if kind == "simple":
            self.add(indent, choose(self.SIMPLE + self.ENDS + (("break", "continue") if loop else ())))
        elif kind == "with":
            self.add(indent, choose(self.WITHS))
            self.block(indent + 1, loop=loop)
        elif kind == "loop":
            self.add(indent, choose(self.LOOPS))
            self.add(indent + 1, "log.append(0)")
            self.block(indent + 1, loop=True)
        elif kind == "try":
            self.try_(indent, loop=loop)
        else:
            self.add(indent, "if len(log) % 2:")
            self.block(indent + 1, loop=loop)
            self.add(indent, "else:")
            self.block(indent + 1, loop=loop)

    def try_(self, indent, *, loop):
        self.add(indent, "try:")
        self.block(indent + 1, loop=loop)
        kinds = self.random.choice([("except",), ("finally",), ("except", "else"), ("except", "else", "finally")])
        for kind in kinds:
            self.add(indent, "except ValueError:" if kind == "except" else f"{kind}:")
            self.block(indent + 1, loop=loop and kind != "finally")


def sweep(module):
    """Interrupt a program at each line; what it took it has given back."""
    logs = []

    async def scenario():
        logs.append([])
        try:
            await module.program(logs[-1])
        except ValueError:
            pass

    def check():
        assert sum(logs[-1]) == 0, logs[-1]

    return interrupt_at_every_line(scenario, check, within=module)


# The last two have blocks whose last line does nothing, in blocks that go on.
@pytest.mark.parametrize("seed", [*range(20), 100, 113])
def test_no_exit_is_skipped_in_any_nesting(seed):
    module = module_of("nested", HEAD + "\n".join(Writer(seed).lines))
    assert sweep(module).steps >= 1


class WriterOfLoops(Writer):
    """Writes loops, comprehensions and definitions besides, on one line and on several."""

    SIMPLE = (
        *Writer.SIMPLE,
        "x = len([v for v in range(2)])",
        "x = len({v: v for v in range(2)})",
        "x = len([[w for w in range(2)] for v in range(2)])",
        "x = len([\n{}    v\n{}    for v in range(2)\n{}    if v\n{}])",
        "x = sum(v for v in range(2))",
        "for v in range(2): pass",
        "for v in range(2): log.append(0)",
        "while len(log) < 3: log.append(0)",
        "for v in range(2):\n{}    if v: continue",
        "while True:\n{}    x += 1\n{}    if x > 2: break",
        "x = 1 if log else (\n{}    2)",
        "def f(a=x):\n{}    with Taken(log):\n{}        return a\n{}f()",
        "class C:\n{}    with Taken(log):\n{}        y = [v for v in range(2)]",
        "match x:\n{}    case 0 | 1:\n{}        pass\n{}    case _:\n{}        log.append(0)",
    )


# Python from 3.12 on loses its way out of one-line loops, 3.13 also out of comprehensions on several lines.
@pytest.mark.parametrize("seed", range(20))
def test_no_exit_is_skipped_around_loops(seed):
    module = module_of("loops", HEAD + "\n".join(WriterOfLoops(seed).lines))
    assert sweep(module).steps >= 1


ENDS_WITH_NOTHING = {
    "pass after as": """
        async with Taken(log) as y:
            pass
    """,
    "pass in two": """
        with Taken(log) as x, Taken(log) as y:
            pass
    """,
    "try, in a with": """
        with Taken(log):
            with Taken(log) as y:
                try:
                    pass
                finally:
                    ...
    """,
    "return over a pass": """
        with Taken(log) as y:
            if log:
                return
            else:
                pass
    """,
    "try in try": """
        with Taken(log):
            try:
                try:
                    with Taken(log) as y:
                        pass
                except OSError:
                    pass
            finally:
                pass
    """,
}


@pytest.mark.parametrize("name", ENDS_WITH_NOTHING)
def test_a_block_that_ends_with_a_line_that_does_nothing(name):
    body = textwrap.indent(textwrap.dedent(ENDS_WITH_NOTHING[name]), "    ")
    assert sweep(module_of("ends", f"{HEAD}async def program(log):\n{body}")).steps >= 1


def test_every_execution_of_a_line_is_counted_as_python_counts_it():
    package = module_of("package", "async def first(other):\n    x = [n for n in range(3)]\n    await other()\n")
    package.__path__ = []
    inner = module_of(
        "package.inner", "import trio\nasync def second():\n    for _ in range(3):\n        await trio.sleep(1)\n"
    )
    other = module_of("packages", "async def third(thing):\n    return [\n        thing,\n        thing,\n    ]\n")
    counted = []

    async def scenario():
        await package.first(inner.second)
        await other.third(1)

    def count(frame, event, argument):
        if frame.f_globals.get("__name__") not in ("package", "package.inner", "packages"):
            return None
        if event == "line":
            counted.append(frame.f_globals["__name__"])
        return count

    previous = sys.gettrace()
    sys.settrace(count)
    try:
        trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        sys.settrace(previous)
    inside = sum(name != "packages" for name in counted)
    assert interrupt_at_every_line(scenario, within=package) == SweepReport(inside)
    assert interrupt_at_every_line(scenario, within=inner) == SweepReport(counted.count("package.inner"))
    assert interrupt_at_every_line(scenario, within=(inner, other)) == SweepReport(
        len(counted) - counted.count("package")
    )
    with pytest.raises(ValueError, match=f"executes {len(counted)} lines"):
        interrupt_at_every_line(scenario, within=[package, other], only=len(counted) + 1)


def test_lines_of_other_threads_are_not_interrupted():
    module = module_of(
        "threaded",
        "import trio\ndef work():\n    x = 1\n    return x\n"
        "async def program(log):\n    await trio.to_thread.run_sync(work)\n",
    )
    assert sweep(module) == SweepReport(1)
