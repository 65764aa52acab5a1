"""What all calls through one guard have in common. Knows gates and rules, no call in particular."""

from __future__ import annotations

from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._guard.auto_compartments import AutoCompartments
from guardrails._guard.locked_gate import LockedGate, WorkloadGate
from guardrails._runtime.outcomes import classify_result

__all__ = ["CallSettings"]


class CallSettings:
    """What all calls through one guard have in common.

    Attributes:
        owner: The guard, as scopes know it.
        root: The gate of the outermost guard, which all compartments have in common.
        name: Its name.
        gates: The gates to pass, the innermost compartment's first.
        policy: What says which ends are failures.
        is_failure: The policy's rule for errors.
        judges: Whether it has a rule for returned values.
        clock: What deadlines are measured with.
        timeout: Seconds for a call that is given none of its own.
        has_own_timeout: Whether its timeout was given to this compartment, or to one that it is a part of.
        attached: Whether a pool's checkouts take the slots, so that a call only opens a scope.
        auto_compartments: What compartments that form by themselves have in common; None where none do.
        only_gate: The gate of a guard that is neither attached nor a compartment; else None.
        no_tickets: A 0 for each gate.
    """

    __slots__ = (
        "attached",
        "auto_compartments",
        "clock",
        "gates",
        "has_own_timeout",
        "is_failure",
        "judges",
        "name",
        "no_tickets",
        "only_gate",
        "owner",
        "policy",
        "root",
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
        self.root = last.gate if isinstance(last, WorkloadGate) else last
        self.policy = policy
        self.auto_compartments: AutoCompartments | None = None
        self.is_failure = None if policy is None else policy.is_failure
        self.judges = policy is not None and policy.is_failure_result is not None
        self.clock = gates[0].clock
        self.has_own_timeout = False
        self.no_tickets = (0,) * len(gates)
        self.attach(timeout, attached=False)

    def attach(self, timeout: float | None, *, attached: bool) -> None:
        """Notes whether a pool takes the slots, and the timeout of a call's own that follows from it."""
        self.attached = attached
        self.timeout = None if attached else timeout
        self.only_gate = None if attached or len(self.gates) > 1 else self.gates[0]

    def judge(self, result: object) -> Outcome:
        """Says what a returned value means."""
        return classify_result(result, None if self.policy is None else self.policy.is_failure_result)
