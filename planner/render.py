"""Renders chats with a template; runs alone, in a process of its own, with little time and memory.

    python -I render.py < REQUEST.json

Writes a JSON list to standard output: the text of each chat, null for a chat that the template itself refuses. The
environment is the one that transformers gives templates: a sandbox that changes nothing, blocks trimmed, loop controls.
"""

import json
import sys
from datetime import datetime
from typing import Any

MEMORY_BYTES = 2**30
MOST_CHARACTERS = 2**22


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    limit(request["seconds"])
    sys.path += request["libraries"]
    rendered = [render(request, chat) for chat in request["chats"]]
    sys.stdout.write(json.dumps(rendered))


def limit(seconds: float) -> None:
    """Let the system end this process after so much processor time, and refuse it more memory."""
    try:
        import resource
    except ImportError:  # not everywhere; the parent's time limit is
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def render(request: dict[str, Any], chat: list[dict[str, str]]) -> str | None:
    import jinja2

    template = environment(datetime.fromisoformat(request["now"])).from_string(request["source"])
    try:
        text = template.render(
            messages=chat, tools=None, documents=None, add_generation_prompt=True, **request["special"]
        )
    except (jinja2.TemplateSyntaxError, jinja2.TemplateNotFound):
        raise
    except jinja2.TemplateError:
        return None
    if len(text) > MOST_CHARACTERS:
        sys.exit(f"a chat has at most {MOST_CHARACTERS} characters, the template made {len(text)}")
    return text


def environment(now: datetime) -> Any:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`generation` marks the assistant's part for training; its text is rendered like any other."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = now.strftime
    return made


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        sys.exit("it takes too much memory")
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {str(error)[:200]}")
