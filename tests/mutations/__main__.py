"""``python tests/mutations``: break the library in each way of ``defects.py``, run the suite, print the score.

Exits with 1 if a defect went unnoticed. Options: ``--only TEXT`` (of what it says), ``--jobs N``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from defects import DEFECTS, Defect

ROOT = Path(__file__).resolve().parents[2]
# The quick ones first: most defects do not get further.
SUITE = (
    "test_resource.py",
    "test_provider.py",
    "test_resource_storage.py",
    "test_contract_*.py",
    "test_model.py",
    "test_sweeps_core.py",
    "sweeps/test_*.py",
)
# A defect may make the suite hang: that is noticed, too.
LONGEST = 240


def noticed(defect: Defect | None) -> tuple[bool, str]:
    """Run the suite on a copy with the defect; say whether it noticed, and by which test."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "trio_renew", copy / "trio_renew", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if defect is not None:
            module = copy / "trio_renew" / defect.module
            text = module.read_text(encoding="utf-8")
            module.write_text(text.replace(defect.text, defect.becomes), encoding="utf-8")
        patterns = (defect and defect.tests) or SUITE
        tests = [str(path) for pattern in patterns for path in sorted((copy / "tests").glob(pattern))]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, timeout=LONGEST, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return True, "it hangs"
        if done.returncode == 0:
            return False, ""
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return True, lines[0].split(" - ")[0].replace("FAILED tests/", "") if lines else done.stdout[-300:]


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(prog="python tests/mutations", description=__doc__)
    parser.add_argument("--only", default="", help="those whose description contains this")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    for defect in DEFECTS:
        stands = (ROOT / "trio_renew" / defect.module).read_text(encoding="utf-8").count(defect.text)
        if stands != 1:
            raise SystemExit(f"{defect.what}: its text stands {stands} times in {defect.module}")
    sound, where = noticed(None)
    if sound:
        raise SystemExit(f"the suite fails without any defect: {where}")
    chosen = [defect for defect in DEFECTS if options.only in defect.what]
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for defect, (seen, by) in zip(chosen, pool.map(noticed, chosen), strict=True):
            missed += not seen
            print(f"{'noticed' if seen else 'MISSED '}  {defect.what:<75} {by}", flush=True)
    print(f"score: {len(chosen) - missed} of {len(chosen)}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
