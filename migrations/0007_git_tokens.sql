-- Tokens of checkouts that a git host of its own keeps, and repositories there.

-- The token, sealed: there for as long as it may be alive. With the embedded host a hash stands for it.
alter table checkout add column token_sealed bytea;
-- Attempts to revoke it that have failed; from six on nobody tries again but the sweeper.
alter table checkout add column token_failures smallint not null default 0;
create index checkout_token_irrevocable on checkout (id) where token_failures >= 6;

-- Set when the making of its repository begins, on a host where none of that name was: only such a one
-- is removed again. What there is already was made here.
alter table project add column made_repository boolean not null default true;
alter table project alter column made_repository set default false;
