"""One process for long: many shapes of models, and a run of many rounds, in memory that does not grow.

    python benchmarks/reliability/long_life.py --shapes 300 --rounds 50 --seed 1

Every shape is drawn, trained for an update, sampled from and scored with, between calls of `common.runtime.tidy`,
as runs make them; compiled programs must be freed in time. The run is a small one of LLM2LLM in a fork, whose
memory is read while it works. Memory is flat where the highest of the last third is not above that of the third
before it by more than a twentieth.
"""

import json
import os
import pathlib
import random
import sys
import time

import proof

SLACK = 1.05


def resident(process: int) -> int:
    """Megabytes of main memory."""
    try:
        pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def shapes(count: int, seed: int) -> list[int]:
    """Megabytes after every shape; in a fork, as this process is to start no jax."""
    # Programs that are compiled in less time; there are as many of them.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    import jax

    from common import runtime
    from common.config import ModelConfig, SampleConfig, TrainConfig
    from common.model.decoder import init
    from common.sample.prompt import Prompt
    from common.sample.sampler import Sampler
    from common.sample.score import score
    from common.train.data import Encoded
    from common.train.loop import fine_tune

    rng, seen, found = random.Random(seed), set(), []
    while len(seen) < count:
        heads, layers = rng.choice((1, 2, 3, 4)), rng.randint(1, 2)
        shape = (rng.randrange(16, 200), 8 * heads, rng.randrange(8, 80, 2), layers, heads)
        if shape in seen:
            continue
        seen.add(shape)
        vocabulary, hidden, inner, layers, heads = shape
        config = ModelConfig("llama", vocabulary, hidden, inner, layers, heads, 1, 8, 64, tied_head=True)
        params = init(config, jax.random.key(len(seen)))
        params = fine_tune(
            params,
            config,
            [Encoded((1, 2, 3), 1)],
            TrainConfig(batch_size=1, micro_batch_size=1),
            pad_id=0,
            steps=1,
        )
        Sampler(params, config, eos_ids=[0], slots=1, block=2).sample([Prompt([1, 2], SampleConfig(4))])
        score(params, config, [([1], [2, 3])], 1)
        runtime.tidy()
        found.append(resident(os.getpid()))
        if len(seen) % 10 == 0:
            print(f"{len(seen)} shapes: {found[-1]} MB", file=sys.stderr, flush=True)
    return found


def rounds(count: int, folder: pathlib.Path) -> list[int]:
    """Megabytes at the end of every round of a run."""
    words, files = proof.small("llm2llm", "llm2llm")
    proof.write(folder, files)
    words += f"--rounds {count} --patience {count} --per-wrong 1 --epochs 1 --run-dir run".split()
    import kills

    child = os.fork()
    if not child:
        proof.run(words, folder, {}, [folder / "out", folder / "err"], None)
    found: dict[str, int] = {}
    while (code := kills.wait(child, 0.2)) is None:
        there = len(list(folder.glob("run/repeat_0/llm2llm/round_*")))
        found[str(there)] = max(found.get(str(there), 0), resident(child))
    if code != 0:
        raise SystemExit((folder / "err").read_text()[-2000:])
    return [megabytes for name, megabytes in found.items() if name != "0"]


def flat(megabytes: list[int]) -> bool:
    third = max(1, len(megabytes) // 3)
    return max(megabytes[-third:]) <= SLACK * max(megabytes[-2 * third : -third] or [0])


def in_fork(work, *given):
    """What `work` gives, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(writer, "w") as out:
                json.dump(work(*given), out)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0, "the process of the shapes failed"
    return json.loads(text)


def main() -> None:
    args = proof.arguments(
        __doc__, ("--shapes", {"type": int, "default": 300}), ("--rounds", {"type": int, "default": 50})
    )
    proof.warm_up()
    rows, result = [], {}
    with proof.place(args.keep) as made:
        for name, work, given in (
            ("shapes", shapes, (args.shapes, args.seed)),
            ("rounds", rounds, (args.rounds, made)),
        ):
            if not given[0]:
                continue
            start = time.monotonic()
            found = in_fork(work, *given) if work is shapes else work(*given)
            third = max(1, len(found) // 3)
            parts = [max(found[:third]), max(found[third : 2 * third] or [0]), max(found[2 * third :] or [0])]
            rows.append(
                (name, len(found), *parts, "flat" if flat(found) else "grows", f"{time.monotonic() - start:.0f} s")
            )
            result[name] = {"count": len(found), "highest_mb_by_thirds": parts, "flat": flat(found)}
    result |= {"seed": args.seed, "faults": sum(not one["flat"] for one in result.values())}
    proof.tell("long_life", rows, ("what", "count", "MB, first third", "second", "last", "", "took"), result)


if __name__ == "__main__":
    main()
