"""Owns the ledger's tables: numbered migrations, each applied whole or not at all, and the live columns.

A migration is frozen once released: it is plain SQL, so that later changes of the live tables below cannot
reach back into it. `{auto_id}` and the triggers are the only places where SQLite and PostgreSQL differ.
"""

from collections.abc import Sequence

from sqlalchemy import Column, Connection, Float, Integer, MetaData, Table, Text, text

from interlock.core.errors import LedgerError, SchemaTooNew

Migration = Sequence[str]

_APPEND_ONLY = {
    "sqlite": (
        """CREATE TRIGGER events_no_update BEFORE UPDATE ON events
           BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END""",
        """CREATE TRIGGER events_no_delete BEFORE DELETE ON events
           BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END""",
    ),
}

_V1: Migration = (
    "CREATE TABLE models (name TEXT PRIMARY KEY, settings TEXT NOT NULL, live_release BIGINT)",
    """CREATE TABLE versions (
        model TEXT NOT NULL REFERENCES models (name),
        number TEXT NOT NULL,
        record TEXT NOT NULL,
        created_s DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (model, number))""",
    """CREATE TABLE releases (
        id {auto_id},
        model TEXT NOT NULL,
        number TEXT NOT NULL,
        strategy TEXT NOT NULL,
        state TEXT NOT NULL
            CHECK (state IN ('requested', 'preparing', 'switching', 'done', 'failed', 'superseded')),
        reason TEXT NOT NULL,
        previous_number TEXT,
        epoch BIGINT NOT NULL,
        requested_s DOUBLE PRECISION NOT NULL,
        changed_s DOUBLE PRECISION NOT NULL,
        finished_s DOUBLE PRECISION,
        FOREIGN KEY (model, number) REFERENCES versions (model, number))""",
    """CREATE UNIQUE INDEX releases_one_open ON releases (model)
        WHERE state IN ('requested', 'preparing', 'switching')""",
    """CREATE TABLE events (
        seq {auto_id},
        time_s DOUBLE PRECISION NOT NULL,
        model TEXT,
        kind TEXT NOT NULL,
        body TEXT NOT NULL)""",
    "CREATE INDEX events_by_model ON events (model, seq)",
    "{append_only}",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)

# The states are checked in rows.py, which also says which follow which: a new one needs no new table.
_V2: Migration = (
    """CREATE TABLE releases_2 (
        id {auto_id},
        model TEXT NOT NULL,
        number TEXT NOT NULL,
        strategy TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL,
        previous_number TEXT,
        epoch BIGINT NOT NULL,
        requested_s DOUBLE PRECISION NOT NULL,
        changed_s DOUBLE PRECISION NOT NULL,
        finished_s DOUBLE PRECISION,
        policy TEXT,
        weight DOUBLE PRECISION NOT NULL,
        resumed_epoch BIGINT NOT NULL,
        resumed_s DOUBLE PRECISION,
        FOREIGN KEY (model, number) REFERENCES versions (model, number))""",
    """INSERT INTO releases_2
        SELECT id, model, number, strategy, state, reason, previous_number, epoch,
               requested_s, changed_s, finished_s, NULL, 0, 0, NULL
        FROM releases""",
    "DROP TABLE releases",
    "ALTER TABLE releases_2 RENAME TO releases",
    "CREATE UNIQUE INDEX releases_one_open ON releases (model) WHERE finished_s IS NULL",
    """CREATE TABLE epochs (
        release BIGINT NOT NULL,
        number BIGINT NOT NULL,
        weight DOUBLE PRECISION NOT NULL,
        cuts TEXT NOT NULL,
        started_s DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (release, number))""",
)

# What is recorded of a version beside itself; versions of an older Interlock have none.
_V3: Migration = ("ALTER TABLE versions ADD COLUMN provenance TEXT",)

MIGRATIONS: tuple[Migration, ...] = (_V1, _V2, _V3)

metadata = MetaData()
models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("settings", Text),
    Column("live_release", Integer),
)
versions = Table(
    "versions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("number", Text, primary_key=True),
    Column("record", Text),
    Column("created_s", Float),
    Column("provenance", Text),
)
releases = Table(
    "releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", Text),
    Column("number", Text),
    Column("strategy", Text),
    Column("state", Text),
    Column("reason", Text),
    Column("previous_number", Text),
    Column("epoch", Integer),
    Column("requested_s", Float),
    Column("changed_s", Float),
    Column("finished_s", Float),
    Column("policy", Text),
    Column("weight", Float),
    Column("resumed_epoch", Integer),
    Column("resumed_s", Float),
)
epochs = Table(
    "epochs",
    metadata,
    Column("release", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("weight", Float),
    Column("cuts", Text),
    Column("started_s", Float),
)
events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("time_s", Float),
    Column("model", Text),
    Column("kind", Text),
    Column("body", Text),
)
meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text))


def current(connection: Connection) -> int:
    """The schema's number in the database; 0 for an empty one."""
    if connection.dialect.name == "sqlite":
        found = connection.execute(
            text("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'")
        )
    else:
        found = connection.execute(
            text("SELECT count(*) FROM information_schema.tables WHERE table_name = 'schema_version'")
        )
    if not found.scalar_one():
        return 0
    return int(connection.execute(text("SELECT version FROM schema_version")).scalar_one())


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the database to the newest schema, inside the caller's transaction; returns where it stood.

    Raises: SchemaTooNew when a newer Interlock wrote it.
    """
    stood = current(connection)
    if stood > len(migrations):
        raise SchemaTooNew(
            f"the ledger has schema {stood}, this Interlock knows up to {len(migrations)}: "
            "upgrade Interlock, or point --home at another folder"
        )
    if stood == len(migrations):
        return stood
    for migration in migrations[stood:]:
        for statement in migration:
            for ddl in _in_dialect(statement, connection.dialect.name):
                connection.exec_driver_sql(ddl)
    if stood == 0:
        connection.exec_driver_sql("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        connection.execute(text("INSERT INTO schema_version VALUES (:v)"), {"v": len(migrations)})
    else:
        connection.execute(text("UPDATE schema_version SET version = :v"), {"v": len(migrations)})
    return stood


def _in_dialect(statement: str, dialect: str) -> tuple[str, ...]:
    if statement == "{append_only}":
        try:
            return _APPEND_ONLY[dialect]
        except KeyError:
            raise LedgerError(f"the ledger cannot be kept in {dialect!r}; want sqlite") from None
    return (statement.replace("{auto_id}", "INTEGER PRIMARY KEY AUTOINCREMENT"),)
