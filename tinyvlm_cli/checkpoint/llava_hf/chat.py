"""A run's chat format as a Jinja template, which is how Hugging Face processors know one."""

import json

from tinyvlm_cli.config.schema import Chat

IMAGE_TOKEN = "<image>"

# What `data.chat` does, for messages of text or of parts. A system message takes the place of the run's own text.
_BODY = """
{%- macro text(message) -%}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {{- message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -}}
  {%- endif -%}
{%- endmacro -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = text(messages[0]) + separator -%}
  {%- set messages = messages[1:] -%}
{%- endif -%}
{{- lead + system -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- if message['content'] is string -%}
      {%- set images = 1 if image in message['content'] else 0 -%}
    {%- else -%}
      {%- set images = message['content'] | selectattr('type', 'in', ['image', 'image_url']) | list | length -%}
    {%- endif -%}
    {%- set question = text(message) -%}
    {%- if images or image in question -%}
      {%- set question = question.replace(image, '').strip() -%}
    {%- endif -%}
    {{- user + image * images + (gap + '\\n' if images and question else '') + question -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- assistant + ' ' + text(message) + end -}}
  {%- else -%}
    {{- raise_exception('a message is from user or assistant, a first one also from system') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- assistant -}}
{%- endif -%}
"""


def chat_template(chat: Chat, *, start: str, gap: str) -> str:
    """The template that writes `chat`.

    start: the tokenizer's start token, "" where a tokenizer adds it by itself.
    gap: what stands behind `start` and the image: a tokenizer that marks the beginning of a text (SentencePiece's
    "first") sees one text here, where the run has tokenised the pieces between images one by one.
    """
    texts = {
        "lead": start + gap if start else "",
        "system": chat.system,
        "separator": chat.system[len(chat.system.rstrip()) :],
        "user": chat.user,
        "assistant": chat.assistant,
        "end": chat.end,
        "image": IMAGE_TOKEN,
        "gap": gap,
    }
    lines = [f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}" for name, text in texts.items()]
    return "\n".join(lines) + _BODY
