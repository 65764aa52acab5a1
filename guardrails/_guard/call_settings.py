"""What all calls through one guard have in common. Knows gates and rules, no call in particular."""

from __future__ import annotations

from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._guard.auto_compartments import AutoCompartments
from guardrails._guard.locked_gate import Lane, LockedGate
from guardrails._runtime.classify import classify, classify_result

__all__ = ["CallSettings"]


class CallSettings:
    """What all calls through one guard have in common.

    Attributes:
        owner: The guard, as scopes know it.
        root: The gate of the outermost guard, which all compartments have in common.
        name: Its name.
        gates: The gates to pass, the innermost compartment's first.
        policy: What says which ends are failures.
        judges: Whether it has a rule for returned values.
        clock: What deadlines are measured with.
        timeout: Seconds for a call that is given none of its own.
        has_own_timeout: Whether its timeout was given to this compartment, or to one that it is a part of.
        attached: Whether a pool's checkouts take the slots, so that a call only opens a scope.
        only_gate: The gate of a guard that is neither attached nor a compartment: there is a fast path
            through it. None where there is not.
        auto_compartments: What compartments that form by themselves have in common; None where none do.
        slot_gate: That gate, if a slot is all its calls need: no circuit, no deadline, nobody to tell.
    """

    __slots__ = (
        "attached",
        "auto_compartments",
        "clock",
        "gates",
        "has_own_timeout",
        "judges",
        "name",
        "only_gate",
        "owner",
        "policy",
        "root",
        "slot_gate",
        "timeout",
    )

    def __init__(
        self,
        owner: object,
        name: str,
        gates: tuple[LockedGate, ...],
        policy: BreakerPolicy | None,
        timeout: float | None,
    ) -> None:
        self.owner = owner
        self.name = name
        self.gates = gates
        last = gates[-1]
        self.root = last.gate if isinstance(last, Lane) else last
        self.policy = policy
        self.auto_compartments: AutoCompartments | None = None
        self.judges = policy is not None and policy.is_failure_result is not None
        self.clock = gates[0].clock
        self.has_own_timeout = False
        self.attach(timeout, attached=False)

    def attach(self, timeout: float | None, *, attached: bool) -> None:
        """Notes whether a pool takes the slots, and the timeout of a call's own that follows from it."""
        self.attached = attached
        self.timeout = None if attached else timeout
        gate = self.only_gate = None if attached or len(self.gates) > 1 else self.gates[0]
        needs_more = self.policy is not None or timeout is not None or gate is None or gate.tells_of_calls
        self.slot_gate = None if needs_more else gate

    def judge(self, result: object) -> Outcome:
        """Says what a returned value means."""
        return classify_result(result, None if self.policy is None else self.policy.is_failure_result)

    def classify(self, error: BaseException) -> Outcome:
        """Says what an error that came out of a call means."""
        return classify(error, None if self.policy is None else self.policy.is_failure)
