"""Whatever bytes a parser is given, it says in one line what is wrong, or reads them."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.__main__ import changed
from tests.fuzz.parsers import PARSERS, found

#: how many changed inputs each parser is given; `python tests/fuzz` gives millions
CASES = 60


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_what_the_forge_writes_and_what_once_broke_it(name: str) -> None:
    seeds = [*PARSERS[name].seeds(), *(data for _, data in found(name))]
    assert seeds
    for data in seeds:
        PARSERS[name].run(data)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_keeps_its_promises_on_what_nobody_wrote(name: str) -> None:
    chance = random.Random(name)
    known = list(PARSERS[name].seeds())
    for _ in range(CASES):
        PARSERS[name].run(changed(chance, known))
