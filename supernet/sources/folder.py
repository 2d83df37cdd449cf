"""A full model from a Hugging Face folder."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from records.errors import InputError, MissingError
from records.reading import read_foreign, read_json
from supernet.account import LEFT, READ, TIED, Account, names, refuse_other_tensors
from supernet.experts import unstacked
from supernet.facts import stored_name
from supernet.refusals import refuse_settings
from supernet.sources.base import Source, with_weights
from supernet.sources.weight_files import refuse_adapter, weight_files

GENERATION = "generation_config.json"
QUANTIZERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
# Tensors that old files have and nothing needs: names, and why.
HARMLESS = {
    r"rotary_emb\.inv_freq$": "computed from the config",
    r"(^|\.)position_ids$": "computed",
    r"attn(tention)?\.(masked_)?bias$": "a causal mask, computed",
    r"^mtp\.": "predicts further tokens, not the next",
}
INV_FREQ = "rotary_emb.inv_freq"
NEAR = 0.01  # relative: old files keep the frequencies in 16 bits


class FolderSource(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_adapter(path)
        if not (path / "config.json").is_file():
            ggufs = sorted(file.name for file in path.glob("*.gguf"))
            instead = f"{ggufs[0]} by its own path" if ggufs else "a Hugging Face folder"
            raise MissingError(f"a model folder needs a config.json, {path} has none; give {instead}")
        self.settings = read_json(path / "config.json", "config of a model, which cannot be loaded", "copy it again")
        for name in QUANTIZERS:
            if (path / name).exists():
                raise InputError(f"{path} is pre-quantized ({name}); bitfleet starts from the float model, give that")
        refuse_settings(path, self.settings)
        self.files = weight_files(path)
        self.settings_of_generation = _generation(path / GENERATION)

    def config(self, trust_remote_code: bool) -> Any:
        from transformers import CONFIG_MAPPING, AutoConfig

        code = self.settings.get("auto_map")
        known = self.settings["model_type"] in CONFIG_MAPPING
        if code and not known and not trust_remote_code:
            raise InputError(
                f"the model {self.path} runs Python code of its own ({self.settings['model_type']}); read it, and "
                "allow it with --trust-remote-code"
            )
        if not known and not code:
            raise InputError(
                f"{self.path} is of the type {self.settings['model_type']!r}, which transformers does not know; "
                "give a model that it does"
            )
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise InputError(_explain(self.path / "config.json", error)) from error

    def tokenizer(self, trust_remote_code: bool) -> Any:
        from transformers import AutoTokenizer

        own = read_foreign(self.path / "tokenizer_config.json").get("auto_map")
        complete = (self.path / "tokenizer.json").is_file() or (
            (self.path / "vocab.json").is_file() and (self.path / "merges.txt").is_file()
        )
        if not complete and not own:
            if (self.path / "tokenizer.model").is_file():
                raise MissingError(
                    f"{self.path} has a SentencePiece tokenizer.model alone; make its tokenizer.json where "
                    "sentencepiece is installed: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
                )
            raise MissingError(f"{self.path} has no tokenizer (tokenizer.json); copy it from the model's publisher")
        if own and not trust_remote_code and not complete:
            raise InputError(f"the tokenizer of {self.path} runs Python code of its own; allow it: --trust-remote-code")
        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise InputError(_explain(f"the tokenizer of {self.path}", error)) from error

    def generation(self) -> dict[str, Any]:
        return dict(self.settings_of_generation)

    def weights(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        from transformers import AutoModelForCausalLM

        try:
            model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
                self.path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # named below, in one line
                output_loading_info=True,
            )
        except Exception as error:
            raise InputError(_explain(f"the model {self.path}", error)) from error
        model = unstacked(model)
        tensors = self._became(model, set(info["unexpected_keys"]))
        left = [name for name, became in tensors.items() if not became]
        refuse_other_tensors(self.path, info["missing_keys"], left, len(model.state_dict()))
        mismatched = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
        if mismatched:
            raise InputError(
                f"{self.path} has {len(mismatched)} tensors of another shape than config.json gives them: "
                f"{names(mismatched)}; get the config.json of these weights"
            )
        return model, Account(tensors, self.files.accounts())

    def streamed(self, config: Any, trust_remote_code: bool, dtype: torch.dtype) -> tuple[Any, Account]:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        model = unstacked(model)
        expected = {n: p for n, p in model.named_parameters() if n not in model.all_tied_weights_keys}
        names_of = {name: self._stored_as(model, name) for name in expected}
        odd = [name for name, stored in names_of.items() if stored is None]
        odd += [n for n in model.all_tied_weights_keys if self._stored_as(model, n) is not None]
        odd += [n for n in expected if getattr(model, "_keep_in_fp32_modules", None) and dtype != torch.float32]
        if odd:
            raise InputError(
                f"{self.path} stores {odd[0]} otherwise than the model has it, which can be read whole alone; "
                "give the making more memory"
            )
        reads = {}
        for name, stored in names_of.items():
            assert stored is not None
            file, _, shape = self.files.tensors[stored]
            if shape != tuple(expected[name].shape):
                raise InputError(
                    f"{self.path} has tensors of another shape than config.json gives them: {stored}; get the "
                    "config.json of these weights"
                )
            reads[name] = partial(_tensor, self.path / file, stored)
        with_weights(model, reads, dtype, absent=True)
        tensors = self._became(model, set(self.files.tensors))
        refuse_other_tensors(self.path, (), [n for n, became in tensors.items() if not became], len(expected))
        return model, Account(tensors, self.files.accounts())

    def _stored_as(self, model: Any, name: str) -> str | None:
        """Under which name the files have a parameter, where it is its own or that without the model's prefix."""
        stored = stored_name(name, type(model).__name__)
        bare = stored.removeprefix(f"{model.base_model_prefix}.")
        return next((known for known in (stored, bare) if known in self.files.tensors), None)

    def _became(self, model: Any, unexpected: set[str]) -> dict[str, str]:
        """What became of each tensor; empty text for what nothing reads."""
        state = model.state_dict()
        others = {stored_name(name, type(model).__name__): name for name in state}
        ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), INV_FREQ.replace(".", r"\."), r"position_ids$"]
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        head = {name for name in (model._tied_weights_keys or {}) if tied}
        prefix = model.base_model_prefix
        became = {}
        for name in self.files.tensors:
            harmless = next((why for pattern, why in HARMLESS.items() if re.search(pattern, name)), None)
            if name in head:
                became[name] = TIED
            elif name in state:
                became[name] = READ
            elif name in others:
                became[name] = f"{READ} into {others[name]}"
            elif f"{prefix}.{name}" in state:
                became[name] = f"{READ} into {prefix}.{name}"
            elif harmless and not (name.endswith(INV_FREQ) and not self._same_rope(model, name)):
                became[name] = LEFT + harmless
            elif name in unexpected or any(re.search(pattern, name) for pattern in ignored):
                became[name] = ""
            else:
                became[name] = f"{READ} under another name"
        return became

    def _same_rope(self, model: Any, name: str) -> bool:
        """Whether stored frequencies are those that the model computes for itself."""
        from safetensors import safe_open

        with safe_open(self.path / self.files.tensors[name][0], framework="pt") as file:
            stored = file.get_tensor(name).float()
        own = [buffer.float() for key, buffer in model.named_buffers() if key.endswith("inv_freq")]
        return any(stored.shape == freq.shape and torch.allclose(stored, freq, rtol=NEAR, atol=1e-6) for freq in own)


def _tensor(path: Path, name: str) -> Tensor:
    """InputError where the file is another than when its folder was opened: hours may lie between."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return cast(Tensor, file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} was changed while it was needed ({error}); put it back and go on") from None


def _generation(path: Path) -> dict[str, Any]:
    """The settings as they are in the file, byte order mark or not; what must be numbers is looked at."""
    settings = read_foreign(path)
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        value = settings.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0
        ):
            raise InputError(f"{path}: {name} must be a number of at least 0, it is {str(value)[:40]}; mend the file")
    return settings


def _explain(what: Any, error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{what} cannot be loaded: {text[:200]}; check that its files are complete"
