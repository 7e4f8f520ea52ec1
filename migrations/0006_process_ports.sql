-- A process listens on more ports than the one that commands reach it at, and none of them is ever
-- shown as a preview, by whichever process of the machine.
alter table process add column ports integer[] not null default '{}';
