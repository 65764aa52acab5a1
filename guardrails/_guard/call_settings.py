"""The settings that all calls through one guard share. Depends on gates and rules; must not import calls."""

from __future__ import annotations

from guardrails._core.outcome import Outcome
from guardrails._core.policy import BreakerPolicy
from guardrails._guard.auto_compartments import AutoCompartments
from guardrails._guard.locked_gate import LockedGate, WorkloadGate
from guardrails._runtime.outcomes import classify_result

__all__ = ["CallSettings"]


class CallSettings:
    """The settings that all calls through one guard share.

    Attributes:
        owner: The guard.
        root: The gate of the outermost guard, which all its compartments share.
        name: The guard's name.
        gates: The gates of a call, the innermost compartment's first.
        policy: The rules by which errors and results are failures; None without a circuit.
        is_failure: The policy's rule for errors.
        judges: True if the policy has a rule for results.
        clock: Measures deadlines, in seconds.
        timeout: Seconds for a call without a timeout of its own; None is unbounded.
        has_own_timeout: True if the timeout was given to this compartment or to one that contains it.
        attached: True if a pool's checkouts take the slots, so that a call only opens a scope.
        auto_compartments: The guard's automatic compartments; None if it forms none.
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
        """Sets whether a pool takes the slots. Calls of an attached guard have no timeout by default."""
        self.attached = attached
        self.timeout = None if attached else timeout
        self.only_gate = None if attached or len(self.gates) > 1 else self.gates[0]

    def note_error(self, error: BaseException) -> None:
        """Notes the class of an error that is a failure, for the log's line of an opening circuit."""
        for gate in self.gates:
            gate.last_error = type(error).__name__

    def judge(self, result: object) -> Outcome:
        """The outcome of a returned value."""
        return classify_result(result, None if self.policy is None else self.policy.is_failure_result)
