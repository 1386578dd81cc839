"""Hidden states, from text to batches; knows nothing of dictionaries."""

from atoms.activations.corpus import Corpus, Document
from atoms.activations.counterfact import CounterFact
from atoms.activations.hub_text import HubText
from atoms.activations.tables import TableFiles
from atoms.activations.text import StdlibDocstrings, TextFiles
from atoms.activations.token_files import TokenFiles

__all__ = [
    "Corpus", "CounterFact", "Document", "HubText", "StdlibDocstrings", "TableFiles", "TextFiles", "TokenFiles",
]  # fmt: skip
