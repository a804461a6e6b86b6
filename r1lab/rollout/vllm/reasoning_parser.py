"""A reasoning parser for vLLM's server: `--reasoning-parser-plugin` names this module.

vLLM's own parsers for `<think> </think>` (such as deepseek_r1) match the tags by token id: they
reject a tokenizer without such tokens, as with most bases, and they treat a response without tags
as thinking throughout. This parser reads the text (`r1lab.thinking`), so it works for every model
trained to write the tags; the result is the same with and without streaming.
Source of the interface: vLLM 0.32, vllm/reasoning/abs_reasoning_parsers.py, engine-based form.

Importing this module registers the parser as `r1lab`; only vLLM imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from r1lab.prompts import TAGS, THINK_CLOSE, THINK_OPEN
from r1lab.thinking import StreamDelta, ThinkingSplitter, split_thinking

NAME = "r1lab"
_TAIL = 32  # tokens that certainly contain a tag, however it is tokenised


def register() -> None:
    """Register the parser with vLLM in this process."""
    from vllm.entrypoints.generate.base.protocol import DeltaMessage
    from vllm.reasoning import ReasoningParser, ReasoningParserManager

    class ThinkTags(ReasoningParser):
        """One response; see the module."""

        engine_based_streaming = True  # it keeps its own state from piece to piece

        def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(tokenizer, *args, **kwargs)
            self._opened = _opens_thinking(tokenizer, kwargs.get("chat_template_kwargs") or {})
            self._splitter = ThinkingSplitter(opened=self._opened)

        @property
        def reasoning_start_str(self) -> str:
            return THINK_OPEN

        @property
        def reasoning_end_str(self) -> str:
            return THINK_CLOSE

        def adjust_request(self, request: Any) -> Any:
            """Where the tags are special tokens, they have to stay in the text."""
            if set(TAGS) & set(self.model_tokenizer.all_special_tokens):
                request.skip_special_tokens = False
            return request

        def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
            """The prompt itself knows best whether it opened the thinking part."""
            self._opened = self._decoded(prompt_token_ids[-_TAIL:]).rstrip().endswith(THINK_OPEN)
            self._splitter = ThinkingSplitter(opened=self._opened)

        def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
            """Whether a prompt closes the thinking itself, for an answer without any."""
            return self._decoded(input_ids[-_TAIL:]).rstrip().endswith(THINK_CLOSE)

        def is_reasoning_end_streaming(
            self, input_ids: Sequence[int], delta_ids: Iterable[int]
        ) -> bool:
            return THINK_CLOSE in self._decoded(input_ids[-_TAIL - len(list(delta_ids)) :])

        def has_engine_confirmed_reasoning_end(self) -> bool:
            return self._splitter.in_content

        def extract_reasoning(self, model_output: str, request: Any) -> Any:
            piece = split_thinking(model_output, opened=self._opened)
            return piece.thinking or None, piece.content or None

        def extract_reasoning_streaming(
            self, previous_text: str, current_text: str, delta_text: str, *_: Any, **__: Any
        ) -> Any:
            return _message(self._splitter.feed(delta_text))

        def finish_streaming(self) -> Any:
            return _message(self._splitter.finish())

        def extract_content_ids(self, input_ids: list[int]) -> list[int]:
            return input_ids[self._end_of_thinking(input_ids) :]

        def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
            """Tokens up to the closing tag, without it; all of a response that never closes."""
            end = self._end_of_thinking(token_ids)
            closes = THINK_CLOSE in self._decoded(token_ids[:end])
            if not self._opened and not self._decoded(token_ids).lstrip().startswith(THINK_OPEN):
                return 0
            tag = self.model_tokenizer.encode(THINK_CLOSE, add_special_tokens=False)
            return max(0, end - len(tag)) if closes else end

        def _end_of_thinking(self, token_ids: Sequence[int]) -> int:
            """The fewest tokens that hold the closing tag; all of them where none do."""
            low, high = 0, len(token_ids)
            while low < high:
                middle = (low + high) // 2
                if THINK_CLOSE in self._decoded(token_ids[:middle]):
                    high = middle
                else:
                    low = middle + 1
            return low

        def _decoded(self, token_ids: Sequence[int]) -> str:
            return str(self.model_tokenizer.decode(list(token_ids)))

    def _message(piece: StreamDelta) -> Any:
        if not piece.thinking and not piece.content:
            return None
        return DeltaMessage(reasoning=piece.thinking or None, content=piece.content or None)

    ReasoningParserManager.register_module(NAME, module=ThinkTags)


def _opens_thinking(tokenizer: Any, options: dict[str, Any]) -> bool:
    """Return whether the chat template begins the response with the thinking tag."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    from jinja2 import TemplateError

    given = {key: value for key, value in options.items() if key not in ("tokenize", "tools")}
    message = [{"role": "user", "content": "?"}]
    try:
        prompt = tokenizer.apply_chat_template(
            message, **{**given, "add_generation_prompt": True}, tokenize=False
        )
    except TemplateError:  # one that wants more than a question; streams look at the prompt itself
        return False
    return str(prompt).rstrip().endswith(THINK_OPEN)


register()
