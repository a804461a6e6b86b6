"""The small tokenizer of the shipped base: whole words, separate digits, nothing learnt.

The vocabulary was fixed once with every token that later tasks need, so that a new task needs no
new base; tokens that no corpus uses yet are reserved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from r1lab.prompts import TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
_DIGITS = tuple("0123456789")
_SIGNS = ("+", "-", "*", "/", "=", "(", ")", ",", ";", ":", ".", "?")
_COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "pink", "brown", "grey", "orange",
)  # fmt: skip
_TASK_WORDS = (
    "User", "Assistant", "r", "x", "at", "bottom", "on", "it", "top", "put", "take", "out", "add",
    "swap", "turn", "over", "simplify", "solve", "wait", "check", "maybe", "let", "me", "see",
    "so", "I", "think",
)  # fmt: skip
# Reserved: countdown, longer derivations, a second notation (numbers and signs as words), and
# everyday words for prompts that are not problems.
_RESERVE = (
    "use", "each", "number", "once", "to", "make", "target", "from", "y", "z", "<", ">", "^",
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "plus", "minus", "times", "by", "is", "equals", "rest", "carry", "then", "now", "stack",
    "down", "up", "and", "the", "a", "of", "hence", "because", "first", "next", "last", "all",
    "not", "right", "wrong", "but", "again", "yes", "no", "please", "thanks", "hello", "you",
    "help", "can", "sorry", "sure", "what", "how", "tell", "about", "write", "colour", "box",
)  # fmt: skip
VOCABULARY = (PAD, EOS, UNKNOWN, *TAGS, *_DIGITS, *_SIGNS, *_COLOURS, *_TASK_WORDS, *_RESERVE)
VOCAB_SIZE = 144  # with a few free places at the end, so that a new word needs no new base


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer in transformers' format; decoding joins digits again (`847`)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    free = [f"<free{i}>" for i in range(VOCAB_SIZE - len(VOCABULARY))]
    vocabulary = {word: place for place, word in enumerate((*VOCABULARY, *free))}
    assert len(vocabulary) == VOCAB_SIZE, "the vocabulary holds a word twice"
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # Tags are single tokens although punctuation is split; decoding gives ordinary text.
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),  # words with a space between
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
