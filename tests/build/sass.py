"""What a thread executes: control flow and the vector path in the text of ``cuobjdump -sass``.

A thread's work per element is that of the hot loop: the loop that holds the kernel's widest global
accesses (16 bytes where all streams are aligned). Of the ways through its body one is counted,
the *vector path*:

1. the one with the most of these accesses, so neither the tail nor a branch that skips a stream;
2. among those, the one with the fewest calls: slow paths of division and square root are calls;
3. among those, the one with the fewest loops inside inner loops: normals that begin within a call
   of Philox are drawn by such a loop;
4. among those, the longest. Inner loops, over random directions say, are gone through once.

Every instruction on it takes an issue slot, with a false predicate too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# "/*0040*/  @!P0 LDG.E.128 R4, desc[UR6][R2.64] ;": the predicate is not part of the opcode
INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);", re.ASCII
)
WIDTHS = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}  # bytes; else 4


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    def is_a(self, *names: str) -> bool:
        return self.opcode.split(".")[0] in names

    @property
    def ends(self) -> bool:
        """Nothing follows it: the end of the thread or of a subroutine."""
        return self.is_a("EXIT", "RET") and not self.predicate

    @property
    def target(self) -> int:
        """Of a jump or a call."""
        return int(self.operands.split()[-1], 16)

    @property
    def falls_through(self) -> bool:
        # "@P0 BRA 0x40", "BRA.U !UP0, 0x40": two ways on
        jumps = self.is_a("BRA") and not self.predicate and "," not in self.operands
        return not (jumps or self.ends)

    @property
    def access(self) -> int:
        """Bytes of a load from or a store to global memory, else 0."""
        if not self.is_a("LDG", "STG"):
            return 0
        return next((WIDTHS[s] for s in self.opcode.split(".") if s in WIDTHS), 4)


def instructions(text: str) -> list[Instruction]:
    found = INSTRUCTION.findall(text)
    code = [Instruction(int(at, 16), p, opcode, rest.strip()) for at, p, opcode, rest in found]
    for x in code:
        if x.is_a("BRX", "JMX", "JMP"):
            raise ValueError(f"{x.opcode} at {x.address:#x} jumps to a computed address")
    return code


@dataclass(frozen=True, order=True)
class Path:
    """Ordered by what makes a path the vector path."""

    widest: int  # accesses
    calls: int  # negative, as is the next
    deep: int  # loops inside inner loops
    length: int
    loaded: int = 0  # bytes of the widest loads

    def __add__(self, o: Path) -> Path:
        return Path(
            self.widest + o.widest,
            self.calls + o.calls,
            self.deep + o.deep,
            self.length + o.length,
            self.loaded + o.loaded,
        )


class Code:
    """The graph of one kernel's instructions.

    Args:
        code: in the order of their addresses.
    """

    def __init__(self, code: list[Instruction]) -> None:
        self.code = code
        number = {x.address: i for i, x in enumerate(code)}
        self.next: list[list[int]] = []
        for i, x in enumerate(code):
            after = [i + 1] if x.falls_through and i + 1 < len(code) else []
            if x.is_a("BRA"):
                after.append(number[x.target])
            self.next.append(after)
        # a call comes back by RET; sm_80 also leaves loops by one that never does
        self.calls: set[int] = set()
        left = []
        for i, x in enumerate(code):
            if x.is_a("CALL"):
                to = number[x.target]
                if any(code[j].is_a("RET") for j in self._reached(to)):
                    self.calls.add(i)
                else:
                    left.append((i, to))
        for i, to in left:
            self.next[i].append(to)
        self.before: list[list[int]] = [[] for _ in code]
        for i in self._reached(0):
            for j in self.next[i]:
                self.before[j].append(i)
        self.widest = max((x.access for x in code), default=0)
        self.loops = self._loops()

    def _reached(self, start: int) -> set[int]:
        seen, todo = {start}, [start]
        while todo:
            for j in self.next[todo.pop()]:
                if j not in seen:
                    seen.add(j)
                    todo.append(j)
        return seen

    def _loops(self) -> dict[int, set[int]]:
        """First instruction -> body of every natural loop."""
        loops: dict[int, set[int]] = {}
        for last in range(len(self.code)):
            for first in self.next[last]:
                if first > last or not (last == 0 or self.before[last]):
                    continue
                body, todo = {first, last}, [last] if last != first else []
                while todo:
                    for i in self.before[todo.pop()]:
                        if i not in body:
                            body.add(i)
                            todo.append(i)
                # code moved behind the rest jumps back too: around it there is another way in
                if 0 not in body or first == 0:
                    loops.setdefault(first, set()).update(body)
        return loops

    def _is_wide(self, i: int) -> bool:
        return self.widest > 0 and self.code[i].access == self.widest

    def _cost(self, i: int, within: set[int] | None) -> Path:
        wide = self._is_wide(i)
        loaded = self.widest if wide and self.code[i].is_a("LDG") else 0
        deep = 0
        if within is not None and i in self.loops:
            deep = sum(i in body for body in self.loops.values() if body < within) > 1
        return Path(int(wide), -int(i in self.calls), -int(deep), 1, loaded)

    def _forward(self, i: int) -> Iterable[int]:
        """Successors; the end of a loop leads to where the loop is left."""
        for j in self.next[i]:
            body = self.loops.get(j)
            if body is None or i not in body:
                yield j
            else:
                yield from {k for m in body for k in self.next[m] if k not in body}

    def longest(self, start: int, within: set[int] | None = None) -> Path:
        """The best path from ``start`` to the end of the loop ``within``, or of the thread."""
        best: dict[int, Path] = {}
        todo = [start]
        while todo:
            i = todo[-1]
            if i in best:
                todo.pop()
                continue
            ahead = [j for j in self._forward(i) if within is None or j in within]
            if within is not None:  # once round
                ahead = [j for j in ahead if j != start]
            missing = [j for j in ahead if j not in best]
            if missing:
                todo += missing
                continue
            todo.pop()
            rest = max((best[j] for j in ahead), default=Path(0, 0, 0, 0))
            best[i] = self._cost(i, within) + rest
        return best[start]

    def straight(self) -> Path:
        """From the first instruction to the last, every loop once."""
        return self.longest(0)

    def hot(self) -> Path | None:
        """The vector path of the innermost such loop; of several the costliest."""
        found = []
        for first, body in self.loops.items():
            inner = [b for b in self.loops.values() if b < body]
            if any(map(self._is_wide, body)) and not any(map(self._is_wide, set().union(*inner))):
                found.append(self.longest(first, body))
        return max(found, default=None)

    def loop(self) -> Path | None:
        """The longest loop of a kernel that draws what it works on."""
        paths = [self.longest(first, body) for first, body in self.loops.items()]
        return max(paths, key=lambda p: p.length, default=None)
