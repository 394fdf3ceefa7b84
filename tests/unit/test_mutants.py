"""The changes that `make mutants` makes, and its lists."""

from __future__ import annotations

import pytest
from tests.mutants.changes import by_hand, mutants_of, of_files, sample
from tests.mutants.known import EQUIVALENT, HAND
from tests.mutants.near import NEAR
from tests.mutants.run import Copy
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("if a:\n    b = 1", {"if not (a):\n    b = 1", "if a:\n    b = 2"}),
        ("a = b < c", {"a = b <= c"}),
        ("a = b and c(d) or e", {"a = ((e))", "a = ((b and c(d)))", "a = ((c(d))) or e", "a = ((b)) or e"}),
        ("a = b + 1", {"a = (b - 1)", "a = b + 2"}),
        ("a = 'text' + 'more'", set()),
        ("a = min(b, True)", {"a = max(b, True)", "a = min(b, False)"}),
        ("a = [b for b in c if d]", {"a = [b for b in c if (not (d))]"}),
        ("a = {b, c}", {"a = {c}", "a = {b}"}),
        ("a()\nawait_(b)", {"pass\nawait_(b)", "a()\npass"}),
        (
            "def f():\n    a()\n    b()",
            {f"def f():\n    {c}" for c in ("pass\n    b()", "a()\n    pass", "b()\n    a()")},
        ),
        ("def f():\n    raise E(1)", {"def f():\n    pass"}),
        ("def f():\n    'text'\n    a.b = c", {"def f():\n    'text'\n    pass"}),
        ("if TYPE_CHECKING:\n    a = 1", set()),
        ("get_logger().info('x')", set()),
        ("ä = 1", {"ä = 2"}),
    ],
)
def test_the_changes_of_a_source_are_these(source, changed):
    assert {one.apply(source.encode()).decode() for one in mutants_of("x.py", source.encode())} == changed


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("a->b = c + 1;", {";", "a->b = c - 1;"}),
        ("int a = f(b);", set()),
        ("(void)f(a, true); /* if (a) { */", {"; /* if (a) { */", "(void)f(a, false); /* if (a) { */"}),
        ("if (a < b) {", {"if (!(a < b)) {", "if (a <= b) {"}),
        (
            "if (a >= b && c == d) {",
            {
                "if (!(a >= b && c == d)) {",
                *("if (a > b && c == d) {", "if (a >= b || c == d) {", "if (a >= b && c != d) {"),
            },
        ),
        ("for (int i = 0; i < a; i++) {", set()),
        ("b, f(c));", set()),
        ("return f(a - 1);", {"return f(a + 1);"}),
    ],
)
def test_the_changes_of_a_line_of_c_are_these(line, changed):
    source = f"static int f(int a) {{\n    {line}\n}}\n"
    found = mutants_of("x.c", source.encode())
    assert {one.apply(source.encode()).decode() for one in found} == {source.replace(line, new) for new in changed}
    assert {(one.function, one.line) for one in found} <= {("f", 2)}


def test_names_tell_all_changes_apart_and_outlive_other_lines():
    source = b"def f(a):\n    a(1)\n    a(1)\n"
    names = [one.name for one in mutants_of("core/hsmcore/x.py", source)]
    assert sorted(names) == sorted(
        [
            "x.py f drop: a(1)",
            "x.py f drop: a(1) #2",
            "x.py f constant: 1",
            "x.py f constant: 1 #2",
            "x.py f swap: a(1)",
        ]
    )
    assert [one.name for one in mutants_of("core/hsmcore/x.py", b"import y\n" + source)] == names
    drawn = [one.name for one in sample(mutants_of("core/hsmcore/x.py", source), 1)]
    assert drawn != names
    assert drawn == [one.name for one in sample(reversed(mutants_of("core/hsmcore/x.py", source)), 1)]


def test_the_lists_are_of_what_there_is():
    for path, tests in NEAR.items():
        assert (ROOT / path).is_file()
        for name in tests:
            file, _, test = name.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).is_file(), name
    for name, one in HAND.items():
        source = (ROOT / one.path).read_bytes()
        changed = by_hand(ROOT, name, *one[:3]).apply(source)
        assert one.path.endswith(".c") or compile(changed, one.path, "exec")
        assert one.near or one.path in NEAR
    known = {one.name for one in of_files(ROOT, NEAR)}
    assert set(EQUIVALENT) <= known, "the code has changed: look again"
    assert all(EQUIVALENT.values())


def test_a_change_is_judged_in_a_copy():
    path, line = "core/hsmcore/manager/rotation/approvals.py", '        f"rotation: {rotation.id}",\n'
    before = (ROOT / path).read_bytes()
    with Copy() as copy:
        for new, verdict in (("", "killed"), (line.replace('f"', 'rf"'), "survived")):
            found = copy.judge(by_hand(ROOT, "x", path, line, new), ("tests/unit/test_rotation_approvals.py",), 250)
            assert found.verdict == verdict, found
            assert ("test_an_approval_of_one_rotation" in found.by) == (verdict == "killed")
            assert (copy.folder / path).read_bytes() == before
    assert (ROOT / path).read_bytes() == before
    assert not copy.folder.exists()
