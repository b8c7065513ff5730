"""Bytes that one weight takes while it is read, rounded, solved and written.

With n = rows · columns, c columns and b bytes of a stored number, what is alive in

- reading: the pages of the file that are mapped (b·n), and the rows in float32 (4n); a weight that
  passes have changed is computed when it is read: three copies in its own type at most;
- `gptq`: rows (4n) and, one after another, the factor of the Hessian under way (4c² + 2c²); the
  factor (4c²) with the columns in their order (4n), the feedback (4n) and the codes (n, and n once
  more when they are put back); the codes with the decoded weight (n + 10n while it is made);
  the codes, the decoded weight (5n) and some million entries of errors in float64 (5 copies);
- writing: rows and what the form makes of the codes.

The Hessian itself (8c²) belongs to the walk, which keeps it until its last site is solved.
"""

from __future__ import annotations

import dataclasses

from onnxq.formats import Format, IntFormat
from onnxq.passes.weight_forms import Form
from onnxq.solvers.objective import ENTRIES

__all__ = ["NOTHING", "Need", "Weight", "reading", "rotating", "solving", "writing"]

_SEARCH = 48
"""Bytes for each weight of a group while its scale is searched: a dozen float32 copies."""
_FORMS: dict[str, float] = {"dequantize": 4.5, "matmul_nbits": 5.0, "gather": 5.0, "operator": 10.0}
"""Bytes for each weight that codes of one byte take on their way into a form."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes at the worst moment.

    Attributes:
        memory: that the system cannot take back.
        resident: with the pages of files that are mapped.
    """

    memory: int
    resident: int

    def beside(self, memory: int, mapped: int = 0) -> Need:
        """The same while other things are alive."""
        return Need(self.memory + memory, self.resident + memory + mapped)

    def or_else(self, other: Need) -> Need:
        """The worst of two moments."""
        return Need(max(self.memory, other.memory), max(self.resident, other.resident))


NOTHING = Need(0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """A stored weight, as the formats see it.

    Attributes:
        rows: outputs.
        columns: inputs.
        itemsize: bytes of a stored number.
        is_lazy: whether it is computed when it is read.
        is_mapped: whether it is in a file; else it is in memory already.
        groups: of a convolution, each solved alone.
    """

    rows: int
    columns: int
    itemsize: int
    is_lazy: bool = False
    is_mapped: bool = True
    groups: int = 1

    @property
    def size(self) -> int:
        """How many numbers."""
        return self.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.size * self.itemsize


def reading(weight: Weight) -> Need:
    """While the float32 rows of a weight are made."""
    wide = 0 if weight.itemsize == 4 else 4 * weight.size
    if weight.is_lazy:
        copies = max(3 * weight.nbytes, weight.nbytes + wide)
        return Need(copies, copies)
    return Need(wide, wide + weight.nbytes * weight.is_mapped)


def rotating(weight: Weight) -> int:
    """Bytes while a weight is multiplied by a matrix: as it was, turned, and in its own axes."""
    return 3 * weight.nbytes


def solving(weight: Weight, solver: str, fmt: Format) -> int:
    """Bytes while the codes of a weight are chosen on its Hessian, which is not counted."""
    rows, columns = weight.rows // weight.groups, weight.columns
    size, square = rows * columns, columns**2
    group = fmt.group_size(columns) if isinstance(fmt, IntFormat) else columns
    rounded = 4 * square + 10 * size + _SEARCH * rows * min(group, columns)
    if solver != "gptq" or not isinstance(fmt, IntFormat):
        rounded += 8 * square + 12 * size  # a second matrix or target in float64
    decoded = 11 * size
    judged = 5 * size + 5 * 8 * min(size, ENTRIES)
    return 4 * weight.size + max(6 * square, rounded, decoded, judged)


def writing(weight: Weight, form: Form, fmt: Format, *, is_plain: bool) -> Need:
    """While a weight is written.

    Args:
        weight: what is written.
        form: as what.
        fmt: in which format.
        is_plain: rounded to nearest straight into the form of MatMulNBits, codes never unpacked.
    """
    bits = fmt.bits_per_weight((weight.rows, weight.columns))
    work = int(_FORMS[form] * weight.size)
    if is_plain and form in ("matmul_nbits", "gather"):
        work = int(weight.size * bits / 8) + 8 * weight.rows
    is_view = weight.itemsize == 4 and not weight.is_lazy
    rows = 4 * weight.size
    shown = (
        Need(work, work + rows * weight.is_mapped) if is_view else Need(rows + work, rows + work)
    )
    return reading(weight).or_else(shown)
