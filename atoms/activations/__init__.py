"""Hidden states, from text to batches; knows nothing of dictionaries."""

from atoms.activations.hub_text import HubText
from atoms.activations.text import Corpus, StdlibDocstrings, TextFiles

__all__ = ["Corpus", "HubText", "StdlibDocstrings", "TextFiles"]
