"""Fine-tuning of causal language models: what is trained, what is learnt, what is forgotten."""

from atoms.tuning.arms import ARMS, Arm, Share
from atoms.tuning.experiment import Recipe
from atoms.tuning.kappa_tune import KappaTune
from atoms.tuning.text import GeneralText, TaskText

__all__ = ["ARMS", "Arm", "GeneralText", "KappaTune", "Recipe", "Share", "TaskText"]
