"""Answers questions in SQL about tables with DuckDB, and compares the answers with those of files.

usage: compare.py PLAN

PLAN is a JSON file: {"sql": {QUERY: SQL}, "cases": [{"tables": DIR, "answers": [[QUERY, FILE], ...]}, ...]}. The tables of
a case are CSV files in DIR. An answer is a CSV file of rows, with a last column diff if rows are taken back, too. Rows are
compared as multisets, column by column in the types that SQL has given them; names and order of columns must be equal.

Prints a JSON array with an object for each answer: its file, the rows that DuckDB has, and what is wrong, if anything.
"""

import json
import os
import sys

import duckdb

TABLES = {
    "person": {"seq": "BIGINT", "id": "BIGINT", "name": "VARCHAR", "email_address": "VARCHAR", "credit_card": "VARCHAR",
               "city": "VARCHAR", "state": "VARCHAR", "date_time": "TIMESTAMP", "extra": "VARCHAR"},
    "auction": {"seq": "BIGINT", "id": "BIGINT", "item_name": "VARCHAR", "description": "VARCHAR",
                "initial_bid": "BIGINT", "reserve": "BIGINT", "date_time": "TIMESTAMP", "expires": "TIMESTAMP",
                "seller": "BIGINT", "category": "BIGINT", "extra": "VARCHAR"},
    "bid": {"seq": "BIGINT", "auction": "BIGINT", "bidder": "BIGINT", "price": "BIGINT", "channel": "VARCHAR",
            "url": "VARCHAR", "date_time": "TIMESTAMP", "extra": "VARCHAR"},
    "side_input": {"key": "BIGINT", "value": "VARCHAR"},
}


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def read_csv(path, columns):
    listed = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in columns)
    return f"read_csv({quoted(path)}, header = true, delim = ',', quote = '\"', escape = '\"', columns = {{{listed}}})"


def header_of(path):
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\n").split(",")


def compare(db, path):
    """Compares the table `expected` with a file; returns what is wrong, None if nothing is."""
    columns = [(name, kind) for name, kind, *_ in db.execute("DESCRIBE expected").fetchall()]
    names, header = [name for name, _ in columns], header_of(path)
    if header not in (names, names + ["diff"]):
        return f"columns {header}, not {names}"
    changes = header != names
    kinds = columns + ([("diff", "BIGINT")] if changes else [])
    db.execute(f"CREATE OR REPLACE TEMP TABLE answer AS SELECT * FROM {read_csv(path, kinds)}")
    listed = ", ".join(f'"{name}"' for name in names)
    times = "CAST(SUM(diff) AS BIGINT)" if changes else "COUNT(*)"
    db.execute(f"CREATE OR REPLACE TEMP TABLE net AS SELECT {listed}, {times} AS times FROM answer "
               f"GROUP BY {listed} HAVING times <> 0")
    told = []
    for what, one, other in (("missing", "counted", "net"), ("not expected", "net", "counted")):
        rest = f"FROM {one} EXCEPT FROM {other}"
        (count,) = db.execute(f"SELECT COUNT(*) FROM ({rest})").fetchone()
        if count:
            told.append(f"{count} rows are {what}, such as {db.execute(f'{rest} LIMIT 2').fetchall()}")
    return "; ".join(told) or None


def main(path):
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    told = []
    for case in plan["cases"]:
        db = duckdb.connect()
        db.execute("SET TimeZone = 'UTC'")
        for name, columns in TABLES.items():
            table = read_csv(os.path.join(case["tables"], f"{name}.csv"), columns.items())
            db.execute(f"CREATE TABLE {name} AS SELECT * FROM {table}")
        for query in sorted({query for query, _ in case["answers"]}):
            db.execute(f"CREATE OR REPLACE TABLE expected AS {plan['sql'][query]}")
            names = ", ".join(f'"{name}"' for name, *_ in db.execute("DESCRIBE expected").fetchall())
            db.execute(f"CREATE OR REPLACE TABLE counted AS SELECT {names}, COUNT(*) AS times FROM expected GROUP BY {names}")
            (rows,) = db.execute("SELECT COUNT(*) FROM expected").fetchone()
            for file in [file for name, file in case["answers"] if name == query]:
                told.append({"query": query, "file": file, "rows": rows, "wrong": compare(db, file)})
        db.close()
    print(json.dumps(told))


main(sys.argv[1])
