"""Byte-pair tokenizers trained on the spot, of the kinds whose boundaries behave differently."""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France?\n\nParis is the capital.",
    "What is two plus two?\n\nFour, of course.",
    "Is the sky blue?\n\nYes, the sky is blue.",
    "One.\n\n\nTwo.\n\n\nThree.\n\n\nFour.",
    "Name a colour. user assistant system\n\nYes, the colour is blue.",
] * 5

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: an empty reasoning block before the last answer only, so that earlier renderings are no prefixes.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Mistral's: no generation prompt, answers are followed by the end of sequence, roles must alternate.
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


@cache
def byte_level(chat_template: str | None = None) -> Any:
    """As GPT-2's: words are parted before merging, so a blank line before a word is cut otherwise than one alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    stop = "<|im_end|>" if chat_template else "<eos>"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=stop, pad_token="<pad>", model_max_length=512
    )
    wrapped.chat_template = chat_template
    return wrapped


@cache
def merging(chat_template: str | None = None) -> Any:
    """As Llama 2's: nothing parts the words, a space is put before every text, and `<s>` before that."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    letters = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = chat_template
    return wrapped
