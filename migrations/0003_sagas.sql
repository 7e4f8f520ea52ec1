-- Sagas: graphs of steps with compensations. What never changes of one is one row of its own, and a step
-- has a row from when it is first touched, so that what is written for a step does not depend on how many
-- there are. `version` is raised by every write: whoever drives a saga writes under the one that it knows.

alter table stream drop constraint stream_kind_check;
alter table stream add constraint stream_kind_check check (kind in ('command', 'session', 'project', 'job', 'saga'));

create table saga (
    id                 uuid        primary key,
    version            bigint      not null default 0,
    created_at         timestamptz not null,
    updated_at         timestamptz not null,
    completed_at       timestamptz,
    -- asked to stop; what is under way then is given up
    stop_by            timestamptz,
    deadline           timestamptz,
    -- it waits in nobody's memory until then, by the clock that users see
    wake_at            timestamptz,
    created_by         uuid        not null,
    -- the saga that started this one
    parent             uuid,
    stream             bigint      not null,
    retry_count        integer     not null default 0,
    max_retries        integer     not null,
    -- lines of its log
    log_n              integer     not null default 0,
    definition_version integer,
    depth              smallint    not null default 0,
    -- among those of one concurrency key: 0 is at rest or has no key, 1 is at work, 2 waits for its turn
    turn               smallint    not null default 0,
    halting            boolean     not null default false,
    status             text        not null check (status in ('pending', 'running', 'waiting', 'completed', 'failed',
                                   'compensating', 'compensated', 'stuck', 'cancelled')),
    on_failure         text        not null check (on_failure in ('stop', 'compensate')),
    name               text        not null,
    project_id         text,
    definition         text,
    concurrency_key    text,
    current_step       text,
    error              text
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02);
create index saga_name on saga (name, id);
create index saga_project on saga (project_id, id) where project_id is not null;
create index saga_unfinished on saga (status, id) where status not in ('completed', 'compensated', 'cancelled');
create unique index saga_turn on saga (coalesce(project_id, ''), concurrency_key) where turn = 1;
create index saga_waits on saga (coalesce(project_id, ''), concurrency_key, id) where turn = 2;
create index saga_wakes on saga (wake_at) where wake_at is not null;
create index saga_parent on saga (parent) where parent is not null;

-- The steps as they were given, and the values of variables.
create table saga_plan (
    saga_id    uuid  primary key,
    timeout_ms bigint,
    steps      text  not null,
    vars       text  not null
);
alter table saga_plan alter column steps set compression lz4;

create table saga_step (
    saga_id       uuid        not null,
    -- its position, from 0
    n             integer     not null,
    generation    integer     not null,
    attempt       integer     not null,
    failures      integer     not null,
    cut_offs      integer     not null,
    retry_count   integer     not null,
    undo_attempts integer,
    undo_failures integer,
    undo_cut_offs integer,
    doubtful      boolean     not null,
    due_at        timestamptz,
    started_at    timestamptz,
    attempt_at    timestamptz,
    completed_at  timestamptz,
    undo_due_at   timestamptz,
    undo_at       timestamptz,
    status        text        not null,
    undo_status   text,
    error         text,
    undo_error    text,
    note          text,
    output        text,
    primary key (saga_id, n)
) with (fillfactor = 70);

-- Every attempt and every control call, as it ended.
create table saga_log (
    saga_id    uuid        not null,
    n          integer     not null,
    step       integer,
    attempt    integer,
    started_at timestamptz not null,
    ended_at   timestamptz,
    by         uuid,
    outcome    text        not null,
    error      text,
    primary key (saga_id, n)
);

create table saga_definition (
    name        text        not null,
    version     integer     not null,
    created_at  timestamptz not null,
    created_by  uuid        not null,
    description text,
    steps       text        not null,
    primary key (name, version)
);
