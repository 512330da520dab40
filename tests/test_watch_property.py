"""Whatever a guest calls, it gets the same with a trace and explanations as without."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import KERNEL_STACK, L1, L2, ROOT, make_pv_current
from hypercalls import TABLE
from xenemu.errors import DomainCrash
from xenemu.explain import Explainer
from xenemu.hv.cpu import Reg
from xenemu.hv.current import Current
from xenemu.hv.dispatch import Continue, SubOps
from xenemu.hv.observe import Watch
from xenemu.image.symbols import Symbols
from xenemu.peek import Code
from xenemu.trace import Tracer

ARGUMENT = 0x26000
COMMANDS = [
    (row.number, command)
    for row in TABLE.rows.values()
    for command in (row.handler.table if isinstance(row.handler, SubOps) else (0, 1, 2))
]
WORDS = st.one_of(
    st.sampled_from([0, 1, 2, 8, 0x7FF0, ARGUMENT, ARGUMENT + 8, ROOT, L1, L2, 40]),
    st.sampled_from([40 << 12 | 7, L1 << 12 | 5, L1 << 12 | 7, (L1 << 12) + 8 * 40, 1 << 63]),
    st.integers(0, (1 << 64) - 1),
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from(COMMANDS),
        st.lists(WORDS, min_size=5, max_size=5),
        st.lists(WORDS, min_size=9, max_size=9),
    ),
    max_size=6,
)


class NoCode(Code):
    """A kernel of which nothing is known."""

    def __init__(self) -> None:
        self.symbols = Symbols()
        self._orc = self.modules = None


def run(current: Current, calls: list[tuple[tuple[int, int], list[int], list[int]]]) -> object:
    """Make the calls; what came of each, and all that the guest has afterwards."""
    results: list[object] = []
    current.cpu.regs[Reg.RSP] = KERNEL_STACK
    assert current.table is not None
    for (number, command), args, memory in calls:
        data = b"".join(word.to_bytes(8, "little") for word in memory)
        current.domain.memory.write(ARGUMENT, data)  # type: ignore[arg-type]
        first = [command] if isinstance(TABLE.rows[number].handler, SubOps) else []
        try:
            results.append(current.table.call(current, number, [*first, *args, 0]))
        except Continue as again:
            results.append(again.new_args)
        except DomainCrash as crash:
            results.append(str(crash))
            break
    domain = current.domain
    return results, bytes(domain.memory.bytes), bytes(domain.memory.page_info), current.cpu


@settings(max_examples=150)
@given(CALLS)
def test_the_guest_does_not_notice(
    calls: list[tuple[tuple[int, int], list[int], list[int]]],
) -> None:
    plain, watched = make_pv_current(), make_pv_current()
    plain.table = watched.table = TABLE
    lines: list[str] = []
    explainer = Explainer(NoCode(), lambda _: None)
    Watch.of(watched).add(explainer)
    Tracer(NoCode(), lines.append, as_json=True).start(watched)
    Tracer(NoCode(), lambda _: None).start(watched)
    assert run(watched, calls) == run(plain, calls)
    explainer.close()
    assert all(json.loads(line)["kind"] for line in lines)
