"""Prompts become the tokens that the model's own tokenizer makes of them, of every kind of tokenizer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from planner.chat import ChatTemplate
from planner.probes import CHATS, Probes, check_probes, write_probes
from planner.rows import BROKEN, HOLDS
from planner.runtimes.onnxruntime import settings
from planner.runtimes.onnxruntime.runtime import OnnxRuntime
from planner.runtimes.spoken import prompt_ids
from planner.tokens import Tokenization, stop_ids, tokenizer_stop
from records.errors import InputError

RUNTIME = OnnxRuntime()
TEXT = ["the quick brown fox jumps over a lazy dog", "and then sleeps near red blue green stones"] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
SIMPLE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def byte_level(bos: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.normalizer = normalizers.NFKC()
    made.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return made


TOKENIZERS = {"byte level": byte_level, "with a BOS": lambda: byte_level(bos=True), "unigram": unigram}


def saved(kind: str, folder: Path, template: str | None = SIMPLE) -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


class Files:
    """What the probes read of a supernet."""

    def __init__(self, folder: Path) -> None:
        self.model_dir, self.spec, self.trusted = folder, SimpleNamespace(vocab_size=300), False


def written(folder: Path) -> Probes:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    (folder / settings.CONFIG).write_text(json.dumps({"model": {"eos_token_id": [2], "type": "llama"}}))
    write_probes(RUNTIME, Files(folder), folder)
    return Probes.load(folder)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_probes_agree_and_another_tokenizer_shows(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    made = written(tmp_path)
    assert [row.verdict for row in check_probes(RUNTIME, tmp_path, True)] == [HOLDS] * 3
    assert (made.note is not None) == bool(made.runtime_differs)
    assert kind != "with a BOS" or made.note, "onnxruntime-genai leaves the BOS out"
    saved("byte level" if kind != "byte level" else "with a BOS", tmp_path)
    assert check_probes(RUNTIME, tmp_path, True)[0].verdict == BROKEN


def test_a_prompt_without_a_template_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    tokenizer = saved("with a BOS", tmp_path, template=None)
    assert prompt_ids(tmp_path, Tokenization(tmp_path), "the fox", 512) == tokenizer("the fox")["input_ids"]
    assert prompt_ids(tmp_path, Tokenization(tmp_path), "", 512) == [1]


def test_text_comes_as_whole_characters(tmp_path: Path) -> None:
    saved("byte level", tmp_path)
    tokenization, text = Tokenization(tmp_path), "naïve 你好 😀"
    pieces = list(tokenization.stream(iter(tokenization.encode(text))))
    assert "".join(pieces) == text and len(pieces) > 5


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'].replace('a', 'b') }}{% endfor %}",
        "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{%- endif %}\n  {{ bos_token }}x",
        "{{ strftime_now('%Y') }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m | tojson }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% endfor %}",
    ],
)  # fmt: skip
def test_templates_are_rendered_as_transformers_renders_them(template: str, tmp_path: Path) -> None:
    saved("byte level", tmp_path, template)
    assert len(written(tmp_path).chats) >= len(CHATS) - 1
    assert [row.verdict for row in check_probes(RUNTIME, tmp_path, True)] == [HOLDS] * 3


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'a' * 999999999999 }}",
        "{% if %}",
    ],
)  # fmt: skip
def test_a_template_ends_whatever_it_does(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.chat.TIME_S", 1.0)
    started = time.monotonic()
    with pytest.raises(InputError, match="chat template"):
        ChatTemplate(template, {}).render([[{"role": "user", "content": "hi"}]])
    assert time.monotonic() - started < 10


def test_every_token_that_ends_a_text_is_kept(tmp_path: Path) -> None:
    saved("byte level", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_ids(tmp_path, tmp_path, 300) == [9, 2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4], "temperature": 0.6}))
    assert stop_ids(tmp_path, tmp_path, 300) == [1, 4, 2]
    assert settings.sampling({"temperature": 0.6, "do_sample": True})["temperature"] == 0.6
    found = settings.sampling({"top_k": 20.0, "temperature": 1})
    assert [(type(found[name]), found[name]) for name in ("top_k", "temperature")] == [(int, 20), (float, 1.0)]


@pytest.mark.parametrize("added", [["</s>"], "</s>", [{"content": "</s>"}], [{"content": "</s>", "id": "2"}], {"a": 1}])
def test_a_tokenizer_whose_added_tokens_are_none_is_one_line(added: Any, tmp_path: Path) -> None:
    saved("byte level", tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens": added}))
    with pytest.raises(InputError, match=r"tokenizer\.json must (list|give)"):
        tokenizer_stop(tmp_path)
