"""The node's tables. One script per version, only ever added to."""

NODE = [
    """
    CREATE TABLE members(
        fingerprint TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, public TEXT NOT NULL,
        confirmed_by TEXT NOT NULL, confirmed_at TEXT NOT NULL);
    CREATE TABLE analyses(
        id TEXT PRIMARY KEY, project TEXT NOT NULL, title TEXT NOT NULL, digest TEXT NOT NULL, manifest BLOB NOT NULL,
        signature TEXT, seen TEXT NOT NULL);
    CREATE TABLE approvals(
        id INTEGER PRIMARY KEY, subject TEXT NOT NULL, about TEXT NOT NULL, digest TEXT NOT NULL, decision TEXT NOT NULL,
        document BLOB NOT NULL, signature BLOB NOT NULL, comment TEXT NOT NULL, expires TEXT NOT NULL,
        unsigned_confirmed INTEGER NOT NULL DEFAULT 0, ended TEXT, sent INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX approvals_about ON approvals(subject, about);
    CREATE TABLE run_numbers(manifest TEXT NOT NULL, number INTEGER NOT NULL, run TEXT NOT NULL, PRIMARY KEY(manifest, number));
    CREATE TABLE runs(
        id TEXT PRIMARY KEY, analysis TEXT NOT NULL, manifest BLOB NOT NULL, start_order BLOB NOT NULL, state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '', code TEXT NOT NULL DEFAULT '', progress INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL, ended REAL, reported TEXT NOT NULL DEFAULT '', snapshot TEXT NOT NULL DEFAULT '');
    CREATE TABLE announcements(run TEXT NOT NULL, node TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY(run, node));
    CREATE TABLE outbox(
        run TEXT NOT NULL, key TEXT NOT NULL, msg_id BLOB NOT NULL, digest BLOB NOT NULL, large INTEGER NOT NULL,
        sealed BLOB NOT NULL, PRIMARY KEY(run, key));
    CREATE TABLE sent_counters(run TEXT NOT NULL, recipient TEXT NOT NULL, next_n INTEGER NOT NULL, PRIMARY KEY(run, recipient));
    CREATE TABLE inbox(
        id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, sender TEXT NOT NULL, msg_id BLOB NOT NULL, n INTEGER NOT NULL,
        core BLOB NOT NULL, type TEXT NOT NULL, round INTEGER NOT NULL, large INTEGER NOT NULL, body BLOB NOT NULL,
        UNIQUE(run, sender, n));
    CREATE TABLE releases(
        run TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, round INTEGER NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY(run, key));
    CREATE TABLE results(
        run TEXT NOT NULL, ordinal INTEGER NOT NULL, name TEXT NOT NULL, bytes INTEGER NOT NULL, digest BLOB NOT NULL,
        state TEXT NOT NULL, decided_by TEXT NOT NULL DEFAULT '', PRIMARY KEY(run, ordinal));
    CREATE TABLE events(id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, signature TEXT NOT NULL, receipt TEXT);
    CREATE TABLE clock(id INTEGER PRIMARY KEY CHECK (id = 1), last REAL NOT NULL);
    CREATE TABLE starts(id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL);
    """,
    # whether all that belongs to a run's end was done: a node that dies in the middle of it does it after its restart
    "ALTER TABLE runs ADD COLUMN closed INTEGER NOT NULL DEFAULT 0;",
    # tree heads of the hub's log that were found to continue all earlier ones
    "CREATE TABLE heads(size INTEGER NOT NULL, root BLOB NOT NULL, shown_by TEXT NOT NULL, seen TEXT NOT NULL, PRIMARY KEY(size, root));",
    # members: first keys behind fingerprints, signed statements about keys, other nodes' confirmations; projects as
    # they were shown, and what a steward narrowed
    """
    CREATE TABLE known_keys(fingerprint TEXT PRIMARY KEY, public TEXT NOT NULL);
    INSERT INTO known_keys SELECT fingerprint, public FROM members WHERE public != '';
    CREATE TABLE key_statements(
        member TEXT NOT NULL, document TEXT NOT NULL, signature TEXT NOT NULL, PRIMARY KEY(member, document, signature));
    CREATE TABLE endorsements(
        fingerprint TEXT NOT NULL, event TEXT NOT NULL, signature TEXT NOT NULL, PRIMARY KEY(fingerprint, event, signature));
    CREATE TABLE projects(id TEXT PRIMARY KEY, digest TEXT NOT NULL, document BLOB NOT NULL, seen TEXT NOT NULL, ended TEXT);
    """,
    # the size of the log in which a receipt's entry was shown to be
    "ALTER TABLE events ADD COLUMN included INTEGER NOT NULL DEFAULT 0;",
    # what programs written for FLAME keep at this node for their project
    """
    CREATE TABLE local_objects(
        handle TEXT PRIMARY KEY, project TEXT NOT NULL, analysis TEXT NOT NULL, run TEXT NOT NULL, ordinal INTEGER NOT NULL,
        name TEXT NOT NULL, tag TEXT NOT NULL, sealed BLOB NOT NULL, saved REAL NOT NULL);
    """,
    # where the order of a run stands in the hub's log, once that was proven here
    "ALTER TABLE runs ADD COLUMN start_leaf INTEGER;",
]

RUN_KEYS = [
    "CREATE TABLE run_keys(run TEXT PRIMARY KEY, sealed BLOB NOT NULL);",
]
