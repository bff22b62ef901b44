"""Where conversations come from: something with a name, perhaps an end, and examples by index."""

import codecs
import dataclasses
import importlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from gptoss_jax.errors import UserError
from gptoss_jax.text import TextError, Tokenizer
from gptoss_jax.text.harmony import Message
from gptoss_jax.training import records
from gptoss_jax.training.examples import Example, Unit
from gptoss_jax.training.settings import Settings

# How many problems a skill are looked at before a run, and how many conversations, so far apart.
_LOOKED_AT, _APART = 100, 500


class Source(Protocol):
    """An indexable source of examples.

    Attributes:
      size: how many there are; None: as many as one likes.
      skipped: how many bad ones were left out.
      fingerprint: changes with the data; a run resumes only on the same.
    """

    size: int | None
    fingerprint: str

    @property
    def skipped(self) -> int: ...

    def __getitem__(self, index: int) -> Unit | None:
        """The example; None if it is bad and bad ones are skipped."""
        ...

    def where(self, index: int) -> str:
        """The example's place, for messages to people."""
        ...


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the examples of a run come from; `validation` may be missing."""

    train: Source
    validation: Source | None


def open_sources(config: Settings, tokenizer: Tokenizer) -> Sources:
    """The sources a config names.

    Args:
      config: a checked config.
      tokenizer: renders the conversations.

    Raises:
      UserError: bad data, as `JsonLines` says.
    """
    data = config.data
    if data.kind == "tasks":
        return Sources(*(Tasks(config, tokenizer, split) for split in ("train", "validation")))
    parse = records.pair if data.kind == "pairs" else records.conversation
    train = JsonLines(data.paths, config, tokenizer, parse)
    paths = data.validation_paths
    return Sources(train, JsonLines(paths, config, tokenizer, parse) if paths else None)


class JsonLines:
    """Files of one conversation or pair a line, all read and checked; `records` has their form.

    A line may also have "tools", and "reasoning_effort" and "current_date" for the system message;
    other keys are left alone. Blank lines are passed over. Five bytes a token stay in memory.
    """

    def __init__(
        self,
        paths: Sequence[str],
        config: Settings,
        tokenizer: Tokenizer,
        parse: records.Parse = records.conversation,
    ):
        """Reads the files.

        Args:
          paths: at least one.
          config: `data` says what is learned, how long an example may be, and what bad lines do.
          tokenizer: must have the harmony specials.
          parse: of a line.

        Raises:
          UserError: "FILE:LINE: what is wrong" of the first bad line or empty file, unless they are
            skipped; a file that cannot be read; no usable line in all of them.
        """
        self._parse = parse
        self._examples: list[Unit] = []
        self._where: list[str] = []
        problems: list[str] = []
        for path in map(Path, paths):
            known = len(self._examples) + len(problems)
            problems += self._read(path, config, tokenizer)
            if len(self._examples) + len(problems) == known:
                problems.append(f"{path}:1: no conversation in the file")
        if not self._examples and (config.data.skip_bad or not problems[1:]):
            raise UserError(f"{problems[0]}; no usable conversation is left")
        if problems and not config.data.skip_bad:
            more = f" (and {len(problems) - 1} more bad lines)" if problems[1:] else ""
            raise UserError(f"{problems[0]}{more}; --config.data.skip_bad=true leaves them out")
        self.size: int | None = len(self._examples)
        self.skipped = len(problems)
        self.fingerprint = _fingerprint(self._examples)

    def __getitem__(self, index: int) -> Unit:
        return self._examples[index]

    def where(self, index: int) -> str:
        return self._where[index]

    def _read(self, path: Path, config: Settings, tokenizer: Tokenizer) -> Iterator[str]:
        """Takes the good lines; yields the bad ones' problems."""
        try:
            lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
        except OSError as error:
            raise UserError(f"{path}: not readable ({error.strerror})") from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                one = self._parse(line, config, tokenizer)
            except (UserError, TextError) as error:
                yield f"{path}:{number}: {error}"
                continue
            except RecursionError:
                yield f"{path}:{number}: nested too deep"
                continue
            self._examples.append(one)
            self._where.append(f"{path}:{number}")


class Tasks:
    """Generated problems: example i of a seed is always the same, and there is no last one.

    Those longer than a row are left out, though not whole skills of them.
    """

    def __init__(self, config: Settings, tokenizer: Tokenizer, split: str):
        """Looks at some problems of each skill.

        Args:
          config: `data` has the mixture, the seed and the length of a row.
          tokenizer: must have the harmony specials.
          split: train or validation.

        Raises:
          UserError: names a skill with problems longer than a row, unless `data.skip_bad`; then if
            not one of the mixture is shorter.
        """
        # Not at the top: whoever trains on files needs no tasks.
        self._tasks = importlib.import_module("gptoss_jax.training.tasks")
        self._config = config
        self._tokenizer = tokenizer
        self._split = split
        mixture = config.data.mixture.to_dict()
        # A base looks things up already: the practice that nano begins with is not for it.
        self._mixture = self._tasks.DEFAULT_MIXTURE if config.base and not mixture else mixture
        self._too_long: set[int] = set()
        self.size: int | None = None
        crc = self._look()
        weights = sorted((self._mixture or self._tasks.DEFAULT_MIXTURE).items())
        self.fingerprint = f"tasks {split} {config.data.seed} {weights} {crc:08x}"

    @property
    def skipped(self) -> int:
        return len(self._too_long)

    def __getitem__(self, index: int) -> Example | None:
        messages = self._tasks.conversation(
            self._config.data.seed, index, self._split, self._mixture
        )
        one = self._rendered(messages, self.where(index))
        if one.length > self._config.data.sequence_length:
            self._too_long.add(index)
            return None
        return one

    def where(self, index: int) -> str:
        return f"{self._split} problem {index}"

    def _look(self) -> int:
        """Refuses rows that are too short; a checksum that other generators or tokens change."""
        seed, row = self._config.data.seed, self._config.data.sequence_length
        crc, fit = 0, False
        for skill in self._tasks.practised(self._split, self._mixture):
            problems = (self._tasks.problem(skill, seed, i, self._split) for i in range(_LOOKED_AT))
            ones = [self._rendered(one.conversation(), skill) for one in problems]
            longest = max(one.length for one in ones)
            if longest > row and not self._config.data.skip_bad:
                raise UserError(
                    f"config.data.sequence_length: {row} tokens do not hold {skill}, whose "
                    f"problems have up to {longest}; give more, or set config.data.mixture.* to "
                    "skills without it"
                )
            fit |= min(one.length for one in ones) <= row
            crc = _checksum(ones, crc)
        if not fit:
            raise UserError(f"config.data.sequence_length: {row} tokens hold no problem at all")
        drawn = (
            self._tasks.conversation(seed, index, self._split, self._mixture)
            for index in range(0, _LOOKED_AT * _APART, _APART)
        )
        crc = _checksum([self._rendered(one, self._split) for one in drawn], crc)
        return zlib.crc32(repr(self._tasks.phases(self._split, self._mixture)).encode(), crc)

    def _rendered(self, messages: list[Message], where: str) -> Example:
        try:
            return records.example_of(messages, self._config, self._tokenizer)
        except TextError as error:
            raise UserError(f"{where}: {error}") from None


def _fingerprint(examples: Sequence[Unit]) -> str:
    return f"{len(examples)} conversations {_checksum(examples):08x}"


def _checksum(examples: Sequence[Unit], crc: int = 0) -> int:
    for one in (segment for unit in examples for segment in unit.segments):
        crc = zlib.crc32(one.learn_S.tobytes(), zlib.crc32(one.ids_S.tobytes(), crc))
    return crc
