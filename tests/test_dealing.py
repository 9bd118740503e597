"""The parts of a batch that processes have are the whole batch, each example once, in the order of one process."""

from __future__ import annotations

import pytest

from prunus.runtime.dealing import own_share


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("sizes", [(3,), (3, 3), (4, 3), (2, 5, 0), (0, 4), (3, 3, 2)])
def test_every_example_is_in_one_part(sizes: tuple[int, ...], in_blocks: bool) -> None:
    shares = [own_share(sizes, number, in_blocks=in_blocks, before=7) for number in range(len(sizes))]
    assert [len(share.places) for share in shares] == list(sizes)
    assert sorted(n for share in shares for n in share.numbers.tolist()) == list(range(7, 7 + sum(sizes)))
    assert {share.whole for share in shares} == {sum(sizes)}


def test_what_can_be_dealt_in_turn_is() -> None:
    assert list(own_share((4, 3), 1).places) == [1, 3, 5]
    assert list(own_share((4, 3), 1, in_blocks=True).places) == list(own_share((3, 4), 1).places)[1:] == [4, 5, 6]
