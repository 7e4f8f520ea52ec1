-- Processes, the tasks they own, and what people see: keys, projects, checkouts,
-- sessions, commands and the logs of what they did.

-- One row per start of a program. Ownership of a task is the lease of such a row;
-- an id never returns, so a process that was thought dead cannot come back as owner.
create table process (
    id         uuid primary key,
    host       text        not null,
    version    text        not null,
    -- the URL at which commands on this machine reach it
    address    text        not null default '',
    slots      integer     not null default 0,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    expires_at timestamptz not null
);

-- A fence only grows: whoever holds an older one can no longer write.
create sequence fence;

-- The hot, narrow row of the durable core. What a task means stands elsewhere,
-- under (kind, subject). `owner` and `fence` are in no index, so a claim is a HOT update.
create table task (
    id      uuid        primary key,
    kind    text        not null,
    subject text        not null,
    run_at  timestamptz not null default now(),
    owner   uuid,
    fence   bigint      not null default 0,
    attempt integer     not null default 0,
    deaths  integer     not null default 0,
    constraint task_once unique (kind, subject)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index task_due on task (run_at);

-- A task whose owners died ten times in a row is put aside with its reason.
create table task_parked (
    id        uuid        primary key,
    kind      text        not null,
    subject   text        not null,
    reason    text        not null,
    parked_at timestamptz not null default now()
);

create table setting (
    name  text primary key,
    value bytea not null
);

create table api_key (
    id                  uuid        primary key,
    name                text        not null,
    prefix              text        not null,
    secret_hash         bytea       not null,
    previous_hash       bytea,
    previous_expires_at timestamptz,
    scopes              text[]      not null,
    project_ids         text[],
    allowed_cidrs       text[],
    rate_limit          bigint,
    created_at          timestamptz not null,
    expires_at          timestamptz,
    last_used_at        timestamptz,
    revoked_at          timestamptz,
    constraint api_key_secret unique (secret_hash)
);

-- Grows with every change of a key; a process compares it to know whether its copy is current.
create table key_epoch (
    only_row boolean primary key default true check (only_row),
    epoch    bigint not null default 0
);
insert into key_epoch default values;

create table project (
    seq                bigint      generated always as identity unique,
    id                 text        primary key,
    name               text        not null,
    description        text        not null,
    status             text        not null check (status in ('running', 'pending', 'failed', 'not_found')),
    pod_name           text        not null default '',
    workspace          text        not null default '',
    default_branch     text        not null default '',
    labels             jsonb       not null default '{}',
    allow_scripts      boolean     not null default true,
    protected_branches text[]      not null default '{}',
    preview_port       integer,
    review_command     text[],
    agent_command      text[],
    source             text        not null default 'api' check (source in ('api', 'discovered')),
    -- the URL of this server that the workspace was configured with
    address            text        not null default '',
    -- SHA-256 of the credential with which the workspace reads
    read_token_hash    bytea,
    created_at         timestamptz not null,
    updated_at         timestamptz not null
);

-- A numbered log. `last_n` counts its events without gaps. Only who holds the newest
-- fence may append to a command's log; the other kinds have many writers.
create table stream (
    key        bigint  generated always as identity primary key,
    project_id text    not null references project on delete cascade,
    kind       text    not null check (kind in ('command', 'session', 'project')),
    name       text    not null,
    parent     bigint,
    last_n     bigint  not null default 0,
    out_bytes  bigint  not null default 0,
    err_bytes  bigint  not null default 0,
    trimmed_to bigint  not null default 0,
    fence      bigint  not null default 0,
    ended      boolean not null default false,
    constraint stream_name unique (project_id, kind, name)
) with (fillfactor = 50);

-- Events `from_n..=to_n` of a log, in the encoding of `streams/record.rs`; or, in a session's
-- log, a reference to as many events of a command's log, whose first is `ref_from`.
create table chunk (
    stream     bigint      not null references stream on delete cascade,
    to_n       bigint      not null,
    from_n     bigint      not null,
    out_end    bigint      not null default 0,
    err_end    bigint      not null default 0,
    data       bytea,
    ref        bigint,
    ref_from   bigint,
    created_at timestamptz not null default now(),
    primary key (stream, to_n)
);
-- Output is text: lz4 halves what is written. A server built without it stores as is.
do $$ begin
    alter table chunk alter column data set compression lz4;
exception when others then
    alter table chunk alter column data set storage external;
end $$;

create table checkout (
    id             uuid        primary key,
    project_id     text        not null references project on delete cascade,
    session_id     uuid,
    branch         text        not null,
    made_branch    boolean     not null,
    start_sha      text        not null,
    head_sha       text,
    feature_slug   text,
    token_hash     bytea       constraint checkout_token unique,
    checked_out_by uuid        not null,
    checked_out_at timestamptz not null,
    expires_at     timestamptz not null,
    ended_at       timestamptz,
    -- `pending` is a checkout in the making; nobody but its maker sees it
    status         text        not null check (status in ('pending', 'active', 'checked_in', 'expired', 'revoked')),
    review_task_id text
);
create unique index checkout_branch_taken on checkout (project_id, branch) where status in ('pending', 'active');
create index checkout_expiry on checkout (expires_at) where status = 'active';

create table session (
    id               uuid        primary key,
    project_id       text        not null references project on delete cascade,
    checkout_id      uuid        not null,
    branch           text        not null,
    pod_name         text        not null,
    workspace        text        not null,
    preview_url      text        not null,
    preview_port     integer     not null,
    status           text        not null check (status in
        ('provisioning', 'active', 'ending', 'ended', 'expired', 'terminated', 'failed', 'lost')),
    created_by       uuid        not null,
    created_at       timestamptz not null,
    expires_at       timestamptz not null,
    ended_at         timestamptz,
    idle_ms          bigint,
    last_activity_at timestamptz not null,
    end_reason       text,
    -- minutes before the end of which a warning was given, the least of them
    warned           integer     not null default 2147483647,
    -- how it is to end, from the moment that its end was asked for
    end_plan         jsonb,
    rescue           jsonb
);
create unique index session_alive on session (project_id) where status in ('provisioning', 'active', 'ending');
create unique index session_port on session (preview_port) where status in ('provisioning', 'active', 'ending');

create table command (
    seq           bigint      generated always as identity unique,
    project_id    text        not null references project on delete cascade,
    command_id    text        not null,
    session_id    uuid,
    stream        bigint      not null,
    kind          text        not null check (kind in ('shell', 'git', 'claude')),
    args          text[]      not null,
    cwd           text,
    status        text        not null check (status in ('running', 'exited', 'lost')),
    exit_code     integer,
    termination   text,
    signal        text,
    started_at    timestamptz not null,
    ended_at      timestamptz,
    created_by    uuid        not null,
    body_hash     bytea       not null,
    -- all that is needed to start it, kept until it has ended
    launch        jsonb,
    -- why it is to end, once that was asked for
    cancel        text,
    constraint command_once primary key (project_id, command_id)
);
create index command_running on command (project_id, session_id) where status = 'running';
create index command_of_session on command (session_id, seq) where session_id is not null;
create index command_of_project on command (project_id, seq);
create index command_stream on command (stream);
create index command_ended on command (ended_at);

-- The first answer to a request that carried an Idempotency-Key; `answer` is empty while it runs.
create table idempotency (
    key_id     uuid        not null,
    digest     bytea       not null,
    body_hash  bytea       not null,
    process    uuid        not null,
    created_at timestamptz not null default now(),
    status     integer,
    answer     bytea,
    primary key (key_id, digest)
);
create index idempotency_age on idempotency (created_at);
