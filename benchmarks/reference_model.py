"""A small Llama trained from nothing: weights that were never quantized, for claims at 4 bits and above.

    python benchmarks/reference_model.py [--shape 3m] [--minutes 20] [--text FOLDER] [--out FOLDER]

The embedded default model came out of a 4-bit file, so some grids hold it exactly. This one, with every linear's rows
and columns multiples of 256 (K-quants ask for that), is trained on train.txt with a byte-level BPE tokenizer of 4096
tokens that is trained there too. Without --text that is the docstrings of installed packages (package_text.py), 18
million characters. Training ends after --steps or --minutes, whichever comes first: the learning rate falls to zero
over the last 30 % of whichever of both is spent more. Minutes are those of a core: of all threads, and not of what else
runs on the machine. A stopped run goes on from its last state when the same command is run again; a finished one is
only measured. --out is a normal Hugging Face folder, in bitfleet's cache unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import package_text
import torch
from claims import Claim, finish, table
from torch import Tensor

from records.atomic import write_text
from records.cache import cache_dir
from supernet.files import read_tensors, write_tensors
from supernet.loading import load_model
from supernet.model import compute_dtype, spec_of_model
from supernet.text import read_windows

VOCABULARY = 4096
EVERY: dict[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": True
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # by million parameters
    "15m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8},
    "3m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4},
}
RATES = {"15m": 1.5e-3, "3m": 3e-3}
BATCH, WINDOW = 4, 256
WARMUP, DECAY, CLIP = 100, 0.1, 1.0
COOLDOWN = 0.3  # the last share of the run, in which the learning rate falls to zero
SAVE_EVERY, SHOW_EVERY = 50, 25
HELD_OUT = ("eval.txt", "packages.txt")
EVAL_WINDOWS, EVAL_TOKENS = 64, 512
DISCOUNT = 0.75  # of the bigram model's counts
GOOD = 60  # perplexity
BETTER = 0.6  # of the bigram model's perplexity that may be left

STATE, LOG = "training.safetensors", "training.json"


@dataclass(frozen=True)
class Options:
    shape: str
    steps: int
    minutes: float
    seed: int

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is spent, 0 to 1."""
        return min(1.0, max(step / self.steps, seconds / (60 * self.minutes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a folder with train.txt and eval.txt")
    parser.add_argument("--shape", choices=SHAPES, default="3m", help="by million parameters")
    parser.add_argument("--out", type=Path, default=cache_dir() / "reference-model")
    parser.add_argument("--minutes", type=float, default=20.0, help="at most so long on one core")
    parser.add_argument("--steps", type=int, default=6400, help=f"at most so many steps of {BATCH} x {WINDOW} tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    text = arguments.text or cache_dir() / "package-text"
    if arguments.text is None:
        package_text.write(text)
    if not (arguments.out / LOG).exists():
        options = Options(arguments.shape, arguments.steps, arguments.minutes, arguments.seed)
        train(text, arguments.out, options)
    log = json.loads((arguments.out / LOG).read_text())
    full = load_model(str(arguments.out))
    model, tokenizer = full.model, full.tokenizer
    ids = tokens_of(text / "train.txt", tokenizer)
    held_out = [text / name for name in HELD_OUT if (text / name).exists()]
    windows = {path.name: read_windows(str(path), tokenizer, EVAL_WINDOWS, EVAL_TOKENS) for path in held_out}
    characters = sum(map(len, tokenizer.batch_decode(windows["eval.txt"])))
    report(model, log, windows, ids, characters)


def train(text: Path, out: Path, options: Options) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(text / "train.txt", out)
    ids = tokens_of(text / "train.txt", tokenizer)
    torch.manual_seed(options.seed)
    model = fresh_model(tokenizer, options.shape)
    run = Run(model, ids, options, out / STATE)
    run.resume()
    run.go()
    model.to(torch.float32).save_pretrained(out)
    write_text(out / LOG, json.dumps(run.log(), indent=1) + "\n")
    (out / STATE).unlink(missing_ok=True)


def tokenizer_of(text: Path, out: Path) -> Any:
    """A byte-level BPE tokenizer trained on the text; the one in `out` where a run was stopped."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (out / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(out)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(text.read_text(encoding="utf-8").splitlines(keepends=True), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=end, eos_token=end, pad_token=end)
    tokenizer.save_pretrained(out)
    return tokenizer


def tokens_of(path: Path, tokenizer: Any) -> Tensor:
    """Of a whole text, some paragraphs at a time: millions of characters at once take minutes."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    parts = ["\n\n".join([*paragraphs[at : at + 64], ""]) for at in range(0, len(paragraphs), 64)]
    return torch.cat([torch.tensor(ids) for ids in tokenizer(parts, verbose=False)["input_ids"]])


def fresh_model(tokenizer: Any, shape: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    end = tokenizer.eos_token_id
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **special, **EVERY, **SHAPES[shape]))


class Run:
    """The training itself. A step's text depends on the seed and its number alone, so a run can be cut anywhere."""

    def __init__(self, model: Any, ids: Tensor, options: Options, state: Path) -> None:
        self.model, self.ids, self.options, self.state = model, ids, options, state
        self.dtype = compute_dtype(torch.device("cpu"))
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATES[options.shape], betas=(0.9, 0.95))
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []

    def go(self) -> None:
        self.model.train()
        took = 0.0  # one more step of that length must fit into the minutes
        while (share := self.options.share(self.step, self.seconds + took)) < 1:
            started = time.process_time()
            part = min(1.0, (self.step + 1) / WARMUP, (1 - share) / COOLDOWN)
            self.losses.append(self._step(RATES[self.options.shape] * part))
            self.step += 1
            took = time.process_time() - started
            self.seconds += took
            if self.step % SHOW_EVERY == 0:
                self._show(share)
            if self.step % SAVE_EVERY == 0:
                self.save()

    def _step(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        windows = self.batch()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def batch(self) -> Tensor:
        """Windows `(BATCH, WINDOW + 1)` from anywhere in the text."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        starts = torch.randint(len(self.ids) - WINDOW, (BATCH, 1), generator=generator)
        return self.ids[starts + torch.arange(WINDOW + 1)]

    def _show(self, share: float) -> None:
        recent = self.losses[-SHOW_EVERY:]
        mean = sum(recent) / len(recent)
        print(f"step {self.step}, {self.seconds / 60:.1f} minutes, {share:.0%} done, loss {mean:.3f}", flush=True)

    def log(self) -> dict[str, Any]:
        return {
            "shape": self.options.shape,
            "steps": self.step,
            "minutes": round(self.seconds / 60, 2),
            "tokens": self.step * BATCH * WINDOW,
            "train_tokens": len(self.ids),
            "seed": self.options.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "losses": [round(loss, 4) for loss in self.losses],
        }

    def save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state[parameter]
            tensors |= {f"value|{name}": parameter, f"first|{name}": moments["exp_avg"]}
            tensors[f"second|{name}"] = moments["exp_avg_sq"]
        write_tensors(self.state, tensors, {"step": self.step, "seconds": self.seconds, "losses": self.losses})

    @torch.no_grad()
    def resume(self) -> None:
        if not self.state.exists():
            return
        tensors, meta = read_tensors(self.state)
        self.step, self.seconds, self.losses = meta["step"], meta["seconds"], meta["losses"]
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[f"value|{name}"])
            first, second = tensors[f"first|{name}"], tensors[f"second|{name}"]
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)), "exp_avg": first, "exp_avg_sq": second
            }  # fmt: skip
        print(f"going on from step {self.step}", flush=True)


@torch.no_grad()
def loss_of(model: Any, windows: Tensor) -> float:
    """Nats per token that has a predecessor in its window."""
    total = 0.0
    for window in windows:
        logits = model(input_ids=window.unsqueeze(0), use_cache=False).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / windows[:, 1:].numel()


def baseline_losses(ids: Tensor, windows: Tensor) -> tuple[float, float]:
    """What a unigram and a bigram model of the training tokens lose on the same tokens, in nats.

    The bigram model discounts its counts and gives what is saved to the unigram model.
    """
    counts = torch.bincount(ids, minlength=VOCABULARY).double() + 1
    single = counts / counts.sum()
    pairs = torch.zeros(VOCABULARY, VOCABULARY)
    pairs.view(-1).scatter_add_(0, ids[:-1] * VOCABULARY + ids[1:], torch.ones(len(ids) - 1))
    before, after = windows[:, :-1].flatten(), windows[:, 1:].flatten()
    seen = pairs.sum(1).clamp(min=1).double()
    kinds = (pairs > 0).sum(1).double()
    kept = (pairs[before, after].double() - DISCOUNT).clamp(min=0) / seen[before]
    spare = torch.where(kinds > 0, DISCOUNT * kinds / seen, torch.ones_like(seen))[before]
    double = kept + spare * single[after]
    return -single[after].log().mean().item(), -double.log().mean().item()


def report(model: Any, log: dict[str, Any], windows: dict[str, Tensor], ids: Tensor, characters: int) -> None:
    spec = spec_of_model(model, "reference")
    perplexities: dict[str, dict[str, float]] = {}
    for name, some in windows.items():
        single, double = baseline_losses(ids, some)
        losses = {"unigrams": single, "bigrams": double, "the model": loss_of(model, some)}
        perplexities[name] = {who: math.exp(loss) for who, loss in losses.items()}
    rows = [(who, *(f"{found[who]:.1f}" for found in perplexities.values())) for who in perplexities["eval.txt"]]
    table(("perplexity", *perplexities), rows)
    recent = log["losses"][-50:]
    print(f"the model's loss over its last {len(recent)} steps of training: {sum(recent) / len(recent):.3f}\n")
    odd = [lin.name for u in spec.units for lin in u.linears if lin.in_features % 256 or lin.out_features % 256]
    held_out = perplexities["eval.txt"]
    claims = [
        Claim("perplexity on held-out text", held_out["the model"], GOOD),
        Claim("perplexity / a bigram model's", held_out["the model"] / held_out["bigrams"], BETTER),
        Claim("minutes of a core", log["minutes"], 20),
        Claim("linears whose rows or columns are no multiple of 256", len(odd), 0),
    ]
    parameters = sum(p.numel() for p in model.parameters())
    tokens = windows["eval.txt"][:, 1:].numel()
    bits = math.log2(held_out["the model"]) * tokens / characters
    finish(
        __file__, claims, parameters=parameters, perplexities=perplexities, bits_per_character=bits,
        train_loss=sum(recent) / len(recent), windows=EVAL_WINDOWS, window_tokens=EVAL_TOKENS,
        training={key: value for key, value in log.items() if key != "losses"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
