"""The processor of a LLaVA folder: image preprocessing, tokenizer and chat template, proved against ours."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AddedToken, BatchFeature, LlavaImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from tinyvlm_cli.checkpoint.llava_hf.chat import IMAGE_TOKEN, chat_template
from tinyvlm_cli.config.schema import LLM, ImageMode, Prompt, Resize, Train, Vision
from tinyvlm_cli.data.chat import IMAGE, encode, encode_prompt
from tinyvlm_cli.data.records import Record, Turn
from tinyvlm_cli.errors import UserError
from tinyvlm_cli.model.llm import load_tokenizer
from tinyvlm_cli.model.vision import VisionEncoder

QUESTION = "What is in the picture?"
_ANSWER = "A red circle."


@dataclass(frozen=True)
class Layout:
    """How an image becomes tokens."""

    patch_size: int  # pixels
    extra: int  # positions of the encoder besides the patches: a CLS token
    drop_first: bool
    num_tokens: int

    @property
    def strategy(self) -> str:
        """LLaVA's name for which positions are kept."""
        return "default" if self.drop_first else "full"


def layout_of(encoder: VisionEncoder, spec: Vision) -> Layout:
    """The layout of an encoder, which may be on the meta device."""
    blank = torch.zeros(1, 3, spec.image_size, spec.image_size, device=encoder.model.device, dtype=encoder.model.dtype)
    positions = encoder.model(pixel_values=blank).last_hidden_state.shape[1]
    patch_size = encoder.model.config.patch_size
    patches = (spec.image_size // patch_size) ** 2
    return Layout(patch_size, positions - patches, bool(encoder.drop), positions - encoder.drop)


def llava_processor(config: Train, mode: ImageMode, layout: Layout) -> LlavaProcessor:
    """The processor whose ids are the run's.

    Raises UserError when no template makes the run's tokenizer give them.
    """
    own, tokenizer = load_tokenizer(config.llm), _with_image_token(config.llm)
    # A template writes the start token itself, so that it is there for those who tokenise its text by themselves too.
    for start, gap in product([tokenizer.bos_token, ""] if tokenizer.bos_token else [""], ("", " ")):
        template = chat_template(config.llm.chat, start=start, gap=gap)
        tokenizer.chat_template = template  # or the LLM's own would go into the folder
        processor = LlavaProcessor(
            _image_processor(config.vision, mode),
            tokenizer,
            patch_size=layout.patch_size,
            vision_feature_select_strategy=layout.strategy,
            num_additional_image_tokens=layout.extra,
            image_token=IMAGE_TOKEN,
            chat_template=template,
        )
        if _same_ids(processor, own, config, layout.num_tokens):
            return processor
    raise UserError(
        f"format=llava: no chat template makes the tokenizer of '{config.llm.path}' give the ids that the run was "
        "trained on; use format=parts"
    )


def probe_image(size: int) -> Image.Image:
    """Noise, not square, of another size than the encoder's."""
    values = np.random.default_rng(0).integers(0, 256, (size // 2 + 1, size + 3, 3), dtype=np.uint8)
    return Image.fromarray(values)


def asked(processor: LlavaProcessor, question: str, image: Image.Image | None) -> BatchFeature:
    """A question as the processor hands it to the model."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image}] if image is not None else []
    message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    inputs: BatchFeature = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs


def expanded(ids: NDArray[np.int32], num_tokens: int, image_id: int) -> list[int]:
    """The ids of a sample with an image's `num_tokens` placeholders in its place."""
    return [one for i in ids.tolist() for one in ([image_id] * num_tokens if i == IMAGE else [i])]


def _with_image_token(spec: LLM) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(spec)
    taken = {i for token, i in tokenizer.get_vocab().items() if token != IMAGE_TOKEN}
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in taken:  # ids with gaps: a new token is numbered by their count
        raise UserError(
            f"format=llava: the ids of the tokenizer of '{spec.path}' have gaps, so that {IMAGE_TOKEN} gets an id that "
            "is another token's; use format=parts"
        )
    tokenizer.padding_side = "left"  # as answers to several questions need it
    return tokenizer


def _image_processor(spec: Vision, mode: ImageMode) -> LlavaImageProcessorPil:
    edges = {"height": spec.image_size, "width": spec.image_size}
    return LlavaImageProcessorPil(
        do_pad=mode is ImageMode.pad,
        size={"shortest_edge": spec.image_size} if spec.resize is Resize.crop else edges,
        do_center_crop=spec.resize is Resize.crop,
        crop_size=edges,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def _same_ids(processor: LlavaProcessor, own: PreTrainedTokenizerFast, config: Train, num_tokens: int) -> bool:
    """Whether questions with and without an image, and a conversation, have the ids of `data.chat`."""
    chat, image = config.llm.chat, probe_image(config.vision.image_size)
    image_id = processor.image_token_id
    for shown in (image, None):
        ids = encode_prompt(QUESTION, has_image=shown is not None, tokenizer=own, chat=chat)
        if asked(processor, QUESTION, shown)["input_ids"][0].tolist() != expanded(ids, num_tokens, image_id):
            return False
    turns = (Turn(f"{IMAGE_TOKEN}\n{QUESTION}", _ANSWER), Turn(f" {QUESTION}\n", _ANSWER))
    (whole,) = encode([Record("", ("image",), turns)], tokenizer=own, chat=chat, prompt=Prompt.chat)
    messages = [
        message
        for turn in turns
        for message in ({"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer})
    ]
    text = processor.apply_chat_template(messages)
    special = not (own.bos_token and text.startswith(own.bos_token))
    found = processor(text=text, images=[image], add_special_tokens=special).input_ids[0]
    return list(found) == expanded(whole.ids, num_tokens, image_id)
