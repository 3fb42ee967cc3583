"""What a sweep says when it is over."""

from __future__ import annotations

import attrs

__all__ = ("SweepFailure", "SweepReport")


@attrs.frozen
class SweepReport:
    """A sweep that found nothing.

    Attributes:
      steps: In how many places it disturbed the scenario, or under how many schedules it ran it. Compare it with
        what you expect, so that a scenario that tests less than it did is noticed.
    """

    steps: int


class SweepFailure(AssertionError):
    """A sweep has found something. What went wrong there is its ``__cause__``.

    Attributes:
      step: The step at which the scenario was disturbed (0 is the entry of the victim), or None when it was not:
        then it fails undisturbed, or under a schedule.
      seed: The seed of the run's schedule.
      place: ``file:line`` where the victim stood, or the line that was interrupted; None when nothing was disturbed.
      choices: Of `under_every_schedule`: who went first each time that there was a choice; otherwise None.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int | None = None,
        seed: int = 0,
        place: str | None = None,
        choices: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(message)
        self.step = step
        self.seed = seed
        self.place = place
        self.choices = choices


class MisusedVictim(SweepFailure, RuntimeError):
    """A `SweepFailure` whose cause is a scenario that has two victims: a mistake of the test."""


class TwoVictims(RuntimeError):
    """What the second ``victim()`` of a run raises."""
