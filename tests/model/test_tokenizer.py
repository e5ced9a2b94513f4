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
