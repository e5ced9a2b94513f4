"""NaN and infinity, put into everything that is computed: a run stops, names what and where, and keeps what was
good.

    python benchmarks/reliability/nan.py --seed 1

Each row puts one bad number in one place of a small run: into weights in their file, in memory and after the last
update; into a loss, a gradient, the likelihoods that preferences are measured against; into logits of sampling,
scores of likelihood, hidden states; into rewards, scores, log-probabilities and replies of functions of the
user's. The run must end with status 2 and one line that names it, or, where a user's function gives no score, go
on and warn of it, without NaN or infinity in any file; where a training has a last good state it must be there;
and the same command without the bad number must end well from what was kept."""

import math
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import proof
from proof import ROOT, lines_of

BAD = {"NaN": math.nan, "infinity": math.inf, "-infinity": -math.inf}


def spoil_file(folder: pathlib.Path, tensor: str, value: float) -> None:
    """Put `value` into the middle of a tensor of a checkpoint."""
    from safetensors.numpy import load_file, save_file

    file = next(folder.glob("*model.safetensors"))
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    name = next(name for name in sorted(tensors) if tensor in name)
    tensors[name].reshape(-1)[tensors[name].size // 2] = value
    save_file(tensors, file, metadata={"format": "pt"})


def in_loss(value: float) -> None:
    """The weight of an answer's tokens, with which the loss is a sum of products, in the fourth update."""
    from common.train import loop

    batches = loop.batches

    def spoilt(*given: Any, first_step: int, **named: Any) -> Any:
        for step, parts in enumerate(batches(*given, first_step=first_step, **named), start=first_step):
            for part in parts if step == 3 else ():
                part.weight[:] = value
            yield parts

    loop.batches = spoilt


def in_gradient(value: float) -> None:
    """What an update measures of its gradient, from the fourth on."""
    import jax.numpy as jnp

    from common.train import loop

    update, count = loop.update, [0]

    def spoilt(trained: Any, state: Any, *given: Any, **named: Any) -> Any:
        count[0] += 1
        trained, state, measured = update(trained, state, *given, **named)
        return trained, state, measured | ({"gradient_norm": jnp.float32(value)} if count[0] > 3 else {})

    loop.update = spoilt


def in_weights(value: float) -> None:
    """One weight of the first layer of every model that is read, after its file was found good."""
    from common.model import hf

    load = hf.load_params

    def spoilt(*given: Any, **named: Any) -> Any:
        params = load(*given, **named)
        layer = params["layers"][0]
        name = sorted(name for name in layer if layer[name].ndim > 1)[0]
        return params | {"layers": [layer | {name: layer[name].at[0, 0].set(value)}, *params["layers"][1:]]}

    hf.load_params = spoilt


def after_training(value: float) -> None:
    """One weight of what a training gives."""
    from common.train import loop

    optimise = loop.optimise

    def spoilt(*given: Any, **named: Any) -> Any:
        params = optimise(*given, **named)
        return params | {"embed": params["embed"].at[5, 3].set(value)}

    loop.optimise = spoilt


def in_reference(value: float) -> None:
    """A log-probability of the reference that DPO compares with."""
    from common.train import preference

    found = preference.score_shared

    def spoilt(*given: Any, **named: Any) -> Any:
        table = found(*given, **named)
        table[0][0] = np.full_like(table[0][0], value)
        return table

    preference.score_shared = spoilt


def in_hidden(value: float) -> None:
    """Hidden states that texts are compared by."""
    from common.sample import embed

    found = embed._embed_batch
    embed._embed_batch = lambda *given: found(*given).at[0, 0].set(value)


Case = tuple[str, str, list[str], dict[str, str], Callable[[float], None] | None, str]


def cases(value: float) -> list[Case]:
    """(what, method, words, files, what is done to the process, what the message must name)."""
    code = (
        f"BAD = float('{value}')\n\n\ndef score(prompt, answer):\n    return BAD\n\n\ndef scores(texts):\n    "
        f"return [BAD for _ in texts]\n\n\ndef judge(query, answer):\n    from reversegen.judge import "
        f"Verdict\n    return Verdict('fail', score=BAD)\n\n\ndef answer(messages):\n    return 'A story.'\n"
    )
    llm, llm_files = proof.small("llm2llm", "base,fine-tune")
    few = [*llm, "--rounds", "1"]
    own = "--task own --judge python:bad.py:judge --labeler python:bad.py:answer".split()
    rev, rev_files = proof.small("reversegen")
    asked = {
        "seeds.jsonl": lines_of([{"text": f"Tell me a story about number {i}."} for i in range(30)]),
        "test.jsonl": lines_of([{"text": "a story"}, {"text": "b"}]),
    }
    pool = {
        "pool.jsonl": lines_of(
            [{"prompt": f"Name {i} birds.", "outputs": [f"{i} robins", "one wren and two"]} for i in range(6)]
        )
    }
    select = "active-inheritance --pool pool.jsonl --min-words 0 --select-only".split()
    profile, profile_files = proof.small("profile")
    rows: list[Case] = [
        (
            "weights in a file",
            "llm2llm",
            [*few, "--student", "model"],
            llm_files,
            None,
            "holds NaN or infinity",
        ),
        (
            "weights of an adapter's file",
            "llm2llm",
            [*few, "--student", "base+adapter"],
            llm_files,
            None,
            "holds NaN or infinity",
        ),
        ("weights in memory, sampled", "profile", profile, profile_files, in_weights, "log-probabilities"),
        (
            "weights in memory, trained",
            "llm2llm",
            [*proof.small("llm2llm", "fine-tune")[0], "--rounds", "1"],
            llm_files,
            in_weights,
            "at update 1 of",
        ),
        (
            "weights after a training",
            "llm2llm",
            few,
            llm_files,
            after_training,
            "the training gave NaN or infinity in",
        ),
        ("loss", "llm2llm", [*few, "--epochs", "9"], llm_files, in_loss, "at update 4 of"),
        ("gradient", "llm2llm", [*few, "--epochs", "9"], llm_files, in_gradient, "at update 4 of"),
        (
            "log-probabilities of DPO's reference",
            "reversegen",
            rev,
            rev_files,
            in_reference,
            "log-probabilities of the reference",
        ),
        ("hidden states", "reversegen", [*rev, "--semantic", "0.98"], rev_files, in_hidden, "hidden states"),
        ("rewards of a judge", "reversegen", [*rev, *own], asked, None, "bad.py"),
        (
            "scores of a metric",
            "active-inheritance",
            [*select, "--objective", "python:bad.py:score:max"],
            pool,
            None,
            "bad.py",
        ),
        (
            "scores of toxicity",
            "profile",
            [*profile, "--toxicity-scorer", "python:bad.py:scores"],
            profile_files,
            None,
            "bad.py",
        ),
        (
            "scores in a file",
            "active-inheritance",
            [*select, "--objective", "column:s:max"],
            {
                "pool.jsonl": lines_of(
                    [{"prompt": f"p{i}", "outputs": ["a", "b b"], "s": [value, value]} for i in range(4)]
                )
            },
            None,
            "column",
        ),
    ]
    return [
        (what, method, words, files | {"bad.py": code}, spoil, says)
        for what, method, words, files, spoil, says in rows
    ]


def prepare(folder: pathlib.Path, value: float) -> None:
    """The checkpoints that words of cases name."""
    shutil.copytree(ROOT / "common/embedded/student", folder / "model")
    spoil_file(folder / "model", "layers.1", value)
    shutil.copytree(ROOT / "tests/fixtures/qwen2", folder / "base")
    shutil.copytree(ROOT / "tests/fixtures/adapter_qwen2", folder / "adapter")
    spoil_file(folder / "adapter", "lora_B", value)


def holds_bad(folder: pathlib.Path) -> list[str]:
    """Files of a run that hold NaN or infinity: JSON in any form, tensors."""
    import numpy as np
    from safetensors.numpy import load_file

    found = []
    for file in (file for file in folder.rglob("*") if file.is_file()):
        if file.suffix in (".json", ".jsonl", ".part") and re.search(rb"\b(NaN|-?Infinity)\b", file.read_bytes()):
            found.append(file.name)
        if file.suffix == ".safetensors" and not all(
            np.isfinite(a.astype(np.float32)).all() for a in load_file(file).values()
        ):
            found.append(file.name)
    return found


def stop(case: Case, value: float, folder: pathlib.Path) -> list[str]:
    """What is wrong with how the run of a case ends, and with the one after it."""
    what, _, words, files, spoil, says = case
    proof.write(proof.cleared(folder), files)
    prepare(folder, value)
    words = [*words, "--run-dir", "out"]
    outcome = proof.forked(words, folder, before=None if spoil is None else lambda: spoil(value))
    faults = proof.faults(outcome)
    last = (outcome.err.strip().splitlines() or [""])[-1]
    if outcome.code == 0 and what.startswith("scores"):
        # To a score that is not there a run is used: it goes on without, and must say so.
        said = [line for line in outcome.out.splitlines() if "warning" in line]
        faults += [] if any("score" in line for line in said) else [f"no warning: {said}"]
        return faults + [f"{name} holds it" for name in holds_bad(folder / "out")]
    if outcome.code != 2:
        faults.append(f"status {outcome.code}: {last[:200]}")
    elif says not in last:
        faults.append(f"it does not name {says!r}: {last[:300]}")
    if (folder / "out").exists():
        faults += [f"{name} holds it" for name in holds_bad(folder / "out")]
        if (folder / "out/summary.json").exists():
            faults.append("there is a summary")
    if what in ("loss", "gradient") and not list(folder.glob("out/**/training_state/*")):
        faults.append("the last good state is not kept")
    if spoil is not None and value is BAD["NaN"]:
        again = proof.forked(words, folder)
        if again.code != 0:
            faults.append(f"the same command without it: status {again.code}: {again.err[-200:]}")
    return faults


def main() -> None:
    args = proof.arguments(__doc__, ("--only", {"help": "a part of what is spoilt"}))
    proof.warm_up()
    rows, found = [], {}
    with proof.place(args.keep) as made:
        for name, value in BAD.items():
            for case in cases(value):
                if args.only is None or args.only in case[0]:
                    faults = stop(case, value, made / "case")
                    rows.append((case[0], name, case[1], "; ".join(faults) or "stopped and named"))
                    print(rows[-1], file=sys.stderr)
                    found |= {f"{case[0]}, {name}": faults} if faults else {}
    result = {"seed": args.seed, "cases": len(rows), "found": found, "faults": len(found)}
    proof.tell("nan" if args.only is None else "nan_part", rows, ("spoilt", "by", "method", "outcome"), result)


if __name__ == "__main__":
    main()
