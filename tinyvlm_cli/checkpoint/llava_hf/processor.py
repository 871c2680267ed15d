"""The processor of a LLaVA folder: image preprocessing, tokenizer and chat template, verified against our own."""

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AddedToken, BatchFeature, LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from tinyvlm_cli.config.schema import LLM, Chat, ImageMode, Prompt, Resize, Vision
from tinyvlm_cli.data.chat import IMAGE, encode, encode_prompt
from tinyvlm_cli.data.records import Record, Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vision import VisionEncoder

IMAGE_TOKEN = "<image>"
QUESTION = "What is in the picture?"  # for verifying the export
ANSWER = "A red circle."

# A chat format as a Jinja template, as Hugging Face processors require. It gives the same text as `data.chat` for
# messages that are strings or lists of parts. A system message replaces the system text of the run.
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
    {{- raise_exception('roles must be user or assistant; the first can also be system') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- assistant -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Layout:
    """The output positions of a vision encoder, and which of them become image tokens."""

    patch_size: int  # pixels
    extra: int  # number of positions that are not patches, such as a CLS token
    strategy: str  # LLaVA's name for the positions that are kept: "default" (all but the first) or "full"
    num_tokens: int


def layout_of(encoder: VisionEncoder, spec: Vision) -> Layout:
    """Return the layout of an encoder, which may be on the meta device."""
    blank = torch.zeros(1, 3, spec.image_size, spec.image_size, device=encoder.model.device, dtype=encoder.model.dtype)
    positions = encoder.model(pixel_values=blank).last_hidden_state.shape[1]
    patch_size = encoder.model.config.patch_size
    patches = (spec.image_size // patch_size) ** 2
    strategy = "default" if encoder.drop else "full"
    return Layout(patch_size, positions - patches, strategy, positions - encoder.drop)


def chat_template(chat: Chat, *, start: str, gap: str) -> str:
    """Return the Jinja template for the chat format `chat`.

    start: the tokenizer's start token, or "" if the tokenizer adds it itself.
    gap: text after `start` and after the image. A tokenizer that marks the beginning of a text (SentencePiece's
    "first") sees a single text here, whereas the run has tokenised the text before and after each image separately.
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


def llava_processor(llm: LLM, vision: Vision, mode: ImageMode, layout: Layout) -> LlavaProcessor:
    """Return a processor that gives the same token ids as the run.

    Raises UserError if the tokenizer cannot add an image token, or if no chat template gives the same ids.
    """
    own, tokenizer = load_tokenizer(llm), load_tokenizer(llm)
    taken = {i for token, i in tokenizer.get_vocab().items() if token != IMAGE_TOKEN}
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in taken:  # a new token's id is the vocabulary size
        raise UserError(
            f"format=llava: the token ids of '{llm.path}' have gaps, so {IMAGE_TOKEN} would get the id of another "
            "token; use format=parts"
        )
    tokenizer.padding_side = "left"  # required for batched generation
    edges = {"height": vision.image_size, "width": vision.image_size}
    image_processor = LlavaImageProcessorPil(
        do_pad=mode is ImageMode.pad,
        size={"shortest_edge": vision.image_size} if vision.resize is Resize.crop else edges,
        do_center_crop=vision.resize is Resize.crop,
        crop_size=edges,
        image_mean=list(vision.mean),
        image_std=list(vision.std),
    )
    # Templates that write the start token are tried first, so that it is present if users tokenise the text.
    for start, gap in product([tokenizer.bos_token, ""] if tokenizer.bos_token else [""], ("", " ")):
        template = chat_template(llm.chat, start=start, gap=gap)
        tokenizer.chat_template = template  # otherwise the LLM's own template would be saved
        processor = LlavaProcessor(
            image_processor, tokenizer, image_token=IMAGE_TOKEN, chat_template=template, patch_size=layout.patch_size,
            vision_feature_select_strategy=layout.strategy, num_additional_image_tokens=layout.extra,
        )  # fmt: skip
        if gives_same_ids(own, processor, llm.chat, probe_image(vision.image_size), layout.num_tokens):
            return processor
    raise UserError(
        f"format=llava: with the tokenizer of '{llm.path}', no chat template gives the token ids of the run; "
        "use format=parts"
    )


def gives_same_ids(
    own: PreTrainedTokenizerFast, processor: LlavaProcessor, chat: Chat, image: Image.Image, num_tokens: int
) -> bool:
    """Return whether questions with and without an image, and a conversation, get the same ids as in `data.chat`."""
    image_id = processor.image_token_id
    for shown in (image, None):
        ids = encode_prompt(QUESTION, num_images=int(shown is not None), tokenizer=own, chat=chat)
        if asked(processor, QUESTION, shown)["input_ids"][0].tolist() != expanded(ids, num_tokens, image_id):
            return False
    turns = (Turn(f"{IMAGE_TOKEN}\n{QUESTION}", ANSWER), Turn(QUESTION, ANSWER))
    (whole,) = encode([Record("", ("image",), turns)], tokenizer=own, chat=chat, prompt=Prompt.chat)
    texts = [pair for turn in turns for pair in (("user", turn.question), ("assistant", turn.answer))]
    messages = [{"role": role, "content": content} for role, content in texts]
    text = processor.apply_chat_template(messages)
    special = not (own.bos_token and text.startswith(own.bos_token))
    found = processor(text=text, images=[image], add_special_tokens=special).input_ids[0]
    return list(found) == expanded(whole.ids, num_tokens, image_id)


def probe_image(size: int) -> Image.Image:
    """Return an image of random noise that is not square and must be resized for the encoder."""
    values = np.random.default_rng(0).integers(0, 256, (size // 2 + 1, size + 3, 3), dtype=np.uint8)
    return Image.fromarray(values)


def asked(processor: LlavaProcessor, question: str, image: Image.Image | None) -> BatchFeature:
    """Return the model inputs that the processor creates for a question."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image}] if image is not None else []
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    inputs: BatchFeature = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs


def expanded(ids: NDArray[np.int32], num_tokens: int, image_id: int) -> list[int]:
    """Return token ids in which each image placeholder is replaced by `num_tokens` image tokens."""
    return [one for i in ids.tolist() for one in ([image_id] * num_tokens if i == IMAGE else [i])]
