"""Putting a scene into words: web captions (noisy and clean) and long descriptions."""

from __future__ import annotations

import random
import re

from toy_world.scenes import Scene, Thing, pick

MAX_CAPTION_WORDS = 50


def clean(caption: str) -> str:
    """A web caption as the trainer sees it in stage 1: lower-case, little punctuation, 50 words."""
    words = re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()
    return " ".join(words[:MAX_CAPTION_WORDS])


def _name(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place(thing: Thing) -> str:
    return f"at the {thing.row} {thing.column}"


def clean_caption(scene: Scene, rng: random.Random) -> str:
    """A short caption in the manner of CC3M, CC12M and SBU: plain, correct, one clause or two."""
    main = scene.main
    short = f"{main.colour} {main.shape}"
    forms = [
        f"{_article(_name(main))} {_place(main)}",
        f"{_article(_name(main))} on a {scene.background} background",
        f"{_article(short)} {_place(main)} on {scene.background}",
    ]
    if len(scene.things) > 1:
        second = scene.things[1]
        forms += [
            f"{_article(_name(main))} and {_article(_name(second))}",
            f"{_article(short)} {_place(main)} and {_article(f'{second.colour} {second.shape}')} "
            f"{_place(second)}",
        ]
    if len(scene.things) > 2:
        forms.append(" and ".join(_article(f"{t.colour} {t.shape}") for t in scene.things))
    return pick(rng, forms)


def noisy_caption(scene: Scene, rng: random.Random) -> str:
    """A short caption in the manner of LAION: alt texts with shop and stock-photo debris."""
    main = scene.main
    body = pick(
        rng,
        [
            f"{main.size} {main.colour} {main.shape} {main.row} {main.column}",
            f"{main.colour} {main.shape}, {main.row} {main.column}",
            f"{main.colour} {main.shape} on {scene.background}",
            clean_caption(scene, rng),
            clean_caption(scene, rng),
        ],
    )
    if rng.random() < 0.3:
        body = body.title() if rng.random() < 0.7 else body.upper()
    number = 100 + int(rng.random() * 900)
    return pick(
        rng,
        [
            body,
            body,
            f"{body} clip art",
            f"{body} - stock photo",
            f"{body} (free vector)",
            f"{body} | picture no. {number}",
            f"photo {number}: {body}!",
            f"buy {body} online",
        ],
    )


def description(scene: Scene, rng: random.Random) -> str:
    """A long, well-formed description of every object and the background."""
    main = scene.main
    first = _article(_name(main))
    sentences = [
        pick(
            rng,
            [
                f"The image shows {first} {_place(main)}.",
                f"This picture shows {first} {_place(main)}.",
                f"In this image there is {first} {_place(main)}.",
            ],
        )
    ]
    if len(scene.things) == 1:
        sentences.append(pick(rng, ["It is the only object.", "Nothing else can be seen."]))
    if len(scene.things) > 1:
        second = scene.things[1]
        other = _article(_name(second))
        sentences.append(
            pick(
                rng,
                [
                    f"There is also {other} {_place(second)}.",
                    f"{other[0].upper()}{other[1:]} can be seen {_place(second)}.",
                ],
            )
        )
    if len(scene.things) > 2:
        third = scene.things[2]
        sentences.append(f"Finally, {_article(_name(third))} is {_place(third)}.")
    sentences.append(
        pick(
            rng,
            [
                f"The background is {scene.background}.",
                f"Everything is set on a {scene.background} background.",
            ],
        )
    )
    if rng.random() < 0.5:
        sentences.append(f"The {main.colour} {main.shape} is the main object.")
    return " ".join(sentences)
