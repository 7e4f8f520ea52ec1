-- Objects of a cluster that belong to nobody any more: since when that is known, and which are gone.

-- One that is an orphan now. The row goes when the object does, or when it belongs to somebody again.
create table gc_orphan (
    uid            text        primary key,
    api_version    text        not null,
    kind           text        not null,
    name           text        not null,
    project_id     text        not null,
    session_id     text,
    -- by the clock that users see
    first_seen_at  timestamptz not null,
    -- a process is about to remove it, and has done so or given up by then, by the database's clock: until
    -- then no project of this id is made
    removing_until timestamptz
);
create index gc_orphan_project on gc_orphan (project_id);

create table gc_removed (
    n          bigint      generated always as identity primary key,
    uid        text        not null,
    api_version text       not null,
    kind       text        not null,
    name       text        not null,
    project_id text        not null,
    session_id text,
    at         timestamptz not null
);
create index gc_removed_at on gc_removed (at);
