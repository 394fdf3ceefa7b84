"""The objects of a fleet's schema, as PostgreSQL's catalogs describe them. An object that could change rows while they
are sealed, such as a trigger, a rule or a function that a statement would call, is not among those that migrations
make."""

from __future__ import annotations

import re
from typing import Final

from sqlalchemy import Connection, text

from hsmcore.state.schema import BOUND, METADATA, SEAL, WATERMARK
from hsmcore.state.sealed_rows import HOT

TEMPORARY: Final = "pg_temp"
Objects = frozenset[tuple[str, str, str, str]]
"""Kind, name, table and definition of each object."""

_HARMLESS: Final = ("relation", "column", "constraint", "index")
"""Kinds of objects that may exist in a table that is not ours."""
_ACTIVE: Final = ("trigger", "rule", "policy", "function", "operator", "heir")
"""Kinds of objects that the migrations do not make."""
# A temporary table counts as one that stays: there is none in a fleet's schema.
# Names of types are those of pg_catalog only: format_type writes the schema of any other one.
_OBJECTS: Final = text("""
WITH here AS (SELECT to_regnamespace(:schema)::oid AS oid),
ours AS (SELECT c.* FROM pg_class c, here WHERE c.relnamespace = here.oid)
SELECT 'relation', relname::text, relname::text,
       concat_ws(' ', relkind, CASE relpersistence WHEN 't' THEN 'p' ELSE relpersistence END, relrowsecurity,
       relforcerowsecurity, relispartition, relam)
    FROM ours WHERE relkind <> 'i'
UNION ALL SELECT 'column', attname, relname, concat_ws(' ', attnum, format_type(atttypid, atttypmod), attnotnull,
       attidentity, attgenerated, attcollation, pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN ours ON attrelid = ours.oid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped AND relkind NOT IN ('i', 'S')
UNION ALL SELECT 'index', i.relname, t.relname,
       concat_ws(' ', pg_get_indexdef(i.oid), indisvalid, indisready, indislive)
    FROM pg_index JOIN ours t ON indrelid = t.oid JOIN pg_class i ON indexrelid = i.oid
UNION ALL SELECT 'constraint', conname, relname, concat_ws(' ', pg_get_constraintdef(c.oid), convalidated)
    FROM pg_constraint c JOIN ours ON conrelid = ours.oid WHERE contype <> 'n'
UNION ALL SELECT 'trigger', tgname, relname, '' FROM pg_trigger JOIN ours ON tgrelid = ours.oid WHERE NOT tgisinternal
UNION ALL SELECT 'rule', rulename, relname, '' FROM pg_rewrite JOIN ours ON ev_class = ours.oid
UNION ALL SELECT 'policy', polname, relname, '' FROM pg_policy JOIN ours ON polrelid = ours.oid
UNION ALL SELECT 'heir', c.relname, p.relname, '' FROM pg_inherits JOIN pg_class c ON inhrelid = c.oid
    JOIN pg_class p ON inhparent = p.oid, here WHERE here.oid IN (c.relnamespace, p.relnamespace) AND p.relkind <> 'I'
UNION ALL SELECT 'function', proname, '', '' FROM pg_proc, here WHERE pronamespace = here.oid
UNION ALL SELECT 'operator', oprname, '', '' FROM pg_operator, here WHERE oprnamespace = here.oid
""")


# A trigger, a rule, a policy or an heir changes a mark in the table's own row of pg_class.
# The name is looked up once, in a subquery, and not for each row.
_MARKS: Final = text("""
SELECT concat_ws(';',
    (SELECT string_agg(concat_ws(' ', oid, xmin), ',' ORDER BY oid) FROM pg_class
        WHERE relnamespace = (SELECT to_regnamespace(:schema))),
    (SELECT string_agg(concat_ws(' ', d.oid, d.xmin), ',' ORDER BY d.oid) FROM pg_attrdef d JOIN pg_class c
        ON adrelid = c.oid WHERE relnamespace = (SELECT to_regnamespace(:schema))),
    (SELECT string_agg(concat_ws(' ', oid, xmin), ',' ORDER BY oid) FROM pg_proc
        WHERE pronamespace = (SELECT to_regnamespace(:schema))),
    (SELECT string_agg(concat_ws(' ', oid, xmin), ',' ORDER BY oid) FROM pg_operator
        WHERE oprnamespace = (SELECT to_regnamespace(:schema))))
""")


def rare_of(schema: str) -> tuple[str, str]:
    """Return columns for `beginning`, and their join: the row of the seal; the highest positions; and, as one text,
    what else a bind or a renewal relies on and does not write: the columns of those tables that are not HOT, and the
    tables' rows in pg_class. A function or an operator in the schema does not come before PostgreSQL's own; looks find
    it."""
    texts = []
    for name, hot in HOT.items():
        cold = ", ".join(column.name for column in METADATA.tables[name].c if column.name not in hot)
        texts.append(f"(SELECT string_agg(ROW({cold})::text, ';' ORDER BY name) FROM \"{schema}\".{name})")  # noqa: S608
    names = ", ".join(f"'{name}'" for name in (*HOT, BOUND.name))
    texts.append(f"""(SELECT string_agg(concat_ws(' ', oid, xmin), ',' ORDER BY oid) FROM pg_class
        WHERE relname IN ({names}) AND relnamespace = (SELECT to_regnamespace('"{schema}"')))""")  # noqa: S608
    seal = ", ".join(f"seal.{column.name}" for column in SEAL.c if not column.primary_key)
    filled = ", ".join(f"coalesce({one}, '')" for one in texts)
    highs = f'(SELECT json_object_agg(name, high)::text FROM "{schema}".{WATERMARK.name})'  # noqa: S608
    return f"{seal}, {highs}, concat_ws(E'\\n', {filled})", f"LEFT JOIN \"{schema}\".seal ON seal.name = 'store'"


def marks_of(connection: Connection, schema: str) -> str:
    """Return what changes with each change of a schema's objects, for a tenth of the time that `objects_of` takes."""
    return str(connection.execute(_MARKS, {"schema": schema}).scalar_one())


def objects_of(connection: Connection, schema: str) -> Objects:
    """Return the objects of a schema, or of this session's temporary one (TEMPORARY)."""
    rows = connection.execute(_OBJECTS, {"schema": schema})
    here = re.compile(rf"\b({re.escape(schema)}|{TEMPORARY})\.")
    return frozenset((kind, name, table, here.sub("", more)) for kind, name, table, more in rows)


def foreign_of(found: Objects, made: Objects | None) -> str:
    """Return an object that is missing, or that could change rows on its own, or "". `made`: what the migrations make;
    None: that is not known, and what acts on its own is looked for."""
    if made is None:
        return next((f"{kind} {name}" for kind, name, _, _ in found if kind in _ACTIVE), "")
    ours = {table for _, _, table, _ in made}
    for kind, name, table, _ in sorted(found - made):
        if kind not in _HARMLESS or table in ours:
            return f"{kind} {name}"
    missing = next(iter(sorted(made - found)), None)
    return "" if missing is None else f"the lack of {missing[0]} {missing[1]}"
