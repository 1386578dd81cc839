"""Find the atoms of language models, and prove or refute that they deserve the name."""

__version__ = "0.1.0"
