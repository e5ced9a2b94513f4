"""Scorers of toxicity by name: texts in, a number from 0 to 1 for each out.

    python:FILE.py:FUNCTION      a function of the user's, list[str] -> list[float]
    column:FILE:COLUMN           scores made elsewhere: rows with the text ("text") and its score
    hf:MODEL or hf:MODEL#LABEL   a Hugging Face text classifier, folder or id; needs PyTorch (extra "toxicity")
    perspective: or perspective:URL   Google's API, key in PERSPECTIVE_API_KEY; it ends on 31 December 2026
    lexicon:FILE                 one word or phrase a line; for smoke runs only, it measures no toxicity

A scorer may give None for a text it refuses: such texts are counted and left out. A file of scores may grow, so a
hash of it would be no version; `changed_scores` tells which scores are others than before.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common import hosts
from common.backends.open import check_url
from common.backends.wire import read_key
from common.errors import UserError, in_one_line, quoted
from common.evals.figures import Scorer
from common.tasks.files import read_rows, require
from common.usercode import FaultError, ask, load_callable

Score = Callable[[Sequence[str]], list[float | None]]

KINDS = ("python", "column", "hf", "perspective", "lexicon")
PERSPECTIVE = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
PERSPECTIVE_ENDS = "the Perspective API ends on 31 December 2026, and its scores carry no version"
LEXICON_NOTE = "a lexicon counts listed words and measures no toxicity: for smoke runs only"
TOXIC_LABELS = ("toxicity", "toxic", "label_1")
CLASSIFIED = 32
"""Texts that a classifier reads together."""
NO_TORCH = "needs PyTorch, which is not installed: pip install '.[toxicity]'"
KEY_REFUSED = "API_KEY_INVALID"
"""What Google's error of status 400 says where the key is at fault, and not the text."""
ATTEMPTS = 4
"""Tries of one text over HTTP before it is given up."""


def check_scorer(name: str) -> None:
    """Raise UserError for a scorer that does not exist, where that can be told without loading it."""
    kind, _, rest = name.partition(":")
    if kind not in KINDS:
        raise UserError(f"--toxicity-scorer {name}: name one as {', '.join(f'{kind}:…' for kind in KINDS)}")
    if kind == "python":
        load_callable(name)
    if kind == "lexicon":
        _words(rest)
    if kind == "column":
        file, _, column = rest.rpartition(":")
        if not file or not column:
            raise UserError(f"--toxicity-scorer {name}: name file and column as column:FILE:COLUMN")
        if pathlib.Path(file).is_file():  # it may be made after the texts
            _column_scores(file, column)
    if kind == "hf":
        if not rest:
            raise UserError("--toxicity-scorer hf: names no model: give hf:FOLDER or hf:ID")
        if importlib.util.find_spec("torch") is None:
            raise UserError(f"--toxicity-scorer {name} {NO_TORCH}")
    if kind == "perspective":
        if rest:
            check_url(rest, "--toxicity-scorer perspective:URL", "PERSPECTIVE_API_KEY")
        if not read_key("PERSPECTIVE_API_KEY"):
            raise UserError(f"--toxicity-scorer {name}: set PERSPECTIVE_API_KEY; note that {PERSPECTIVE_ENDS}")


def note_of(name: str) -> str | None:
    """What a reader must know of the scorer."""
    return {"lexicon": LEXICON_NOTE, "perspective": PERSPECTIVE_ENDS}.get(name.partition(":")[0])


def open_scorer(name: str, continuations: str = "the continuations") -> tuple[Score, Scorer]:
    """The scorer `name`, and what is stored about it. `continuations`: where the texts are, for messages.

    Raises UserError as `check_scorer` does, and for what cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    if kind == "python":
        return _by_one(_checked(name, load_callable(name))), Scorer(name, _digest(rest.rpartition(":")[0]))
    if kind == "column":
        return _column(name, continuations)
    if kind == "hf":
        return _classifier(name, rest)
    if kind == "perspective":
        url = rest or PERSPECTIVE
        return _by_one(_perspective(url)), Scorer(f"Perspective TOXICITY at {url}", "unversioned")
    return _lexicon(rest), Scorer(f"lexicon {rest} (smoke runs only)", _digest(rest))


def _by_one(score: Score) -> Score:
    """`score`, called by one process for all."""
    return lambda texts: hosts.share(lambda: score(texts))


def _digest(file: str) -> str:
    return f"sha256 {hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]}"


def _checked(name: str, function: Callable[..., Any]) -> Score:
    """The user's function with its results looked at. Raises UserError for others than it should give."""

    def score(texts: Sequence[str]) -> list[float | None]:
        try:
            given = ask(lambda: list(function(list(texts))))
        except FaultError as error:
            raise UserError(f"{name} failed ({error}): fix it, and the same command continues") from None
        if len(given) != len(texts):
            raise UserError(f"{name} gave {len(given)} scores for {len(texts)} texts: it must give one each")
        return [_bounded(value, name) for value in given]

    return score


def _bounded(value: object, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = ask(float, value)
    except FaultError:
        raise UserError(f"{name} gave {quoted(value)}: a score is a number from 0 to 1, or None") from None
    if math.isnan(number):
        return None
    if not 0 <= number <= 1:
        raise UserError(f"{name} gave {number:g}: a score is a number from 0 to 1, or None")
    return number


def _column(name: str, continuations: str) -> tuple[Score, Scorer]:
    file, _, column = name.partition(":")[2].rpartition(":")
    if not pathlib.Path(file).is_file():
        raise UserError(
            f"no such file: {file} (given as --toxicity-scorer {name}): score the texts of {continuations} into "
            "it, and the same command continues"
        )
    known = _column_scores(file, column)

    def score(texts: Sequence[str]) -> list[float | None]:
        if missing := sum(text not in known for text in texts):
            raise UserError(
                f"{file} has no score of {missing} of {len(texts)} texts: score those of {continuations} into it, "
                "and the same command continues"
            )
        return [known[text] for text in texts]

    return score, Scorer(name, "as in the file")


def _column_scores(file: str, column: str) -> dict[str, float | None]:
    """The score of every text. Raises UserError, naming the fields, where no row has a text, or the column."""
    known, fields = {}, {}
    for row, place in read_rows(pathlib.Path(file)):
        fields |= dict.fromkeys(row)
        if row.get("text") is not None:
            value = row.get(column)
            empty = value is None or value == "" or value != value
            known[str(row["text"])] = None if empty else _bounded(require(row, column, place), place)
    for name in ("text", column):
        if name not in fields:
            raise UserError(f"{file} has no field {name!r} in any row: it has {', '.join(map(str, fields))}")
    return known


def changed_scores(name: str, texts: Sequence[str | None], rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of `rows`, each stored with the score of the text at its place, have another one in the file of the
    scorer `name` by now; 0 for a scorer that is no file of scores, and where the file is gone."""
    kind, _, rest = name.partition(":")
    file, _, column = rest.rpartition(":")
    if kind != "column" or not pathlib.Path(file).is_file():
        return 0
    known = _column_scores(file, column)
    return sum(
        not row["empty"] and text in known and known[text] != row["score"]
        for text, row in zip(texts, rows, strict=False)
    )


def _lexicon(file: str) -> Score:
    """1 - 2^-n for n listed words in a text, whole words, case apart: 0.5 for one of them."""
    found = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, _words(file))) + r")(?!\w)", re.IGNORECASE)
    return lambda texts: [1 - 0.5 ** len(found.findall(text)) for text in texts]


def _words(file: str) -> list[str]:
    if not pathlib.Path(file).is_file():
        raise UserError(f"no such file: {file} (given as --toxicity-scorer lexicon:{file})")
    try:
        lines = pathlib.Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text: convert it to UTF-8") from None
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise UserError(f"{file} lists no words: write one a line")
    return sorted(words, key=lambda word: (-len(word), word))


def _classifier(name: str, given: str) -> tuple[Score, Scorer]:
    """A sequence classifier of transformers: the probability of its toxic label, by softmax over its labels, or by
    sigmoid where they do not exclude each other. Texts are cut at the model's length."""
    try:
        torch = importlib.import_module("torch")  # an extra, so that its types need not be there
    except ImportError:
        raise UserError(f"--toxicity-scorer {name} {NO_TORCH}") from None
    from common.model.tokenizer import import_transformers

    transformers = import_transformers()
    where, _, label = given.partition("#")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            where, trust_remote_code=False, use_safetensors=True
        ).eval()
    except Exception as error:  # errors of three libraries, most of them plain Exception
        reason = in_one_line(error)
        raise UserError(f"cannot load the classifier {where}: {reason}") from None
    config = model.config
    labels = [config.id2label[i].lower() for i in range(config.num_labels)]
    wanted = [label.lower()] if label else TOXIC_LABELS
    place = next((labels.index(name) for name in wanted if name in labels), None)
    if place is None:
        raise UserError(f"{where} has no label {' or '.join(wanted)}: name one as hf:{where}#{labels[0]}")
    several = config.num_labels == 1 or config.problem_type == "multi_label_classification"
    longest = min(getattr(config, "max_position_embeddings", 512), tokenizer.model_max_length, 512)

    def score(texts: Sequence[str]) -> list[float | None]:
        found = []
        for start in range(0, len(texts), CLASSIFIED):
            part = list(texts[start : start + CLASSIFIED])
            inputs = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**inputs).logits
            weights = logits.sigmoid() if several else logits.softmax(-1)
            found += [round(float(value), 6) for value in weights[:, place]]
        return found

    version = getattr(config, "_commit_hash", None)
    if pathlib.Path(where).is_dir():
        from common.model.checkpoint import fingerprint

        version = f"fingerprint {fingerprint(where)}"
    return score, Scorer(f"hf:{where}, label {labels[place]}, cut at {longest} tokens", str(version))


def _perspective(url: str, wait: Callable[[float], None] = time.sleep) -> Score:
    """Asks for one text at a time. A text the service refuses is None; a service that is not there is an error."""
    key = read_key("PERSPECTIVE_API_KEY")

    def ask(text: str) -> float | None:
        asked = {
            "comment": {"text": text},
            "languages": ["en"],
            "requestedAttributes": {"TOXICITY": {}},
            "doNotStore": True,
        }
        headers = {"Content-Type": "application/json", "X-Goog-Api-Key": key}
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
                with urllib.request.urlopen(request, timeout=60) as reply:
                    found = json.load(reply)
                return _bounded(found["attributeScores"]["TOXICITY"]["summaryScore"]["value"], url)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}"
                if error.code == 400:
                    if KEY_REFUSED in error.read().decode("utf-8", "replace"):
                        raise UserError(f"{url} refuses the key: fix PERSPECTIVE_API_KEY") from None
                    return None
                if error.code not in (408, 429) and error.code < 500:
                    break
            except UserError:
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
            if attempt + 1 < ATTEMPTS:
                wait(2.0**attempt)
        raise UserError(
            f"{url} does not answer ({reason}); note that {PERSPECTIVE_ENDS}; the same command continues"
        )

    return lambda texts: [ask(text) for text in texts]
