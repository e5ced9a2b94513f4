"""Peak memory of reading a checkpoint straight onto the devices of several processes.

    python benchmarks/loading.py [--layers 16] [--hidden 2048] [--processes 1,2,4] [--mesh fsdp=8]

A stand-in of Llama's shapes (bfloat16, several safetensors files) is written as files with holes, which cost no
disk. It is read onto eight simulated devices, by one process that has them all, by two with four each, and so on;
what a device holds is memory of its process, so each of N processes has to hold one Nth of the model. A line for
each number of processes: the model's size, and the largest peak of a process above what it had before it read
(`resource.getrusage`), as a share of the model. The last line is JSON.
"""

import argparse
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
DEVICES = 8
CHILD = """
import json, resource, sys
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp
if {count} > 1:
    jax.distributed.initialize({place!r}, {count}, {number})
from common.model import hf, meshes, sharding
config = hf.load_config({folder!r})
mesh = sharding.make_mesh(**meshes.parse({mesh!r}))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
params = jax.block_until_ready(hf.load_params({folder!r}, config, dtype=jnp.bfloat16, mesh=mesh))
held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print(json.dumps([before, peak(), held]), flush=True)
if {count} > 1:
    jax.distributed.shutdown()
"""


def shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Of Llama 3: names and sizes of its tensors."""
    narrow, wide, vocabulary = hidden // 4, hidden * 7 // 2, 128_256
    found = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    found["model.norm.weight"] = (hidden,)
    for i in range(layers):
        of = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in of.items()}
    return found


def write(folder: pathlib.Path, layers: int, hidden: int) -> int:
    """The stand-in; returns its size in bytes."""
    config = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": hidden, "num_hidden_layers": layers}
    config |= {"intermediate_size": hidden * 7 // 2, "num_attention_heads": hidden // 64}
    config |= {"num_key_value_heads": hidden // 256, "max_position_embeddings": 8192, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors, parts, weight_map, total = list(shapes(layers, hidden).items()), 4, {}, 0
    for part in range(parts):
        file, header, at = f"model-{part + 1:05}-of-{parts:05}.safetensors", {}, 0
        for name, shape in tensors[part::parts]:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at, weight_map[name] = at + size, file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + at)
        total += at
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def peaks(folder: pathlib.Path, count: int, mesh: str) -> list[list[int]]:
    """Of each process: its peak before and after reading, and what its devices hold, in bytes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
    values = {"root": str(ROOT), "folder": str(folder), "mesh": mesh, "place": place, "count": count}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD.format(**values, number=number)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), "a process failed"
    # Gloo writes to the same stream.
    return [json.loads(text[text.rindex("[") :]) for text in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--mesh", default="fsdp=8")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        size = write(pathlib.Path(place), asked.layers, asked.hidden)
        for count in map(int, asked.processes.split(",")):
            found = peaks(pathlib.Path(place), count, asked.mesh)
            row = {"processes": count, "model_gb": round(size / 1e9, 2)}
            row["held_of_model"] = round(max(held for _, _, held in found) / size, 3)
            row["peak_above_start_of_model"] = round(max(after - before for before, after, _ in found) / size, 3)
            row["peak_gb"] = round(max(after for _, after, _ in found) / 1e9, 2)
            print(row)
            rows.append(row)
    print(json.dumps({"mesh": asked.mesh, "rows": rows}))


if __name__ == "__main__":
    main()
