"""Chat rendering, with transformers' own as oracle."""

from __future__ import annotations

import pytest

from harness.errors import Unsupported
from harness.runtimes._llama_text import render
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "naïve 你好\n  two lines"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": ""},
]
TEMPLATES = {
    "plain": CHAT_TEMPLATE,
    "blocks on lines of their own": """
    {%- for message in messages %}
        {% if message.role == 'system' %}
    SYSTEM {{ message.content | trim }}
        {% else %}
    {{ loop.index0 }} {{ message.role | capitalize }}: {{ message['content'] }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}ASSISTANT{% endif %}
    """,
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ 'é<' | tojson(ensure_ascii=True) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "marked answers": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "what is not given": (
        "{{ tools is none }}{{ documents is none }}{{ bos_token }}{{ unk_token is defined }}{{ pad_token is defined }}"
    ),
    "namespaces": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}"
        "{{ ns.n }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_chat_is_rendered_as_transformers_renders_it(name: str, add_generation_prompt: bool) -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=add_generation_prompt
    )
    specials = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    found = render(TEMPLATES[name], MESSAGES, specials=specials, add_generation_prompt=add_generation_prompt)
    assert found == expected


def test_the_clock_is_there_for_templates_that_ask_for_it() -> None:
    found = render("{{ strftime_now('%Y') }}", [], specials={}, add_generation_prompt=False)
    assert 2024 < int(found) < 2200


def test_a_template_that_refuses_its_messages_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="no system role"):
        render("{{ raise_exception('no system role') }}", MESSAGES, specials={}, add_generation_prompt=True)


@pytest.mark.parametrize("template", ["{% for %}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_that_is_broken_or_hostile_is_unsupported(template: str) -> None:
    with pytest.raises(Unsupported):
        render(template, MESSAGES, specials={}, add_generation_prompt=True)
