"""Training steps: one contract, several back ends."""

from atoms.sae.step.eager import StepOutput, eager_step

__all__ = ["StepOutput", "eager_step"]
