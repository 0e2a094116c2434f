"""How CSV files are written: what the job says of it, and what the beginning of a file shows."""

import json
import re
from dataclasses import dataclass
from typing import Final, Literal

from worker.errors import DataError, require

DELIMITERS: Final = (",", ";", "\t", "|")
"""What may stand between names where the delimiter of the job does not."""

NOT_UTF8: Final = "is not UTF-8; convert the file, as with iconv -f WINDOWS-1252 -t UTF-8 if that is what it is in"

MARKS: Final = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""How files of these encodings begin, the longer marks first."""


@dataclass(frozen=True, kw_only=True)
class CsvSpec:
    """How CSV files are written.

    Attributes:
        delimiter: between fields; one ASCII character.
        decimal: between the digits of a number.
    """

    delimiter: str = ","
    decimal: Literal[".", ","] = "."

    def __post_init__(self) -> None:
        require(
            len(self.delimiter) == 1 and self.delimiter.isascii() and self.delimiter not in '\0\r\n"',
            "data.delimiter",
            rf'must be one ASCII character such as ";", "\t" or "|", and no quote, got {json.dumps(self.delimiter)}',
        )
        require(
            self.delimiter != self.decimal,
            "data.decimal",
            f'is "{self.decimal}", as data.delimiter is; set that to another one, such as ";"',
        )


DEFAULT_CSV: Final = CsvSpec()


def require_spec(head: bytes, address: str, spec: CsvSpec) -> None:
    """Raise DataError where a file's first bytes show that it is no UTF-8, or has other delimiters than the job says."""
    encoding = _other_encoding(head)
    if encoding is not None:
        raise DataError(f"{address}: is {encoding}, and UTF-8 is accepted; convert it, as with iconv -f {encoding} -t UTF-8")
    # A delimiter within quotes is none.
    header = re.sub('"[^"]*("|$)', "", head.decode("utf-8", "replace").lstrip("\r\n").partition("\n")[0].partition("\r")[0])
    found = [delimiter for delimiter in DELIMITERS if delimiter in header]
    if spec.delimiter not in header and found:
        given, likely = json.dumps(spec.delimiter), json.dumps(found[0])
        raise DataError(
            f"{address}: its header has {likely} in it and no {given}; "
            f"set data.delimiter = {likely} in the job file (a trained model takes files written as those of its job), "
            "or put quotes around its one name"
        )


def _other_encoding(head: bytes) -> str | None:
    """Return what the beginning of a text shows to be another encoding than UTF-8, if that is so."""
    marked = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    if marked is not None or b"\0" not in head[:4]:
        return marked
    return "UTF-16BE" if head[0] == 0 else "UTF-16LE"
