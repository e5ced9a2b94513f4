"""Make the figures in tests/fixtures/text by the libraries that ours are checked against. Development only.

Needs what nothing else in the project does, in an environment of its own (textdescriptives above 2.8.2 wants
numpy 1):

    pip install textdescriptives==2.8.2 lexicalrichness==0.5.1 uncertainty-calibration==0.1.4
    python tests/make_text_fixtures.py

`texts.json`: texts of our own with the tokens that textdescriptives counts on spaCy's blank English pipeline, its
figures, and the diversity of lexicalrichness; null where it has none. `ece.json`: confidences, whether the answer
was right, and the error in so many bins. `mtld.json`: MTLD of random runs of words.
"""

import json
import math
import pathlib
import random

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "text"

ESSAY = """\
The old lighthouse keeper had a curious habit: every evening, before he lit the great lamp, he wrote a \
single sentence in a notebook. Nobody on the island knew why. Some believed it was a record of the weather; \
others thought that he was composing an extraordinarily slow novel. When the government finally automated \
the lighthouse, a young engineer found forty-one notebooks in the cupboard beneath the stairs. She sat down \
on the bottom step and began to read. There were no storms in them, no characters, and no plot. Each \
sentence described something that the keeper had learned on that particular day. "Gulls sleep standing on \
one leg." "The baker's daughter is allergic to almonds." "A rope which has been wet twice is never trusted \
again." By midnight she had reached the second year, and she was still reading when the automatic lamp, with \
nobody to light it, began to turn above her head. In the morning she telephoned the ministry and told them \
that the installation would unfortunately require another fortnight. It was the first untruthful report of \
her professional career, and she never regretted it."""

TEXTS = {
    "a9": "The important cat sat. The dog ran.",
    "empty": "",
    "blank": "   \n ",
    "one word": "Yes",
    "digits": "12 345 6,789 0.5 2024",
    "signs only": "?! ... -- ()",
    "essay": ESSAY,
    "essay twice": ESSAY + "\n\n" + ESSAY.upper(),
    "list": "Here are three ideas:\n\n1. Walk to work.\n2. Cook at home\n3. Sleep eight hours!\n\nGood luck.\n",
    "bullets": "- Bread\n- Butter & jam\n* Tea\n\n**Note:** the shop closes at 5pm, so don't wait.",
    "contractions": "I'm sure they'd've gone, but we can't know; it's Ada's idea, isn't it? Let's see. Y'all ok?",
    "typographic": "“Don’t go,” she said — it’s late… ‘Why?’ he asked. The children’s coats weren’t there.",
    "no apostrophe": "Im sure hes wont to say so, but thats not what whos asking. I cannot; gonna stay. Its well.",
    "abbreviations": "Dr. Smith of Acme Inc. met **Mrs. Jones at 9 a.m. on Jan. 3, i.e. before the U.S. vote.",
    "units": "It weighs 5kg (11lb) and costs $3.50, or 4€; at 350°F. it melts in 10m, 20% more than 3x2 or 4+5=9.",
    "addresses": "See https://example.org/a-b?c=d, mail ada@example.org, or example.com/page. Version 1.2.3.",
    "hyphens": "A well-known, state-of-the-art, year-old co-op—run by ex-pilots--sells and/or/maybe lends bikes.",
    "spaces": "Two  blanks   and\ttabs.\n\n\nThen lines. \n And more.  ",
    "code": "def area(r):\n    return 3.14 * r**2  # circle\n\nprint(area(2), x_y, a/b, a<b, x:y)",
    "emoji": "Great job 🎉🎉! See you soon 😀. ❤️ it :D, (<3) =) ^_^ :)",
    "cjk": "我喜欢猫。你呢？好！ 日本語も少し。",
    "cyrillic": "Съешь ещё этих мягких французских булок. Да выпей чаю! Зачем?",
    "german": "Größere Häuser stehen an der Straße, z.B. das „Rathaus“. Schön!",
    "accents": "The naïve café owner's résumé was a cliché: Ångström, façade, coöperate.",
    "long word": "A " + "supercalifragilistic" * 6 + " word, ok.",
    "table": "| name | value |\n|------|-------|\n| a | 1.5 |\n| b | -2 |\n\nTotal: -0.5.",
    "initials": "J. R. Smith and B. Lee won gold in the U.S.A. They left at 5 p.m. Nobody saw them go.",
    "punctuation": 'He said: "Really?!" (Yes, really.) [sic] {x} *bold* _it_ `code` ... fine; #tag @home A&B.',
}


def null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def texts() -> list[dict]:
    import lexicalrichness
    import spacy
    import textdescriptives  # noqa: F401  registers what follows
    from textdescriptives.components.utils import filter_tokens

    pipeline = spacy.blank("en")
    for name in "sentencizer", "textdescriptives/descriptive_stats", "textdescriptives/readability":
        pipeline.add_pipe(name)
    rows = []
    for name, text in TEXTS.items():
        document = pipeline(text)
        stats, ease = document._.descriptive_stats, document._.readability
        rich = lexicalrichness.LexicalRichness(text)
        rows.append(
            {
                "name": name,
                "text": text,
                "kept": [token.lower_ for token in filter_tokens(document)],
                "official": {
                    "tokens": stats["n_tokens"],
                    "unique_tokens": stats["n_unique_tokens"],
                    "characters": stats["n_characters"],
                    "sentences": stats["n_sentences"],
                    "sentence_length": null(stats["sentence_length_mean"]),
                    "token_length": null(stats["token_length_mean"]),
                    "syllables": null(stats["syllables_per_token_mean"]),
                    "gunning_fog": null(ease["gunning_fog"]),
                    "rix": null(ease["rix"]),
                    "lix": null(ease["lix"]),
                    "ttr": null(stats["proportion_unique_tokens"]),
                    "mtld": rich.mtld() if rich.words else 0.0,  # ours; the library divides by zero
                    "mattr": rich.mattr(window_size=50) if rich.words >= 50 else None,
                    "hdd": float(rich.hdd(draws=42)) if rich.words >= 42 else None,
                },
            }
        )
    return rows


def mtld() -> list[dict]:
    import lexicalrichness

    rng, rows = random.Random(0), []
    for vocabulary, length in [(1, 1), (1, 9), (2, 7), (4, 30), (12, 60), (26, 26), (26, 90), (26, 250)]:
        letters = [chr(97 + rng.randrange(vocabulary)) for _ in range(length)]
        rows.append({"words": "".join(letters), "mtld": lexicalrichness.LexicalRichness(" ".join(letters)).mtld()})
    return rows


def ece() -> list[dict]:
    import calibration

    rng, rows = random.Random(0), []
    for n, levels in [(1, 1000), (7, 1000), (10, 1000), (33, 1000), (100, 1000), (100, 6), (60, 2)]:
        confidence = [rng.randint(levels // 4, levels) / levels for _ in range(n)]
        correct = [int(rng.random() < p - 0.1) for p in confidence]
        for bins in 1, 2, 10, 15:
            error = calibration.get_ece_em(confidence, correct, num_bins=bins)
            rows.append({"confidence": confidence, "correct": correct, "bins": bins, "ece": float(error)})
    return rows


def write(name: str, rows: list[dict]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (FOLDER / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write("texts.json", texts())
    write("mtld.json", mtld())
    write("ece.json", ece())
