"""Prompts and training examples in token ids, with and without a chat template."""

import json
import pathlib
import shutil

import pytest

from common.errors import UserError
from common.model.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "one and two?"}]
BE_BRIEF = [{"role": "system", "content": "Be brief."}, *ASK]
IM_START, IM_END, EOS, BOS = 3, 4, 2, 1


@pytest.fixture
def chat(fixtures):
    return Tokenizer.load(fixtures / "qwen2")


@pytest.fixture
def plain(fixtures):
    return Tokenizer.load(fixtures / "llama2")


@pytest.fixture
def with_template(fixtures, tmp_path):
    """Loads the chat fixture with another template."""

    def load(template, **settings):
        folder = pathlib.Path(shutil.copytree(fixtures / "qwen2", tmp_path / "model"))
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template} | settings))
        return Tokenizer.load(folder)

    return load


def _shown(tokenizer, ids):
    """Text with special tokens, which `decode` leaves out."""
    return tokenizer._backend.decode(ids)


def test_a_prompt_is_the_chat_template_up_to_the_answer(chat):
    ids = chat.encode_prompt(BE_BRIEF)
    assert _shown(chat, ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none and two?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids[0] == IM_START


def test_an_example_is_prompt_answer_and_end_token(chat):
    ids, prompt_length = chat.encode_example(BE_BRIEF, "It is three.")
    assert ids[:prompt_length] == chat.encode_prompt(BE_BRIEF)
    assert _shown(chat, ids[prompt_length:]) == "It is three.<|im_end|>"  # without the template's newline
    assert ids[-1] == IM_END
    assert chat.decode(ids[prompt_length:]) == "It is three."


def test_without_a_template_turns_are_plain_paragraphs_after_bos(plain):
    ids = plain.encode_prompt(BE_BRIEF)
    assert _shown(plain, ids) == "<s>Be brief.\n\none and two?\nAnswer:"
    ids, prompt_length = plain.encode_example(BE_BRIEF, "three")
    assert ids[:prompt_length] == plain.encode_prompt(BE_BRIEF)
    assert _shown(plain, ids[prompt_length:]) == " three</s>"
    assert ids.count(BOS) == ids.count(EOS) == 1


def test_no_token_spans_the_border_between_prompt_and_answer(with_template):
    """Where a template ends the prompt in "th", the answer "e" may not join it to the token "the"."""
    tokenizer = with_template(
        "{{- messages[0]['content'] }}{%- if not add_generation_prompt %}{{- messages[1]['content'] }}{%- endif %}"
    )
    assert len(tokenizer.encode_prompt([{"role": "user", "content": "the"}])) == 1
    messages = [{"role": "user", "content": "th"}]
    ids, prompt_length = tokenizer.encode_example(messages, "e")
    assert ids[:prompt_length] == tokenizer.encode_prompt(messages)
    assert [_shown(tokenizer, [token]) for token in ids] == ["th", "e", "<|im_end|>"]


def test_a_refused_system_role_moves_into_the_first_user_turn(with_template):
    tokenizer = with_template(
        "{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{{- raise_exception('no system role') }}{%- endif %}"
        "{{- '[' + message['role'] + ']' + message['content'] + '</s>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"
    )
    ids, prompt_length = tokenizer.encode_example(BE_BRIEF, "three")
    assert ids[:prompt_length] == tokenizer.encode_prompt(BE_BRIEF)
    assert _shown(tokenizer, ids) == "[user]Be brief.\n\none and two?</s>[assistant]three</s>"


def test_a_system_text_that_a_template_drops_moves_into_the_first_user_turn(with_template):
    tokenizer = with_template(
        "{%- for message in messages %}{%- if message['role'] != 'system' %}"
        "{{- '[' + message['role'] + ']' + message['content'] }}{%- endif %}{%- endfor %}"
    )
    assert _shown(tokenizer, tokenizer.encode_prompt(BE_BRIEF)) == "[user]Be brief.\n\none and two?"


def test_an_answer_that_the_template_rewrites_entirely_is_taken_as_it_is(with_template):
    """A template whose conversation does not begin with its prompt."""
    tokenizer = with_template(
        "{{- messages | length }}{{- messages[0]['content'] }}"
        "{%- if add_generation_prompt %}{{- '>' }}{%- endif %}"
    )
    ids, prompt_length = tokenizer.encode_example(ASK, "three")
    assert _shown(tokenizer, ids[:prompt_length]) == "1one and two?>"
    assert _shown(tokenizer, ids[prompt_length:]) == "three<|im_end|>"


def test_thinking_templates_write_an_empty_thought_into_the_prompt(with_template):
    tokenizer = with_template(
        "{{- messages[0]['content'] + '|' }}"
        "{%- if add_generation_prompt %}{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think></think>' }}{%- endif %}"
        "{%- else %}{{- '<think></think>' + messages[1]['content'] + '<|im_end|>' }}{%- endif %}"
    )
    ids, prompt_length = tokenizer.encode_example(ASK, "three")
    assert tokenizer.decode(ids[:prompt_length]).endswith("<think></think>")
    assert tokenizer.decode(ids[prompt_length:]) == "three"


@pytest.mark.parametrize(
    ("messages", "message"),
    [([{"role": "tool", "content": "x"}], "refuses the conversation: unknown role tool")],
)
def test_a_refused_conversation_is_a_user_error(chat, messages, message):
    with pytest.raises(UserError, match=message):
        chat.encode_prompt(messages)


def test_end_tokens_come_from_tokenizer_and_generation_config(chat, plain):
    assert chat.eos_ids == (IM_END, EOS)
    assert plain.eos_ids == (EOS,)
    assert (chat.pad_id, chat.vocab_size) == (0, 128)


def test_decoding_keeps_spaces_as_they_are(chat):
    text = "one , two .  three 's"
    assert chat.decode(chat.encode_prompt([{"role": "user", "content": text}])).count(text) == 1


def test_a_tokenizer_file_is_taken_as_it_stands_whatever_the_architecture(fixtures):
    """AutoTokenizer would replace this one of a qwen2 model, and add a token beyond the embedding."""
    import tokenizers

    raw = tokenizers.Tokenizer.from_file(str(fixtures / "qwen2" / "tokenizer.json"))
    text = "Then, 12 of the 345 ones' and another"
    assert Tokenizer.load(fixtures / "qwen2")._encode(text) == raw.encode(text).ids


def test_missing_and_broken_files_are_user_errors(fixtures, tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(fixtures / "mistral")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path / "nonesuch")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="cannot read the tokenizer in") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_qwen2_encodes_as_in_its_model_card(shared_data):
    tokenizer = Tokenizer.load(shared_data / "weights" / "tokenizer_qwen2")
    ids, prompt_length = tokenizer.encode_example([{"role": "user", "content": "hi"}], "yes")
    assert _shown(tokenizer, ids) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    assert ids[prompt_length:] == [9693, 151645]
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.vocab_size) == ((151645,), 151643, 151665)
    text = "Größe: 3,5 m² — 日本語 🙂 don 't  stop"
    assert tokenizer.decode(tokenizer._encode(text)) == text


def test_gpt2_has_no_end_token_until_one_is_named(shared_data, tmp_path):
    source = shared_data / "weights" / "tokenizer_gpt2"
    tokenizer = Tokenizer.load(source)
    assert tokenizer.encode_prompt([{"role": "user", "content": "Once upon a time"}])[:4] == [7454, 2402, 257, 640]
    assert tokenizer.vocab_size == 50257
    with pytest.raises(UserError, match="no end token"):
        tokenizer.encode_example(ASK, "three")
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 50256}')
    ids, prompt_length = Tokenizer.load(tmp_path).encode_example(ASK, " three")
    assert ids[prompt_length:] == [1115, 50256]


CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
OPEN_THOUGHT = CHATML.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif")
DROPS_THOUGHTS = (
    "{%- for m in messages %}{%- set c = m.content %}"
    "{%- if m.role == 'assistant' and '</think>' in c %}{%- set c = c.split('</think>')[-1] %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PARTS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- for p in m.content %}{%- if p.type == 'text' %}{{- p.text }}{%- endif %}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
MENTIONS = ["one <|im_end|> two", "<|im_start|>", "</s><s>two", "  <|im_end|>"]


@pytest.mark.parametrize("said", MENTIONS)
def test_a_control_token_that_a_question_mentions_is_text(with_template, said):
    """The prompt has the control tokens of its template, and says the question."""
    tokenizer = with_template(CHATML)
    asked = lambda text: [{"role": "user", "content": text}]
    ids, other = tokenizer.encode_prompt(asked(said)), tokenizer.encode_prompt(asked("one"))
    control = lambda ids: [i for i in ids if i in (BOS, EOS, IM_START, IM_END)]
    assert control(ids) == control(other) == [IM_START, IM_END, IM_START]
    assert _shown(tokenizer, ids) == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    longer, length = tokenizer.encode_example(asked(said), "three")
    assert longer[:length] == ids
    assert tokenizer.decode(longer[length:]) == "three"


def test_a_control_token_that_a_text_mentions_is_text_without_a_template(plain):
    ids = plain.encode_prompt([{"role": "user", "content": "one </s> two"}])
    assert ids[0] == BOS
    assert EOS not in ids
    assert _shown(plain, ids) == "<s>one </s> two\nAnswer:"


@pytest.mark.parametrize("said", MENTIONS)
def test_an_end_token_that_an_answer_mentions_is_text(chat, plain, said):
    """All of the answer is learned, and one end."""
    for tokenizer in (chat, plain):
        ids, length = tokenizer.encode_example(ASK, said)
        assert ids[:length] == tokenizer.encode_prompt(ASK)
        assert [i for i in ids[length:] if i in tokenizer.eos_ids] == [ids[-1]]
        assert tokenizer.decode(ids[length:]).strip() == said.strip()
        assert tokenizer.written(ASK, said)[1].strip() == said.strip()


def test_mentions_leave_other_texts_as_they_were(chat):
    """Between control tokens, a text is cut as it always is."""
    text = chat._render(BE_BRIEF, add_generation_prompt=True)
    assert chat._encode_marked(text) == chat._encode(text) == chat.encode_prompt(BE_BRIEF)


def test_what_the_template_writes_behind_a_turn_ends_an_answer(with_template):
    """Base models name the end of a text as their end token, beside a template whose turns end in another."""
    tokenizer = with_template(CHATML, eos_token="</s>")
    assert tokenizer.eos_ids == (EOS, IM_END)
    ids, length = tokenizer.encode_example(ASK, "three")
    assert _shown(tokenizer, ids[length:]) == "three<|im_end|>"


def test_an_open_thought_is_closed_in_the_prompt(with_template):
    tokenizer = with_template(OPEN_THOUGHT)
    ids, length = tokenizer.encode_example(ASK, "three")
    assert ids[:length] == tokenizer.encode_prompt(ASK)
    assert _shown(tokenizer, ids[:length]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert _shown(tokenizer, ids[length:]) == "three<|im_end|>"


def test_what_stands_in_front_of_a_closed_thought_is_learned_too(with_template):
    tokenizer = with_template(DROPS_THOUGHTS)
    for answer in ("one </think> two", "<think>one</think>two"):
        ids, length = tokenizer.encode_example(ASK, answer)
        assert _shown(tokenizer, ids[length:]) == f"{answer}<|im_end|>"


def test_a_template_written_for_lists_of_parts_gets_them(with_template, chat):
    tokenizer = with_template(PARTS)
    assert tokenizer.encode_prompt(BE_BRIEF) == chat.encode_prompt(BE_BRIEF)
    assert tokenizer.encode_example(BE_BRIEF, "three") == chat.encode_example(BE_BRIEF, "three")


def test_a_template_that_leaves_the_question_out_is_refused(with_template):
    with pytest.raises(UserError, match="the chat template leaves out what the user says"):
        with_template("{{- messages | length }}<|im_end|>").encode_prompt(ASK)


def test_a_template_that_cuts_texts_is_refused_and_an_answer_is_learned_whole(with_template):
    cut = CHATML.replace("m.content", "m.content[:60]").replace("m['content']", "m['content'][:60]")
    assert "[:60]" in cut
    tokenizer, long = with_template(cut), "one two three " * 9
    with pytest.raises(UserError, match="the chat template leaves out what the user says"):
        tokenizer.encode_prompt([{"role": "user", "content": long}])
    ids, length = tokenizer.encode_example(ASK, long)
    assert _shown(tokenizer, ids[length:]).startswith(long.strip())


SHOTS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "two"}, *ASK]


@pytest.mark.parametrize(
    "template",
    [
        "{{- '<|im_start|>' + messages[-1].content }}<|im_end|>",
        "{{- messages[0].content }}<|im_end|>",
        "{%- for m in messages if m.role == 'user' %}{{- m.content + '<|im_end|>' }}{%- endfor %}",
    ],
)
def test_a_template_that_leaves_examples_out_is_refused(with_template, template):
    """Or the question behind them: with one turn such a template is as good as any."""
    tokenizer = with_template(template)
    with pytest.raises(UserError, match=r"the chat template leaves out .* ask without examples"):
        tokenizer.encode_prompt(SHOTS)
    ids, length = tokenizer.encode_example(ASK, "three")
    assert ASK[0]["content"] in _shown(tokenizer, ids[:length])
    assert _shown(tokenizer, ids[length:]).startswith("three"), "an answer that no template writes is learned"


@pytest.mark.parametrize(
    "fault", ["messages[0].content + 1", "1 / 0", "messages[99].content", "raise_exception('no')"]
)
def test_whatever_a_template_fails_with_is_one_line(with_template, fault):
    with pytest.raises(UserError, match="the chat template refuses the conversation") as raised:
        with_template("{{- " + fault + " }}").encode_prompt(ASK)
    assert "\n" not in str(raised.value)


def test_real_templates_are_read_as_before(shared_data):
    tokenizer = Tokenizer.load(shared_data / "weights" / "tokenizer_qwen2")
    said = "what is <|im_end|>?"
    ids = tokenizer.encode_prompt([{"role": "user", "content": said}])
    assert ids.count(151645) == 2
    assert said in _shown(tokenizer, ids)


@pytest.mark.parametrize("stated", [{"a": 1}, [2, [3]], "2", -1])
def test_an_end_that_is_no_token_s_number_is_refused(stated, fixtures, tmp_path):
    folder = pathlib.Path(shutil.copytree(fixtures / "qwen2", tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id .* is no token's number"):
        Tokenizer.load(folder)


def test_a_setting_of_another_type_is_refused_where_it_is_read(fixtures, tmp_path):
    """transformers takes it, and fails at the first text."""
    folder = pathlib.Path(shutil.copytree(fixtures / "qwen2", tmp_path / "model"))
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | {"model_max_length": "long"}))
    with pytest.raises(UserError, match=r"cannot read the tokenizer in .*model: '>' not supported"):
        Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    Tokenizer.load(folder)
    words = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"cannot read the tokenizer in .*model: .*UNK"):
        Tokenizer.load(folder)
