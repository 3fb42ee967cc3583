"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Two busy processors must not turn a slow example into a failure; a failure must come back on the next run.
settings.register_profile(
    "trio_renew", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("trio_renew")
