"""Small benchmarks in the official layouts, made from easy-VQA's test images, which no training set holds.

Their scores compare with each other only. Questions with yes and no say little here: four in five can be answered
without the image, because most things that are asked about are not there.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvlm_cli.demo.easyvqa_choice import write_mmbench, write_scienceqa
from tinyvlm_cli.demo.easyvqa_files import copy_images, write_json, write_lines
from tinyvlm_cli.demo.easyvqa_open import write_llavaw, write_mmvet
from tinyvlm_cli.demo.easyvqa_source import COLOURS, SHAPES, Asked, Picture
from tinyvlm_cli.demo.easyvqa_text import OCR_LINE, WORD_SUFFIX

PEOPLE = 10  # answers to a question of VQAv2 and TextVQA; here they agree
MME_REQUEST = "Please answer yes or no."
POPE_STEP = 10_000_000  # between the question numbers of POPE's categories
QUESTION_TYPES = {"colour": "what color is", "shape": "what shape is", "yes/no": "is there"}  # as VQAv2 names them


@dataclass(frozen=True)
class Item:
    """A question on a picture."""

    picture: Picture
    asked: Asked

    @property
    def image(self) -> str:
        """The image's file name."""
        return self.picture.file.name


def write_benchmarks(pictures: Sequence[Picture], folder: Path) -> None:
    """Write a folder for each benchmark into `folder`, named as in LLaVA's evaluation data."""
    items = [Item(picture, asked) for picture in pictures for asked in picture.asked]
    write_vqav2(items, folder / "vqav2")
    write_gqa(items, folder / "gqa")
    write_pope(items, folder / "pope")
    write_mme(items, folder / "MME")
    write_textvqa(items, folder / "textvqa")
    described = [picture for picture in pictures if picture.described]
    write_scienceqa(described, folder / "scienceqa")
    write_mmbench(described, folder / "mmbench")
    write_mmvet(described, folder / "mm-vet")
    write_llavaw(described, folder / "llava-bench-in-the-wild")


def write_vqav2(items: Sequence[Item], folder: Path) -> None:
    """700 questions, most of them about colour and shape, which the text alone does not give away.

    Each answer is as frequent as the others of its kind, so that guessing is right once in 8 or in 3.
    """
    draw = random.Random("vqav2")
    counts = {**dict.fromkeys(COLOURS, 38), **dict.fromkeys(SHAPES, 100), "yes": 48, "no": 48}
    chosen = [
        item
        for answer, count in counts.items()
        for item in draw.sample([item for item in items if item.asked.answer == answer], count)
    ]
    numbered = list(enumerate(chosen, 1))
    copy_images((item.picture for item in chosen), folder / "val2014")
    write_lines(folder / "llava_vqav2_mscoco_val2014.jsonl", (_llava_line(number, item) for number, item in numbered))
    annotations = [
        {
            "question_id": number,
            "image_id": item.picture.number,
            "question_type": QUESTION_TYPES[item.asked.kind],
            "answer_type": "yes/no" if item.asked.kind == "yes/no" else "other",
            "multiple_choice_answer": item.asked.answer,
            "answers": [
                {"answer": item.asked.answer, "answer_confidence": "yes", "answer_id": person}
                for person in range(1, PEOPLE + 1)
            ],
        }
        for number, item in numbered
    ]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def write_gqa(items: Sequence[Item], folder: Path) -> None:
    """200 questions: open ones ("query") about colour and shape, binary ones ("verify")."""
    draw = random.Random("gqa")
    chosen = draw.sample([item for item in items if item.asked.kind != "yes/no"], 140)
    chosen += draw.sample([item for item in items if item.asked.kind == "yes/no"], 60)
    copy_images((item.picture for item in chosen), folder / "images")
    lines = (_llava_line(str(number), item) for number, item in enumerate(chosen, 1))
    write_lines(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    questions = {str(number): _gqa_question(item) for number, item in enumerate(chosen, 1)}
    write_json(folder / "testdev_balanced_questions.json", questions)


def _gqa_question(item: Item) -> dict[str, Any]:
    is_open = item.asked.kind != "yes/no"
    operation = {"operation": f"query: {item.asked.kind}" if is_open else "verify", "argument": item.asked.about}
    return {
        "question": item.asked.question,
        "imageId": str(item.picture.number),
        "answer": item.asked.answer,
        "isBalanced": True,
        "groups": {"global": item.asked.kind if is_open else None, "local": None},
        "types": {"structural": "query" if is_open else "verify", "semantic": "attr", "detailed": "attr"},
        "semantic": [{"operation": "select", "argument": "shape"}, operation],
    }


def write_pope(items: Sequence[Item], folder: Path) -> None:
    """Three times 100 questions, half of them with yes: shapes, colours, and "adversarial" negations of either."""
    belongs: dict[str, Callable[[Asked], bool]] = {
        "adversarial": lambda asked: asked.negated,
        "random": lambda asked: asked.about in SHAPES and not asked.negated,
        "popular": lambda asked: asked.about in COLOURS and not asked.negated,
    }
    draw = random.Random("pope")
    asked_lines = []
    for step, (category, fits) in enumerate(belongs.items()):
        chosen = []
        for answer in ("yes", "no"):
            chosen += draw.sample([item for item in items if item.asked.answer == answer and fits(item.asked)], 50)
        draw.shuffle(chosen)
        copy_images((item.picture for item in chosen), folder / "val2014")
        labels = [
            {"question_id": number, "image": item.image, "text": item.asked.question, "label": item.asked.answer}
            for number, item in enumerate(chosen, 1)
        ]
        write_lines(folder / "coco" / f"coco_pope_{category}.json", labels)
        asked_lines += [
            {**_llava_line(number, item), "category": category}
            for number, item in enumerate(chosen, POPE_STEP * step + 1)
        ]
    write_lines(folder / "llava_pope_test.jsonl", asked_lines)


def write_mme(items: Sequence[Item], folder: Path) -> None:
    """Two subtasks of 20 images with a true and a false question each: is the shape, is the colour there?"""
    release = folder / "MME_Benchmark_release_version"
    draw = random.Random("mme")
    lines = []
    for subtask, words in (("existence", SHAPES), ("color", COLOURS)):
        for yes, no in draw.sample(_pairs(items, words), 20):
            copy_images([yes.picture], release / subtask)
            image = f"{subtask}/{yes.image}"
            texts = [
                f"{item.asked.question} Please answer yes or no.\t{item.asked.answer.title()}" for item in (yes, no)
            ]
            (release / subtask / f"{yes.picture.number}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
            lines += [{**_llava_line(image, item), "image": image, "category": subtask} for item in (yes, no)]
    write_lines(folder / "llava_mme.jsonl", lines)


def _pairs(items: Sequence[Item], words: Sequence[str]) -> list[tuple[Item, Item]]:
    """For each picture that has both, its first question about `words` with yes and its first with no."""
    found: dict[int, dict[str, Item]] = {}
    for item in items:
        if item.asked.kind == "yes/no" and item.asked.about in words and not item.asked.negated:
            found.setdefault(item.picture.number, {}).setdefault(item.asked.answer, item)
    return [(answers["yes"], answers["no"]) for answers in found.values() if len(answers) == 2]


def write_textvqa(items: Sequence[Item], folder: Path) -> None:
    """60 questions on 60 images, with an empty line of OCR tokens: there is no text in the images."""
    draw = random.Random("textvqa")
    open_ones = {item.picture.number: item for item in items if item.asked.kind != "yes/no"}
    chosen = draw.sample(list(open_ones.values()), 60)
    copy_images((item.picture for item in chosen), folder / "train_images")
    lines = [
        {**_llava_line(str(item.picture.number), item), "text": f"{item.asked.question}\n{OCR_LINE}{WORD_SUFFIX}"}
        for item in chosen
    ]
    write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    data = [
        {
            "question_id": number,
            "image_id": str(item.picture.number),
            "question": item.asked.question,
            "answers": [item.asked.answer] * PEOPLE,
        }
        for number, item in enumerate(chosen)
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data})


def _llava_line(question_id: int | str, item: Item) -> dict[str, Any]:
    """A line of LLaVA's question files, which ask for a short answer."""
    text = f"{item.asked.question}\n{WORD_SUFFIX}"
    return {"question_id": question_id, "image": item.image, "text": text, "category": "default"}
