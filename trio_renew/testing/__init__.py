"""For users' tests: scripted sources, the handoff hook, sweeps of cancellation, interrupts and schedules.

It works on any Trio code, with pytest and without, and registers nothing. Importing `trio_renew` does not import it.
"""

from ._contract_adaptive import AdaptiveRateLimitStoreContract as AdaptiveRateLimitStoreContract
from ._contract_cache import CacheStoreContract as CacheStoreContract
from ._contract_dedupe import DedupeStoreContract as DedupeStoreContract
from ._contract_rates import RateLimitStoreContract as RateLimitStoreContract
from ._contracts import StorageContract as StorageContract, check_contract as check_contract
from ._handoff import Handoff as Handoff, all_claims as all_claims
from ._interrupts import interrupt_at_every_line as interrupt_at_every_line
from ._report import SweepFailure as SweepFailure, SweepReport as SweepReport
from ._schedules import under_every_schedule as under_every_schedule, under_schedules as under_schedules
from ._scripted import (
    Block as Block,
    ScriptedFetch as ScriptedFetch,
    ScriptExhausted as ScriptExhausted,
    Sleep as Sleep,
    Stubborn as Stubborn,
    Token as Token,
)
from ._sweeps import (
    cancel_at_every_checkpoint as cancel_at_every_checkpoint,
    do_at_every_checkpoint as do_at_every_checkpoint,
)
from ._until import until as until
from ._victim import victim as victim

__all__ = (
    "AdaptiveRateLimitStoreContract",
    "Block",
    "CacheStoreContract",
    "DedupeStoreContract",
    "Handoff",
    "RateLimitStoreContract",
    "ScriptExhausted",
    "ScriptedFetch",
    "Sleep",
    "StorageContract",
    "Stubborn",
    "SweepFailure",
    "SweepReport",
    "Token",
    "all_claims",
    "cancel_at_every_checkpoint",
    "check_contract",
    "do_at_every_checkpoint",
    "interrupt_at_every_line",
    "under_every_schedule",
    "under_schedules",
    "until",
    "victim",
)
