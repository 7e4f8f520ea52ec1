-- The image of a place on a cluster that is made for the project; none where the place is found.
alter table project add column image text;
