-- The rows that dasync keeps in SQLite: one table per record of core/model.py, columns in the same order.
-- The file is marked as ours by application_id ("dasy"), its layout by user_version: both sit at fixed places
-- of the file's header, so that a store can be recognised without opening (and thereby touching) it.
-- Times are milliseconds since the epoch. No trigger, no constraint beyond the keys: the law is in
-- core/machine.py, a second copy of it here could only disagree.

PRAGMA application_id = 1684108153;
PRAGMA user_version = 1;

-- A promise. Keys are places in the call tree, so an execution's children lie side by side (order-42:0,
-- order-42:0.1, ...) and are read as one range; without a rowid there is one tree to write, not two.
CREATE TABLE promises (
    id          TEXT PRIMARY KEY,
    function    TEXT NOT NULL,      -- what computes it; '': somebody outside settles it
    version     INTEGER NOT NULL,
    param       BLOB NOT NULL,      -- encoded arguments
    target      TEXT,               -- 'group' or 'group/process'; NULL: runs within its creator's execution
    creator     TEXT,               -- the task under whose fence it was made; NULL: a root
    timer       INTEGER NOT NULL,
    timeout_at  INTEGER,
    tags        TEXT NOT NULL,      -- JSON object of strings, or ''
    created_at  INTEGER NOT NULL,
    born_after  INTEGER NOT NULL,   -- the turn that its creator's execution had taken last; 0: none
    state       TEXT NOT NULL,
    settled_at  INTEGER,
    value       BLOB,               -- encoded result or error
    turn        INTEGER,            -- the commit that settled it: its creator's execution goes by their order
    checksum    INTEGER NOT NULL    -- CRC-32 of the row: SQLite does not notice bit rot
) WITHOUT ROWID;
CREATE INDEX promises_due ON promises (timeout_at) WHERE state = 'pending' AND timeout_at IS NOT NULL;

-- The claim on a targeted promise, same id.
CREATE TABLE tasks (
    id               TEXT PRIMARY KEY,
    target           TEXT NOT NULL,
    function         TEXT NOT NULL,
    function_version INTEGER NOT NULL,
    seed             BLOB NOT NULL,
    created_at       INTEGER NOT NULL,
    state            TEXT NOT NULL,
    version          INTEGER NOT NULL,   -- the fencing token
    process          TEXT,               -- the holder, while acquired
    python           TEXT NOT NULL,
    resumed          INTEGER NOT NULL,
    reason           TEXT NOT NULL,      -- why it is halted; '' in any other state
    crashes          INTEGER NOT NULL,   -- processes in a row that have ended while they ran it
    crashed_at       INTEGER NOT NULL,   -- the latest turn below it when the last of them did
    checksum         INTEGER NOT NULL    -- CRC-32 of the row
) WITHOUT ROWID;
-- By function: an acquire takes the oldest of each in turn, however many of another one are older.
CREATE INDEX tasks_pending ON tasks (target, function, function_version, created_at, id) WHERE state = 'pending';
CREATE INDEX tasks_held ON tasks (process, version) WHERE process IS NOT NULL;

-- An execution waits for a promise.
CREATE TABLE callbacks (
    awaited TEXT NOT NULL,
    awaiter TEXT NOT NULL,
    PRIMARY KEY (awaited, awaiter)
) WITHOUT ROWID;

-- A process waits for a promise. A fired row is news that the process has not acknowledged yet.
CREATE TABLE listeners (
    promise TEXT NOT NULL,
    process TEXT NOT NULL,
    fired   INTEGER NOT NULL,
    PRIMARY KEY (promise, process)
) WITHOUT ROWID;
CREATE INDEX listeners_of ON listeners (process, fired, promise);

-- The live processes and their leases.
CREATE TABLE processes (
    id         TEXT PRIMARY KEY,         -- one incarnation
    name       TEXT NOT NULL,            -- what a target 'group/name' addresses
    "group"    TEXT NOT NULL,
    host       TEXT NOT NULL,
    address    TEXT NOT NULL,            -- of its doorbell; '': it has none
    lease_ms   INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL          -- by its own clock: compared with what was seen of it, and with no clock
) WITHOUT ROWID;
