"""Whatever a person does wrong is answered by one line that names it, and by the right exit status."""

from __future__ import annotations

import pytest

from tests.mistakes import hardware, machine, trade
from tests.mistakes.mistake import Desk, Mistake
from tests.mistakes.ways import WAYS
from wattline.cli.main import BAD_USAGE

MISTAKES = (
    *hardware.CONFIGURATION,
    *hardware.CHIPS,
    *trade.NODES,
    *trade.SOCKETS,
    *machine.DISKS,
    *machine.PLUGINS,
    *trade.CHANNELS,
    *machine.TERMINALS,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_answered_by_one_clear_line(
    desk: Desk, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = WAYS[mistake.way](desk, mistake.make(desk), capsys)
    said = "\n".join(answer.lines)
    assert answer.status == mistake.status, said
    assert "Traceback" not in said
    if not mistake.names:
        assert said == ""
        return
    told = [line for line in answer.lines if " INFO " not in line]
    naming = [line for line in told if all(name in line for name in mistake.names)]
    assert len(naming) == 1, said
    if mistake.status == BAD_USAGE:
        assert told == naming


def test_each_mistake_is_listed_once() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(names) == len(set(names))
