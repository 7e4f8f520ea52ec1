-- Attempts at a review: what one of them found out is never taken for the next one's.

-- raised whenever somebody begins it, and named by every later write of that attempt
alter table review add column attempt bigint not null default 0;
-- that it was begun is told once each time it is asked for
alter table review add column started boolean not null default false;
-- a command or a worktree of an attempt may still be there
alter table review add column uncleared boolean not null default false;
-- merges in a row that git could not carry out, and what the review says of that
alter table review add column merge_failures integer not null default 0;
alter table review add column merge_error text;

update review set started = status <> 'queued', uncleared = cardinality(command) > 0;
