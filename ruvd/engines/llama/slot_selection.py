"""The choice of a slot for a request.

A slot that holds a session is given to another session last: a similar beginning, such as the same
system prompt, must not move out a session that is still in use.
"""

from collections.abc import Sequence

from ruvd.core.ports.engine import EngineRequest
from ruvd.engines.llama.prompt import MIN_REUSED_CHARACTERS, Prompt, prompt_of
from ruvd.engines.llama.slots import Slot

# About 64 tokens. A smaller difference does not change the order of use.
_GRAIN_CHARACTERS = 256


def best_slot(slots: Sequence[Slot], request: EngineRequest) -> Slot:
    """Returns the idle slot that suits a request best; at least one must be idle.

    That is the session's own slot, or the best by `_cost`. A request that bypasses the cache gets
    the slot that has the least to lose.
    """
    idle = [slot for slot in slots if not slot.busy]
    if request.options.bypass_cache:
        return min(
            idle, key=lambda slot: (bool(slot.session_key), slot.content.size, slot.last_use)
        )
    for slot in idle:
        if request.session_key and slot.session_key == request.session_key:
            return slot
    prompt = prompt_of(request)
    return min(idle, key=lambda slot: _cost(slot, prompt))


def donor_slot(slots: Sequence[Slot], request: EngineRequest, slot: Slot) -> Slot | None:
    """Returns an idle slot that has much more in common with the request than the request's own
    `slot`, or None. A fork finds its parent's, a new session one with the same system prompt."""
    prompt = prompt_of(request)
    best = max(
        (each for each in slots if not each.busy and not each.session_has_ended),
        key=lambda each: each.content.common(prompt),
        default=None,
    )
    gain = best.content.common(prompt) - slot.content.common(prompt) if best else 0
    return best if gain >= MIN_REUSED_CHARACTERS else None


def next_eviction(slots: Sequence[Slot]) -> Slot | None:
    """Returns the least recently used slot, which the next session without a slot is likely to
    get, if it is idle and has to be saved before; otherwise None."""
    slot = min(slots, key=lambda each: each.last_use)
    return slot if slot.is_worth_saving and not slot.busy else None


def _cost(slot: Slot, prompt: Prompt) -> tuple[bool, int, int]:
    """Returns a sort key: first a slot from which no other session would be moved out, then one
    that has much in common with the prompt, then one never used or least recently used."""
    common = slot.content.common(prompt)
    lost = slot.content.size - common
    # If nothing is lost, the request continues the content, and every character counts.
    gain = common // _GRAIN_CHARACTERS * _GRAIN_CHARACTERS if lost else common
    return lost > 0 and bool(slot.session_key), -gain, slot.last_use
