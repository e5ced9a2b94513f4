"""Make tests/fixtures/option_likelihoods.json: what PyTorch gives for options after a question. Development only.

    python tests/make_profile_fixtures.py [../shared/data]     # needs torch and transformers

For every model and pair of context and option: the log-probabilities of the option's tokens, of one text at a time
and without padding, computed by transformers in float32; the tokens are those of the joint text from the first
whose place ends beyond the context. In front stands the tokenizer's own start token, where it puts one there. An
empty context stands for a sentence by itself.
"""

import json
import pathlib
import sys

import torch
import transformers

ROOT = pathlib.Path(__file__).parent
TEXTS = [
    ("Which of these is a colour?", " red"),
    ("Which of these is a colour?", " seven and a half"),
    ("Tom has 3 pears. How many are left, he asks. He has", " 12."),
    ("The end of the word is not the end of the tok", "en, says naïve Zoë"),
    ("Context: the café was full.\nQuestion: Who was there?\nAnswer:", " Cannot be determined"),
    ("", "A sentence by itself, with a start token if there is one."),
    ("", "So"),
]


def main(shared: pathlib.Path) -> None:
    found = {}
    folders = {"qwen2": ROOT / "fixtures" / "qwen2", "stories260K": shared / "weights" / "stories260K" / "hf"}
    for name, folder in folders.items():
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        found[name] = [_scored(model, tokenizer, *pair) for pair in TEXTS]
    text = json.dumps({"texts": TEXTS, "models": found}, ensure_ascii=False, indent=1)
    (ROOT / "fixtures" / "option_likelihoods.json").write_text(text + "\n", encoding="utf-8")


def _scored(model, tokenizer, context: str, option: str) -> dict[str, list]:
    joint = tokenizer(context + option, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = joint["input_ids"], joint["offset_mapping"]
    first = min(i for i, (_, end) in enumerate(places) if end > len(context))
    own = tokenizer.bos_token_id
    puts = tokenizer("a")["input_ids"][0] == own
    start = [own] if own is not None and (puts or first == 0) else []
    with torch.no_grad():
        logits = model(torch.tensor([start + ids])).logits[0]
    logps = torch.log_softmax(logits.double(), -1)
    counted = range(len(start) + first, len(start) + len(ids))
    counted = [t for t in counted if t > 0]
    whole = start + ids
    return {
        "tokens": [whole[t] for t in counted],
        "logps": [round(float(logps[t - 1, whole[t]]), 6) for t in counted],
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent.parent / "shared" / "data")
