"""What all calls through one guard have in common. Knows doors and rules, no call in particular."""

from __future__ import annotations

from guardrails._door import Door, Lane
from guardrails._outcome import Outcome, classify, classify_result
from guardrails._policy import BreakerPolicy
from guardrails._sharing import Sharing

__all__ = ["Passage"]


class Passage:
    """What all calls through one guard have in common.

    Attributes:
        owner: The guard, as scopes know it.
        root: The door of the outermost guard, which all compartments have in common.
        name: Its name.
        doors: The doors to pass, the innermost compartment's first.
        policy: What says which ends are failures.
        judges: Whether it has a rule for returned values.
        clock: What deadlines are measured with.
        timeout: Seconds for a call that is given none of its own.
        has_own_timeout: Whether its timeout was given to this compartment, or to one that it is a part of.
        attached: Whether a pool's checkouts take the slots, so that a call only opens a scope.
        only_door: The door of a guard that is neither attached nor a compartment: there is a quick way
            through it. None where there is not.
        sharing: What compartments that form by themselves have in common; None where none do.
        slot_door: That door, if a slot is all its calls need: no circuit, no deadline, nobody to tell.
    """

    __slots__ = (
        "attached",
        "clock",
        "doors",
        "has_own_timeout",
        "judges",
        "name",
        "only_door",
        "owner",
        "policy",
        "root",
        "sharing",
        "slot_door",
        "timeout",
    )

    def __init__(
        self,
        owner: object,
        name: str,
        doors: tuple[Door, ...],
        policy: BreakerPolicy | None,
        timeout: float | None,
    ) -> None:
        self.owner = owner
        self.name = name
        self.doors = doors
        last = doors[-1]
        self.root = last.door if isinstance(last, Lane) else last
        self.policy = policy
        self.sharing: Sharing | None = None
        self.judges = policy is not None and policy.is_failure_result is not None
        self.clock = doors[0].clock
        self.has_own_timeout = False
        self.attach(timeout, attached=False)

    def attach(self, timeout: float | None, *, attached: bool) -> None:
        """Notes whether a pool takes the slots, and the timeout of a call's own that follows from it."""
        self.attached = attached
        self.timeout = None if attached else timeout
        door = self.only_door = None if attached or len(self.doors) > 1 else self.doors[0]
        needs_more = self.policy is not None or timeout is not None or door is None or door.tells_of_calls
        self.slot_door = None if needs_more else door

    def judge(self, result: object) -> Outcome:
        """Says what a returned value means."""
        return classify_result(result, None if self.policy is None else self.policy.is_failure_result)

    def classify(self, error: BaseException) -> Outcome:
        """Says what an error that came out of a call means."""
        return classify(error, None if self.policy is None else self.policy.is_failure)
