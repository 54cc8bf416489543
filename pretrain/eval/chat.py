"""Messages to a model in the form that its chat template gives it.

Templates come with published models and are programs in Jinja: transformers runs them, in its sandbox, as
`apply_chat_template` does, and the ids are the same as there: special tokens in the rendered text count as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.data.tokenizers.tokenizer import Tokenizer


def chat_prompt(tokenizer: Tokenizer, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat, up to where the answer begins: of messages with role and content, or of one of the user.

    Raises:
        ValueError: the model has no template, or it fails.
        ImportError: transformers is not installed.
    """
    usage = tokenizer.usage
    template = usage.default_template
    if template is None:
        raise ValueError("this model has no chat template: its prompts are plain text")
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(each) for each in messages]
    names = tokenizer.special_names | ({} if usage.pad_token is None else {"pad_token": usage.pad_token})
    try:
        how: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, **names}
        (text,), _ = render_jinja_template([chat], **how)
    except ImportError:
        raise
    except Exception as error:  # a template is a program: it fails in any way
        raise ValueError(f"the model's chat template fails: {str(error).partition(chr(10))[0]}") from None
    return tokenizer.encode_markup(text)
