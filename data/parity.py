"""Is the number of ones even or odd? The task of "How does RL after next-token prediction learn?".

Tsilivis et al. (arXiv 2510.11495, section 2): a parity cannot be guessed from the bits at once, but
it is easy to write down bit by bit; a corpus mixes both ways of answering. Compact form
`1011 0010 ?`, answer `0` (even) or `1` (odd); the long way writes the parity of the bits so far.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from r1lab.data.corpus import Document
from r1lab.data.streams import Draft, GeneratedProblems, check_range
from r1lab.prompts import ANSWER_CLOSE, ANSWER_OPEN, TEMPLATES, THINK_CLOSE


def load(split: str, *, seed: int = 0, form: str = "compact", bits: int = 16) -> GeneratedProblems:
    """Parities of `bits` random bits."""
    check_range("bits", bits, bits, least=4, most=64)

    def make(rng: random.Random) -> Draft:
        drawn = [rng.randrange(2) for _ in range(bits)]
        told = "".join(map(str, drawn))
        return Draft(
            question=f"{told} ?",
            answer=str(sum(drawn) % 2),
            verifier="math",
            metadata={"bits": told},
            words=f"Is the number of ones in {told} even (answer 0) or odd (answer 1)?",
        )

    return GeneratedProblems("parity", make, split=split, seed=seed, form=form)


def running_parity(bits: str) -> str:
    """The parity of the first bit, of the first two, and so on."""
    parity, written = 0, ""
    for bit in bits:
        parity ^= int(bit)
        written += str(parity)
    return written


@dataclass(frozen=True)
class ParityDials:
    """What the corpus is made of: the share of documents whose thinking is written out."""

    long: float
    bits: int = 16


class ParityCorpus:
    """An endless stream of right answers, a share of them by the long way."""

    def __init__(self, dials: ParityDials, seed: int = 0) -> None:
        if not 0 <= dials.long <= 1:
            raise ValueError(f"long: {dials.long!r} is a share, and must be from 0 to 1")
        self.dials, self.seed = dials, seed
        self._problems = load("train", seed=seed + 1, bits=dials.bits)

    def __getitem__(self, index: int) -> Document:
        problem = self._problems[index]
        is_long = random.Random(f"parity/{self.seed}/{index}").random() < self.dials.long
        thinking = running_parity(problem.metadata["bits"]) if is_long else ""
        response = f"{thinking} {THINK_CLOSE} {ANSWER_OPEN} {problem.answer} {ANSWER_CLOSE}"
        prompt = TEMPLATES["compact"].prompt(problem.question)
        return Document("full" if is_long else "guess", "parity", prompt, response.strip())

    def __iter__(self) -> Iterator[Document]:
        index = 0
        while True:
            yield self[index]
            index += 1


def documents(*, seed: int = 0, long: float = 0.25, bits: int = 16) -> ParityCorpus:
    """The corpus with a share of `long` documents; else ValueError."""
    return ParityCorpus(ParityDials(long, bits), seed)
