"""The other side of the tables of speed: PyTorch, transformers, TRL and PEFT, with the settings that their pages
recommend, in float32 on CPU. TRL is loaded by what needs it and nothing of ours: `first.py` counts seconds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from common.train.data import Encoded
    from common.train.preference import Preference

PAD = 0


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> torch.Tensor:
    longest = max(map(len, rows))
    fill = lambda row: [PAD] * (longest - len(row))
    return torch.tensor([[*fill(row), *row] if left else [*row, *fill(row)] for row in rows])


def by_length(rows: Sequence, size: int, length) -> list[list]:
    order = sorted(rows, key=length)
    return [order[i : i + size] for i in range(0, len(order), size)]


# --- Training -------------------------------------------------------------------------------------------------


def trained(model, examples: list[Encoded], size: int, rate: float) -> float:
    """One pass in plain PyTorch: batches of like length, padded to their longest, logits of answers alone, the
    fused optimizer. Returns the mean loss. `model` may be PEFT's; it is trained in place."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=True)
    batches, losses = by_length(examples, size, lambda e: len(e.tokens)), []
    for batch in [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]:
        tokens = padded([e.tokens for e in batch])
        answers = torch.zeros_like(tokens, dtype=torch.bool)
        for row, e in enumerate(batch):
            answers[row, e.prompt_length - 1 : len(e.tokens) - 1] = True
        h = inner.model(tokens, attention_mask=None).last_hidden_state[answers]
        loss = torch.nn.functional.cross_entropy(inner.lm_head(h), tokens.roll(-1, 1)[answers])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return statistics.mean(losses)


def trl_settings(folder: str, size: int, rate: float, epochs: float = 1) -> dict:
    """What an SFTConfig and a DPOConfig have in common."""
    return {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": size,
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "max_length": None,
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def trl_trained(model, vocabulary: int, examples: list[Encoded], size: int, rate: float) -> None:
    """One pass of SFTTrainer over batches of like length; `model` may be PEFT's."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    cut = [(e.tokens[: e.prompt_length], e.tokens[e.prompt_length :]) for e in examples]
    rows = [{"prompt": written(prompt), "completion": written(answer)} for prompt, answer in cut]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(**trl_settings(folder, size, rate), train_sampling_strategy="group_by_length")
        trainer = SFTTrainer(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=numbers(vocabulary)
        )
        trainer.train()
    # An end token an example is added.
    _same(trainer, sum(len(e.tokens) + 1 for e in examples))


def trl_preferred(model, vocabulary: int, pairs: list[Preference], size: int, rate: float) -> None:
    """One pass of DPOTrainer, the reference computed before it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{name: written(getattr(p, name)) for name in ("prompt", "chosen", "rejected")} for p in pairs]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(**trl_settings(folder, size, rate), precompute_ref_log_probs=True)
        trainer = DPOTrainer(
            model, args=config, train_dataset=Dataset.from_list(rows), processing_class=numbers(vocabulary)
        )
        trainer.train()
    _same(trainer, sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) + 2 for p in pairs))


def _same(trainer, tokens: int) -> None:
    """Raise where TRL trained on other tokens than ours, as with a tokenizer that cuts them otherwise."""
    seen = next(row["num_tokens"] for row in reversed(trainer.state.log_history) if "num_tokens" in row)
    if seen != tokens:
        raise SystemExit(f"TRL trained on {seen:.0f} tokens, and not on {tokens}")


def numbers(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the numbers of tokens, as TRL wants texts. The two special ones are no numbers:
    they would be found within others, 1 in 417."""
    import tokenizers

    words = {"pad": PAD, "end": 1} | {str(i): i for i in range(2, vocabulary)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="pad"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="pad", eos_token="end")


def written(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens)) + " "


# --- Sampling and scoring -------------------------------------------------------------------------------------


class _Ends(StoppingCriteria):
    """Each row of a batch ends after a number of new tokens of its own."""

    def __init__(self, prompt: int, limits: Sequence[int]):
        self._ends = prompt + torch.tensor(limits)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return input_ids.shape[1] >= self._ends


def generated(model, prompts: list[list[int]], limits: list[list[int]], rows: int, **sampling) -> int:
    """Answers by `generate`, for each prompt as many as it has limits, each of so many tokens, in batches of like
    prompts of about `rows` answers. Returns how many tokens were written."""
    count, made = len(limits[0]), 0
    with torch.inference_mode():
        for batch in by_length(
            list(zip(prompts, limits, strict=True)), max(1, rows // count), lambda x: len(x[0])
        ):
            ids = padded([prompt for prompt, _ in batch], left=True)
            wanted = [limit for _, own in batch for limit in own]
            out = model.generate(
                ids,
                attention_mask=(ids != PAD).long(),
                max_new_tokens=max(wanted),
                num_return_sequences=count,
                stopping_criteria=StoppingCriteriaList([_Ends(ids.shape[1], wanted)]),
                pad_token_id=PAD,
                eos_token_id=None,
                **sampling,
            )
            assert out.shape == (len(wanted), ids.shape[1] + max(wanted))
            made += sum(wanted)
    return made


def scored(model, groups: list[tuple[list[int], list[list[int]]]]) -> float:
    """The mean log-likelihood of endings: contexts of like length are read as a batch, once, and their endings as
    a batch after them."""
    sums = []
    with torch.inference_mode():
        for batch in by_length(groups, 8, lambda group: len(group[0])):
            count = len(batch[0][1])
            contexts, endings = padded([c for c, _ in batch], left=True), [e for _, own in batch for e in own]
            seen, ids = (contexts != PAD).long(), padded(endings)
            places = (seen.cumsum(1) - 1).clamp(min=0)
            begun = model(contexts, attention_mask=seen, position_ids=places, use_cache=True, logits_to_keep=1)
            begun.past_key_values.batch_repeat_interleave(count)
            seen = torch.cat([seen.repeat_interleave(count, 0), torch.ones_like(ids)], 1)
            places = places[:, -1:].repeat_interleave(count, 0) + 1 + torch.arange(ids.shape[1])
            after = model(ids, attention_mask=seen, position_ids=places, past_key_values=begun.past_key_values)
            logits = torch.cat([begun.logits.repeat_interleave(count, 0), after.logits[:, :-1]], 1)
            logps = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
            sums += (logps * (ids != PAD)).sum(1).tolist()
    return statistics.mean(sums)
