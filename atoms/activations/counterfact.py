"""Facts about subjects, in the format of CounterFact: prompts that name what they are about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from atoms.activations.corpus import Corpus, Document, at_most, check_limit
from atoms.activations.records import Row, read_rows
from atoms.errors import AtomsError

Kind = Literal["prompt", "paraphrase", "neighborhood", "attribute", "generation"]
"""Kinds of prompts of a record: its own rewrite prompt, and the lists beside it."""

_LISTED = {
    "paraphrase": "paraphrase_prompts",
    "neighborhood": "neighborhood_prompts",
    "attribute": "attribute_prompts",
    "generation": "generation_prompts",
}


class CounterFact(Corpus):
    """Prompts of a file in CounterFact's format, each a document that knows where its subject stands.

    A record holds ``requested_rewrite`` with ``prompt`` (``{}`` for the subject) and ``subject``, and lists of prompts
    beside it. In the listed prompts the subject is found word for word, where it stands last: paraphrases begin with
    unrelated text. Neighborhood and attribute prompts are about other subjects, which the format does not name; they
    and paraphrases that spell the subject otherwise are documents without a subject.

    All documents about one subject are held out together: their prompts, and the rows at the subject, are alike in
    every record of that subject.

    Format and use: Meng et al., "Locating and Editing Factual Associations in GPT" (2022).

    Args:
        path: The file, a JSON list of records or one record a line (``.jsonl``).
        prompts: Which kinds of prompts, in this order for each record.
        limit: Stop after this many records.
    """

    def __init__(self, path: str, prompts: list[Kind] | None = None, limit: int | None = None) -> None:
        check_limit(limit)
        self.path = path
        self.prompts: list[Kind] = ["prompt", "paraphrase"] if prompts is None else prompts
        self.limit = limit
        known = get_args(Kind)
        if not self.prompts or set(self.prompts) - set(known) or len(set(self.prompts)) < len(self.prompts):
            raise AtomsError(
                f"data.harvest.corpus.prompts is {self.prompts}: name one or more of {', '.join(known)}, each once"
            )

    def documents(self) -> Iterator[Document]:  # noqa: D102  # inherited
        complaint = f"data.harvest.corpus.path {self.path} holds no {' or '.join(self.prompts)} prompts"
        return at_most(None, self._documents(), complaint)

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"prompts": self.prompts, "limit": self.limit}

    def _documents(self) -> Iterator[Document]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise AtomsError(
                f"data.harvest.corpus.path: {self.path} is not a file; name a JSON file in CounterFact's format"
            )
        for number, row in enumerate(read_rows(file, "data.harvest.corpus.path")):
            if number == self.limit:
                return
            yield from self._prompts_of(row)

    def _prompts_of(self, row: Row) -> Iterator[Document]:
        """The documents of one record."""
        rewrite = row.value.get("requested_rewrite") if isinstance(row.value, dict) else None
        template, subject = (rewrite.get(key) if isinstance(rewrite, dict) else None for key in ("prompt", "subject"))
        if not isinstance(template, str) or not isinstance(subject, str) or "{}" not in template or not subject.strip():
            raise AtomsError(
                f"data.harvest.corpus.path: {row.where} is no record of CounterFact; it needs requested_rewrite with "
                "a prompt that holds {} and a subject"
            )
        subject = subject.strip()
        group = " ".join(subject.casefold().split())
        name = f"{row.value.get('case_id', row.number)}"
        for kind in self.prompts:
            if kind == "prompt":
                start = template.index("{}")
                text = template[:start] + subject + template[start + 2 :]
                yield Document(f"{name}/prompt", text, (start, start + len(subject)), group)
                continue
            listed = row.value.get(_LISTED[kind], [])
            if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
                raise AtomsError(f"data.harvest.corpus.path: {row.where}: {_LISTED[kind]} is not a list of texts")
            for number, text in enumerate(listed):
                at = -1 if kind in ("neighborhood", "attribute") else text.rfind(subject)
                span = (at, at + len(subject)) if at >= 0 else None
                yield Document(f"{name}/{kind}#{number}", text, span, group)
