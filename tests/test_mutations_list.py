"""The list of deliberate defects (``python tests/mutations``) must not rot: each still fits the source."""

from __future__ import annotations

import runpy
from pathlib import Path

import trio_renew

HERE = Path(__file__).parent
SOURCE = Path(trio_renew.__file__).parent


def test_each_defect_still_has_its_place() -> None:
    defects = runpy.run_path(str(HERE / "mutations" / "defects.py"))["DEFECTS"]
    assert len(defects) >= 25
    for what, module, text, becomes, tests in defects:
        source = (SOURCE / module).read_text(encoding="utf-8")
        assert source.count(text) == 1, what
        compile(source.replace(text, becomes), module, "exec")
        for name in tests:
            assert list(HERE.glob(name)), what
