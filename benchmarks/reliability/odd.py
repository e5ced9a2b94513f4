"""Tables of odd values, for `fuzz.py`: what flags, cells, files, settings of checkpoints, templates and functions
of a user's own should be met with."""

import math

NEVER = ("nan", "inf", "-inf", "1e400", "half \udcff character")
"""What no flag of numbers, and in the last case none at all, can mean."""
NUMBERS = (
    *"0 -1 1 2 1e308 -0.0 1e-320 10**9 0x10 1_000 ١٢ None true 1,5 ½".split(),
    *("9" * 30, "9" * 5000, " 3 ", ""),
)
TEXTS = (
    *("", " ", "\n", "a\nb", "\x00", "\x1b[31mred", "\u202eabc", "\ufeff"),
    *("x" * 300, "x" * 100_000, "a/" * 2000 + "a", "data=-1,fsdp=3"),
    *"--help - ../.. / /dev/null /dev/zero ~ ~nobody/x . .. con héllo 日本 {} %s % a=b = a= none None 1".split(),
    *"file:// gs:// http://[::1/v1 http://a:b@c:99999/ openai: openai:m python: python:x.py python:x.py:".split(),
    *"python:score.py:nothing pool: embedded: embedded:nobody embedded smollm2 a/b a/b/c + embedded+ +x".split(),
    *"a+b+c hf: hf:x lexicon: column: column:a:b perspective: words>= words>=nan words<=-1 mtld:max".split(),
    *"mtld:target= mtld:target=nan :max mtld: calls=1 calls=-1 calls=1e9 usd=nan calls= 0.1,0.2 nan,1".split(),
    *"data=2 data=0 data=x".split(),
)
CELLS = (
    *(None, "", " ", 0, -1, 1.5, math.nan, math.inf, True, [], {}, [1], {"a": 1}, [[[[]]]], 10**400, "1e999"),
    *("\ud800", "\x00", "\u202e", "x" * 50_000, "é" * 300, "a\nb", "#### 5", "<|im_end|>", "</s>", "{% raw %}"),
)
RAW = (
    *(
        b"",
        b"\n",
        b" \n\n",
        b"\x00",
        b"\r\r\r",
        b"{}",
        b"[]",
        b"[{}]",
        b"null",
        b"1",
        b'"x"',
        b"{",
        b"{}{}",
        b"[[]]",
    ),
    *(b'{"a": NaN}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 50_000),
    *(
        b'{"\\ud800": 1}\n',
        b"\xff\xfe\x00",
        b"\xef\xbb\xbf{}\n",
        "é".encode("latin-1") * 20,
        "text".encode("utf-16"),
    ),
    *(b"a,b\n1,2,3\n", b"a,a\n1,2\n", b'a,b\n"1,2\n', b'a\tb\n"1\t2\n', b"a;b\n1;2\n", b"x" * 1_000_000),
    *(
        b"PAR1",
        b"PAR1" + b"\x00" * 50 + b"PAR1",
        b"\x80\x04\x95.",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"GGUF\x03\0\0\0",
    ),
    *(b"a: &x [*x]\n", b"a: !!python/object/apply:os.system [true]\n", b"- a\n- b\n", b"a: {b: [c, d}\n"),
    *(b"? {a: b}\n: c\n", b"a: 2026-01-01\n", b"%YAML 9.9\n---\na: 1\n"),
)
SETTINGS = (
    *(0, 1, 2, 3, 7, -5, 1e9, 2**31, 2**63, "float8", "relu6", "linear", ["x"], [1, 2, 3]),
    *({"rope_type": "x"}, {"rope_type": "yarn", "factor": -1}),
)
FIELDS = tuple(
    (
        "model_type architectures vocab_size hidden_size num_hidden_layers num_attention_heads "
        "num_key_value_heads head_dim intermediate_size max_position_embeddings rms_norm_eps rope_theta "
        "rope_scaling rope_parameters tie_word_embeddings hidden_act sliding_window layer_types "
        "attention_bias quantization_config auto_map dtype torch_dtype eos_token_id bos_token_id pad_token_id "
        "is_causal chat_template tokenizer_class added_tokens_decoder num_experts num_local_experts "
        "num_experts_per_tok r lora_alpha target_modules peft_type base_model_name_or_path use_dora "
        "weight_map model_max_length extra_special_tokens "
    ).split()
)
"""Of configurations of models, tokenizers and adapters."""
FAULTS = (
    *("raise ValueError('no')", "raise SystemExit(0)", "import sys; sys.exit('bye')", "raise KeyboardInterrupt"),
    *("raise RecursionError", "raise OSError(28, 'No space left on device')", "raise BrokenPipeError"),
    *("raise GeneratorExit", "raise type('Bare', (BaseException,), {})", "raise KeyboardInterrupt.__base__"),
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
    *("raise ValueError('a\\nb' * 400)", "return None", "return 3", "return 'x'"),
    *("return float('nan')", "return float('inf')", "return ['a', 1]", "return b'x'", "return '\\ud800'"),
    *("return 'x' * 10**6", "return object()", "return {}", "return True", "return -1", "return []", "yield 1"),
    "print('x' * 400); return ''",
)
"""What a function of a user's own may do."""
NO_TASKS = ("None", "3", "type", "object()", "print")
PIECES = (
    *("{{ messages[0]['content'] }}", "{% for m in messages %}", "{% endfor %}", "{{ m['role'] }}"),
    *("{{ bos_token }}", "{{ eos_token }}", "{% if add_generation_prompt %}", "{% endif %}", "{{ 1/0 }}"),
    *("{{ raise_exception('no') }}", "{{ x.y.z }}", "{% generation %}", "{% endgeneration %}", "{{ m.content }}"),
    *("{% set ns = namespace(x=1) %}", "{{ range(10**9) | list | length }}", "{% break %}", "{{ '' * 5 }}"),
    *("{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    *("<|im_start|>", "text", "{{ messages[-1]['content'][:3] }}", "{{ m['content'] | upper }}"),
    *("{{ messages[5] }}", "{{ messages | tojson }}", "{{ strftime_now('%Y') }}", "{#", "{{", "{{ tools }}"),
)
"""Of chat templates."""
