"""Fine-tuning recipes on two cores: train a small Llama on one part of the standard library, tune it on another.

    python benchmarks/tune_stdlib.py [--config configs/tune/stdlib.yaml] [--passes 6] [--processes 2]
                                     [further words for `atoms tune`]

The model sees the general corpus of the config without the share that is held out, dealt as `atoms tune` deals it; its
byte-level BPE tokenizer is made from all of it. They are kept in the folder that the config names as its model, and
trained once; what that hangs on is changed in the config, never by further words. Matrices of this size gain little
from a second thread; so arms are dealt to processes of one thread each, which write into one folder, and a last call
gathers what they found.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from atoms.activations.language_model import quiet_transformers
from atoms.activations.text import StdlibDocstrings, document_order
from atoms.activations.tokenised import tokenise
from atoms.cli import main as atoms
from atoms.commands.tune import USUAL
from atoms.progress import Meter
from atoms.tuning.language_model import CausalLM, batches
from atoms.tuning.text import general_split, pack

END = "<|end|>"
VOCABULARY = 2048
MADE_OF = "made_of.json"


def make_tokenizer(corpus: StdlibDocstrings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((document.text for document in corpus.documents()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def pretrain(settings: dict, passes: int) -> None:
    """Train the model that all recipes begin with, and save it."""
    torch.manual_seed(0)
    general = settings["general"]
    corpus = StdlibDocstrings(**general["corpus"]["init_args"])
    tokenizer = make_tokenizer(corpus)
    text = tokenise(corpus, tokenizer, max_tokens=general.get("max_tokens"))
    seed, context = settings.get("seed", 0), settings["context"]
    seen = general_split(text, general["share"], seed)["train"]
    blocks = pack(text, document_order(seen, seed), tokenizer.eos_token_id, context).full
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    module = CausalLM(LlamaForCausalLM(config), lr=3e-3)
    size = 32
    steps = passes * len(blocks) // size
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    print(f"{sum(each.numel() for each in module.parameters()):,} parameters, {blocks.tokens:,} tokens, {steps} steps")
    with Meter("pretrain", steps * size * context) as meter:
        for ids, labels in batches(blocks, size, steps, seed):
            total, count = module.losses(ids, labels)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            meter.advance(ids.numel())
    print(f"training loss of the last batch {float((total / count).detach()):.3f} nats a token")
    folder = Path(settings["model"]["name"])
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_transformers():
        module.model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / MADE_OF).write_text(json.dumps(made_of(settings, passes)))
    partial.rename(folder)


def made_of(settings: dict, passes: int) -> dict:
    """What a model hangs on."""
    known = {name: settings.get(name) for name in ("general", "context", "seed")}
    return {**known, "passes": passes}


def listed(arms: list[str]) -> str:
    """Arms as the command line takes them."""
    return f"[{', '.join(arms)}]"


def run_side_by_side(words: list[str], arms: list[str], processes: int) -> None:
    """Run every arm in one of several processes; what they find stays in the folder of the experiment."""
    parts = [part for each in range(processes) if (part := arms[each::processes])]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        begun = []
        for part in parts:  # the first is seen; the others are heard if they fail
            said = None if part is parts[0] else stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [sys.executable, "-m", "atoms", *words, "--arms", listed(part), "--tracking_uri", "none"]
            begun.append((part, said, subprocess.Popen(command, env=alone, stdout=said, stderr=said)))
            stack.callback(begun[-1][-1].kill)
        while any(process.poll() != 0 for *_, process in begun):
            for part, said, process in begun:
                if process.poll():
                    if said:
                        said.seek(0)
                    raise SystemExit(f"{', '.join(part)} failed\n{said.read()[-2000:] if said else ''}")
            time.sleep(0.5)


def main() -> None:
    """Train the model if it is not there, then compare the recipes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/tune/stdlib.yaml")
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--arms", type=yaml.safe_load)
    own, words = parser.parse_known_args()
    settings = yaml.safe_load(Path(own.config).read_text())
    began = time.monotonic()
    fixed = ("--model", "--general", "--context", "--seed", "--config")
    if given := [word for word in words if word.startswith(fixed)]:
        parser.error(f"{given[0]}: the model hangs on it; change the config")
    stamp = Path(settings["model"]["name"]) / MADE_OF
    if not stamp.parent.exists():
        pretrain(settings, own.passes)
    elif not stamp.exists() or json.loads(stamp.read_text()) != made_of(settings, own.passes):
        parser.error(f"{stamp.parent} is another model than the config says: delete it")
    print(f"model    {settings['model']['name']}, {time.monotonic() - began:.0f} s")
    words = ["tune", "--config", own.config, *words]
    arms = own.arms or settings.get("arms", USUAL)
    if own.processes > 1:
        run_side_by_side(words, arms, own.processes)
        print(f"arms     {time.monotonic() - began:.0f} s")
    atoms([*words, "--arms", listed(arms)])
    print(f"all      {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
