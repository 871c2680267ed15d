"""Write easy-VQA as training sets in LLaVA's format, and as small benchmarks in the official layouts.

prepare() writes:
  images/             the training images
  captions.json       short captions, for connector pretraining
  captions_long.json  captions of two or three sentences, for the share recipe's caption pretraining
  instruct.json       three conversations per image, for instruction tuning
  eval/               nine benchmarks on the package's test images
  validation/         the same on 500 of its training images, on which the demo's settings were chosen

No training set contains an image of the benchmarks.

Scores on these benchmarks are comparable only with each other. In GQA, four out of five yes/no questions can be
answered without the image, because most of the shapes and colours asked about are not in the image.
"""

import base64
import json
import random
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from tinyvlm_cli.demo.conversations import instruct_records
from tinyvlm_cli.demo.easyvqa import (
    COLOURS,
    DESCRIBE,
    LETTERS,
    OCR_LINE,
    QA,
    QUESTIONS,
    SHAPES,
    WORD_SUFFIX,
    Picture,
    choice_text,
    choices,
    copy_image,
    long_caption,
    read_pictures,
    record_of,
)
from tinyvlm_cli.files import write_jsonl, write_text

PEOPLE = 10  # answers per question in VQAv2 and TextVQA; identical here
POPE_STEP = 10_000_000  # offset between the question ids of POPE's categories
ROTATION = 1_000_000  # added to an MMBench question's index for each rotation of its options
QUESTION_TYPES = {"colour": "what color is", "shape": "what shape is", "yes/no": "is there"}  # as named in VQAv2
KINDS = ("colour", "shape")  # of multiple-choice questions, used in turn


def prepare(folder: Path) -> None:
    """Write the training sets and the benchmarks to `folder`."""
    pictures = read_pictures("train")
    captioned = [picture for picture in pictures if picture.caption]
    sets = {
        "captions": [record_of(picture, [(DESCRIBE, str(picture.caption))]) for picture in captioned],
        "captions_long": [record_of(picture, [(DESCRIBE, long_caption(picture))]) for picture in captioned],
        "instruct": [record for picture in captioned for record in instruct_records(picture)],
    }
    for name, records in sets.items():
        write_text(folder / f"{name}.json", json.dumps(records))
    for picture in pictures:
        copy_image(picture.image, folder / "images" / picture.image.name)
    write_benchmarks(read_pictures("validation"), folder / "validation")
    write_benchmarks(read_pictures("test"), folder / "eval")


def write_benchmarks(pictures: Sequence[Picture], folder: Path) -> None:
    """Write nine benchmarks to subfolders that are named as in LLaVA's evaluation data."""
    questions = [qa for picture in pictures for qa in picture.questions]
    captioned = [picture for picture in pictures if picture.caption]
    write_vqav2(questions, folder / "vqav2")
    write_gqa(questions, folder / "gqa")
    write_pope(questions, folder / "pope")
    write_mme(questions, folder / "MME")
    write_textvqa(questions, folder / "textvqa")
    write_scienceqa(captioned, folder / "scienceqa")
    write_mmbench(captioned, folder / "mmbench")
    write_mmvet(captioned, folder / "mm-vet")
    write_llavaw(captioned, folder / "llava-bench-in-the-wild")


def write_vqav2(questions: Sequence[QA], folder: Path) -> None:
    """Write 700 questions, most of them about colour and shape, which cannot be answered from the text alone.

    All answers of a kind are equally frequent, so chance accuracy is 1/8 for colour and 1/3 for shape.
    """
    draw = random.Random("vqav2")
    counts = {**dict.fromkeys(COLOURS, 38), **dict.fromkeys(SHAPES, 100), "yes": 48, "no": 48}
    lines: list[dict[str, Any]] = []
    annotations = []
    for answer, count in counts.items():
        for qa in draw.sample([qa for qa in questions if qa.answer == answer], count):
            question_id = len(lines) + 1
            copy_image(qa.image, folder / "val2014" / qa.image.name)
            lines.append(_llava_line(question_id, qa))
            people = range(1, PEOPLE + 1)
            annotation = {
                "question_id": question_id,
                "image_id": qa.number,
                "question_type": QUESTION_TYPES[qa.kind],
                "answer_type": "yes/no" if qa.kind == "yes/no" else "other",
                "multiple_choice_answer": answer,
                "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": person} for person in people],
            }
            annotations.append(annotation)
    write_jsonl(folder / "llava_vqav2_mscoco_val2014.jsonl", lines)
    write_text(folder / "v2_mscoco_val2014_annotations.json", json.dumps({"annotations": annotations}))


def write_gqa(questions: Sequence[QA], folder: Path) -> None:
    """Write 200 questions: 140 open ones ("query") about colour and shape, and 60 binary ones ("verify")."""
    draw = random.Random("gqa")
    chosen = draw.sample([qa for qa in questions if qa.kind != "yes/no"], 140)
    chosen += draw.sample([qa for qa in questions if qa.kind == "yes/no"], 60)
    lines, truths = [], {}
    for question_id, qa in ((str(number), qa) for number, qa in enumerate(chosen, 1)):
        copy_image(qa.image, folder / "images" / qa.image.name)
        lines.append(_llava_line(question_id, qa))
        is_open = qa.kind != "yes/no"
        operation = {"operation": f"query: {qa.kind}" if is_open else "verify", "argument": qa.about}
        truths[question_id] = {
            "question": qa.question,
            "imageId": str(qa.number),
            "answer": qa.answer,
            "isBalanced": True,
            "groups": {"global": qa.kind if is_open else None, "local": None},
            "types": {"structural": "query" if is_open else "verify", "semantic": "attr", "detailed": "attr"},
            "semantic": [{"operation": "select", "argument": "shape"}, operation],
        }
    write_jsonl(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    write_text(folder / "testdev_balanced_questions.json", json.dumps(truths))


def write_pope(questions: Sequence[QA], folder: Path) -> None:
    """Write 100 questions per category, half of them with the answer yes. Negated questions are "adversarial"."""
    categories: dict[str, Callable[[QA], bool]] = {
        "adversarial": lambda qa: qa.negated,
        "random": lambda qa: qa.about in SHAPES and not qa.negated,
        "popular": lambda qa: qa.about in COLOURS and not qa.negated,
    }
    draw = random.Random("pope")
    lines = []
    for step, (category, belongs) in enumerate(categories.items()):
        chosen = []
        for answer in ("yes", "no"):
            chosen += draw.sample([qa for qa in questions if qa.answer == answer and belongs(qa)], 50)
        draw.shuffle(chosen)
        labels = []
        for number, qa in enumerate(chosen, 1):
            copy_image(qa.image, folder / "val2014" / qa.image.name)
            labels.append({"question_id": number, "image": qa.image.name, "text": qa.question, "label": qa.answer})
            lines.append({**_llava_line(POPE_STEP * step + number, qa), "category": category})
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", labels)
    write_jsonl(folder / "llava_pope_test.jsonl", lines)


def write_mme(questions: Sequence[QA], folder: Path) -> None:
    """Write two subtasks (shape and colour) of 20 images each, with one yes and one no question per image."""
    draw = random.Random("mme")
    lines = []
    for subtask, words in (("existence", SHAPES), ("color", COLOURS)):
        first: dict[int, dict[str, QA]] = {}  # image -> answer -> the first question with this answer
        for qa in questions:
            if qa.kind == "yes/no" and qa.about in words and not qa.negated:
                first.setdefault(qa.number, {}).setdefault(qa.answer, qa)
        pairs = [(answers["yes"], answers["no"]) for answers in first.values() if len(answers) == 2]
        release = folder / "MME_Benchmark_release_version" / subtask
        for pair in draw.sample(pairs, 20):
            image = pair[0].image
            copy_image(image, release / image.name)
            texts = [f"{qa.question} Please answer yes or no.\t{qa.answer.title()}\n" for qa in pair]
            write_text(release / f"{image.stem}.txt", "".join(texts))
            name = f"{subtask}/{image.name}"
            lines += [{**_llava_line(name, qa), "image": name, "category": subtask} for qa in pair]
    write_jsonl(folder / "llava_mme.jsonl", lines)


def write_textvqa(questions: Sequence[QA], folder: Path) -> None:
    """Write 60 questions about 60 images. Their OCR lines are empty, because the images contain no text."""
    draw = random.Random("textvqa")
    last_open = {qa.number: qa for qa in questions if qa.kind != "yes/no"}
    lines, data = [], []
    for number, qa in enumerate(draw.sample(list(last_open.values()), 60)):
        copy_image(qa.image, folder / "train_images" / qa.image.name)
        lines.append({**_llava_line(str(qa.number), qa), "text": f"{qa.question}\n{OCR_LINE}{WORD_SUFFIX}"})
        truth = {"question_id": number, "image_id": str(qa.number), "question": qa.question}
        data.append({**truth, "answers": [qa.answer] * PEOPLE})
    write_jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    write_text(folder / "TextVQA_0.5.1_val.json", json.dumps({"data": data}))


def write_scienceqa(pictures: Sequence[Picture], folder: Path) -> None:
    """Write 60 questions with one image each, alternately about shape and colour."""
    draw = random.Random("scienceqa")
    problems, lines = {}, []
    for number, picture in enumerate(draw.sample(pictures, 60), 1):
        question, options, answer = choices(picture, KINDS[number % 2], draw)
        copy_image(picture.image, folder / "images" / "test" / str(number) / "image.png")
        problems[str(number)] = {
            "question": question,
            "choices": options,
            "answer": options.index(answer),
            "hint": "",
            "image": "image.png",
            "subject": "natural science",
            "grade": "grade1",
        }
        message = {"from": "human", "value": f"<image>\n{choice_text(question, options)}"}
        lines.append({"id": str(number), "image": f"{number}/image.png", "conversations": [message]})
    write_text(folder / "problems.json", json.dumps(problems))
    write_text(folder / "pid_splits.json", json.dumps({"test": list(problems)}))
    write_text(folder / "llava_test_CQM-A.json", json.dumps(lines))


def write_mmbench(pictures: Sequence[Picture], folder: Path) -> None:
    """Write 40 questions with all rotations of their options: 20 on colour (4 options) and 20 on shape (3)."""
    folder.mkdir(parents=True)
    draw = random.Random("mmbench")
    rows = []
    for index, picture in enumerate(draw.sample(pictures, 40)):
        kind = KINDS[index % 2]
        question, options, answer = choices(picture, kind, draw)
        for rotation in range(len(options)):
            rotated = options[rotation:] + options[:rotation]
            row = {
                "index": index + rotation * ROTATION,
                "question": question,
                "hint": "",
                **dict(zip_longest(LETTERS, rotated, fillvalue="")),
                "answer": LETTERS[rotated.index(answer)],
                "category": "attribute_recognition" if kind == "colour" else "object_localization",
                "image": base64.b64encode(picture.image.read_bytes()).decode(),
                "source": "easy-vqa",
                "l2-category": "finegrained_perception (instance-level)",
                "comment": "",
                "split": "dev",
            }
            rows.append(row)
    path = folder / "mmbench_dev_20230712.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, lineterminator="\r\n")


def write_mmvet(pictures: Sequence[Picture], folder: Path) -> None:
    """Write 10 open questions that a judge grades: five descriptions and five questions about the shape."""
    draw = random.Random("mmvet")
    records = {}
    for number, picture in enumerate(draw.sample(pictures, 10)):
        name = f"v1_{number}.png"
        copy_image(picture.image, folder / "images" / name)
        describes = number % 2 == 0
        records[f"v1_{number}"] = {
            "imagename": name,
            "question": DESCRIBE if describes else QUESTIONS["shape"],
            "answer": f"{picture.colour}<AND>{picture.shape}" if describes else picture.shape,
            "capability": ["rec", "gen"] if describes else ["rec"],
            "imagesource": "easy-vqa",
        }
    write_text(folder / "mm-vet.json", json.dumps(records))


def write_llavaw(pictures: Sequence[Picture], folder: Path) -> None:
    """Write 9 open questions, three per category, each with a caption for the judge and a reference answer."""
    draw = random.Random("llavaw")
    questions, references, contexts = [], [], []
    for number, picture in enumerate(draw.sample(pictures, 9)):
        category, question, reference = (
            ("conv", QUESTIONS["colour"], f"The shape is {picture.colour}."),
            ("detail", DESCRIBE, f"The image shows {picture.caption} on a plain background."),
            ("complex", "what is in the image?", f"There is {picture.caption} in the image, and nothing else."),
        )[number % 3]
        image = picture.image.name
        copy_image(picture.image, folder / "images" / image)
        questions.append({"question_id": number, "image": image, "category": category, "text": question})
        references.append({"question_id": number, "text": reference})
        contexts.append({"id": number, "image": image, "caption": f"A drawing of {picture.caption}."})
    write_jsonl(folder / "questions.jsonl", questions)
    write_jsonl(folder / "answers_gpt4.jsonl", references)
    write_jsonl(folder / "context.jsonl", contexts)


def _llava_line(question_id: int | str, qa: QA) -> dict[str, Any]:
    """Return a record as in LLaVA's question files, including the request for a short answer."""
    text = f"{qa.question}\n{WORD_SUFFIX}"
    return {"question_id": question_id, "image": qa.image.name, "text": text, "category": "default"}
