"""What a process that only signs does with its garbage collector."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref, hsmcore
from hsmcore.base.heap import settle

class Node: pass

dead, kept = Node(), Node()
dead.itself, kept.itself = dead, kept
seen = weakref.ref(dead)
del dead
settle()
assert seen() is None, "garbage of before is not kept for ever"
assert gc.get_freeze_count() > 1_000 > len(gc.get_objects())
later = Node()
later.itself = later
seen = weakref.ref(later)
del later
gc.collect()
assert seen() is None, "what comes is collected as ever"
"""


def test_what_there_is_is_looked_at_no_more_and_what_comes_is():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
