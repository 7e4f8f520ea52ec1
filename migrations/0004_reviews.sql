-- Reviews: what somebody else says of a branch that was checked in, and what becomes of it then.

-- One review. Its id is its job's too; the job goes when its time is up, the review stays with its project.
create table review (
    id              text        primary key,
    project_id      text        not null references project on delete cascade,
    checkout_id     uuid        not null,
    session_id      uuid,
    -- the key that checked in
    created_by      uuid        not null,
    branch          text        not null,
    -- the branch that it is to go into
    base            text        not null,
    -- what is reviewed, and merged, whatever the branch becomes
    head_sha        text        not null,
    feature_slug    text,
    status          text        not null check (status in ('queued', 'running', 'passed', 'failed', 'error')),
    auto_merge      boolean     not null,
    merge           text        not null default 'none' check (merge in ('none', 'merged', 'blocked', 'conflict')),
    -- what the base is about to be moved to: written down first, so that whoever goes on knows it again
    merge_candidate text,
    merge_sha       text,
    -- the reviewer: a model, or a command
    model           text        not null default '',
    command         text[]      not null default '{}',
    -- the command as it runs or ran
    command_id      text,
    summary         text,
    created_at      timestamptz not null,
    -- set when there is nothing left to do, the merge included
    completed_at    timestamptz,
    constraint review_has_a_reviewer check (model <> '' or cardinality(command) > 0)
);
create index review_of_project on review (project_id, id);

alter table session add column review_task_id text;
