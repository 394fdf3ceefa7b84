"""The README's table, made from a result that is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from hsmcore_bench.suite.report import disturbance, markdown
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import was_idle

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"
_PLACE: Final = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)


def table(result: Result, source: str) -> str:
    """What stands between the markers: the main tables, the targets, and the file that they come from."""
    warning = f"**Not made on an idle machine: {disturbance(result)}. Believe no figure.**\n\n"
    told = "" if was_idle(result) else warning
    return f"\n{told}{markdown(result, short=True)}\nFrom `{source}` by `hsmcore bench table`.\n\n"


def placed(text: str, made: str) -> str:
    """The document with the table in its place. Raises ValueError when it does not have both markers, once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or _PLACE.search(text) is None:
        raise ValueError(f"needs a line {BEGIN} and, after it, a line {END}, once each")
    return _PLACE.sub(lambda _: made, text)


def write(document: Path, made: str) -> bool:
    """Put the table into the document; whether that changed it. Raises ValueError."""
    try:
        before = document.read_text(encoding="utf-8")
        after = placed(before, made)
    except (OSError, ValueError) as error:
        raise ValueError(f"{document}: {error}") from None
    if after != before:
        document.write_text(after, encoding="utf-8")
    return after != before
