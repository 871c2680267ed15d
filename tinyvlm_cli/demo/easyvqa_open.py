"""easy-VQA's test images with open questions, which a judge grades: MM-Vet and LLaVA-Bench in the Wild."""

import random
from collections.abc import Sequence
from pathlib import Path

from tinyvlm_cli.demo.easyvqa_files import copy_image, copy_images, write_json, write_lines
from tinyvlm_cli.demo.easyvqa_source import Picture
from tinyvlm_cli.demo.easyvqa_text import COLOUR_QUESTION, DESCRIBE, SHAPE_QUESTION


def write_mmvet(pictures: Sequence[Picture], folder: Path) -> None:
    """10 questions: what is there, and to describe it."""
    draw = random.Random("mmvet")
    records = {}
    for number, picture in enumerate(draw.sample(pictures, 10)):
        name = f"v1_{number}.png"
        copy_image(picture, folder / "images" / name)
        describes = number % 2 == 0
        records[f"v1_{number}"] = {
            "imagename": name,
            "question": DESCRIBE if describes else SHAPE_QUESTION,
            "answer": f"{picture.colour}<AND>{picture.shape}" if describes else picture.shape,
            "capability": ["rec", "gen"] if describes else ["rec"],
            "imagesource": "easy-vqa",
        }
    write_json(folder / "mm-vet.json", records)


def write_llavaw(pictures: Sequence[Picture], folder: Path) -> None:
    """9 questions, three of each category, with a caption for the judge and an answer to compare with."""
    draw = random.Random("llavaw")
    chosen = draw.sample(pictures, 9)
    copy_images(chosen, folder / "images")
    questions, references = [], []
    for number, picture in enumerate(chosen):
        category, question, reference = (
            ("conv", COLOUR_QUESTION, f"The shape is {picture.colour}."),
            ("detail", DESCRIBE, f"The image shows {picture.caption} on a plain background."),
            ("complex", "what is in the image?", f"There is {picture.caption} in the image, and nothing else."),
        )[number % 3]
        questions.append({"question_id": number, "image": picture.file.name, "category": category, "text": question})
        references.append({"question_id": number, "text": reference})
    write_lines(folder / "questions.jsonl", questions)
    write_lines(folder / "answers_gpt4.jsonl", references)
    context = [
        {"id": number, "image": picture.file.name, "caption": f"A drawing of {picture.caption}."}
        for number, picture in enumerate(chosen)
    ]
    write_lines(folder / "context.jsonl", context)
