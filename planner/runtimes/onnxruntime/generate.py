"""Text from a package, as it is generated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from records.errors import InputError


def generate(folder: Path, prompt: str, max_tokens: int) -> Iterator[str]:
    """Greedy answer to one user message, in the model's chat format where it has one."""
    import onnxruntime_genai as genai

    model = genai.Model(genai.Config(str(folder)))
    tokenizer = genai.Tokenizer(model)
    if (folder / "chat_template.jinja").exists():
        messages = json.dumps([{"role": "user", "content": prompt}])
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = tokenizer.encode(prompt)
    limit = json.loads((folder / "genai_config.json").read_text())["search"]["max_length"]
    if len(ids) >= limit:
        raise InputError(f"the prompt must be shorter than the package's context of {limit} tokens, got {len(ids)}")
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=min(limit, len(ids) + max_tokens), do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        yield stream.decode(generator.get_next_tokens()[0])
