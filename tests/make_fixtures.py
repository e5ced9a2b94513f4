"""Make the tiny checkpoints in tests/fixtures and their logits, and check what we write. Development only.

Needs PyTorch, which nothing else in the project does (`adapters` also PEFT and TRL, in 0.21 and 1.16; `harness`
also lm-eval 0.4.13):

    python tests/make_fixtures.py make      # writes the checkpoints in tests/fixtures
    python tests/make_fixtures.py adapters  # writes adapters for two of them, dpo.npz and rmsprop.npz
    python tests/make_fixtures.py harness   # writes harness.json: answers of lm_eval's own model to requests
    python tests/make_fixtures.py check     # logits of checkpoints and adapters saved by us, against the fixtures

Each fixture is a random model of 32 hidden dimensions with a `golden.npz`: token ids (2, 24) and the float32
logits that transformers computes for them in PyTorch's eager mode. An adapter's folder is as PEFT wrote it, with a
`golden.npz` of token ids (1, 24) and logits.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent
FIXTURES = ROOT / "fixtures"
SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MODELS = {  # name: model type, weights' dtype, settings
    "llama2": ("llama", "float32", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama3": (
        "llama",
        "float32",
        {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {  # with these numbers one frequency is kept, one smoothed, the others divided
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama_linear": (
        "llama",
        "float16",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama_sharded": ("llama", "bfloat16", {"num_hidden_layers": 3}),
    "mistral": ("mistral", "float32", {"head_dim": 16, "sliding_window": 7}),
    "qwen2": ("qwen2", "float32", {"tie_word_embeddings": True, "num_attention_heads": 8}),
    "qwen2_windows": (
        "qwen2",
        "float32",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", "float32", {"head_dim": 16, "tie_word_embeddings": True}),
}
ADAPTERS = {  # name: base, and the settings of peft.LoraConfig
    "adapter_qwen2": (
        "qwen2",
        {
            "r": 3,
            "lora_alpha": 7,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        },
    ),
    "adapter_mistral": ("mistral", {"r": 2, "lora_alpha": 2, "target_modules": ["v_proj", "down_proj"]}),
}
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' + message['role']) }}{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def make() -> None:
    """Write every fixture anew."""
    import torch
    import transformers

    for number, (name, (model_type, dtype, settings)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        config = transformers.AutoConfig.for_model(model_type, **SMALL | settings)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for path, weight in model.named_parameters():
            with torch.no_grad():
                weight.copy_(_random(path, weight))
        model = model.to(getattr(torch, dtype))
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="20KB" if name == "llama_sharded" else "5GB")
        # Read again, since `to` has rounded the rotary frequencies too.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        tokens = np.random.default_rng(number).integers(3, 128, (2, 24)).astype(np.int32)
        with torch.no_grad():
            logits = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=logits)
        print(name, sum(p.numel() for p in model.parameters()), f"logits' deviation {logits.std():.2f}")
    _publish_as_of_old()
    for name in ("llama2", "qwen2"):
        _make_tokenizer(FIXTURES / name, chat=name == "qwen2")


def _random(path: str, weight):
    import torch

    noise = torch.randn(weight.shape)
    if "norm" in path:
        return 1 + 0.3 * noise
    if "bias" in path:
        return 0.5 * noise
    return noise if "embed" in path else 0.2 * noise


def _publish_as_of_old() -> None:
    """Give two configs the form of files published before transformers 5."""
    file = FIXTURES / "llama3" / "config.json"
    config = json.loads(file.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config, indent=2) + "\n")
    file = FIXTURES / "qwen2_windows" / "config.json"
    config = json.loads(file.read_text())
    del config["layer_types"]
    file.write_text(json.dumps(config, indent=2) + "\n")


def _make_tokenizer(folder: pathlib.Path, chat: bool) -> None:
    """Byte-level BPE of 128 tokens over printable ASCII. Without `chat`: no template, and BOS before each text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "the answer of the question is that one and one make two, and so on and on, then there is another"
    alphabet = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=128, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text] * 4, trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>" if chat else "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    if chat:
        settings["chat_template"] = CHAT_TEMPLATE
        generation = {"eos_token_id": [4, 2], "pad_token_id": 0}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _load(name: str):
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / name, dtype=torch.float32, attn_implementation="eager"
    )


def adapters() -> None:
    """Write PEFT's adapters, TRL's losses and gradients with one of them, and updates of PyTorch's RMSprop."""
    import peft
    import torch

    for number, (name, (base, settings)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(number)
        model = peft.get_peft_model(_load(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        for path, weight in model.named_parameters():
            if "lora_" in path:
                with torch.no_grad():
                    weight.copy_(0.2 * torch.randn(weight.shape))
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text()) | {"base_model_name_or_path": base}
        config["target_modules"].sort()  # a set in PEFT
        file.write_text(json.dumps(config, indent=2) + "\n")
        tokens = np.random.default_rng(number).integers(3, 128, (1, 24)).astype(np.int32)
        with torch.no_grad():
            logits = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=logits)
        print(name, f"logits' deviation {logits.std():.2f}")
    _make_dpo("adapter_qwen2")
    _make_rmsprop()


def _make_dpo(name: str) -> None:
    """What TRL's DPOTrainer computes for five pairs. The policy is an adapter on its base, the reference the base:
    once with gradients of the adapter, once merged with gradients of the weights."""
    import datasets
    import peft
    import transformers
    import trl

    base = ADAPTERS[name][0]
    rng = np.random.default_rng(7)
    sizes = {"prompt_ids": (4, 9, 1, 12, 6), "chosen_ids": (5, 2, 8, 1, 20), "rejected_ids": (3, 7, 8, 15, 1)}
    pairs = [{part: rng.integers(3, 128, counts[i]).tolist() for part, counts in sizes.items()} for i in range(5)]
    saved = {f"{part}_{i}": np.array(ids, np.int32) for i, pair in enumerate(pairs) for part, ids in pair.items()}
    rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])  # only to construct it
    for loss_type in ("sigmoid", "sigmoid_norm"):
        for kind in ("adapter", "full"):
            model = peft.PeftModel.from_pretrained(_load(base), FIXTURES / name, is_trainable=True)
            if kind == "full":
                model = model.merge_and_unload()
                for weight in model.parameters():
                    weight.requires_grad_(True)
            with tempfile.TemporaryDirectory() as scratch:
                trainer = trl.DPOTrainer(
                    model,
                    ref_model=_load(base),
                    args=trl.DPOConfig(
                        scratch,
                        beta=0.1,
                        loss_type=[loss_type],
                        max_length=None,
                        use_cpu=True,
                        bf16=False,
                        report_to=[],
                        gradient_checkpointing=False,
                    ),
                    train_dataset=rows,
                    processing_class=transformers.AutoTokenizer.from_pretrained(FIXTURES / base),
                )
                inputs = trainer.data_collator(pairs)
                loss = trainer.compute_loss(trainer.model, inputs)
                loss.backward()
                for role, other in (("policy", trainer.model), ("reference", trainer.ref_model)):
                    logps = trainer.compute_ref_log_probs(other, inputs)
                    saved[f"{role}_logps"] = np.stack([x.detach().numpy() for x in logps], axis=1)
            wanted = {
                "adapter": ("0.self_attn.q_proj.lora_A", "1.self_attn.o_proj.lora_B", "1.mlp.down_proj.lora_A"),
                "full": ("0.self_attn.k_proj.weight", "0.self_attn.v_proj.bias", "1.mlp.up_proj.weight", "norm"),
            }[kind]
            for path, weight in trainer.model.named_parameters():
                if any(part in path for part in wanted) and "layernorm" not in path:
                    saved[f"{loss_type}/{kind}/{path}"] = weight.grad.numpy()
            saved[f"{loss_type}/{kind}/loss"] = loss.detach().numpy()
            print(loss_type, kind, loss.item())
    np.savez_compressed(FIXTURES / "dpo.npz", **saved)
    print({key: value.shape for key, value in saved.items() if "/" in key})


def _make_rmsprop() -> None:
    """Four updates of torch.optim.RMSprop with its defaults, on gradients of very different sizes."""
    import torch

    rng = np.random.default_rng(3)
    start = rng.normal(size=8).astype(np.float32)
    gradients = (rng.normal(size=(4, 8)) * 10.0 ** rng.integers(-9, 1, (4, 8))).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.RMSprop([weight], lr=0.01)
    weights = []
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        weights.append(weight.detach().numpy().copy())
    np.savez_compressed(FIXTURES / "rmsprop.npz", start=start, gradients=gradients, weights=np.stack(weights))


def harness() -> None:
    """What lm_eval's own model for transformers gives for requests of its three kinds, one at a time, in float32:
    for a model with a chat template and no start token, and for one with a start token before each text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    scored = [
        ("Question: Tom has 3 pears.\nAnswer:", " 12."),
        ("A blank at the end ", "of the context"),
        ("The end of the word is not the end of the tok", "en, says Zoe"),
        ("", "A text by itself."),
        ("word " * 700, "and the end"),
        ("Once upon a time", ", there was a little girl named Lily."),
    ]
    generated = [
        ("Tom has 3 pears and gets 4 more. How many has he?", {"until": [".", "\n\n"], "max_gen_toks": 48}),
        ("So", {"until": [], "max_gen_toks": 6}),
        ("word " * 700 + "Once upon", {"until": ["\n"], "max_gen_toks": 24}),
        ("Write a story about a fox.", {"until": ["<|reply|>", "</s>"], "max_gen_toks": 32}),
    ]
    chat = [
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 2 and 2?"}],
        [{"role": "user", "content": "What is 2 and 2?"}, {"role": "assistant", "content": "The answer is"}],
    ]
    rolling = ["So", "The fox sat by the river.", "Once there was a fox. " * 120]
    models, found = {"student": ROOT.parent / "common" / "embedded" / "student", "llama2": FIXTURES / "llama2"}, {}
    for name, folder in models.items():
        lm = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)

        def ask(kind, requests, lm=lm):
            instances = [Instance(request_type=kind, doc={}, arguments=arguments, idx=0) for arguments in requests]
            return getattr(lm, kind)(instances)

        own = [*scored]
        if lm.tokenizer.chat_template:  # what the model says itself is greedy
            prompt = lm.apply_chat_template(chat[0])
            own += [(prompt, ask("generate_until", [(prompt, {"until": [], "max_gen_toks": 12})])[0])]
        logps = ask("loglikelihood", own)
        sums = ask("loglikelihood_rolling", [(text,) for text in rolling])
        found[name] = {
            "loglikelihood": [
                [*pair, round(logp, 5), greedy] for pair, (logp, greedy) in zip(own, logps, strict=True)
            ],
            "loglikelihood_rolling": [[text, round(logp, 5)] for text, logp in zip(rolling, sums, strict=True)],
            "generate_until": [
                [*r, text] for r, text in zip(generated, ask("generate_until", generated), strict=True)
            ],
            "chat": [
                [turns, turns[-1]["role"] == "user", lm.apply_chat_template(turns, turns[-1]["role"] == "user")]
                for turns in chat
                if lm.tokenizer.chat_template
            ],
        }
    (FIXTURES / "harness.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def check() -> None:
    """Load each fixture, save it, and compare the logits of the saved folder with the golden ones."""
    sys.path.insert(0, str(ROOT.parent))
    import peft
    import torch
    import transformers

    from common.model import hf, lora

    worst = 0.0
    for name in MODELS:
        source = FIXTURES / name
        golden = np.load(source / "golden.npz")
        config = hf.load_config(source)
        with tempfile.TemporaryDirectory() as scratch:
            folder = hf.save(pathlib.Path(scratch) / name, hf.load_params(source, config), source)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, attn_implementation="eager"
            )
        assert model.dtype == torch.float32, model.dtype
        problems = {key: value for key, value in report.items() if value}
        assert not problems, f"{name}: {problems}"
        with torch.no_grad():
            logits = model(torch.tensor(golden["tokens"], dtype=torch.long)).logits.numpy()
        difference = float(np.abs(logits - golden["logits"]).max())
        worst = max(worst, difference)
        print(f"{name}: {difference:.1e}")
    for name, (base, _) in ADAPTERS.items():
        golden = np.load(FIXTURES / name / "golden.npz")
        config = hf.load_config(FIXTURES / base)
        plain = hf.load_params(FIXTURES / base, config)
        params, config = lora.load_adapter(FIXTURES / name, plain, config)
        with tempfile.TemporaryDirectory() as folder:
            lora.save_adapter(folder, params, config, base)
            model = peft.PeftModel.from_pretrained(_load(base), folder)
        with torch.no_grad():
            logits = model(torch.tensor(golden["tokens"], dtype=torch.long)).logits.numpy()
            merged = model.merge_and_unload()(torch.tensor(golden["tokens"], dtype=torch.long)).logits.numpy()
        difference = float(np.abs(logits - golden["logits"]).max())
        worst = max(worst, difference)
        print(f"{name}: {difference:.1e}, merged {np.abs(merged - golden['logits']).max():.1e}")
    print(f"largest difference {worst:.1e}")
    assert worst <= 5e-5  # the rounding of another CPU than made the fixtures; of the same one: 1e-6


if __name__ == "__main__":
    {"make": make, "adapters": adapters, "harness": harness, "check": check}[sys.argv[1]]()
